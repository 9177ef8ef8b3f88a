"""Ways to choose an expert, as pure functions of answers: the mixture's own and those it must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import MAX_LATENCY_WEIGHT, VerifyBy
from trt_moe.evaluation.answers import Answers
from trt_moe.routing_rule import second_costs

Floats = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)


def shares(chosen: NDArray[np.int64], experts: int) -> Floats:
    """Float64 [experts], the fraction of images that each expert gets."""
    return np.bincount(chosen, minlength=experts) / len(chosen)


def routed(values: Sequence[NDArray[_T]], chosen: NDArray[np.int64]) -> NDArray[_T]:
    """Of per-expert arrays [N], the entry of each image's expert, [N]."""
    stacked: NDArray[_T] = np.stack(values)
    return stacked[chosen, np.arange(len(chosen))]


def switch_weights(gater_logits: NDArray[np.float32], costs: Floats, points: int = 64) -> Floats:
    """Ascending latency weights that spread the images between all-by-score and all-cheapest.

    They are quantiles of the weights at which images fall to the cheapest expert, and always hold 0.
    """
    gains = gater_logits[:, 1:].astype(np.float64) - gater_logits[:, :1]
    extra = costs[1:] - costs[0]
    usable = extra > 0
    if not usable.any():
        return np.zeros(1)
    falls = (gains[:, usable] / extra[usable]).max(axis=1)
    weights = np.quantile(np.maximum(falls, 0), np.linspace(0, 1, points))
    found = np.concatenate([[0.0], weights, [weights[-1] * 1.001 + 1e-6]])
    return np.unique(np.minimum(found, MAX_LATENCY_WEIGHT))


@dataclass(frozen=True)
class Blend:
    """A static mix of experts: each image goes to expert k with probability `weights[k]`, unseen."""

    weights: Floats


def best_blend(latency_ms: Floats, accuracy: Floats, budget_ms: float) -> Blend:
    """The most accurate random mix of experts whose mean latency is within the budget.

    Args:
        latency_ms: float64 [K], mean of each expert.
        accuracy: float64 [K].
        budget_ms: mean latency allowed; below the cheapest expert's the cheapest is taken.
    """
    count = len(latency_ms)
    best = np.zeros(count)
    best[int(np.argmin(latency_ms))] = 1.0
    best_accuracy = float(best @ accuracy)
    # The optimum of this linear program mixes two experts at most.
    for first in range(count):
        for second in range(count):
            span = latency_ms[second] - latency_ms[first]
            if latency_ms[first] > budget_ms or (span <= 0 and first != second):
                continue
            part = 0.0 if first == second else min(1.0, (budget_ms - latency_ms[first]) / span)
            weights = np.zeros(count)
            weights[first] += 1 - part
            weights[second] += part
            if float(weights @ accuracy) > best_accuracy + 1e-12:
                best, best_accuracy = weights, float(weights @ accuracy)
    return Blend(best)


def cascade_threshold(confidence: NDArray[np.floating], share: float) -> float:
    """Confidence under which the `share` least confident images lie."""
    if share <= 0:
        return -np.inf
    if share >= 1:
        return np.inf
    ordered = np.sort(confidence)
    return float(ordered[min(len(ordered) - 1, round(share * len(ordered)))])


@dataclass(frozen=True)
class Cascade:
    """One model for all images, with a second look at those that it is less sure of than a threshold."""

    first: str
    by: VerifyBy
    threshold: float

    def passed_on(self, answers: Answers) -> NDArray[np.bool_]:
        """Bool [N]: the images that are seen twice."""
        return np.asarray(answers.confidence[self.first] < self.threshold)

    def right(self, answers: Answers) -> NDArray[np.bool_]:
        """Bool [N], where the one look, or the two together, are right."""
        first = self.first
        return np.where(self.passed_on(answers), answers.right_verified(first, self.by), answers.right(first))

    def milliseconds(self, answers: Answers, first_ms: float, dearest_ms: float) -> float:
        """Mean latency by those of the first model and of the dearest expert."""
        return first_ms + float(self.passed_on(answers).mean()) * _second_ms(self.by, first_ms, dearest_ms)


