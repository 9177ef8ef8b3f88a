"""Numbers made of predictions and latencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.percentiles import percentiles

ECE_BINS = 15


def expected_calibration_error(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Mean |accuracy - confidence| over 15 equal bins of confidence, weighted by their images."""
    bins = np.minimum((confidence.astype(np.float64) * ECE_BINS).astype(int), ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    gap = np.abs(
        np.bincount(bins, weights=right, minlength=ECE_BINS) - np.bincount(bins, weights=confidence, minlength=ECE_BINS)
    )
    return float(gap[count > 0].sum() / len(confidence))


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Truth, answer and the number of images, of all pairs that occur: few of many classes' do."""
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    return [
        {"truth": class_names[truth], "answer": class_names[answer], "images": count}
        for (truth, answer), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]


def latency_summary(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean, p50, p90, p99 in milliseconds and the number of measured images."""
    return {**percentiles(values), "measured": len(values)}
