"""What gaters are worth at several latency weights, from their scores alone. numpy only.

Shapes used throughout: `scores` float [N, K] of a gater, free of costs; `costs` float [K] of the experts,
rising, relative to the dearest. The cost of a mixture includes its gater's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.routing_rule import route
from trt_moe.training.routing import (
    Bools,
    Floats,
    Frontier,
    Ints,
    RoutingTable,
    cascade_frontier,
    collapse_warning,
    random_frontier,
    tabulate,
)

ONE = "one gater"
SEPARATE = "separate gaters"
ORACLE = "oracle"

FRONTIER_POINTS = 25
_BISECTIONS = 50


@dataclass(frozen=True)
class Outcomes:
    """What every expert does with every validation image.

    Attributes:
        experts: names, cheapest first.
        costs: float64 [K].
        gater_cost: in the same unit.
        severities: int64 [N].
        right: bool [N, K].
        second: by whose the second look is, the dearest expert's and, where the bundle verifies so and it is asked for,
            by mirror: bool [N, K], whether the mean of the probabilities of both looks is right.
        losses: float32 [N, K], cross-entropy in nats.
        confidence: float32 [N, K], every expert's largest probability.
        verify_by: whose second looks the bundle has.
    """

    experts: tuple[str, ...]
    costs: Floats
    gater_cost: float
    severities: Ints
    right: Bools
    second: Mapping[VerifyBy, Bools]
    losses: Floats
    confidence: Floats
    verify_by: VerifyBy = "dearest"

    def cascade(self, by: VerifyBy = "dearest") -> Frontier:
        """Confidence cascade from the cheapest expert, to the dearest or by mirror."""
        return cascade_frontier(
            self.confidence[:, 0], self.right[:, 0], self.second[by][:, 0], float(self.costs[0]), by
        )

    def accuracy(self, routes: Ints) -> float:
        """Share of images whose expert is right."""
        return float(self.right[np.arange(len(routes)), routes].mean())


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest value over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(float(np.mean(values)), float(min(values)), float(max(values)))


@dataclass(frozen=True)
class Point:
    """One way to route all images.

    Attributes:
        strategy: `ONE`, `SEPARATE`, `ORACLE` or "always <expert>".
        latency_weight: of the gater; None where there is none.
        seed: of the gater; None where there is none.
        accuracy: over all severities.
        cost: mean over all severities.
        share: float64 [K], of all images.
        table: the same by severity.
        collapse: the warning that names the cause, where nearly all images go to one expert.
    """

    strategy: str
    latency_weight: float | None
    seed: int | None
    accuracy: float
    cost: float
    share: Floats
    table: RoutingTable
    collapse: str | None = None


@dataclass(frozen=True)
class Pair:
    """The one gater beside a gater trained for a latency weight, at the mean cost of the latter.

    With two experts an equal mean cost is an equal share.

    Attributes:
        latency_weight: what the separate gater was trained for.
        seed: of both.
        run_time_weight: which gives the one gater that mean cost; found without a look at labels.
        cost: reached by the one gater; equal to the other's up to tied scores.
        one: accuracy.
        separate: accuracy.
    """

    latency_weight: float
    seed: int
    run_time_weight: float
    cost: float
    one: float
    separate: float


@dataclass(frozen=True)
class FrontierRow:
    """The one gater and simpler strategies at equal mean cost.

    Attributes:
        cost: mean over images and seeds, the gater's included.
        one: accuracy of the one gater over its seeds.
        cascade: accuracy of the confidence cascade.
        random: accuracy of experts drawn without a look at the image.
        ahead: one gater minus cascade over the seeds, each at the cost that its seed really reaches.
    """

    cost: float
    one: Spread
    cascade: float
    random: float
    ahead: Spread


@dataclass(frozen=True)
class WeightRow:
    """Everything about one latency weight, over the seeds.

    Attributes:
        latency_weight: of the one gater at run time, and of the separate ones in training.
        one, one_cost: accuracy and cost of the one gater.
        separate, separate_cost: accuracy and cost of the gaters trained for this weight.
        difference: accuracy of the one gater minus the separate one's, at equal mean cost.
        one_collapsed, separate_collapsed: seeds whose routing collapsed.
    """

    latency_weight: float
    one: Spread
    one_cost: Spread
    separate: Spread
    separate_cost: Spread
    difference: Spread
    one_collapsed: tuple[int, ...]
    separate_collapsed: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """A whole sweep.

    Attributes:
        outcomes: what it was computed from.
        points: every gater at every latency weight, then each expert alone and the oracle.
        pairs: see `Pair`.
        frontier: see `FrontierRow`, by rising cost.
        cascade: the cascade's whole curve, for pictures.
    """

    outcomes: Outcomes
    points: tuple[Point, ...]
    pairs: tuple[Pair, ...]
    frontier: tuple[FrontierRow, ...]
    cascade: Frontier

    def of(self, strategy: str, latency_weight: float | None = None) -> list[Point]:
        """The points of a strategy, at one latency weight where given."""
        found = [point for point in self.points if point.strategy == strategy]
        return [point for point in found if latency_weight in (None, point.latency_weight)]

    @property
    def weights(self) -> list[WeightRow]:
        """One row for each latency weight, rising."""
        return [self._weight(weight) for weight in sorted({pair.latency_weight for pair in self.pairs})]

    def _weight(self, weight: float) -> WeightRow:
        one, separate = self.of(ONE, weight), self.of(SEPARATE, weight)
        return WeightRow(
            weight,
            Spread.of([point.accuracy for point in one]),
            Spread.of([point.cost for point in one]),
            Spread.of([point.accuracy for point in separate]),
            Spread.of([point.cost for point in separate]),
            Spread.of([pair.one - pair.separate for pair in self.pairs if pair.latency_weight == weight]),
            *(tuple(p.seed for p in points if p.collapse and p.seed is not None) for points in (one, separate)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares by expert name."""
        names = self.outcomes.experts
        return {
            "images": len(self.outcomes.severities),
            "relative_cost": {**_by_name(names, self.outcomes.costs), "gater": self.outcomes.gater_cost},
            "weights": [asdict(row) for row in self.weights],
            "equal_cost": [asdict(pair) for pair in self.pairs],
            "frontier": [asdict(row) for row in self.frontier],
            "points": [_point_json(point, names) for point in self.points],
        }


