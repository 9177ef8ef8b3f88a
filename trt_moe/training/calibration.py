"""Temperatures: how much too sure, or not sure enough, each expert is. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trt_moe.softmax import log_softmax
from trt_moe.training.config import ExpertConfig
from trt_moe.training.logits import Judged

_TEMPERATURES = np.geomspace(0.25, 4.0, 97)


def temperature(
    logits: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None
) -> float:
    """The divisor of logits [N, classes] under which the labels [N], counted by weights [N], are likeliest.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """

    def loss(divisor: float) -> float:
        scores = log_softmax(logits / np.float32(divisor))
        return -float(np.average(scores[np.arange(len(labels)), labels], weights=weights))

    # Convex in 1 / divisor: halving finds what trying all of them would.
    low, high = 0, len(_TEMPERATURES) - 1
    while low < high:
        middle = (low + high) // 2
        if loss(_TEMPERATURES[middle]) <= loss(_TEMPERATURES[middle + 1]):
            high = middle
        else:
            low = middle + 1
    return float(_TEMPERATURES[low])


def temperatures(experts: Sequence[ExpertConfig], judged: Judged) -> dict[str, float]:
    """Every expert's temperature by its name, on images like those that it was trained on.

    They must be images that no expert has seen: on others each is surer than it is right.
    """
    fitted = {}
    for k, expert in enumerate(experts):
        weights = np.asarray(expert.severities, np.float64)[judged.images.severities]
        known = weights if weights.any() else None
        fitted[expert.name] = temperature(judged.logits[:, k], judged.images.labels, known)
    return fitted