def best_cascade(answers: Answers, first_ms: Mapping[str, float], dearest_ms: float, budget_ms: float) -> Cascade:
    """The most accurate cascade whose mean latency is the budget, with second looks as the router may have them.

    Args:
        answers: of all models.
        first_ms: mean latency of every model that may be asked first.
        dearest_ms: mean latency of the dearest expert.
        budget_ms: mean latency allowed; models that need more alone count only where all do.
    """
    cascades = []
    for name in _affordable(first_ms, budget_ms):
        for by in answers.second:
            share = (budget_ms - first_ms[name]) / _second_ms(by, first_ms[name], dearest_ms)
            cascades.append(Cascade(name, by, cascade_threshold(answers.confidence[name], share)))
    return max(cascades, key=lambda cascade: cascade.right(answers).mean())


def best_cue(
    answers: Answers, cheaper_ms: Mapping[str, float], dearest: str, dearest_ms: float, budget_ms: float
) -> tuple[str, CueRule]:
    """The same for the image cue: the model beside the dearest expert, and the rule that chooses."""
    rules = {}
    for name in _affordable(cheaper_ms, budget_ms):
        share = (budget_ms - cheaper_ms[name]) / max(dearest_ms - cheaper_ms[name], 1e-9)
        rules[name] = best_cue_rule(answers, name, dearest, share)
    return max(rules.items(), key=lambda item: item[1].right(answers, item[0], dearest).mean())


@dataclass(frozen=True)
class CueRule:
    """Routing by the image cue: images with sign * cue < threshold go to the dearest expert, others to a cheaper."""

    sign: int
    threshold: float

    def to_dearest(self, answers: Answers) -> NDArray[np.bool_]:
        """Bool [N]: the images that the dearest expert gets; the cheaper one gets the others."""
        return np.asarray(self.sign * answers.image_cue < self.threshold)

    def right(self, answers: Answers, cheaper: str, dearest: str) -> NDArray[np.bool_]:
        """Bool [N], where the image's expert is right."""
        return _split_right(answers, cheaper, dearest, self.to_dearest(answers))


def best_cue_rule(answers: Answers, cheaper: str, dearest: str, share: float) -> CueRule:
    """The rule that gives the dearest expert this share of the images; of both signs the more accurate."""
    rules = [CueRule(sign, cascade_threshold(sign * answers.image_cue, share)) for sign in (1, -1)]
    return max(rules, key=lambda rule: rule.right(answers, cheaper, dearest).mean())


def oracle(answers: Answers, experts: Sequence[str]) -> NDArray[np.int64]:
    """Int64 [N]: the cheapest expert that is right, or the cheapest where none is."""
    right = np.stack([answers.right(name) for name in experts])
    return np.asarray(right.argmax(axis=0), np.int64)


def oracle_gain(accuracy: float, best_single: float, oracle_accuracy: float) -> float | None:
    """Share of the oracle's gain over the best single expert that an accuracy captures.

    1 for the oracle itself, below 0 where the best single expert is more accurate, None where the oracle
    gains nothing.
    """
    gain = oracle_accuracy - best_single
    return (accuracy - best_single) / gain if gain > 0 else None


def _second_ms(by: VerifyBy, first_ms: float, dearest_ms: float) -> float:
    return float(second_costs(np.array([first_ms, dearest_ms]), by)[0])


def _affordable(milliseconds: Mapping[str, float], budget_ms: float) -> list[str]:
    within = [name for name, mean_ms in milliseconds.items() if mean_ms <= budget_ms]
    return within or [min(milliseconds, key=lambda name: milliseconds[name])]


def _split_right(answers: Answers, cheaper: str, dearest: str, to_dearest: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.where(to_dearest, answers.right(dearest), answers.right(cheaper))
