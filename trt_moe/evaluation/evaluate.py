"""A bundle on a test set: the mixture beside every strategy that it has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import ProgressCallback
from trt_moe.data import EVALUATION_SEED, SEVERITIES, Dataset, corrupt
from trt_moe.data.choose import evenly
from trt_moe.data.corruptions import Kind
from trt_moe.errors import DataError, InputError
from trt_moe.evaluation import latency
from trt_moe.evaluation.answers import Answers, collect, join
from trt_moe.evaluation.frontier import Costs, Point, cascade_curve, frontier, thinned, within_of_dearest
from trt_moe.evaluation.metrics import confusion, expected_calibration_error, latency_summary
from trt_moe.evaluation.strategies import (
    Cascade,
    CueRule,
    best_blend,
    best_cascade,
    best_cue,
    oracle,
    oracle_gain,
    routed,
    shares,
)
from trt_moe.evaluation.verify import Decision, RulePoint, Verified, Verifier, VerifyRule, decide
from trt_moe.router import Router

RANDOM = "random"
IMAGE_CUE = "image_cue"
CASCADE = "cascade"
BASELINE_CASCADE = "baseline_cascade"
VERIFY = "gate_then_verify"
ORACLE = "oracle"

_NEAR_DEAREST = 0.005


@dataclass(frozen=True)
class TestSet:
    """Images of one severity.

    Attributes:
        severity: 0 to 5.
        images: uint8 [N, H, W, C].
        labels: int64 [N], indices into the bundle's classes.
        kind: what corrupted them; "own": they were corrupted before they were stored.
        pictures: int64 [N], which picture each image shows, counted from 0 over all sets of an evaluation; None: as
            they are ordered, the same pictures in every set.
    """

    __test__ = False  # pytest would take it for a test

    severity: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    kind: Kind | Literal["own"] = "both"
    pictures: NDArray[np.int64] | None = None

    @property
    def picture(self) -> NDArray[np.int64]:
        """Which picture each image shows, int64 [N]: one at several severities is one observation."""
        return np.arange(len(self.labels)) if self.pictures is None else self.pictures


@dataclass(frozen=True)
class Report:
    """All numbers of an evaluation.

    Attributes:
        data: ready for JSON, see `evaluate`.
        points: the whole frontier, for plots.
        rules: gate-then-verify at its best, for plots.
        cascade: (mean ms, accuracy) of the confidence cascade, for plots.
    """

    data: dict[str, Any]
    points: tuple[Point, ...]
    rules: tuple[RulePoint, ...]
    cascade: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Rivals:
    """The strategies at the mixture's mean latency, fitted to all severities.

    Attributes:
        blend: float64 [K], shares of random experts.
        cascades: by key of the report.
        cue_from: the model that the image cue chooses, or else the dearest expert.
        cue: routing by the image cue.
        verified: one for each severity.
    """

    blend: NDArray[np.float64]
    cascades: dict[str, Cascade]
    cue_from: str
    cue: CueRule
    verified: list[Verified]


def make_test_sets(
    dataset: Dataset,
    bundle: Bundle,
    severities: Sequence[int] = tuple(range(SEVERITIES)),
    kind: Kind = "both",
    images: int | None = None,
    seed: int = EVALUATION_SEED,
) -> list[TestSet]:
    """Corrupt a data set as the bundle's training did, or take its own severities where it has them.

    Args:
        dataset: as read by `load_dataset`, of the bundle's image size.
        bundle: gives the classes and the corruption.
        severities: which of 0 to 5.
        kind: "both", or "blur" or "noise" alone.
        images: at most so many of each severity, evenly chosen; None: all.
        seed: of the noise.

    Raises:
        DataError: classes that the bundle does not know, other image sizes, or no image left.
        InputError: `kind` is given for images that have their corruption already.
    """
    own = dataset.severities is not None
    if own and kind != "both":
        raise InputError(
            f"{dataset.name} holds images of severities already, which cannot be made {kind} alone; leave out --kind, "
            "or give the clean images"
        )
    unknown = sorted(set(dataset.class_names) - set(bundle.class_names))
    if unknown:
        raise DataError(
            f"{dataset.name} has classes that {bundle.name} does not know: {', '.join(unknown[:5])}; "
            f"it knows {', '.join(bundle.class_names[:12])}"
        )
    if dataset.images.shape[1:] != bundle.input_shape:
        raise DataError(f"{dataset.name} has images of {dataset.images.shape[1:]}, the bundle {bundle.input_shape}")
    index_of = np.array([bundle.class_names.index(name) for name in dataset.class_names], np.int64)
    labels = index_of[dataset.labels]
    sets: list[TestSet] = []
    for severity in severities:
        chosen = np.flatnonzero(dataset.severities == severity) if own else np.arange(len(dataset))
        if images is not None:
            chosen = chosen[evenly(len(chosen), images)]
        if len(chosen) == 0:
            continue
        pixels = dataset.images[chosen]
        if not own:
            pixels = corrupt(pixels, severity, seed, chosen, kind=kind, **bundle.corruption)
        shown = np.arange(len(chosen)) if dataset.pictures is None else dataset.pictures[chosen]
        sets.append(TestSet(severity, pixels, labels[chosen], "own" if own else kind, shown))
    if not sets:
        raise DataError(f"{dataset.name} has no images of severity {', '.join(map(str, severities))}")
    return _renumbered(sets)


def _renumbered(sets: Sequence[TestSet]) -> list[TestSet]:
    """The same with pictures counted without gaps, of which every second one may be taken."""
    numbers = np.unique(np.concatenate([part.picture for part in sets]), return_inverse=True)[1]
    ends = np.cumsum([len(part.labels) for part in sets])[:-1]
    return [replace(part, pictures=own) for part, own in zip(sets, np.split(numbers, ends), strict=True)]


def evaluate(
    router: Router,
    sets: Sequence[TestSet],
    dataset: str,
    latency_images: int | None = 200,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Report:
    """Compare the mixture with each expert, the baselines, random routing, a cascade and an oracle.

    Accuracies come from all images, latencies from single-image calls measured in turns (see
    `trt_moe.evaluation.latency.measure`) on `latency_images` of each severity.

    - random: the best mix of experts drawn without a look at the image, at the mixture's mean latency.
    - image_cue: a cheaper model or the dearest expert by the log Laplacian variance, with one threshold for all
      severities that brings the mean latency to the mixture's. The cue's own time is not counted, and whether low
      or high values go to the dearest expert is picked on these images: both favour it.
    - cascade: a cheaper expert first; the least confident images are seen again, by the dearest expert, or by mirror
      where the router verifies so and that is better here, as many as bring the mean latency to the mixture's. One
      threshold for all severities. As in a mixture that verifies, both looks' probabilities count then.
    - baseline_cascade: the same from a baseline, which the mixture does not have.
      The cheaper model of cue and cascades is the one that serves them best on these images, which favours them too.
    - gate_then_verify: the mixture, with second looks at the images that its cheaper experts are unsure of. Each half
      of the images by the rule that is the most accurate on the other half, within the mixture's mean latency there.
    - oracle: the cheapest expert that is right. `oracle_gain` is the share of its gain over the best single
      expert that the mixture captures; None where it gains nothing. It takes one expert's word, so a mixture that
      verifies can be right where no expert is.

    Args:
        router: at the latency weight, `verify_below` and `verify_by` to evaluate.
        sets: one for each severity.
        dataset: what reports call the data.
        latency_images: of each severity; None: all.
        progress: called as progress(what, done, total).

    Raises:
        ModelOutputError: a model gives logits that are not finite.
    """
    return _Evaluation(router, sets, dataset, latency_images, progress).report()


class _Evaluation:
    def __init__(
        self,
        router: Router,
        sets: Sequence[TestSet],
        dataset: str,
        latency_images: int | None,
        progress: ProgressCallback,
    ) -> None:
        self.router = router
        self.bundle = router.bundle
        self.dataset = dataset
        self.progress = progress
        self.experts = tuple(entry.name for entry in self.bundle.experts)
        self.baselines = tuple(entry.name for entry in self.bundle.baselines)
        self.dearest = self.experts[-1]
        self.relative = np.array([entry.relative_cost for entry in self.bundle.experts])
        self.rule = VerifyRule(router.latency_weight, router.verify_below)
        self.answers = [collect(router, s.images, s.labels, s.severity, progress) for s in sets]
        self.all = join(self.answers)
        self.subsets = [evenly(len(s.labels), latency_images or len(s.labels)) for s in sets]
        models = [self.bundle.gater.name, *self.experts, *self.baselines]
        self.timed = [
            latency.measure(router, s.images[rows], models, progress, f"latencies, severity {s.severity}")
            for s, rows in zip(sets, self.subsets, strict=True)
        ]
        self.all_timed = latency.join(self.timed)
        self.decisions = [self._decide(part) for part in self.answers]
        self.costs = self._costs()
        self.verifier = Verifier(self.experts, self.relative, self.costs)
        self.sets = sets

    def report(self) -> Report:
        """Put everything together."""
        points = frontier(self.all, self.experts, self.relative, self.costs)
        rules = self.verifier.frontier(self.all)
        near = within_of_dearest(rules, float(self.all.right(self.dearest).mean()), _NEAR_DEAREST)
        budget = float(self.verifier.apply(self.all, self.rule).milliseconds.mean())
        rivals = self._fit_rivals(budget)
        rows = {
            str(part.severity): self._severity(part, decision, timed, rivals, verified)
            for part, decision, timed, verified in zip(
                self.answers, self.decisions, self.timed, rivals.verified, strict=True
            )
        }
        overall = self._overall(rivals, budget)
        data = {
            "bundle": self.bundle.name,
            "dataset": self.dataset,
            "corruption": self.sets[0].kind,
            "device": self.router.device,
            "precision": self.router.precision,
            "latency_weight": self.rule.latency_weight,
            "verify_below": self.rule.threshold,
            "verify_by": self.router.verify_by,
            "experts": list(self.experts),
            "baselines": list(self.baselines),
            "classes": self.bundle.class_names,
            "images": sum(len(part) for part in self.answers),
            "latency_images": len(self.all_timed.routes),
            "disagreements": self._disagreements(),
            "severities": rows,
            "overall": overall,
            "oracle_gain": oracle_gain(
                overall[MIXTURE]["accuracy"],
                max(overall[name]["accuracy"] for name in self.experts),
                overall[ORACLE]["accuracy"],
            ),
            "frontier": [point.to_json(self.experts) for point in thinned(points)],
            "verified_frontier": [point.to_json() for point in thinned(rules)],
            "near_dearest": self._near_dearest(near),
            "confusion": confusion(self.all.labels, self._predicted(self.all), self.bundle.class_names),
        }
        cascade = rivals.cascades[CASCADE]
        first_ms, dearest_ms = (self._mean_ms(name) for name in (cascade.first, self.dearest))
        curve = cascade_curve(self.all, cascade.first, cascade.by, first_ms, dearest_ms)
        return Report(data, tuple(points), tuple(rules), tuple(curve))

    def _costs(self) -> Costs:
        times = self.all_timed.milliseconds
        gater = times[self.bundle.gater.name]
        decisions = [
            (decision.first[rows], decision.last[rows], decision.passed_on[rows])
            for decision, rows in zip(self.decisions, self.subsets, strict=True)
        ]
        first, last, passed_on = (np.concatenate(parts) for parts in zip(*decisions, strict=True))
        expert_times = [times[name] for name in self.experts]
        experts = routed(expert_times, first) + passed_on * routed(expert_times, last)
        return Costs(
            gater_ms=float(gater.mean()),
            expert_ms=np.array([times[name].mean() for name in self.experts]),
            overhead_ms=float((times[MIXTURE] - gater - experts).mean()),
        )

    def _decide(self, answers: Answers) -> Decision:
        return decide(answers, self.experts, self.relative, self.rule)

    def _predicted(self, answers: Answers) -> NDArray[np.int64]:
        """Int64 [N], the class that the mixture answers."""
        return self._decide(answers).answer(
            [answers.predicted[name] for name in self.experts],
            [answers.verified[name].predicted for name in self.experts],
        )

    def _mean_ms(self, name: str) -> float:
        return float(self.all_timed.milliseconds[name].mean())

    def _fit_rivals(self, budget: float) -> _Rivals:
        accuracy = np.array([self.all.right(name).mean() for name in self.experts])
        dearest_ms = self._mean_ms(self.dearest)
        cheaper = {CASCADE: self.experts[:-1], BASELINE_CASCADE: self.baselines}
        cheaper_ms = {key: {name: self._mean_ms(name) for name in names} for key, names in cheaper.items() if names}
        return _Rivals(
            best_blend(self.costs.expert_ms, accuracy, budget).weights,
            {key: best_cascade(self.all, ms, dearest_ms, budget) for key, ms in cheaper_ms.items()},
            *best_cue(self.all, cheaper_ms[CASCADE], self.dearest, dearest_ms, budget),
            self.verifier.cross_check(
                self.answers, [part.picture % 2 == 1 for part in self.sets], budget, self.rule.latency_weight
            ),
        )

    def _severity(
        self, part: Answers, decision: Decision, timed: latency.Latencies, rivals: _Rivals, verified: Verified
    ) -> dict[str, Any]:
        accuracy = {name: float(part.right(name).mean()) for name in self.experts}
        share = dict(zip(self.experts, shares(decision.last, len(self.experts)).tolist(), strict=True))
        return {
            "images": len(part),
            "share": share,
            "passed_on": float(decision.passed_on.mean()),
            "accuracy": self._mixture_accuracy(part),
            **latency_summary(timed.milliseconds[MIXTURE]),
            "ece": self._mixture_ece(part),
            "experts": accuracy,
            "baselines": {name: float(part.right(name).mean()) for name in self.baselines},
            RANDOM: float(sum(p * accuracy[name] for p, name in zip(rivals.blend, self.experts, strict=True))),
            IMAGE_CUE: float(rivals.cue.right(part, rivals.cue_from, self.dearest).mean()),
            "image_cue_share": float(rivals.cue.to_dearest(part).mean()),
            **{key: float(cascade.right(part).mean()) for key, cascade in rivals.cascades.items()},
            **{f"{key}_share": float(cascade.passed_on(part).mean()) for key, cascade in rivals.cascades.items()},
            VERIFY: float(verified.right.mean()),
            "gate_then_verify_share": float(verified.passed_on.mean()),
            ORACLE: float(self._oracle_right(part).mean()),
        }

    def _overall(self, rivals: _Rivals, budget: float) -> dict[str, Any]:
        times, answers, expert_ms = self.all_timed.milliseconds, self.all, self.costs.expert_ms
        rows: dict[str, Any] = {
            MIXTURE: {
                "accuracy": self._mixture_accuracy(answers),
                **latency_summary(times[MIXTURE]),
                "modelled_ms": budget,
                "gater_ms": self.costs.gater_ms,
                "overhead_ms": self.costs.overhead_ms,
                "ece": self._mixture_ece(answers),
            }
        }
        for name in (*self.experts, *self.baselines):
            rows[name] = {"accuracy": float(answers.right(name).mean()), **latency_summary(times[name])}
        accuracy = np.array([rows[name]["accuracy"] for name in self.experts])
        rows[RANDOM] = {
            "accuracy": float(rivals.blend @ accuracy),
            "mean_ms": float(rivals.blend @ expert_ms),
            "share": dict(zip(self.experts, rivals.blend.tolist(), strict=True)),
        }
        share, dearest_ms = float(rivals.cue.to_dearest(answers).mean()), self._mean_ms(self.dearest)
        rows[IMAGE_CUE] = {
            "accuracy": float(rivals.cue.right(answers, rivals.cue_from, self.dearest).mean()),
            "mean_ms": (1 - share) * self._mean_ms(rivals.cue_from) + share * dearest_ms,
            "cheaper": rivals.cue_from,
            "share_of_dearest": share,
        }
        for key, cascade in rivals.cascades.items():
            rows[key] = {
                "accuracy": float(cascade.right(answers).mean()),
                "mean_ms": cascade.milliseconds(answers, self._mean_ms(cascade.first), dearest_ms),
                "cheaper": cascade.first,
                "verify_by": cascade.by,
                "passed_on": float(cascade.passed_on(answers).mean()),
            }
        rows[VERIFY] = {
            "accuracy": float(np.concatenate([part.right for part in rivals.verified]).mean()),
            "mean_ms": float(np.concatenate([part.milliseconds for part in rivals.verified]).mean()),
            "passed_on": float(np.concatenate([part.passed_on for part in rivals.verified]).mean()),
        }
        chosen = oracle(answers, self.experts)
        rows[ORACLE] = {
            "accuracy": float(self._oracle_right(answers).mean()),
            "mean_ms": float(shares(chosen, len(self.experts)) @ self.costs.expert_ms),
        }
        return rows

    def _near_dearest(self, point: RulePoint | None) -> dict[str, Any] | None:
        """Measure, not only model, the rule that comes within half a point of the dearest expert."""
        if point is None:
            return None
        before = self.rule
        self._set(point.rule)
        try:
            parts = [
                latency.measure(self.router, s.images[rows], [self.dearest], self.progress, "latencies, near dearest")
                for s, rows in zip(self.sets, self.subsets, strict=True)
            ]
        finally:
            self._set(before)
        times = latency.join(parts).milliseconds
        dearest = float(times[self.dearest].mean())
        return {
            **point.to_json(),
            "accuracy_below_dearest": float(self.all.right(self.dearest).mean()) - point.accuracy,
            "measured_ms": float(times[MIXTURE].mean()),
            "measured_dearest_ms": dearest,
            "of_dearest": float(times[MIXTURE].mean()) / dearest,
        }

    def _set(self, rule: VerifyRule) -> None:
        self.router.latency_weight, self.router.verify_below = rule.latency_weight, rule.threshold

    def _mixture_accuracy(self, answers: Answers) -> float:
        return float((self._predicted(answers) == answers.labels).mean())

    def _mixture_ece(self, answers: Answers) -> float:
        confidence = self._decide(answers).answer(
            [answers.confidence[name] for name in self.experts],
            [answers.verified[name].confidence for name in self.experts],
        )
        return expected_calibration_error(confidence, self._predicted(answers) == answers.labels)

    def _oracle_right(self, answers: Answers) -> NDArray[np.bool_]:
        return np.asarray(np.any([answers.right(name) for name in self.experts], axis=0))

    def _disagreements(self) -> int:
        """Images that the router answered otherwise, alone, than the models did in batches; expected 0."""
        count = 0
        for part, decision, timed, rows in zip(self.answers, self.decisions, self.timed, self.subsets, strict=True):
            predicted = self._predicted(part)
            count += int(((timed.routes != decision.last[rows]) | (timed.labels != predicted[rows])).sum())
        return count
