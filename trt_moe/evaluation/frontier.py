"""Accuracy against mean latency when the latency weight is swept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.evaluation.answers import Answers
from trt_moe.evaluation.strategies import (
    Cascade,
    Floats,
    cascade_threshold,
    routed,
    shares,
    switch_weights,
)
from trt_moe.routing_rule import route


@dataclass(frozen=True)
class Costs:
    """Measured means in milliseconds: gater, each expert [K], and what the router adds to their sum."""

    gater_ms: float
    expert_ms: Floats
    overhead_ms: float

    def mixture_ms(self, share: Floats) -> float:
        """Mean latency of the mixture at these shares of the experts, float64 [K]."""
        return self.gater_ms + float(share @ self.expert_ms) + self.overhead_ms


@dataclass(frozen=True)
class Point:
    """One latency weight: accuracy, mean latency from the measured parts, share of each expert."""

    latency_weight: float
    accuracy: float
    mean_ms: float
    share: tuple[float, ...]

    def to_json(self, experts: Sequence[str]) -> dict[str, Any]:
        """The point with the shares by expert name."""
        return {
            "latency_weight": self.latency_weight,
            "accuracy": self.accuracy,
            "mean_ms": self.mean_ms,
            "share": dict(zip(experts, self.share, strict=True)),
        }


def frontier(answers: Answers, experts: Sequence[str], relative_costs: Floats, costs: Costs) -> list[Point]:
    """The mixture at ascending latency weights, so from slow to fast."""
    points = []
    right = [answers.right(name) for name in experts]
    for weight in switch_weights(answers.gater_logits, relative_costs):
        chosen = route(answers.gater_logits, relative_costs, float(weight))
        share = shares(chosen, len(experts))
        accuracy = float(np.mean(routed(right, chosen)))
        points.append(Point(float(weight), accuracy, costs.mixture_ms(share), tuple(share.tolist())))
    return points


class _Measured(Protocol):
    @property
    def accuracy(self) -> float: ...
    @property
    def mean_ms(self) -> float: ...


_P = TypeVar("_P", bound=_Measured)


def within_of_dearest(points: Sequence[_P], dearest_accuracy: float, loss: float) -> _P | None:
    """The fastest point whose accuracy is at most `loss` below the dearest expert's, or None."""
    good = [point for point in points if point.accuracy >= dearest_accuracy - loss]
    return min(good, key=lambda point: point.mean_ms) if good else None


def thinned(points: Sequence[_P], most: int = 13) -> list[_P]:
    """At most so many points, evenly spread over the latencies; always the first and the last."""
    if len(points) <= most:
        return list(points)
    latencies = np.array([point.mean_ms for point in points])
    wanted = np.linspace(latencies[0], latencies[-1], most)[1:-1]
    chosen = {0, len(points) - 1, *(int(np.abs(latencies - value).argmin()) for value in wanted)}
    return [points[index] for index in sorted(chosen)]


def cascade_curve(
    answers: Answers, first: str, by: VerifyBy, first_ms: float, dearest_ms: float
) -> list[tuple[float, float]]:
    """(mean ms, accuracy) of the confidence cascade as more and more images are seen twice."""
    curve = []
    for share in np.linspace(0, 1, 41):
        cascade = Cascade(first, by, cascade_threshold(answers.confidence[first], float(share)))
        curve.append((cascade.milliseconds(answers, first_ms, dearest_ms), float(cascade.right(answers).mean())))
    return curve
