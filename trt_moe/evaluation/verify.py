"""Gate, then verify: an image is seen a second time where the gater's choice turns out to be unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trt_moe.data.choose import evenly
from trt_moe.evaluation.answers import Answers, join
from trt_moe.evaluation.frontier import Costs
from trt_moe.evaluation.strategies import Floats, routed, shares, switch_weights
from trt_moe.routing_rule import asked_last, route, second_costs, split_points, unsure

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class VerifyRule:
    """Route at this latency weight; an expert whose confidence is below the threshold passes the image on."""

    latency_weight: float
    threshold: float


@dataclass(frozen=True)
class Decision:
    """Of N images: int64 [N] who is asked first, and last; bool [N] whether the first was unsure and passed it on."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    passed_on: NDArray[np.bool_]

    def answer(self, alone: Sequence[NDArray[_T]], verified: Sequence[NDArray[_T]]) -> NDArray[_T]:
        """Of per-expert arrays [N], without and with a second look, each image's entry, [N]."""
        return np.where(self.passed_on, routed(verified, self.first), routed(alone, self.first))


def decide(answers: Answers, experts: Sequence[str], relative_costs: Floats, rule: VerifyRule) -> Decision:
    """What the router does at this rule; `experts` go from the cheapest to the dearest."""
    first = route(answers.gater_logits, relative_costs, rule.latency_weight)
    confidence = np.stack([answers.confidence[name] for name in experts], axis=1)
    passed_on = unsure(first, confidence, rule.threshold)
    return Decision(first, asked_last(first, passed_on, len(experts), answers.verify_by), passed_on)


@dataclass(frozen=True)
class Verified:
    """Of N images: bool [N] final answer right, bool [N] passed on, float64 [N] modelled milliseconds."""

    right: NDArray[np.bool_]
    passed_on: NDArray[np.bool_]
    milliseconds: Floats


@dataclass(frozen=True)
class RulePoint:
    """A rule, and what comes of it on the images it was picked on: accuracy and modelled mean milliseconds."""

    rule: VerifyRule
    accuracy: float
    mean_ms: float

    def to_json(self) -> dict[str, float]:
        """The point, the rule by the router's names for it."""
        return {
            "latency_weight": self.rule.latency_weight,
            "verify_below": self.rule.threshold,
            "accuracy": self.accuracy,
            "mean_ms": self.mean_ms,
        }


