"""Contenders that take turns, in a new order each round."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from benchmarks.tables import percentiles

Timed = Callable[[], float]
"""Does its work once and returns the milliseconds that it took."""

WARMUP = 20


def wall(call: Callable[[], Any]) -> Timed:
    """A call by the wall clock."""

    def timed() -> float:
        start = perf_counter()
        call()
        return (perf_counter() - start) * 1e3

    return timed


def take_turns(contenders: dict[str, Timed], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Percentiles of each contender, after a warm-up; of fewer rounds where the time is up before."""
    order = np.random.default_rng(0)
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = monotonic() + seconds
    for turn in range(WARMUP + rounds):
        for name in order.permutation(names):
            times[name].append(contenders[name]())
        if turn > 2 * WARMUP and monotonic() > end:
            break
    return {name: percentiles(values[WARMUP:]) | {"rounds": len(values) - WARMUP} for name, values in times.items()}
