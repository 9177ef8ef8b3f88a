"""What a set of routes is worth: tables, frontiers and the strategies a gater must beat. numpy only.

Shapes used throughout: `scores` float [N, K] gater logits, `right` bool [N, K] whether each expert is right,
`losses` float [N, K] each expert's cross-entropy, `costs` float [K] relative to the dearest expert;
`right_verified` bool [N, K] whether the mean of an expert's and a second look's probabilities is right, which is what
images are answered that an expert was unsure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.data.choose import evenly
from trt_moe.routing_rule import route, second_costs, split_points

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

COLLAPSED_SHARE = 0.98
_FRONTIER_POINTS = 201
_COST_GRID = 41


@dataclass(frozen=True)
class Frontier:
    """Points of a strategy, by rising cost: mean cost [P] and accuracy [P]."""

    costs: Floats
    accuracies: Floats

    def accuracy_at(self, cost: Floats | float) -> Floats:
        """Return the best accuracy reachable at a mean cost, mixing neighbouring points at random."""
        best = np.maximum.accumulate(self.accuracies)
        return np.asarray(np.interp(cost, self.costs, best))


@dataclass(frozen=True)
class RoutingTable:
    """One row per severity: share of each expert [S, K], accuracy [S], mean cost [S] without the gater."""

    severities: Ints
    share: Floats
    accuracy: Floats
    cost: Floats

    def lines(self, names: Sequence[str]) -> list[str]:
        """Return one printable line per severity."""
        return [
            f"severity {s}: "
            + " ".join(f"{name} {share:6.1%}" for name, share in zip(names, shares, strict=True))
            + f"  accuracy {accuracy:.4f}  cost {cost:.3f}"
            for s, shares, accuracy, cost in zip(self.severities, self.share, self.accuracy, self.cost, strict=True)
        ]


def tabulate(routes: Ints, right: Bools, costs: Floats, severities: Ints) -> RoutingTable:
    """Shares, accuracy and cost of the routes at each severity that occurs."""
    levels = np.unique(severities)
    gates = np.eye(len(costs))[routes]
    correct = right[np.arange(len(routes)), routes]
    share = np.stack([gates[severities == s].mean(0) for s in levels])
    accuracy = np.asarray([correct[severities == s].mean() for s in levels])
    return RoutingTable(levels, share, accuracy, share @ costs)


def gater_frontier(scores: Floats, right: Bools, costs: Floats, gater_cost: float) -> Frontier:
    """Sweep the run-time weight over all that changes a route; the gater's own cost is included."""
    # An expert gives way to a cheaper one at weight (score gained) / (cost saved): quantiles for every pair.
    steps = [
        (scores[:, dear] - scores[:, cheap]) / (costs[dear] - costs[cheap])
        for cheap, dear in combinations(range(len(costs)), 2)
        if costs[dear] > costs[cheap]
    ] or [np.zeros(1)]
    weights = np.unique([np.quantile(step, np.linspace(0, 1, _FRONTIER_POINTS)) for step in steps])
    points = []
    for weight in [weights[0] - 1.0, *weights, weights[-1] + 1.0]:
        routes = route(scores, costs, float(weight))
        accuracy = right[np.arange(len(routes)), routes].mean()
        points.append((float(costs[routes].mean()) + gater_cost, float(accuracy)))
    return _frontier(points)


def cascade_frontier(
    confidence: Floats, right: Bools, right_verified: Bools, cost: float, by: VerifyBy = "dearest"
) -> Frontier:
    """One expert for all, then a second look where that one is less sure than a threshold.

    All three [N] are the first expert's; it has already run when it turns out not to be enough, so its cost is
    always paid. There is no gater. Where both have run both count, as in a mixture that verifies.
    """
    # As a mixture of this expert and the dearest one, which gets no image at once.
    first, columns = np.zeros(len(right), np.int64), (confidence[:, None], right[:, None], right_verified[:, None])
    return verify_frontier(first, *columns, np.array([cost, 1.0]), 0.0, by)


def verify_frontier(
    routes: Ints,
    confidences: Floats,
    right: Bools,
    right_verified: Bools,
    costs: Floats,
    gater_cost: float,
    by: VerifyBy,
) -> Frontier:
    """Routed expert first, then a second look where that one is less sure than a threshold; sweeps the threshold.

    `routes` [N] by the gater, `confidences` [N, K] of every expert that they name but the dearest. An image that
    is passed on pays for both looks.
    """
    dearest = len(costs) - 1
    total, rows = len(routes), np.flatnonzero(routes != dearest)
    rows = rows[np.argsort(confidences[rows, routes[rows]], kind="stable")]
    first = right[np.arange(total), routes]
    gains = right_verified[rows, routes[rows]].astype(np.int64) - first[rows]
    hits = np.concatenate([[0], np.cumsum(gains)]) + first.sum()
    sorted_confidence = confidences[rows, routes[rows]]
    possible = split_points(sorted_confidence)
    if len(rows) and sorted_confidence[-1] < 1:  # the highest threshold is 1
        possible = np.append(possible, len(rows))
    counts = possible[evenly(len(possible), _FRONTIER_POINTS)]
    start = float(costs[routes].mean()) + gater_cost
    spent = np.concatenate([[0.0], np.cumsum(second_costs(costs, by)[routes[rows]])]) / total
    return _frontier([(start + float(spent[c]), hits[c] / total) for c in counts])


