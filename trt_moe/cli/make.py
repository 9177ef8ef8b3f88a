"""Verbs that make bundles: train, export, pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_moe.cli import options
from trt_moe.cli.app import app
from trt_moe.errors import InputError

if TYPE_CHECKING:
    from trt_moe.export.wrap import Preprocessing

_Out = Annotated[Path | None, typer.Option("--out", help="The bundle's folder; default: engines/NAME.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace the folder where it is the bundle of another run.")]
_SCENES_TRAIN, _SCENES_TEST = 200, 50  # What configs/scenes.yaml is made for.


@app.command()
def train(
    config: options.Config,
    data: options.Data = None,
    out: _Out = None,
    checkpoints: options.Checkpoints = None,
    skip_broken: options.SkipBroken = False,
    force: _Force = False,
    as_json: options.Json = False,
) -> None:
    """Train experts and a gater and write a bundle.

    Goes on where a stopped run of the same configuration was. On many GPUs:
    torchrun --nproc-per-node 4 -m trt_moe train CONFIG
    """
    from trt_moe.console import note, print_json, progress
    from trt_moe.training_run import run_training

    with progress(not as_json) as callback:
        result = run_training(config, data, out, checkpoints, False, skip_broken, force, callback, note)
    _print_result(result, as_json, print_json)


@app.command()
def export(
    config: options.Config,
    data: options.Data = None,
    out: _Out = None,
    checkpoints: options.Checkpoints = None,
    skip_broken: options.SkipBroken = False,
    force: _Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the bundle of a finished training run."""
    from trt_moe.console import note, print_json, progress
    from trt_moe.training_run import run_training

    with progress(not as_json) as callback:
        result = run_training(config, data, out, checkpoints, True, skip_broken, force, callback, note)
    _print_result(result, as_json, print_json)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to make.", metavar="OUT")],
    train: Annotated[int, typer.Option(min=1, help="Training images of each of the six classes.")] = _SCENES_TRAIN,
    test: Annotated[int, typer.Option(min=1, help="Test images of each class.")] = _SCENES_TEST,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other scenes.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Draw a data set of outdoor scenes, to try training without data.

    Six classes in the layout of Intel Image Classification, as 150 x 150 JPEG files.
    """
    from trt_moe.console import print_json, progress
    from trt_moe.data.scenes import CLASSES, write_scenes

    with progress(not as_json) as callback:
        write_scenes(out, train, test, seed, callback)
    if as_json:
        print_json({"folder": str(out.absolute()), "classes": list(CLASSES), "train": train, "test": test})
        return
    typer.echo(f"scenes written to {out}; in the checkout, try `trt-moe train configs/scenes.yaml --data {out}`")
    if train < _SCENES_TRAIN or test < _SCENES_TEST:
        typer.echo(
            f"That recipe is made for --train {_SCENES_TRAIN} --test {_SCENES_TEST} or more; for fewer images lower "
            "its splits, sample_images and golden_images"
        )


@app.command()
def pack(
    out: Annotated[Path, typer.Argument(help="The bundle's folder to write.", metavar="OUT")],
    gater: Annotated[str, typer.Option("--gater", help="ONNX file that scores the experts in the order given here.")],
    expert: Annotated[list[str], typer.Option("--expert", help="NAME=FILE.onnx; give it twice or more.")],
    classes: Annotated[str, typer.Option("--classes", help="cat,dog,... or a text file with one class a line.")],
    input_shape: Annotated[str, typer.Option("--input", help="Images of the router: HEIGHTxWIDTHxCHANNELS.")],
    baseline: Annotated[list[str] | None, typer.Option("--baseline", help="NAME=FILE.onnx to compare with.")] = None,
    scale: Annotated[str, typer.Option(help="Factor on bytes, before mean and std.")] = "1/255",
    mean: Annotated[str, typer.Option(help="Subtracted after the scale; one value, or one a channel.")] = "0",
    std: Annotated[str, typer.Option(help="Divided by at the end; one value, or one a channel.")] = "1",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="MODEL.KEY=VALUE for one model: scale, mean, std, size (96x96), layout (nchw, nhwc), bgr.",
        ),
    ] = None,
    samples: Annotated[Path | None, typer.Option(help="Folder of test images to ship with the bundle.")] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="At most so many of them.")] = 600,
    skip_broken: options.SkipBroken = False,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; default: the folder's.")] = None,
    latency_weight: Annotated[float, typer.Option("--latency-weight", "-w", min=0.0, help="Default of routers.")] = 0.0,
    verify_below: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Default of routers: less sure than this, a second look.")
    ] = 0.0,
    verify_by: Annotated[
        options.VerifyBy, typer.Option(help="Default of routers: the dearest expert's look, or one in the mirror.")
    ] = options.VerifyBy.dearest,
    iterations: Annotated[int, typer.Option(min=20, help="Timed runs of each model.")] = 400,
    threads: options.Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it is a bundle.")] = False,
    as_json: options.Json = False,
) -> None:
    """Make a bundle of ONNX models that exist.

    Checks inputs and outputs, puts the preprocessing into the graphs, measures the costs.
    """
    from trt_moe.console import milliseconds, note, print_json, print_table, progress
    from trt_moe.export.pack import Source
    from trt_moe.export.pack import pack as pack_bundle

    models = [options.named_file(gater, "gater")]
    models += [options.named_file(text) for text in (*expert, *(baseline or ()))]
    changes = options.overrides(settings or (), [known for known, _ in models])
    common = {"scale": scale, "mean": mean, "std": std}
    sources = [Source(known, file, _preprocessing({**common, **changes[known]})) for known, file in models]
    height, width, channels = options.sizes(input_shape, "--input", 3)
    with progress(not as_json) as callback:
        packed = pack_bundle(
            out,
            gater=sources[0],
            experts=sources[1 : 1 + len(expert)],
            baselines=sources[1 + len(expert) :],
            class_names=options.class_names(classes),
            input_shape=(height, width, channels),
            name=name,
            latency_weight=latency_weight,
            verify_below=verify_below,
            verify_by=verify_by.value,
            samples=samples,
            max_samples=max_samples,
            skip_broken=skip_broken,
            iterations=iterations,
            threads=threads,
            overwrite=force,
            progress=callback,
        )
    for left_out in packed.left_out:
        note(f"left out: {left_out}")
    bundle = packed.bundle
    if as_json:
        costs = {entry.name: entry.relative_cost for entry in [*bundle.models(), *bundle.baselines]}
        print_json({"bundle": bundle.path, "mean_ms": packed.mean_ms, "relative_cost": costs, "notes": packed.notes})
        return
    rows = [
        (
            entry.name,
            milliseconds(packed.mean_ms[entry.name]),
            f"{entry.relative_cost:.3f}",
            "; ".join(packed.notes[entry.name]) or "-",
        )
        for entry in [*bundle.models(), *bundle.baselines]
    ]
    print_table(f"packed {bundle.path}", ["model", "mean ms", "relative cost", "notes"], rows)


def _preprocessing(values: dict[str, str]) -> Preprocessing:
    from trt_moe.export.wrap import Preprocessing

    known: dict[str, Any] = {}
    for key, value in values.items():
        if key == "scale":
            known[key] = _one_number(value, key)
        elif key in ("mean", "std"):
            known[key] = options.numbers(value, key)
        elif key == "size":
            known[key] = options.sizes(value, key, 2)
        elif key == "layout" and value in ("auto", "nchw", "nhwc"):
            known[key] = value
        elif key == "bgr" and value.lower() in ("true", "false", "1", "0"):
            known[key] = value.lower() in ("true", "1")
        else:
            raise InputError(
                f"setting {key}={value!r}; expected scale, mean, std, size, layout (auto, nchw, nhwc) "
                "or bgr (true, false)"
            )
    return Preprocessing(**known)


def _one_number(text: str, what: str) -> float:
    found = options.numbers(text, what)
    if len(found) != 1:
        raise InputError(f"{what} is {text!r}; expected one number such as 1/255 (mean and std may have one a channel)")
    return found[0]


def _print_result(result: dict[str, Any] | None, as_json: bool, print_json: Any) -> None:
    if result is None:
        return
    if as_json:
        from trt_moe.bundle import Bundle

        manifest = Bundle.load(result["bundle"]).manifest
        costs = {entry.name: entry.relative_cost for entry in manifest.all_models()}
        evaluation = manifest.evaluation and manifest.evaluation.model_dump()
        print_json({**result, "relative_cost": costs, "evaluation": evaluation})
    else:
        typer.echo(f"bundle written to {result['bundle']}; try `trt-moe inspect {result['bundle']}`")
