"""What goes beyond the paper: each idea measured against the plain recipe on the same images. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trt_moe.console import by_mirror
from trt_moe.evaluation.metrics import expected_calibration_error
from trt_moe.routing_rule import route
from trt_moe.softmax import softmax
from trt_moe.sweep.claims import WEIGHT, Routed, gated, upper, verified
from trt_moe.sweep.compare import Comparison, Spread
from trt_moe.training.config import Method
from trt_moe.training.logits import Judged
from trt_moe.training.routing import Floats, frontier_score, gater_frontier

BUDGETS = (0.3, 0.5, 0.7)
"""Mean costs at which gate-then-verify is judged."""

_AREA = "accuracy, mean over equally spaced costs"


@dataclass(frozen=True)
class Idea:
    """One comparison.

    Attributes:
        name: the idea.
        plain: what it is compared with.
        measure: what is compared.
        before: of the plain recipe, over the seeds.
        after: with the idea.
        gain: their difference, seed by seed; positive where the idea is better.
    """

    name: str
    plain: str
    measure: str
    before: Spread
    after: Spread
    gain: Spread

    @property
    def verdict(self) -> str:
        """Won or lost where all seeds agree."""
        if self.gain.low > 0:
            return "won"
        return "lost" if self.gain.high < 0 else "no clear difference"


def one_training(method: Method, comparison: Comparison) -> Idea:
    """A gater of this method, trained once, against a gater trained for each latency weight."""
    seeds = sorted({pair.seed for pair in comparison.pairs})
    pairs = [[pair for pair in comparison.pairs if pair.seed == seed] for seed in seeds]
    return _idea(
        f"gater trained once ({method})",
        "a gater trained by the latency-aware loss for each weight",
        "accuracy at equal mean cost, mean over the weights",
        [float(np.mean([pair.separate for pair in chosen])) for chosen in pairs],
        [float(np.mean([pair.one for pair in chosen])) for chosen in pairs],
    )


def regret(every: Routed, benefit: Mapping[int, Floats]) -> Idea:
    """Gaters trained on what their choices cost, against regressions of every expert's loss, with equal seeds."""
    names = every.outcomes.experts
    before = [_area(every, names, benefit[seed]) for seed in every.scores]
    after = [_area(every, names, scores) for scores in every.scores.values()]
    return _idea("gater that learns its choices (regret)", "one that regresses losses (benefit)", _AREA, before, after)


def specialised(pool: Routed, plain: Sequence[str], better: Sequence[str]) -> Idea:
    """Mixtures of some of the experts that one gater scores, by the area under their frontiers."""
    before, after = ([_area(pool, names, scores) for scores in pool.scores.values()] for names in (plain, better))
    return _idea(f"specialised experts: {' + '.join(better)}", " + ".join(plain), _AREA, before, after)


def verifying(every: Routed, latency_weight: float, budget: float) -> tuple[Idea, ...]:
    """Gate-then-verify against the gater alone, and against the confidence cascade with the same second looks.

    At equal mean cost.

    Nothing where a gater spends more at this latency weight before anything is verified.
    """
    outcomes = every.outcomes
    frontiers = [verified(outcomes, scores, latency_weight) for scores in every.scores.values()]
    if any(frontier.costs[0] > budget for frontier in frontiers):
        return ()
    cascade = upper([outcomes.cascade(by) for by in outcomes.second])
    after = [float(frontier.accuracy_at(budget)) for frontier in frontiers]
    alone = [float(gated(outcomes, scores).accuracy_at(budget)) for scores in every.scores.values()]
    name = f"gate at latency weight {latency_weight:g}, then verify{by_mirror(outcomes.verify_by)}"
    measure = f"accuracy at mean cost {budget:g}"
    return (
        _idea(name, "the gater alone", measure, alone, after),
        _idea(name, "confidence cascade", measure, [float(cascade.accuracy_at(budget))] * len(after), after),
    )


def distilled(name: str, before: Sequence[float], after: Sequence[float]) -> Idea:
    """A cheap expert before and after it learned from a teacher: accuracies of one or more runs."""
    return _idea(
        f"distillation into {name}",
        "the same network before it, so with fewer epochs",
        "accuracy on the severities that it is trained for",
        before,
        after,
    )


def calibrated(every: Routed, raw: Judged, temperatures: Sequence[float]) -> Idea:
    """The temperature of each expert, which its exported graph divides by, against logits as they are."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    for scores in every.scores.values():
        routes = route(scores, every.outcomes.costs, WEIGHT)
        chosen = raw.logits[np.arange(len(routes)), routes]
        right = chosen.argmax(axis=1) == raw.images.labels
        for scaled, divisors in ((False, 1.0), (True, np.asarray(temperatures)[routes, None])):
            confidence = softmax((chosen / divisors).astype(np.float32)).max(axis=1)
            errors[scaled].append(expected_calibration_error(confidence, right))
    shown = ", ".join(f"{value:.2f}" for value in temperatures)
    return _idea(
        f"calibrated temperatures ({shown})",
        "logits as they are",
        f"the mixture's calibration error, latency weight {WEIGHT:g}",
        errors[False],
        errors[True],
        better=-1,
    )


def _idea(
    name: str, plain: str, measure: str, before: Sequence[float], after: Sequence[float], better: int = 1
) -> Idea:
    """`better` is 1 where more is better, -1 where less is."""
    gains = [better * (b - a) for a, b in zip(before, after, strict=True)]
    return Idea(name, plain, measure, Spread.of(before), Spread.of(after), Spread.of(gains))


def _area(pool: Routed, names: Sequence[str], scores: Floats) -> float:
    outcomes = pool.outcomes
    chosen = [outcomes.experts.index(name) for name in names]
    costs = outcomes.costs[chosen]
    frontier = gater_frontier(scores[:, chosen], outcomes.right[:, chosen], costs, outcomes.gater_cost)
    return frontier_score(frontier, outcomes.costs)
