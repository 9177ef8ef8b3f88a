"""The first call after a second of idleness, with and without a thread that keeps the GPU awake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from time import monotonic, sleep
from typing import Any

import numpy as np

from benchmarks.gpu_check.keep_awake import gpu_kept_awake
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
        call = wall(lambda: router.predict(batch))
        found["busy"] = _summary([call() for _ in range(200)][100:])
        work.keep(found)
        half = (work.left - _SPARE_S) / 2
        for label, company in (
            ("after idleness", nullcontext()),
            ("after idleness, with keep-alive", gpu_kept_awake(KEEP_ALIVE_S)),
        ):
            with company:
                for times in _after_idleness(call, half):
                    found[label] = _summary(times)
                    work.keep(found)
    return found


def _after_idleness(call: Callable[[], float], seconds: float) -> Iterator[list[float]]:
    """Call as often as there is time for, once at least; gives the times so far after each call."""
    times: list[float] = []
    end = monotonic() + seconds
    while not times or monotonic() < end:
        sleep(IDLE_S)
        times.append(call())
        yield times


def _summary(times: list[float]) -> dict[str, float]:
    return {"calls": len(times), "p50_ms": float(np.median(times)), "max_ms": max(times)}
