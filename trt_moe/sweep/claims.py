"""What a mixture must show: every claim beside its goal, over the seeds of the gater. numpy only.

Costs are mean latencies relative to that of the dearest expert; a mixture's include its gater's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.console import by_mirror
from trt_moe.evaluation.strategies import oracle_gain
from trt_moe.routing_rule import asked_last, route, unsure
from trt_moe.sweep.compare import FRONTIER_POINTS, ORACLE, Comparison, Outcomes, Spread
from trt_moe.training.routing import (
    Bools,
    Floats,
    Frontier,
    Ints,
    cascade_frontier,
    gater_frontier,
    verify_frontier,
)

WEIGHT = 0.7
"""Latency weight of the claims on where images go."""
HARSHEST = 5

_WEIGHTS = 33
_SAME_COST = 1.1
"""Experts within this factor of the cheapest one's cost count as the cheapest: timings differ as much."""


@dataclass(frozen=True)
class Routed:
    """Images with what the experts do and every gater's scores [N, K] for them, by seed."""

    outcomes: Outcomes
    scores: Mapping[int, Floats]


@dataclass(frozen=True)
class Rule:
    """How a router chooses: by latency weight, and by the confidence below which it has a second look."""

    latency_weight: float
    verify_below: float = 0.0
    verify_by: VerifyBy = "dearest"

    def __str__(self) -> str:
        """What tells it from others."""
        by = by_mirror(self.verify_by)
        verified = f", verify{by} below {self.verify_below:g}" if self.verify_below > 0 else ""
        return f"latency weight {self.latency_weight:g}{verified}"

    def seen_twice(self, outcomes: Outcomes, scores: Floats) -> Bools:
        """Bool [N]: the images that have a second look."""
        return unsure(route(scores, outcomes.costs, self.latency_weight), outcomes.confidence, self.verify_below)

    def asked_last(self, outcomes: Outcomes, scores: Floats) -> Ints:
        """Int64 [N]: the last expert that is asked."""
        routes = route(scores, outcomes.costs, self.latency_weight)
        return asked_last(routes, self.seen_twice(outcomes, scores), len(outcomes.costs), self.verify_by)


@dataclass(frozen=True)
class Single:
    """A classifier alone: name, accuracy over all severities, cost."""

    name: str
    accuracy: float
    cost: float


