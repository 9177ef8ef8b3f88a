"""What `trt-moe profile` measures."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import ProgressCallback
from trt_moe.evaluation.latency import measure
from trt_moe.percentiles import percentiles
from trt_moe.profiling.arrivals import images_at, left_of, send_at_random
from trt_moe.result import ResultRow
from trt_moe.router import Router

DEFAULT_CLIENTS = (1, 2, 4, 8, 16)

_NOISE_IMAGES = 64


def profile(
    router: Router,
    images: NDArray[np.uint8],
    iterations: int = 1000,
    clients: Sequence[int] = DEFAULT_CLIENTS,
    seconds: float = 3.0,
    progress: ProgressCallback = lambda what, done, total: None,
    *,
    rates: Sequence[int] = (),
    deadline_ms: float | None = None,
) -> dict[str, Any]:
    """Time single images through every model and the mixture, then load the router.

    Args:
        router: fresh, so that its stage statistics are of this profile.
        images: uint8 [N, H, W, C], taken in turn.
        iterations: single images for the latencies.
        clients: numbers of threads that call `router.predict` with single images as fast as they can.
        seconds: how long for each of those numbers and each rate.
        progress: called as progress(what, done, total).
        rates: images per second that `router.submit` gets at random times.
        deadline_ms: in which each of those is due.

    Returns:
        Ready for JSON: "latency" by model and "mixture", "stages" of the single images and of those that warmed up,
        "clients", "rates".
    """
    for rate in rates:
        images_at(rate, seconds)  # it is early to say that these are too many
    bundle = router.bundle
    names = [entry.name for entry in [*bundle.models(), *bundle.baselines]]
    rows = np.resize(np.arange(len(images)), iterations)
    timed = measure(router, images[rows], names, progress, "single images")
    stages = router.stats()["stages"]
    load = [_load(router, images, count, seconds, progress) for count in clients]
    offered = [_offer(router, images, rate, deadline_ms, seconds, progress) for rate in rates]
    return {
        "bundle": bundle.name,
        "device": router.device,
        "precision": router.precision,
        "latency_weight": router.latency_weight,
        "verify_below": router.verify_below,
        "verify_by": router.verify_by,
        "iterations": iterations,
        "latency": {name: summary(values) for name, values in timed.milliseconds.items()},
        "share": {name: float((timed.routes == index).mean()) for index, name in enumerate(router.expert_names)},
        "stages": stages,
        "clients": load,
        "deadline_ms": None if deadline_ms is None else float(deadline_ms),
        "rates": offered,
    }


def profile_images(bundle: Bundle) -> tuple[NDArray[np.uint8], str]:
    """The bundle's samples in mixed order, or noise where it ships none; and what they are, for people."""
    rng = np.random.default_rng(0)
    if bundle.manifest.samples is None:
        return rng.integers(0, 256, (_NOISE_IMAGES, *bundle.input_shape), dtype=np.uint8), "noise (no samples shipped)"
    images, _, _ = bundle.samples()
    return images[rng.permutation(len(images))], "shipped samples of all severities"


def summary(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean, quantiles, least and most in milliseconds, and images per second of one caller."""
    return {
        **percentiles(values, tail=True),
        "min_ms": float(values.min()),
        "max_ms": float(values.max()),
        "images_per_s": float(1e3 / values.mean()),
    }


def _load(
    router: Router, images: NDArray[np.uint8], clients: int, seconds: float, progress: ProgressCallback
) -> dict[str, Any]:
    stop = threading.Event()
    ready = threading.Barrier(clients + 1)
    latencies: list[list[float]] = [[] for _ in range(clients)]
    errors: list[BaseException] = []

    def client(number: int) -> None:
        mine, index = latencies[number], number * 7919
        ready.wait()
        try:
            while not stop.is_set():
                image = images[index % len(images)][None]
                index += 1
                begin = time.perf_counter()
                router.predict(image)
                mine.append((time.perf_counter() - begin) * 1e3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    begin = time.perf_counter()
    what = f"{clients} client{'s' if clients > 1 else ''}"
    try:
        while (passed := time.perf_counter() - begin) < seconds and not errors:
            progress(what, int(passed * 10), int(seconds * 10))
            time.sleep(min(0.1, seconds))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    elapsed = time.perf_counter() - begin
    progress(what, 1, 1)
    if errors:
        raise errors[0]
    values = np.concatenate([np.array(row) for row in latencies])
    return {
        "clients": clients,
        "images_per_s": len(values) / elapsed,
        **percentiles(values, tail=True),
        "max_ms": float(values.max()),
    }


def _offer(
    router: Router,
    images: NDArray[np.uint8],
    rate: int,
    deadline_ms: float | None,
    seconds: float,
    progress: ProgressCallback,
) -> dict[str, Any]:
    def submit(index: int, late_ms: float) -> Future[ResultRow]:
        left = None if deadline_ms is None else left_of(deadline_ms, late_ms)
        return router.submit(images[index], deadline_ms=left)

    what = f"{rate:,} images/s for {seconds:g} s"
    progress(what, 0, 1)
    sent = send_at_random(submit, lambda row: row.expert, len(images), rate, seconds, np.random.default_rng(0))
    progress(what, 1, 1)
    count = len(sent.outcomes)
    values = np.array([outcome.latency_ms for outcome in sent.outcomes if outcome.latency_ms is not None])
    experts = np.array([outcome.value for outcome in sent.outcomes if outcome.value is not None])
    row: dict[str, Any] = {
        "rate": int(rate),
        "images": count,
        "refused": 1 - len(values) / count,
        "client_late_p99_ms": float(np.percentile(sent.late_ms, 99)),
    }
    if deadline_ms is not None:
        row["in_time"] = int((values <= deadline_ms).sum()) / count
    if len(values):
        row |= percentiles(values, tail=True) | {"max_ms": float(values.max())}
        row["share"] = {name: float((experts == index).mean()) for index, name in enumerate(router.expert_names)}
    return row


def ordered_latency(data: dict[str, Any]) -> list[str]:
    """The models of a profile with the mixture first."""
    return [MIXTURE, *(name for name in data["latency"] if name != MIXTURE)]