class Verifier:
    """Applies and picks rules for the experts of one bundle."""

    def __init__(self, experts: Sequence[str], relative_costs: Floats, costs: Costs) -> None:
        """Take the experts from the cheapest to the dearest, their relative costs [K] and measured latencies."""
        self._experts = tuple(experts)
        self._relative = relative_costs
        self._costs = costs

    def cross_check(
        self, parts: Sequence[Answers], odd: Sequence[NDArray[np.bool_]], budget_ms: float, latency_weight: float
    ) -> list[Verified]:
        """Verify every image by a rule that was picked on other images.

        Each half is judged by the rule that the other half picked, see `pick`. Which half each image of each part is
        in, `odd` says: a picture at several severities is to be in one.
        """
        by_even, by_odd = (
            self.pick(
                join([part.take(rows == half) for part, rows in zip(parts, odd, strict=True)]),
                budget_ms,
                latency_weight,
            )
            for half in (False, True)
        )
        return [
            _either(rows, self.apply(part, by_even), self.apply(part, by_odd))
            for part, rows in zip(parts, odd, strict=True)
        ]

    def apply(self, answers: Answers, rule: VerifyRule) -> Verified:
        """Route and verify; an image that is passed on pays for both looks."""
        decision = decide(answers, self._experts, self._relative, rule)
        right = decision.answer(
            [answers.right(name) for name in self._experts], [answers.right_verified(name) for name in self._experts]
        )
        expert_ms = self._costs.expert_ms
        milliseconds = self._costs.gater_ms + self._costs.overhead_ms + expert_ms[decision.first]
        second_ms = decision.passed_on * second_costs(self._costs.expert_ms, answers.verify_by)[decision.first]
        return Verified(right, decision.passed_on, milliseconds + second_ms)

    def frontier(self, answers: Answers, points: int = 64) -> list[RulePoint]:
        """The rules that no other rule beats in both accuracy and latency, from fast to slow."""
        found = []
        for weight in switch_weights(answers.gater_logits, self._relative):
            chosen, confidence = self._first(answers, float(weight))
            right = routed([answers.right(name) for name in self._experts], chosen).astype(np.int64)
            verified = routed([answers.right_verified(name) for name in self._experts], chosen)
            order, spent = self._doubtful(answers, chosen, confidence)
            gained = np.concatenate([[0], np.cumsum((verified - right)[order])])
            base_ms = self._costs.mixture_ms(shares(chosen, len(self._experts)))
            # The surest image stays: its confidence is the last threshold.
            possible = split_points(confidence[order])
            for passed_on in possible[evenly(len(possible), points)]:
                # The next image's confidence, so that those before it are below.
                rule = VerifyRule(float(weight), float(confidence[order[passed_on]]) if passed_on else 0.0)
                accuracy = (right.sum() + gained[passed_on]) / len(answers)
                found.append(RulePoint(rule, float(accuracy), float(base_ms + spent[passed_on])))
        best: list[RulePoint] = []
        for point in sorted(found, key=lambda point: (point.mean_ms, -point.accuracy)):
            if not best or point.accuracy > best[-1].accuracy:
                best.append(point)
        return best

    def pick(self, answers: Answers, budget_ms: float, latency_weight: float) -> VerifyRule:
        """The most accurate rule within a mean latency.

        The higher the rule's latency weight, the fewer images go to the dearest expert at once and the more
        time is left to verify others.

        Args:
            answers: to pick by.
            budget_ms: mean latency allowed.
            latency_weight: what the rule falls back to, without verifying.
        """
        best = VerifyRule(latency_weight, -np.inf)
        if len(answers) == 0:
            return best
        best_accuracy = self.apply(answers, best).right.mean()
        for weight in switch_weights(answers.gater_logits, self._relative):
            chosen, confidence = self._first(answers, float(weight))
            left = budget_ms - self._costs.mixture_ms(shares(chosen, len(self._experts)))
            order, spent = self._doubtful(answers, chosen, confidence)
            if left <= 0 or len(order) == 0:
                continue
            seen_twice = int(np.searchsorted(spent, left, side="right")) - 1
            threshold = float(confidence[order[seen_twice]]) if seen_twice < len(order) else np.inf
            rule = VerifyRule(float(weight), threshold)
            accuracy = self.apply(answers, rule).right.mean()
            if accuracy > best_accuracy:
                best, best_accuracy = rule, accuracy
        return best

    def _first(self, answers: Answers, weight: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        chosen = route(answers.gater_logits, self._relative, weight)
        return chosen, routed([answers.confidence[name] for name in self._experts], chosen)

    def _doubtful(
        self, answers: Answers, chosen: NDArray[np.int64], confidence: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], Floats]:
        """The D images that may be seen twice, the least sure first: int64 [D].

        And float64 [D + 1], what second looks at the first 0 to D of them cost in mean milliseconds.
        """
        cheap = np.flatnonzero(chosen != len(self._experts) - 1)
        order = cheap[np.argsort(confidence[cheap], kind="stable")]
        second_ms = second_costs(self._costs.expert_ms, answers.verify_by)[chosen[order]]
        return order, np.concatenate([[0.0], np.cumsum(second_ms)]) / len(answers)


def _either(rows: NDArray[np.bool_], where_true: Verified, where_false: Verified) -> Verified:
    return Verified(
        np.where(rows, where_true.right, where_false.right),
        np.where(rows, where_true.passed_on, where_false.passed_on),
        np.where(rows, where_true.milliseconds, where_false.milliseconds),
    )
