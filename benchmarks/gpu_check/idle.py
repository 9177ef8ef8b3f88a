"""The first call after a second of idleness, with and without a thread that keeps the GPU awake."""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import Any

import numpy as np

from benchmarks.gpu_check.mixture import make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import choose_engines
from benchmarks.gpu_check.turns import wall

IDLE_S = 1.0
KEEP_ALIVE_S = 0.01
_SPARE_S = 5.0
"""For closing."""


def run(work: Work) -> dict[str, Any]:
    mixture = make_mixture()
    routers = choose_engines(work, mixture, compiled=False)
    batch = mixture.images[:1]
    found: dict[str, Any] = {
        "engines": routers.engines,
        "idle_s": IDLE_S,
        "keep_alive_every_s": KEEP_ALIVE_S,
        "note": "so few calls give no 99.9th percentile; the largest is reported",
    }
    with routers.open() as router:
        half = max(IDLE_S, (work.left - _SPARE_S) / 2)
        call = wall(lambda: router.predict(batch))
        found["busy"] = _summary([call() for _ in range(200)][100:])
        found["after idleness"] = _summary(_after_idleness(call, half))
        work.keep(found)
        stop = threading.Event()

        def keep_awake() -> None:
            while not stop.wait(KEEP_ALIVE_S):
                router.predict(batch)

        thread = threading.Thread(target=keep_awake)
        thread.start()
        try:
            found["after idleness, with keep-alive"] = _summary(_after_idleness(call, half))
        finally:
            stop.set()
            thread.join()
    return found


def _after_idleness(call: Any, seconds: float) -> list[float]:
    times = []
    end = monotonic() + seconds
    while monotonic() < end:
        sleep(IDLE_S)
        times.append(call())
    return times


def _summary(times: list[float]) -> dict[str, float]:
    return {"calls": len(times), "p50_ms": float(np.median(times)), "max_ms": max(times)}
