"""Verbs that route images: demo, predict, eval, profile."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import FAILED, app

if TYPE_CHECKING:
    from trt_moe.bundle import Bundle
    from trt_moe.router import Router


class Split(str, Enum):
    """Part of a data set."""

    test = "test"
    train = "train"


class Kind(str, Enum):
    """Which corruption to apply."""

    both = "both"
    blur = "blur"
    noise = "noise"


@app.command()
def demo(
    bundle: Annotated[
        str, typer.Argument(help="A bundle with samples: its folder, or the name of a shipped bundle.")
    ] = options.DEMO_BUNDLE,
    picture: Annotated[Path, typer.Option("--picture", help=options.PICTURE_HELP)] = Path("trt-moe-demo.png"),
    latency_weight: options.LatencyWeight = None,
    verify_below: options.VerifyBelow = None,
    verify_by: options.VerifyByOption = None,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Route shipped test images and draw a picture.

    Prints shares, accuracy and latency at every severity, and the frontier of the latency weight.
    """
    from trt_moe.console import clean, print_json, progress
    from trt_moe.demo import print_demo, run_demo
    from trt_moe.evaluation.picture import draw
    from trt_moe.output import check_picture, written_after

    check_picture(picture)
    with progress(not as_json) as callback:
        result = run_demo(
            bundle,
            device=device.value,
            precision=precision.value,
            threads=threads,
            latency_weight=latency_weight,
            verify_below=verify_below,
            verify_by=verify_by.value if verify_by else None,
            progress=callback,
        )
    with written_after((picture, lambda file: draw(result.report, file))):
        if as_json:
            print_json({**result.data, "picture": str(picture.absolute())})
        else:
            print_demo(result)
    if not as_json:
        typer.echo(f"Picture: {clean(picture.absolute())}")