@dataclass(frozen=True)
class Rivals:
    """What is to be had without a gater.

    Attributes:
        robust: the cheapest classifier that was trained on all severities, if there is one.
        robust_cascade: the confidence cascades that start from it, the best at every cost.
        best: the most accurate classifier that was trained, whatever for: teachers count.
        cascade: the most accurate confidence cascade at every cost, see `strongest_cascade`.
        starts: names of the classifiers that cascades may start from.
    """

    robust: Single | None
    robust_cascade: Frontier | None
    best: Single
    cascade: Frontier
    starts: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: what is measured.
        goal: in words; empty where the value is only reported.
        unit: "%", "points", "of the dearest's cost", "R2" or "gaters".
        value: over the seeds, None where it cannot be reached or measured.
        met: by the mean over the seeds; None without a goal.
        remark: what the figure alone does not say.
    """

    name: str
    goal: str
    unit: str
    value: Spread | None
    met: bool | None
    remark: str = ""


def claims(
    every: Routed,
    blurred: Routed,
    noisy: Routed,
    comparison: Comparison,
    rivals: Rivals,
    cues: Mapping[str, Spread],
    learned: Mapping[str, Spread],
    used: Rule,
) -> list[Claim]:
    """Judge all claims.

    Args:
        every: test images at every severity.
        blurred: test images with the blur of severity 5, without its noise.
        noisy: with the noise of severity 5, without its blur.
        comparison: of gaters on the same images as `every`.
        rivals: what is to be had without a gater.
        cues: R^2 of the dearest expert's benefit by cue.
        learned: the same by gaters, by the method that trained them.
        used: what the run's bundle routes by; claims on where images go are judged for it too. Mixtures that
            verify have its latency weight, and their threshold of confidence is swept.
    """
    frontiers = [gated(every.outcomes, scores) for scores in every.scores.values()]
    verifying = [verified(every.outcomes, scores, used.latency_weight) for scores in every.scores.values()]
    free = [both_free(every.outcomes, scores) for scores in every.scores.values()]
    that_verifies = f"mixture at latency weight {used.latency_weight:g} that verifies{by_mirror(used.verify_by)}"
    rules = [Rule(WEIGHT)] if str(used) == str(Rule(WEIGHT)) else [Rule(WEIGHT), used]
    return [
        *(claim for rule in rules for claim in _where_images_go(every, rule)),
        *_against_single(every.outcomes, frontiers, rivals.robust, "mixture"),
        *_against_single(every.outcomes, verifying, rivals.robust, that_verifies),
        *_against_robust_cascade(verifying, rivals, that_verifies),
        _against_best(free, rivals.best),
        _oracle(every.outcomes, frontiers, comparison),
        *(_one_corruption(what, seen, rule) for rule in rules for what, seen in (("blur", blurred), ("noise", noisy))),
        *_from_comparison(comparison),
        _against_strongest(every.outcomes, free, rivals),
        *_explained(cues, learned),
    ]


def gated(outcomes: Outcomes, scores: Floats) -> Frontier:
    """Mixture at every latency weight."""
    return gater_frontier(scores, outcomes.right, outcomes.costs, outcomes.gater_cost)


def verified(outcomes: Outcomes, scores: Floats, latency_weight: float) -> Frontier:
    """Mixture at one latency weight that has a second look at unsure images, at every threshold."""
    routes = route(scores, outcomes.costs, latency_weight)
    return verify_frontier(
        routes,
        outcomes.confidence,
        outcomes.right,
        outcomes.second[outcomes.verify_by],
        outcomes.costs,
        outcomes.gater_cost,
        outcomes.verify_by,
    )


def both_free(outcomes: Outcomes, scores: Floats) -> Frontier:
    """Mixture at every latency weight and, at each, every threshold of confidence: the best at every cost."""
    step = (scores.max(axis=1) - scores[:, 0]) / (outcomes.costs[-1] - outcomes.costs[0])
    weights = np.unique(np.quantile(step, np.linspace(0, 1, _WEIGHTS)))
    return upper([gated(outcomes, scores), *(verified(outcomes, scores, float(weight)) for weight in weights)])


def strongest_cascade(starts: Sequence[tuple[Floats, Bools, Bools, float, VerifyBy]]) -> Frontier:
    """Confidence cascades from several classifiers: the best at every cost.

    Args:
        starts: confidence [N], right [N], right together with the second look [N], cost, and whose the second look
            is, for every classifier that may be asked first and every second look at what it is unsure of.
    """
    return upper([cascade_frontier(*start) for start in starts])


def upper(frontiers: Sequence[Frontier]) -> Frontier:
    """The points of several frontiers that no cheaper or equally cheap point beats."""
    costs = np.concatenate([frontier.costs for frontier in frontiers])
    accuracies = np.concatenate([frontier.accuracies for frontier in frontiers])
    order = np.lexsort((-accuracies, costs))
    costs, accuracies = costs[order], accuracies[order]
    better = accuracies > np.concatenate([[-np.inf], np.maximum.accumulate(accuracies)[:-1]])
    return Frontier(costs[better], accuracies[better])


def most_accurate(frontier: Frontier, budget: float) -> tuple[float, float]:
    """Accuracy and cost of the most accurate point within a cost; (nan, nan) where none is."""
    affordable = np.flatnonzero(frontier.costs <= budget)
    if len(affordable) == 0:
        return float("nan"), float("nan")
    best = affordable[np.argmax(frontier.accuracies[affordable])]
    return float(frontier.accuracies[best]), float(frontier.costs[best])


def lowest_cost(frontier: Frontier, accuracy: float) -> float:
    """Cost of the cheapest point with this accuracy; nan where none has it."""
    good = frontier.costs[frontier.accuracies >= accuracy]
    return float(good[0]) if len(good) else float("nan")


def _where_images_go(every: Routed, rule: Rule) -> list[Claim]:
    outcomes = every.outcomes
    cheapest = outcomes.costs <= _SAME_COST * outcomes.costs[0]
    dearest = np.arange(len(outcomes.costs)) == len(outcomes.costs) - 1
    names = " or ".join(name for name, chosen in zip(outcomes.experts, cheapest, strict=True) if chosen)
    return [
        _claim(
            f"clean images on the cheapest expert ({names}), {rule}",
            "at least 98 %",
            "%",
            _shares(every, rule, outcomes.severities == 0, cheapest),
            lambda share: share >= 0.98,
            _seen_twice(every, rule, outcomes.severities == 0),
        ),
        _claim(
            f"severity-{HARSHEST} images on the dearest expert ({outcomes.experts[-1]}), {rule}",
            "at least 90 %",
            "%",
            _shares(every, rule, outcomes.severities == HARSHEST, dearest),
            lambda share: share >= 0.9,
        ),
    ]


def _against_single(
    outcomes: Outcomes, frontiers: Sequence[Frontier], robust: Single | None, mixture: str
) -> list[Claim]:
    always = float(outcomes.right[:, -1].mean())
    dearest = outcomes.experts[-1]
    best = [most_accurate(frontier, 0.7) for frontier in frontiers]
    rows = [
        _claim(
            f"best {mixture} minus always {dearest}, at 0.7 of its cost or less",
            "at least +0.5 points",
            "points",
            [accuracy - always for accuracy, _ in best],
            lambda difference: difference >= 0.005,
            f"always {dearest} {always:.2%}; costs of the points {', '.join(f'{cost:.3f}' for _, cost in best)}",
        ),
        _claim(
            f"{mixture}: mean cost at equal accuracy (within 0.3 points) to always {dearest}",
            "at most 0.60 of its cost",
            "of the dearest's cost",
            [lowest_cost(frontier, always - 0.003) for frontier in frontiers],
            lambda cost: cost <= 0.6,
        ),
        _claim(
            f"{mixture}: mean cost within 0.5 points of always {dearest}",
            "",
            "of the dearest's cost",
            [lowest_cost(frontier, always - 0.005) for frontier in frontiers],
        ),
    ]
    if robust is None:
        name = f"{mixture} against the robust light: accuracy at 1.5 times its cost or less"
        return [*rows, Claim(name, "at least +1.0 point", "points", None, None, "no such classifier was trained")]
    budget = 1.5 * robust.cost
    return [
        *rows,
        _claim(
            f"{mixture} minus {robust.name}, at 1.5 times its cost or less",
            "at least +1.0 point",
            "points",
            [most_accurate(frontier, budget)[0] - robust.accuracy for frontier in frontiers],
            lambda difference: difference >= 0.01,
            f"{robust.name} {robust.accuracy:.2%} at {robust.cost:.3f}, so cost {budget:.3f} or less",
        ),
    ]


def _against_robust_cascade(verifying: Sequence[Frontier], rivals: Rivals, mixture: str) -> list[Claim]:
    """The robust light with second looks of its own, as many as fit."""
    robust, cascade = rivals.robust, rivals.robust_cascade
    if robust is None or cascade is None:
        return []
    accuracy, cost = most_accurate(cascade, 1.5 * robust.cost)
    return [
        _claim(
            f"{mixture} minus a confidence cascade from {robust.name}, both at 1.5 times its cost or less",
            "",
            "points",
            [most_accurate(frontier, 1.5 * robust.cost)[0] - accuracy for frontier in verifying],
            remark=f"the cascade {accuracy:.2%} at {cost:.3f}",
        )
    ]


def _against_best(free: Sequence[Frontier], best: Single) -> Claim:
    costs = ", ".join(f"{frontier.costs[-1]:.3f}" for frontier in free)
    return _claim(
        f"best mixture, both settings free, minus {best.name}, the most accurate classifier trained, at any cost",
        "",
        "points",
        [float(frontier.accuracies[-1]) - best.accuracy for frontier in free],
        remark=f"{best.name} {best.accuracy:.2%}; costs of the points {costs}",
    )


def _against_strongest(outcomes: Outcomes, free: Sequence[Frontier], rivals: Rivals) -> Claim:
    """Between the cheapest mixture and the dearest expert, both curves read at equally spaced costs."""
    cheapest = max(float(frontier.costs[0]) for frontier in free)
    grid = np.linspace(cheapest, float(outcomes.costs[-1]), FRONTIER_POINTS)
    ahead = np.stack([frontier.accuracy_at(grid) - rivals.cascade.accuracy_at(grid) for frontier in free])
    worst = int(ahead.mean(axis=0).argmin())
    won = grid[ahead.mean(axis=0) > 0]
    where = f", costs {won[0]:.3f} to {won[-1]:.3f}" if len(won) else ""
    return _claim(
        f"mixture, both settings free, minus the best confidence cascade from {' or '.join(rivals.starts)}, "
        "at equal mean cost, at the worst point",
        "",
        "points",
        ahead[:, worst].tolist(),
        remark=f"worst at cost {grid[worst]:.3f}; ahead at {len(won)} of {len(grid)} points{where}; "
        f"on average {100 * ahead.mean():+.2f} points",
    )


def _oracle(outcomes: Outcomes, frontiers: Sequence[Frontier], comparison: Comparison) -> Claim:
    (oracle,) = comparison.of(ORACLE)
    single = float(outcomes.right.mean(0).max())
    gains = [oracle_gain(float(frontier.accuracies.max()), single, oracle.accuracy) for frontier in frontiers]
    return _claim(
        "share of the oracle's gain over the best single expert that the best mixture captures",
        "",
        "%",
        [float("nan") if gain is None else gain for gain in gains],
        remark=f"best single expert {single:.2%}; oracle {oracle.accuracy:.2%} at cost {oracle.cost:.3f}",
    )


def _one_corruption(what: str, routed: Routed, rule: Rule) -> Claim:
    outcomes = routed.outcomes
    dearest = len(outcomes.costs) - 1
    deserving = np.argmin(outcomes.losses + rule.latency_weight * outcomes.costs, axis=1) == dearest
    remark = (
        f"{deserving.mean():.1%} of the images deserve it; always {outcomes.experts[-1]} "
        f"{outcomes.right[:, -1].mean():.2%}, {outcomes.experts[0]} {outcomes.right[:, 0].mean():.2%}"
    )
    return _claim(
        f"{what} alone, severity {HARSHEST}: images whose benefit exceeds the threshold that reach the dearest expert, "
        f"{rule}",
        "at least 50 %",
        "%",
        _shares(routed, rule, deserving, np.arange(len(outcomes.costs)) == dearest),
        lambda share: share >= 0.5,
        remark,
    )


def _from_comparison(comparison: Comparison) -> list[Claim]:
    rows = comparison.frontier
    worst = min(rows, key=lambda row: row.ahead.mean)
    ahead = [row.cost for row in rows if row.ahead.mean > 0]
    where = f", costs {min(ahead):.3f} to {max(ahead):.3f}" if ahead else ""
    furthest = max(comparison.weights, key=lambda row: abs(row.difference.mean))
    collapses = [
        (row.latency_weight, which, seeds)
        for row in comparison.weights
        for which, seeds in (("one gater", row.one_collapsed), ("trained for it", row.separate_collapsed))
        if seeds
    ]
    count = sum(len(seeds) for _, _, seeds in collapses)
    weights = [row.latency_weight for row in comparison.weights]
    gaters = len(comparison.pairs) * 2
    return [
        _spread_claim(
            "mixture minus confidence cascade at equal mean cost, at the worst point of the frontier",
            "above 0 at every point",
            "points",
            worst.ahead,
            lambda difference: difference > 0,
            f"worst at cost {worst.cost:.3f}; ahead at {len(ahead)} of {len(rows)} points{where}",
        ),
        _spread_claim(
            "one gater with run-time weights minus gaters trained for each, at equal mean cost, furthest apart",
            "within 0.3 points",
            "points",
            furthest.difference,
            lambda difference: abs(difference) <= 0.003,
            f"at latency weight {furthest.latency_weight:g}; a positive difference favours the one gater",
        ),
        _spread_claim(
            f"collapse, latency weights {', '.join(f'{weight:g}' for weight in weights)}",
            "0 of all seeds",
            "gaters",
            Spread.of([count]),
            lambda collapsed: collapsed == 0,
            f"of {gaters}"
            + "".join(f"; {which}, weight {weight:g}: seeds {seeds}" for weight, which, seeds in collapses),
        ),
    ]


def _explained(cues: Mapping[str, Spread], learned: Mapping[str, Spread]) -> list[Claim]:
    best = max(cues, key=lambda name: cues[name].mean)

    def first(method: str, gater: Spread) -> Claim:
        ahead = gater.low - cues[best].mean
        return _spread_claim(
            f"R2 of the learned gater ({method}) against the benefit",
            "clearly first",
            "R2",
            gater,
            lambda _: ahead > 0.02,
            f"the best cue is {best}; the worst seed is {ahead:+.3f} ahead of it; clearly: by more than 0.02",
        )

    return [
        *(_spread_claim(f"R2 of {name} against the benefit", "", "R2", value) for name, value in cues.items()),
        *(first(method, gater) for method, gater in learned.items()),
    ]


def _seen_twice(routed: Routed, rule: Rule, images: Bools) -> str:
    if rule.verify_below == 0 or rule.verify_by != "mirror":
        return ""
    shares = [rule.seen_twice(routed.outcomes, scores)[images].mean() for scores in routed.scores.values()]
    return f"{np.mean(shares):.1%} of them are seen twice there"


def _shares(routed: Routed, rule: Rule, images: Bools, experts: Bools) -> list[float]:
    """By seed, which part of these images ends with these experts."""
    if not images.any():
        return [float("nan")]
    asked = [rule.asked_last(routed.outcomes, scores) for scores in routed.scores.values()]
    return [float(experts[chosen[images]].mean()) for chosen in asked]


def _claim(
    name: str,
    goal: str,
    unit: str,
    values: Sequence[float],
    reached: Callable[[float], bool] | None = None,
    remark: str = "",
) -> Claim:
    """A claim from one value for each seed; nan stands for one that is not reached."""
    if np.isnan(values).any():
        lacking = f"not reached by {int(np.isnan(values).sum())} of {len(values)} gaters"
        return Claim(name, goal, unit, None, False if reached else None, "; ".join(filter(None, (remark, lacking))))
    return _spread_claim(name, goal, unit, Spread.of(values), reached, remark)


def _spread_claim(
    name: str,
    goal: str,
    unit: str,
    value: Spread,
    reached: Callable[[float], bool] | None = None,
    remark: str = "",
) -> Claim:
    return Claim(name, goal, unit, value, reached(value.mean) if reached else None, remark)
