"""The verb that answers over HTTP: serve."""

from __future__ import annotations

from typing import Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import app
from trt_moe.cli.run import open_router


@app.command()
def serve(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a shipped bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8000,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", help="In which requests are due that do not say; default: none.")
    ] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Most unfinished requests; others are refused.")] = 1024,
    latency_weight: options.LatencyWeight = None,
    verify_below: options.VerifyBelow = None,
    verify_by: options.VerifyByOption = None,
    device: options.DeviceOption = options.Device.auto,
    precision: options.PrecisionOption = options.Precision.auto,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM.

    POST /predict takes an image file, POST /v2/models/BUNDLE/infer the Open Inference Protocol; GET /metrics is for
    Prometheus, GET /v2/health/ready for whoever starts it.
    """
    from trt_moe.arguments import call_times
    from trt_moe.console import note, print_json
    from trt_moe.errors import MissingDependencyError

    call_times(deadline_ms, "--deadline-ms")
    try:
        from trt_moe.serving.app import make_app
        from trt_moe.serving.server import address_of, bound, exit_when_terminated
        from trt_moe.serving.server import serve as serve_app
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"`trt-moe serve` needs {error.name}, which is not installed; in the checkout: pip install '.[serve]'"
        ) from error
    exit_when_terminated()
    with (
        bound(host, port) as listener,
        open_router(bundle, device, precision, threads, latency_weight, verify_below, verify_by) as router,
    ):
        address = address_of(listener)

        def ready() -> None:
            if as_json:
                print_json({"address": address, "bundle": router.bundle.name, "device": router.device})
            note(
                f"{router.bundle.name} on {router.device} ({router.precision}) answers at {address} until Ctrl-C; try: "
                f"curl --data-binary @IMAGE {address}/predict"
            )

        serve_app(make_app(router, deadline_ms=deadline_ms, max_requests=max_requests), listener, ready)