def random_frontier(right: Bools, costs: Floats) -> Frontier:
    """Each image to an expert at random; mixing the experts on the upper hull of (cost, accuracy)."""
    every = _frontier([(float(c), float(a)) for c, a in zip(costs, right.mean(0), strict=True)])
    hull: list[tuple[float, float]] = []
    for cost, accuracy in zip(every.costs, every.accuracies, strict=True):
        # One under the line from its neighbour to the next is worse than a mix of these two.
        while len(hull) > 1 and _under(hull[-1], hull[-2], (cost, accuracy)):
            hull.pop()
        hull.append((cost, accuracy))
    return _frontier(hull)


def oracle(right: Bools, costs: Floats) -> tuple[float, float]:
    """Cost and accuracy of always picking the cheapest expert that is right (the cheapest where none is)."""
    first = np.where(right.any(1), right.argmax(1), 0)
    return float(costs[first].mean()), float(right.any(1).mean())


def frontier_score(frontier: Frontier, costs: Floats) -> float:
    """Mean accuracy over equally spaced costs from the cheapest to the dearest expert: to rank by."""
    return float(frontier.accuracy_at(np.linspace(costs[0], costs[-1], _COST_GRID)).mean())


def explained_variance(scores: Floats, losses: Floats, clip: float) -> float:
    """R^2 of the best line through score differences and the dearest expert's clipped benefit, in 0..1.

    A line is fitted first since scores of the gumbel method have no unit.
    """
    benefit = np.minimum(losses[:, 0], clip) - np.minimum(losses[:, -1], clip)
    predicted = scores[:, -1] - scores[:, 0]
    benefit, predicted = benefit - benefit.mean(), predicted - predicted.mean()
    spread = (benefit**2).sum() * (predicted**2).sum()
    return float((benefit * predicted).sum() ** 2 / spread) if spread > 0 else 0.0


def collapse_warning(
    routes: Ints, losses: Floats, costs: Floats, latency_weight: float, names: Sequence[str]
) -> str | None:
    """Say why nearly all images go to one expert, or None where they do not; of finished gaters, as all begin so."""
    shares = np.bincount(routes, minlength=len(costs)) / max(1, len(routes))
    winner = int(shares.argmax())
    if shares[winner] < COLLAPSED_SHARE:
        return None
    ideal = np.argmin(losses + latency_weight * costs, axis=1)
    elsewhere = float((ideal != winner).mean())
    head = f"routing collapsed: {shares[winner]:.1%} of the images go to {names[winner]}"
    if elsewhere < 1 - COLLAPSED_SHARE:
        gap = latency_weight * float(costs.max() - costs.min())
        if winner == int(costs.argmin()):
            return (
                f"{head}. Cause: no other expert lowers the loss by more than the latency weight asks "
                f"({gap:.2f} nats for the dearest) on {1 - elsewhere:.1%} of them; lower latency_weight "
                "or train the others better"
            )
        return (
            f"{head}. Cause: it is worth its latency on {1 - elsewhere:.1%} of them; raise latency_weight "
            f"(now {latency_weight:g}) or train the cheaper experts better"
        )
    return (
        f"{head}. Cause: the gater, not the experts: another expert would be worth its latency on "
        f"{elsewhere:.1%} of them; train the gater longer, or at another learning rate; of the methods, regret and "
        "benefit collapse least"
    )


def routing_lines(
    routes: Ints,
    right: Bools,
    costs: Floats,
    severities: Ints,
    names: Sequence[str],
) -> list[str]:
    """Return what a log says of routes: all in one line, then a line for each severity."""
    accuracy, cost = right[np.arange(len(routes)), routes].mean(), costs[routes].mean()
    return [
        f"validation accuracy {accuracy:.4f} cost {cost:.3f}",
        *tabulate(routes, right, costs, severities).lines(names),
    ]


def _under(point: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> bool:
    """Whether a point lies under or on the line between two others."""
    rise, run = end[1] - start[1], end[0] - start[0]
    return (point[1] - start[1]) * run <= rise * (point[0] - start[0])


def _frontier(points: Sequence[tuple[float, float]]) -> Frontier:
    """Sort by cost; of points with equal cost the best is kept."""
    ordered = sorted(points)
    best: dict[float, float] = {}
    for cost, accuracy in ordered:
        best[cost] = max(accuracy, best.get(cost, 0.0))
    return Frontier(np.asarray(list(best)), np.asarray(list(best.values())))