def compare(
    outcomes: Outcomes,
    one: Mapping[int, Floats],
    separate: Mapping[float, Mapping[int, Floats]],
) -> Comparison:
    """Compare one gater at every latency weight with gaters trained for each.

    Args:
        outcomes: what the experts do.
        one: scores by seed.
        separate: scores by the latency weight trained for, then by seed; the seeds of `one`.
    """
    points = [
        _gater_point(outcomes, strategy, scores, weight, seed)
        for weight, gaters in separate.items()
        for strategy, each in ((ONE, one), (SEPARATE, gaters))
        for seed, scores in each.items()
    ]
    count = len(outcomes.severities)
    for index, name in enumerate(outcomes.experts):
        points.append(_point(outcomes, f"always {name}", np.full(count, index), 0.0))
    points.append(_point(outcomes, ORACLE, outcomes.right.argmax(1), 0.0))
    pairs = [
        _pair(outcomes, one[seed], scores, weight, seed)
        for weight, gaters in separate.items()
        for seed, scores in gaters.items()
    ]
    cascade = outcomes.cascade()
    return Comparison(outcomes, tuple(points), tuple(pairs), _frontier(outcomes, list(one.values()), cascade), cascade)


def weight_at_cost(scores: Floats, costs: Floats, cost: float) -> float:
    """Return a latency weight whose routes have the mean cost of experts nearest to `cost`.

    The mean cost never rises with the weight, so bisection finds it. Below zero the weight sends more images
    to dear experts than the scores ask for.
    """
    gaps = np.diff(np.unique(costs))
    limit = 1 + 2 * float(np.abs(scores).max()) / float(gaps.min()) if len(gaps) else 1.0
    low, high = -limit, limit
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _mean_cost(scores, costs, middle) > cost:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda weight: abs(_mean_cost(scores, costs, weight) - cost))


def _mean_cost(scores: Floats, costs: Floats, weight: float) -> float:
    return float(costs[route(scores, costs, weight)].mean())


def _gater_point(outcomes: Outcomes, strategy: str, scores: Floats, weight: float, seed: int) -> Point:
    routes = route(scores, outcomes.costs, weight)
    warning = collapse_warning(routes, outcomes.losses, outcomes.costs, weight, outcomes.experts)
    return _point(outcomes, strategy, routes, outcomes.gater_cost, weight, seed, warning)


def _point(
    outcomes: Outcomes,
    strategy: str,
    routes: Ints,
    gater_cost: float,
    weight: float | None = None,
    seed: int | None = None,
    collapse: str | None = None,
) -> Point:
    share = np.bincount(routes, minlength=len(outcomes.costs)) / len(routes)
    table = tabulate(routes, outcomes.right, outcomes.costs, outcomes.severities)
    table = RoutingTable(table.severities, table.share, table.accuracy, table.cost + gater_cost)
    cost = float(outcomes.costs[routes].mean()) + gater_cost
    return Point(strategy, weight, seed, outcomes.accuracy(routes), cost, share, table, collapse)


def _pair(outcomes: Outcomes, one: Floats, separate: Floats, weight: float, seed: int) -> Pair:
    costs = outcomes.costs
    trained = route(separate, costs, weight)
    run_time_weight = weight_at_cost(one, costs, float(costs[trained].mean()))
    routes = route(one, costs, run_time_weight)
    return Pair(
        weight,
        seed,
        run_time_weight,
        float(costs[routes].mean()) + outcomes.gater_cost,
        outcomes.accuracy(routes),
        outcomes.accuracy(trained),
    )


def _frontier(outcomes: Outcomes, one: Sequence[Floats], cascade: Frontier) -> tuple[FrontierRow, ...]:
    costs = outcomes.costs
    random = random_frontier(outcomes.right, costs)
    rows = []
    for wanted in np.linspace(costs[0], costs[-1], FRONTIER_POINTS):
        reached = [route(scores, costs, weight_at_cost(scores, costs, float(wanted))) for scores in one]
        accuracies = [outcomes.accuracy(routes) for routes in reached]
        spent = [float(costs[routes].mean()) + outcomes.gater_cost for routes in reached]
        cost = float(np.mean(spent))
        rows.append(
            FrontierRow(
                cost,
                Spread.of(accuracies),
                float(cascade.accuracy_at(cost)),
                float(random.accuracy_at(cost)),
                Spread.of([a - float(cascade.accuracy_at(c)) for a, c in zip(accuracies, spent, strict=True)]),
            )
        )
    return tuple(rows)


def _point_json(point: Point, names: Sequence[str]) -> dict[str, Any]:
    table = point.table
    return {
        "strategy": point.strategy,
        "latency_weight": point.latency_weight,
        "seed": point.seed,
        "accuracy": point.accuracy,
        "cost": point.cost,
        "share": _by_name(names, point.share),
        "severities": {
            str(severity): {
                "accuracy": float(table.accuracy[row]),
                "cost": float(table.cost[row]),
                "share": _by_name(names, table.share[row]),
            }
            for row, severity in enumerate(table.severities)
        },
        "collapse": point.collapse,
    }


def _by_name(names: Sequence[str], values: Floats) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
