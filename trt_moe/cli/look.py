"""Verbs that only look: inspect, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import FAILED, app


@app.command(name="inspect")
def inspect_bundle(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped bundle.")],
    as_json: options.Json = False,
) -> None:
    """Check a bundle and show what is in it."""
    from trt_moe.bundle import Bundle
    from trt_moe.console import print_json
    from trt_moe.inspect import describe, print_bundle

    loaded = Bundle.load(bundle)
    if loaded.manifest.golden is not None:
        loaded.golden()
    if as_json:
        print_json(describe(loaded))
    else:
        print_bundle(loaded)


@app.command()
def doctor(as_json: options.Json = False) -> None:
    """Show what is installed and what is missing.

    Backends, CPU, GPU, driver, TensorRT, JetPack, packages, and the command that adds what is missing.
    """
    from trt_moe.console import print_json
    from trt_moe.doctor import diagnose, print_report

    report = diagnose()
    if as_json:
        print_json(report)
    else:
        print_report(report)
    if not report["ok"]:
        raise typer.Exit(FAILED)
