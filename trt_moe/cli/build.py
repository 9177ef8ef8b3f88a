"""Verbs of TensorRT engines: build, cache."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import FAILED, app
from trt_moe.errors import EngineBuildError, InputError

if TYPE_CHECKING:
    from trt_moe.compile.cache import EngineCache

cache = typer.Typer(
    no_args_is_help=True, help="Look after what is kept compiled: engines by `build`, and models for the CPU."
)
app.add_typer(cache, name="cache")


class Device(str, Enum):
    """What engines are built for; models for the CPU are compiled when they are loaded."""

    cuda = "cuda"


class Precision(str, Enum):
    """What engines compute in."""

    fp16 = "fp16"
    fp32 = "fp32"
    int8 = "int8"


class Gate(str, Enum):
    """What happens to a model that loses too much accuracy in fp16."""

    fallback = "fallback"
    fail = "fail"


class Flavour(str, Enum):
    """The TensorRT to build with."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt_rtx"


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped bundle.")],
    device: Annotated[Device, typer.Option("--device", "-d", help="What to build for.")] = Device.cuda,
    buckets: Annotated[str, typer.Option("--buckets", help="Batch sizes to build for.")] = "1,2,4,8,16,32",
    precision: Annotated[Precision, typer.Option("--precision", "-p", help="Of the experts.")] = Precision.fp16,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            help="GPUs to build for with TensorRT-RTX, such as 8.6 or 8.6,8.9; default: its own.",
        ),
    ] = None,
    gate: Annotated[
        Gate, typer.Option(help="Where fp16 is not accurate enough: keep the layers that cause it in fp32, or fail.")
    ] = Gate.fallback,
    flavour: Annotated[Flavour, typer.Option(help="TensorRT to build with; auto: the one installed.")] = Flavour.auto,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines that later TensorRTs run; they embed host code.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engines that every GPU from Ampere on runs.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", help="Model whose engine may embed code that runs on the CPU.", metavar="MODEL"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Build the TensorRT engines of a bundle.

    Checks their accuracy, and keeps them in the user's cache; what lies there is not built again.
    """
    del device  # one choice, which leaves room for others
    from trt_moe.bundle import Bundle
    from trt_moe.compile.build import BuildOptions, build_bundle
    from trt_moe.compile.cache import EngineCache
    from trt_moe.compile.flavour import find_flavour
    from trt_moe.compile.tables import build_progress, print_build
    from trt_moe.console import note, print_json
    from trt_moe.hardware import has_cuda_driver

    sizes = options.counts(buckets, "--buckets")
    if not sizes:
        raise InputError("--buckets is none; expected batch sizes such as 1,2,4")
    chosen = BuildOptions(
        buckets=sizes,
        precision=precision.value,
        compute_capabilities=[part.strip() for part in compute_capability.split(",")] if compute_capability else (),
        gate=gate.value,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        trusted=trust or (),
    )
    loaded = Bundle.load(bundle)
    found = find_flavour(None if flavour is Flavour.auto else flavour.value)
    engines = EngineCache.of_user(note)
    with build_progress(not as_json) as progress:
        report = build_bundle(loaded, found, engines, chosen, progress)
    checked = None
    # An earlier call may have ended before it judged what it built.
    if any(each.built for each in report.engines) or (report.unjudged() and has_cuda_driver()):
        from trt_moe.cuda.check import check_engines

        try:
            checked = check_engines(report)
        except EngineBuildError:
            with suppress(InputError):  # of a folder that may only be read
                for engine in report.unjudged():
                    engines.remove(engine.path)
            raise
        report = report.judged(engines, checked.reports)
    if as_json:
        print_json({**report.to_json(), "engine_check": checked and checked.to_json()})
        return
    print_build(report)
    if checked is not None:
        note(str(checked))


@cache.command(name="list")
def list_cache(as_json: options.Json = False) -> None:
    """Show what the cache holds, without reading the engines."""
    _show(_open(), check=False, as_json=as_json)


@cache.command()
def verify(as_json: options.Json = False) -> None:
    """Read every engine and compare it with its sidecar; exit code 1 where one is damaged."""
    if _show(_open(), check=True, as_json=as_json):
        raise typer.Exit(FAILED)


@cache.command()
def clear(as_json: options.Json = False) -> None:
    """Delete all engines, and the models that OpenVINO compiled; engines that are being built now stay."""
    from trt_moe.blob_cache import trim
    from trt_moe.compile.tables import cache_json
    from trt_moe.console import note, print_json

    opened = _open()
    entries = opened.entries()
    kept = opened.clear()
    freed = sum(entry.bytes for entry in entries) - sum(entry.bytes for entry in kept)
    blobs = trim(limit=0)
    freed_blobs = sum(blob.bytes for blob in blobs)
    if as_json:
        print_json(
            {
                "folder": opened.folder,
                "deleted": len(entries) - len(kept),
                "bytes": freed,
                "kept": cache_json(kept),
                "cpu": {"deleted": len(blobs), "bytes": freed_blobs},
            }
        )
        return
    for entry in kept:
        note(f"{entry.path.name} stays: another process is building it")
    typer.echo(f"{len(entries) - len(kept)} engines deleted, {freed / (1 << 20):.1f} MiB freed in {opened.folder}")
    typer.echo(f"{len(blobs)} models for the CPU deleted, {freed_blobs / (1 << 20):.1f} MiB freed")


def _open() -> EngineCache:
    from trt_moe.compile.cache import EngineCache
    from trt_moe.console import note

    return EngineCache.of_user(note)


def _show(opened: EngineCache, check: bool, as_json: bool) -> bool:
    """Print what is kept; returns whether an engine has a problem."""
    from trt_moe.blob_cache import LIMIT, blobs
    from trt_moe.compile.tables import cache_json, print_blobs, print_cache
    from trt_moe.console import print_json

    entries, compiled = opened.entries(check), blobs()
    if as_json:
        cpu = {"files": len(compiled), "bytes": sum(blob.bytes for blob in compiled), "limit_bytes": LIMIT}
        print_json({"folder": opened.folder, "limit_bytes": opened.limit, "engines": cache_json(entries), "cpu": cpu})
    else:
        print_cache(opened.folder, entries, opened.limit, check)
        print_blobs(compiled)
    return any(entry.problem for entry in entries)
