"""The accuracy gate: what a float16 or int8 graph answers on sample images, against its float32 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from trt_moe.bundle import Bundle, ModelEntry
from trt_moe.compile import gate_suspects
from trt_moe.compile.gate_emulation import emulate
from trt_moe.compile.gate_runtime import logits
from trt_moe.compile.half import float32_layers, must_stay_float32, prepare, to_half
from trt_moe.data import SEVERITIES, corrupt
from trt_moe.errors import EngineBuildError, ModelOutputError
from trt_moe.logit_error import image_errors

_SUSPECT_IMAGES = 16
_FIRST_SUSPECTS = 4
_MAX_FLOAT32_SHARE = 0.5


@dataclass(frozen=True)
class Samples:
    """Images to compare answers on.

    Attributes:
        images: uint8 [N, H, W, C].
        severities: int64 [N], 0 (clean) to 5.
        labels: int64 [N] of the classes; None where the right answers are not known, as for a gater.
        bias: float32 [K], added to the logits before the largest is picked; None: zeros. For a gater it is minus
            the latency weight times the relative costs, so that its answers are routes.
    """

    images: NDArray[np.uint8]
    severities: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    bias: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, bundle: Bundle, entry: ModelEntry) -> Samples:
        """The samples that a bundle ships for one of its models, or its golden images where it ships none.

        Raises:
            BundleError: it has neither, or they are damaged.
        """
        bias = None
        if entry.name == bundle.gater.name:
            costs = np.array([expert.relative_cost for expert in bundle.experts], np.float32)
            bias = -np.float32(bundle.latency_weight) * costs
        if bundle.manifest.samples is None:
            images = bundle.golden()["images"]
            return cls(images, np.zeros(len(images), np.int64), bias=bias)
        images, labels, severities = bundle.samples()
        return cls(images, severities, None if bias is not None else labels, bias)

    def halves(self) -> tuple[Samples, Samples]:
        """Every other image, and the rest: for calibrating on images that the gate does not see."""
        return self._part(0), self._part(1)

    def of_all_severities(self, bundle: Bundle) -> NDArray[np.uint8]:
        """The images; where all of them are clean, five of six are corrupted as the bundle's training does it."""
        if self.severities.any():
            return self.images
        return corrupt(self.images, np.arange(len(self.images)) % SEVERITIES, **bundle.corruption)

    def _part(self, start: int) -> Samples:
        labels = None if self.labels is None else self.labels[start::2]
        return Samples(self.images[start::2], self.severities[start::2], labels, self.bias)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Thresholds(_Section):
    """What a graph must reach to pass; the defaults are for float16."""

    top1_agreement: float = Field(default=0.99, ge=0, le=1)
    """Smallest share of images with the same largest logit; below 1, one image may always differ."""
    logit_error: float = Field(default=0.05, gt=0)
    """Largest logit error of any image, in the measure of `GateReport`."""
    accuracy_drop: float = Field(default=0.02, ge=0, le=1)
    """Largest loss of accuracy at any severity, as a fraction; above 0, one image may always be lost."""


INT8_THRESHOLDS = Thresholds(top1_agreement=0.95, logit_error=0.1, accuracy_drop=0.04)
"""For graphs with Q/DQ nodes: with 8 bits the near ties of a few percent of the images fall differently."""


class GateReport(_Section):
    """The outcome of the gate.

    Logit errors are those of `logit_error`; None where no image has finite logits.
    """

    passed: bool
    method: Literal["emulated", "engine"]
    """"emulated": float16 results computed on the CPU (see `gate_emulation.emulate`); "engine": by the engine."""
    images: int
    overflowed: int
    """Images whose logits are not finite."""
    top1_agreement: float
    largest_logit_error: float | None
    mean_logit_error: float | None
    accuracy_difference: dict[str, float]
    """By severity: accuracy of the graph minus that of the reference; empty for samples without labels."""
    thresholds: Thresholds
    failures: list[str]
    """What missed which threshold, for people; empty where it passed."""
    float32_layers: list[str]
    """Nodes that stayed in float32."""


def check(
    reference: onnx.ModelProto, candidate: onnx.ModelProto, samples: Samples, thresholds: Thresholds | None = None
) -> GateReport:
    """Compare a float16 graph, emulated on the CPU, with the float32 model that it was made from.

    Args:
        reference: images uint8 [N, H, W, C] to logits float32 [N, K].
        candidate: as `half.to_half` or `int8.quantize` returns it.
        samples: what to run both on.
        thresholds: those for int8 or float16, whichever the candidate is, where left out.

    Raises:
        ModelOutputError: the reference itself gives logits that are not finite.
    """
    expected = logits(reference, samples.images)
    found = logits(emulate(candidate), samples.images)
    return compare(
        expected, found, samples, "emulated", thresholds or _thresholds(candidate), float32_layers(candidate)
    )


