"""The router's rule in numpy, for training and evaluation: who answers, who is unsure, and what a second look costs.

The core has it in C++; `route` rounds as that does, so that both agree where scores all but tie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import VerifyBy


def route(scores: NDArray[np.floating], costs: NDArray[np.floating], latency_weight: float) -> NDArray[np.int64]:
    """Int64 [N]: argmax_k(score_k - latency_weight * cost_k) of scores [N, K], ties to the lower index."""
    weighted = np.float32(latency_weight) * costs.astype(np.float32)
    return np.asarray((scores.astype(np.float32) - weighted).argmax(axis=1), np.int64)


def unsure(routes: NDArray[np.int64], confidence: NDArray[np.floating], verify_below: float) -> NDArray[np.bool_]:
    """Bool [N]: which images are seen twice, since the routed expert's confidence, of [N, K], is below.

    What the last expert says always stands.
    """
    dearest = confidence.shape[1] - 1
    passed_on: NDArray[np.bool_] = (confidence[np.arange(len(routes)), routes] < verify_below) & (routes != dearest)
    return passed_on


def second_costs(costs: NDArray[np.floating], by: VerifyBy) -> NDArray[np.floating]:
    """What a second look costs after each expert's, float [K]: as much again by mirror, or what the last one costs."""
    return costs if by == "mirror" else np.full(len(costs), costs[-1])


def asked_last(
    routes: NDArray[np.int64], passed_on: NDArray[np.bool_], experts: int, by: VerifyBy
) -> NDArray[np.int64]:
    """Int64 [N], who looks last at each image: the last of `experts` where it is passed on, unless by mirror."""
    return routes if by == "mirror" else np.where(passed_on, experts - 1, routes)


def split_points(confidence: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many of the least sure images some threshold passes on, and stops before the next: int64 [M], from 0 on.

    `confidence` [N], ascending. No threshold comes between images that are equally sure.
    """
    return np.concatenate([[0], np.flatnonzero(np.diff(confidence) > 0) + 1])
