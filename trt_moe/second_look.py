"""Gate, then verify: what a second look costs, and who has it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import VerifyBy


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