@app.command()
def predict(
    paths: Annotated[
        list[Path],
        # What cannot be read is an answer, not wrong usage.
        typer.Argument(help="Image files, or folders of them.", metavar="PATHS", readable=False),
    ],
    bundle: options.Bundle = options.DEMO_BUNDLE,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many classes to show.")] = 1,
    latency_weight: options.LatencyWeight = None,
    verify_below: options.VerifyBelow = None,
    verify_by: options.VerifyByOption = None,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Classify image files.

    Unreadable files are named, the others are answered, and the exit code is 1.
    """
    from trt_moe.console import note, print_json, progress
    from trt_moe.prediction import Predictions, predict_files, print_predictions

    predictions = Predictions()
    with open_router(bundle, device, precision, threads, latency_weight, verify_below, verify_by) as router:
        try:
            with progress(not as_json) as callback:
                predict_files(router, paths, top, callback, predictions)
        finally:
            # An interrupt or an error ends the work, what was answered before it counts all the same.
            for remark in predictions.remarks:
                note(f"trt-moe: {remark}")
            if as_json and predictions:
                print_json(predictions.to_json(router))
            elif predictions:
                print_predictions(predictions, router)
    if predictions.failures:
        raise typer.Exit(FAILED)


@app.command(name="eval")
def evaluate_bundle(
    data: Annotated[
        Path,
        typer.Argument(help="Folder of a data set: <class>/<image>, idx files, or <severity>/<class>/<image>."),
    ],
    bundle: options.Bundle = options.DEMO_BUNDLE,
    split: Annotated[Split, typer.Option(help="Part of the data set.")] = Split.test,
    severities: Annotated[str, typer.Option(help="Such as 0-5 or 0,3,5.")] = "0-5",
    kind: Annotated[Kind, typer.Option(help="Corruption to apply.")] = Kind.both,
    images: Annotated[int | None, typer.Option(min=1, help="At most so many of each severity.")] = None,
    latency_images: Annotated[
        str, typer.Option(help="Single images timed at each severity, or all.", metavar="N|all")
    ] = "200",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    skip_broken: options.SkipBroken = False,
    latency_weight: options.LatencyWeight = None,
    verify_below: options.VerifyBelow = None,
    verify_by: options.VerifyByOption = None,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also print the confusion matrix.")] = False,
    picture: Annotated[Path | None, typer.Option(help=options.PICTURE_HELP)] = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy and latency on a test set.

    Compares the mixture with each expert, the baselines, random experts, an image cue, a confidence cascade,
    gate-then-verify and an oracle.
    """
    from trt_moe.bundle import Bundle
    from trt_moe.console import note, print_json, progress
    from trt_moe.evaluation import evaluate, load_test_images, make_test_sets
    from trt_moe.evaluation.picture import draw
    from trt_moe.evaluation.tables import print_confusion, print_report
    from trt_moe.output import check_output, check_picture, write_json, written_after

    chosen = options.severities(severities)
    timed = options.latency_images(latency_images)
    check_output(output)
    check_picture(picture)
    loaded = Bundle.load(bundle)
    dataset = load_test_images(data, loaded, split.value, skip_broken, note)
    sets = make_test_sets(dataset, loaded, chosen, kind.value, images, seed)
    with (
        open_router(loaded, device, precision, threads, latency_weight, verify_below, verify_by) as router,
        progress(not as_json) as callback,
    ):
        report = evaluate(router, sets, dataset.name, timed, callback)
    with written_after(
        (output, lambda file: write_json(file, report.data)), (picture, lambda file: draw(report, file))
    ):
        if as_json:
            print_json(report.data)
            return
        print_report(report.data)
        if confusion:
            print_confusion(report.data)


@app.command()
def profile(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped bundle.")],
    iterations: Annotated[int, typer.Option("--iterations", "-n", min=1, help="Single images to time.")] = 1000,
    clients: Annotated[str, typer.Option(help="Numbers of client threads; none to skip.")] = "1,2,4,8,16",
    rates: Annotated[str, typer.Option(help="Single images a second, sent at random times; none to skip.")] = "none",
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", help="In which each of those images is due; default: none.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Of load for each number of clients and rate.")] = 3,
    latency_weight: options.LatencyWeight = None,
    verify_below: options.VerifyBelow = None,
    verify_by: options.VerifyByOption = None,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Measure latency and throughput of a bundle.

    Every model and the mixture one image at a time, then the mixture under load, and where its time goes.
    """
    from trt_moe.arguments import call_times
    from trt_moe.bundle import Bundle
    from trt_moe.console import print_json, progress
    from trt_moe.errors import InputError
    from trt_moe.output import check_output, write_json, written_after
    from trt_moe.profiling.measure import profile as profile_router
    from trt_moe.profiling.measure import profile_images
    from trt_moe.profiling.tables import print_profile

    counts = options.counts(clients, "--clients")
    offered = options.counts(rates, "--rates", 100_000, "500,1000")
    if call_times(deadline_ms, "--deadline-ms") is not None and not offered:
        raise InputError("--deadline-ms is for the images that --rates sends; add --rates 500,1000")
    check_output(output)
    loaded = Bundle.load(bundle)
    images, what = profile_images(loaded)
    with (
        open_router(loaded, device, precision, threads, latency_weight, verify_below, verify_by) as router,
        progress(not as_json) as callback,
    ):
        result = profile_router(
            router, images, iterations, counts, seconds, callback, rates=offered, deadline_ms=deadline_ms
        )
    with written_after((output, lambda file: write_json(file, result))):
        if as_json:
            print_json(result)
        else:
            print_profile(result, what)


def open_router(
    bundle: Bundle | str,
    device: options.Device,
    precision: options.Precision,
    threads: int | None,
    latency_weight: float | None,
    verify_below: float | None = None,
    verify_by: options.VerifyBy | None = None,
) -> Router:
    """Open a bundle as the common options say."""
    from trt_moe.router import Router

    return Router(
        bundle,
        device=device.value,
        precision=precision.value,
        threads=threads,
        latency_weight=latency_weight,
        verify_below=verify_below,
        verify_by=verify_by.value if verify_by else None,
    )
