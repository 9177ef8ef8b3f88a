"""Ways to choose an expert, as pure functions of answers: the mixture's own and those it must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trt_moe.evaluation.answers import Answers

Floats = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)


def routes(gater_logits: NDArray[np.float32], costs: Floats, latency_weight: float) -> NDArray[np.int64]:
    """Int64 [N]: argmax_k(logit_k - latency_weight * cost_k), ties to the cheaper expert."""
    scores = gater_logits - np.float32(latency_weight) * costs.astype(np.float32)
    return np.asarray(scores.argmax(axis=1), np.int64)


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
    return np.unique(np.concatenate([[0.0], weights, [weights[-1] * 1.001 + 1e-6]]))


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


def cascade_threshold(confidence: NDArray[np.float32], share: float) -> float:
    """Confidence of the cheapest expert under which the `share` least confident images lie."""
    if share <= 0:
        return -np.inf
    if share >= 1:
        return np.inf
    ordered = np.sort(confidence)
    return float(ordered[min(len(ordered) - 1, round(share * len(ordered)))])


def cascade_right(answers: Answers, cheapest: str, dearest: str, threshold: float) -> NDArray[np.bool_]:
    """Bool [N]: the cheapest expert answers, or the dearest where the cheapest is unsure."""
    unsure = answers.confidence[cheapest] < threshold
    return np.where(unsure, answers.right(dearest), answers.right(cheapest))


def cascade_share(answers: Answers, cheapest: str, threshold: float) -> float:
    """Fraction of images that the cascade hands on."""
    return float((answers.confidence[cheapest] < threshold).mean())


def oracle(answers: Answers, experts: Sequence[str]) -> NDArray[np.int64]:
    """Int64 [N]: the cheapest expert that is right, or the cheapest where none is."""
    right = np.stack([answers.right(name) for name in experts])
    return np.asarray(right.argmax(axis=0), np.int64)
