"""Latencies in a few numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_QUANTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0}
_TAIL = {"p99_9_ms": 99.9}


def percentiles(milliseconds: NDArray[np.float64], tail: bool = False) -> dict[str, float]:
    """Mean, p50, p90 and p99 under the names that every report has for them; tail: p99.9 as well."""
    quantiles = {**_QUANTILES, **_TAIL} if tail else _QUANTILES
    values = np.percentile(milliseconds, list(quantiles.values()))
    return {
        "mean_ms": float(milliseconds.mean()),
        **{name: float(value) for name, value in zip(quantiles, values, strict=True)},
    }