def compare(
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    samples: Samples,
    method: Literal["emulated", "engine"],
    thresholds: Thresholds | None = None,
    float32_layers: Sequence[str] = (),
) -> GateReport:
    """Judge logits, float32 [N, K] each, of the samples' images.

    Raises:
        ModelOutputError: expected logits are not finite.
    """
    limits = thresholds or Thresholds()
    if not np.isfinite(expected).all():
        raise ModelOutputError("the float32 model gives logits that are not finite on the samples; it is broken")
    errors = image_errors(found, expected)
    finite = np.isfinite(errors)
    bias = np.float32(0) if samples.bias is None else samples.bias
    # NaN would win every argmax; an image without finite logits agrees with nothing.
    answers = np.where(finite, np.where(finite[:, None], found + bias, 0).argmax(axis=1), -1)
    expected_answers = (expected + bias).argmax(axis=1)
    difference = {}
    if samples.labels is not None:
        right = (answers == samples.labels).astype(int) - (expected_answers == samples.labels)
        for severity in np.unique(samples.severities):
            difference[str(severity)] = float(right[samples.severities == severity].mean())
    agreement = float((answers == expected_answers).mean())
    failures = _failures(errors, agreement, difference, samples.severities, limits)
    return GateReport(
        passed=not failures,
        method=method,
        images=len(errors),
        overflowed=int((~finite).sum()),
        top1_agreement=agreement,
        largest_logit_error=float(errors[finite].max()) if finite.any() else None,
        mean_logit_error=float(errors[finite].mean()) if finite.any() else None,
        accuracy_difference=difference,
        thresholds=limits,
        failures=failures,
        float32_layers=list(float32_layers),
    )


def rescue(
    model: onnx.ModelProto,
    samples: Samples,
    thresholds: Thresholds | None = None,
    convert: Callable[[onnx.ModelProto, Collection[str]], onnx.ModelProto] = to_half,
) -> tuple[onnx.ModelProto, GateReport]:
    """Convert to float16, or as told, with as few layers in float32 as it takes to pass.

    Layers whose values leave float16's range come first, then those that add most to the error, a few at a time.

    Args:
        model: float32, images uint8 [N, H, W, C] to logits float32 [N, K]; it is not changed.
        samples: what to run it on.
        thresholds: as for `check`.
        convert: takes a prepared model and the names of nodes that stay in float32.

    Returns:
        The converted graph, and its report, which names the layers that stayed in float32.

    Raises:
        EngineBuildError: it does not pass with half of its layers in float32; the message names the worst ones.
        ModelOutputError: the float32 model gives logits that are not finite.
    """
    prepared = prepare(model)
    expected = logits(prepared, samples.images)
    stays = set(must_stay_float32(prepared))
    kept: set[str] = set()
    blamed: list[str] = []
    step = _FIRST_SUSPECTS
    while True:
        candidate = convert(prepared, kept)
        emulated = emulate(candidate)
        found = logits(emulated, samples.images)
        limits = thresholds or _thresholds(candidate)
        report = compare(expected, found, samples, "emulated", limits, float32_layers(candidate))
        if report.passed:
            return candidate, report
        worst = np.argsort(-image_errors(found, expected), kind="stable")[:_SUSPECT_IMAGES]
        suspects = gate_suspects.find(prepared, emulated, samples.images[worst])
        new = [name for name in suspects.overflowing if name not in kept | stays]
        if not new and len(kept | stays) <= _MAX_FLOAT32_SHARE * len(prepared.graph.node):
            new = [name for name in suspects.by_error if name not in kept | stays][:step]
            step *= 2
        blamed += new
        kept.update(new)
        if not new:
            raise EngineBuildError(
                "it misses the accuracy gate, even with layers kept in float32: "
                f"{'; '.join(report.failures)}. The layers that lose most: "
                f"{', '.join(blamed[:5]) or 'none stands out'}. Build it in fp32"
            )


def _thresholds(candidate: onnx.ModelProto) -> Thresholds:
    quantized = any(node.op_type == "QuantizeLinear" for node in candidate.graph.node)
    return INT8_THRESHOLDS if quantized else Thresholds()


def _failures(
    errors: NDArray[np.float64],
    agreement: float,
    difference: dict[str, float],
    severities: NDArray[np.int64],
    limits: Thresholds,
) -> list[str]:
    overflowed = int(np.isinf(errors).sum())
    if overflowed:
        # What else is missed follows from that.
        return [f"{overflowed} of {len(errors)} images overflow: their logits are not finite"]
    failures = []
    if _images(1 - agreement, len(errors)) > _allowed(1 - limits.top1_agreement, len(errors)):
        failures.append(f"{agreement:.2%} of the answers agree, {limits.top1_agreement:.2%} must")
    if errors.max() > limits.logit_error:
        failures.append(f"the largest logit error is {errors.max():.3g}, at most {limits.logit_error:g} is allowed")
    for severity, change in difference.items():
        count = int((severities == int(severity)).sum())
        if _images(-change, count) > _allowed(limits.accuracy_drop, count):
            failures.append(
                f"accuracy at severity {severity} falls by {-100 * change:.1f} points, "
                f"at most {100 * limits.accuracy_drop:.1f} are allowed"
            )
    return failures


def _images(share: float, count: int) -> int:
    return round(share * count)


def _allowed(share: float, count: int) -> int:
    # A single image does not decide, however few there are: it may be a tie.
    return max(1, math.floor(share * count + 1e-9)) if share > 0 else 0
