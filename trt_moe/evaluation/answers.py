"""What every model of a bundle answers for every image: the stuff that all comparisons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.console import ProgressCallback
from trt_moe.errors import ModelOutputError
from trt_moe.evaluation.cues import log_laplacian_variance, measure
from trt_moe.router import Router
from trt_moe.softmax import log_softmax

_BATCH = 256


@dataclass(frozen=True)
class WithDearest:
    """The mean of a model's and the dearest expert's probabilities: int64 [N] likeliest class, float32 [N] its own."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @classmethod
    def of(cls, first: NDArray[np.float32], second: NDArray[np.float32]) -> WithDearest:
        """From the probabilities of both, [N, classes]."""
        mean = (first + second) / 2
        return cls(mean.argmax(axis=1), mean.max(axis=1))

    def take(self, chosen: NDArray[np.bool_]) -> WithDearest:
        """The images where `chosen`, bool [N], is true."""
        return WithDearest(self.predicted[chosen], self.confidence[chosen])


@dataclass(frozen=True)
class Answers:
    """Answers for N images of one severity, K experts.

    Attributes:
        severity: 0 to 5.
        labels: int64 [N], the truth.
        gater_logits: float32 [N, K], before the latency weight.
        predicted: by expert and baseline name: int64 [N], the likeliest class.
        confidence: by expert and baseline name: float32 [N], its probability.
        loss: by expert and baseline name: float32 [N], cross-entropy of the truth in nats.
        verified: by expert and baseline name: the answer where the dearest expert was asked as well.
        image_cue: float64 [N], log Laplacian variance of the image.
    """

    severity: int
    labels: NDArray[np.int64]
    gater_logits: NDArray[np.float32]
    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float32]]
    loss: dict[str, NDArray[np.float32]]
    verified: dict[str, WithDearest]
    image_cue: NDArray[np.float64]

    def right(self, name: str) -> NDArray[np.bool_]:
        """Bool [N], where the model `name` is right."""
        return np.equal(self.predicted[name], self.labels)

    def right_verified(self, name: str) -> NDArray[np.bool_]:
        """Bool [N], where the model `name` and the dearest expert are right together."""
        return np.equal(self.verified[name].predicted, self.labels)

    def take(self, chosen: NDArray[np.bool_]) -> Answers:
        """The images where `chosen`, bool [N], is true."""
        return Answers(
            self.severity,
            self.labels[chosen],
            self.gater_logits[chosen],
            {name: values[chosen] for name, values in self.predicted.items()},
            {name: values[chosen] for name, values in self.confidence.items()},
            {name: values[chosen] for name, values in self.loss.items()},
            {name: value.take(chosen) for name, value in self.verified.items()},
            self.image_cue[chosen],
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def collect(
    router: Router,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    severity: int,
    progress: ProgressCallback,
) -> Answers:
    """Run gater, experts and baselines on all images, in batches: answers do not depend on the batch.

    Args:
        router: gives the compiled models.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        severity: noted in the result.
        progress: called as progress(what, done, total).

    Raises:
        ModelOutputError: a model gives logits that are not finite.
    """
    bundle = router.bundle
    names = [entry.name for entry in [*bundle.models(), *bundle.baselines]]
    starts = range(0, len(images), _BATCH)
    gater_logits = np.empty((len(images), len(bundle.experts)), np.float32)
    predicted = {name: np.empty(len(images), np.int64) for name in names[1:]}
    confidence = {name: np.empty(len(images), np.float32) for name in names[1:]}
    loss = {name: np.empty(len(images), np.float32) for name in names[1:]}
    probabilities: dict[str, NDArray[np.float32]] = {
        name: np.empty((len(images), len(bundle.class_names)), np.float32) for name in names[1:]
    }
    done, total = 0, len(names) * len(images)
    for name in names:
        model = router.model(name)
        for start in starts:
            part = slice(start, start + _BATCH)
            logits = model.logits(images[part])
            if not np.isfinite(logits).all():
                raise ModelOutputError(f"{bundle.path}: {name} gives logits that are not finite")
            if name == bundle.gater.name:
                gater_logits[part] = logits
            else:
                scores = log_softmax(logits)
                predicted[name][part] = logits.argmax(axis=1)
                confidence[name][part] = np.exp(scores.max(axis=1))
                probabilities[name][part] = np.exp(scores)
                loss[name][part] = -np.take_along_axis(scores, labels[part, None], axis=1)[:, 0]
            done += len(logits)
            progress(f"answers, severity {severity}", done, total)
    image_cue = measure(log_laplacian_variance, images)
    dearest = probabilities[bundle.experts[-1].name]
    verified = {name: WithDearest.of(rows, dearest) for name, rows in probabilities.items()}
    return Answers(severity, labels, gater_logits, predicted, confidence, loss, verified, image_cue)


def join(parts: Sequence[Answers]) -> Answers:
    """All severities as one; the severity of the result is -1."""
    return Answers(
        -1,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.gater_logits for part in parts]),
        {name: np.concatenate([part.predicted[name] for part in parts]) for name in parts[0].predicted},
        {name: np.concatenate([part.confidence[name] for part in parts]) for name in parts[0].confidence},
        {name: np.concatenate([part.loss[name] for part in parts]) for name in parts[0].loss},
        {
            name: WithDearest(
                np.concatenate([part.verified[name].predicted for part in parts]),
                np.concatenate([part.verified[name].confidence for part in parts]),
            )
            for name in parts[0].verified
        },
        np.concatenate([part.image_cue for part in parts]),
    )
