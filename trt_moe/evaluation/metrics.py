"""Numbers made of predictions and latencies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15


def expected_calibration_error(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Mean |accuracy - confidence| over 15 equal bins of confidence, weighted by their images."""
    bins = np.minimum((confidence.astype(np.float64) * ECE_BINS).astype(int), ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    gap = np.abs(
        np.bincount(bins, weights=right, minlength=ECE_BINS) - np.bincount(bins, weights=confidence, minlength=ECE_BINS)
    )
    return float(gap[count > 0].sum() / len(confidence))


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Int64 [classes, classes]: rows are the truth, columns the answers."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def latency_summary(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean, p50, p90, p99 in milliseconds and the number of measured images."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "mean_ms": float(values.mean()),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "measured": len(values),
    }
