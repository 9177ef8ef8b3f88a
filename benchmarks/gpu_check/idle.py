"""The first call after a second of idleness, with and without a thread that keeps the GPU awake."""

from __future__ import annotations

from contextlib import nullcontext
from time import sleep
from typing import Any

import numpy as np

from benchmarks.gpu_check.keep_awake import gpu_kept_awake
from benchmarks.gpu_check.mixture import make_mixture
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import choose_engines
from benchmarks.gpu_check.turns import wall

IDLE_S = 1.0
KEEP_ALIVE_S = 0.01
_BLOCK = 5
"""Calls in a row, before those with and those without keep-alive change places: so the GPU's drift is in both."""
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
        "note": "a call takes a second: there are too few for a 99.9th percentile, and the largest is reported",
    }
    with routers.open() as router:
        call = wall(lambda: router.predict(batch))
        found["busy"] = _summary([call() for _ in range(200)][100:])
        work.keep(found)
        times: dict[str, list[float]] = {"after idleness": [], "after idleness, with keep-alive": []}
        # Whole blocks of both, one of each at least: each counts as many calls as the other.
        while not times["after idleness"] or work.left > _SPARE_S + len(times) * _BLOCK * IDLE_S:
            for label, company in zip(times, (nullcontext(), gpu_kept_awake(KEEP_ALIVE_S)), strict=True):
                with company:
                    for _ in range(_BLOCK):
                        sleep(IDLE_S)
                        times[label].append(call())
                        found[label] = _summary(times[label])
                        work.keep(found)
    return found


def _summary(times: list[float]) -> dict[str, float]:
    return {"calls": len(times), "p50_ms": float(np.median(times)), "max_ms": max(times)}
