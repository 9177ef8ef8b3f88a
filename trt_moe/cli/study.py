"""The verb study: what explains the dearest expert's benefit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import app
from trt_moe.cli.run import open_router


@app.command()
def study(
    data: Annotated[
        Path,
        typer.Argument(help="Folder of a data set: <class>/<image>, idx files, or <severity>/<class>/<image>."),
    ],
    bundle: options.Bundle = options.DEMO_BUNDLE,
    images: Annotated[int, typer.Option(min=1, help="At most so many of each severity.")] = 2000,
    icnet: Annotated[
        Path | None, typer.Option(help="Weights of ICNet (IC9600) as safetensors, for complexity scores.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    skip_broken: options.SkipBroken = False,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    picture: Annotated[Path | None, typer.Option(help=options.PICTURE_HELP)] = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Ask what tells that an image needs the dearest expert.

    Image cues and the learned gater against the dearest expert's benefit: R^2 and rank correlation.
    """
    from trt_moe.bundle import Bundle
    from trt_moe.console import note, print_json, progress
    from trt_moe.evaluation import load_test_images, make_test_sets
    from trt_moe.output import check_output, check_picture, write_json, written_after
    from trt_moe.study import study as run_study
    from trt_moe.study.picture import draw
    from trt_moe.study.tables import print_study

    check_output(output)
    check_picture(picture)
    loaded = Bundle.load(bundle)
    dataset = load_test_images(data, loaded, "test", skip_broken, note)
    sets = make_test_sets(dataset, loaded, images=images)
    with (
        open_router(loaded, device, precision, threads, None) as router,
        progress(not as_json) as callback,
    ):
        result = run_study(router, sets, dataset.name, icnet, seed, callback)
    with written_after(
        (output, lambda file: write_json(file, result.data)), (picture, lambda file: draw(result, file))
    ):
        if as_json:
            print_json(result.data)
        else:
            print_study(result.data)
