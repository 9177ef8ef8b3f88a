"""What every model of a bundle answers for every image: the stuff that all comparisons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.console import ProgressCallback
from trt_moe.errors import ModelOutputError
from trt_moe.evaluation.cues import log_laplacian_variance, measure
from trt_moe.router import Router
from trt_moe.softmax import log_softmax, softmax

_BATCH = 256


@dataclass(frozen=True)
class SecondLook:
    """The mean of two looks' probabilities: int64 [N] likeliest class, float32 [N] its own."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @classmethod
    def of(cls, first: NDArray[np.float32], second: NDArray[np.float32]) -> SecondLook:
        """From the probabilities of both, [N, classes]."""
        mean = (first + second) / 2
        return cls(mean.argmax(axis=1), mean.max(axis=1))

    def take(self, chosen: NDArray[np.bool_]) -> SecondLook:
        """The images where `chosen`, bool [N], is true."""
        return SecondLook(self.predicted[chosen], self.confidence[chosen])


Looks = dict[VerifyBy, dict[str, SecondLook]]
"""By who has the second look, then by the model that has the first."""


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
        verify_by: who has the second look where the router verifies.
        second: by expert and baseline name: answers of two looks, the second one by the dearest expert, and by mirror
            where the router verifies so.
        image_cue: float64 [N], log Laplacian variance of the image.
    """

    severity: int
    labels: NDArray[np.int64]
    gater_logits: NDArray[np.float32]
    predicted: dict[str, NDArray[np.int64]]
    confidence: dict[str, NDArray[np.float32]]
    loss: dict[str, NDArray[np.float32]]
    verify_by: VerifyBy
    second: Looks
    image_cue: NDArray[np.float64]

    def right(self, name: str) -> NDArray[np.bool_]:
        """Bool [N], where the model `name` is right."""
        return np.equal(self.predicted[name], self.labels)

    @property
    def verified(self) -> dict[str, SecondLook]:
        """By expert and baseline name: the answers where the router verifies."""
        return self.second[self.verify_by]

    def right_verified(self, name: str, by: VerifyBy | None = None) -> NDArray[np.bool_]:
        """Bool [N], where the model `name` is right with a second look; `by` None: the router's."""
        return np.equal(self.second[by or self.verify_by][name].predicted, self.labels)

    def take(self, chosen: NDArray[np.bool_]) -> Answers:
        """The images where `chosen`, bool [N], is true."""
        return Answers(
            self.severity,
            self.labels[chosen],
            self.gater_logits[chosen],
            {name: values[chosen] for name, values in self.predicted.items()},
            {name: values[chosen] for name, values in self.confidence.items()},
            {name: values[chosen] for name, values in self.loss.items()},
            self.verify_by,
            {by: {name: look.take(chosen) for name, look in looks.items()} for by, looks in self.second.items()},
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
    second_looks: bool = True,
) -> Answers:
    """Run gater, experts and baselines on all images, in batches: answers do not depend on the batch.

    Args:
        router: gives the compiled models.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        severity: noted in the result.
        progress: called as progress(what, done, total).
        second_looks: False leaves out those by mirror, each of which costs a run, where nobody asks for verified
            answers.

    Raises:
        ModelOutputError: a model gives logits that are not finite.
    """
    bundle = router.bundle
    names = [entry.name for entry in [*bundle.experts, *bundle.baselines]]
    by_mirror = second_looks and router.verify_by == "mirror"
    done, total = 0, (1 + len(names) * (1 + by_mirror)) * len(images)

    def logits(name: str, outputs: int, mirrored: bool = False) -> NDArray[np.float32]:
        nonlocal done
        model, rows = router.model(name), np.empty((len(images), outputs), np.float32)
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            found = model.logits(batch[:, :, ::-1] if mirrored else batch)
            if not np.isfinite(found).all():
                raise ModelOutputError(f"{bundle.path}: {name} gives logits that are not finite")
            rows[start : start + _BATCH] = found
            done += len(found)
            progress(f"answers, severity {severity}", done, total)
        return rows

    gater_logits = logits(bundle.gater.name, len(bundle.experts))
    predicted, confidence, loss, probabilities = {}, {}, {}, {}
    for name in names:
        rows = logits(name, len(bundle.class_names))
        scores = log_softmax(rows)
        predicted[name] = rows.argmax(axis=1)
        confidence[name] = np.exp(scores.max(axis=1))
        loss[name] = -np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        probabilities[name] = np.exp(scores)
    dearest = probabilities[bundle.experts[-1].name]
    second: Looks = {"dearest": {name: SecondLook.of(rows, dearest) for name, rows in probabilities.items()}}
    if by_mirror:
        second["mirror"] = {
            name: SecondLook.of(rows, softmax(logits(name, len(bundle.class_names), mirrored=True)))
            for name, rows in probabilities.items()
        }
    image_cue = measure(log_laplacian_variance, images)
    return Answers(severity, labels, gater_logits, predicted, confidence, loss, router.verify_by, second, image_cue)


def join(parts: Sequence[Answers]) -> Answers:
    """All severities as one; the severity of the result is -1."""
    return Answers(
        -1,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.gater_logits for part in parts]),
        {name: np.concatenate([part.predicted[name] for part in parts]) for name in parts[0].predicted},
        {name: np.concatenate([part.confidence[name] for part in parts]) for name in parts[0].confidence},
        {name: np.concatenate([part.loss[name] for part in parts]) for name in parts[0].loss},
        parts[0].verify_by,
        {
            by: {
                name: SecondLook(
                    np.concatenate([part.second[by][name].predicted for part in parts]),
                    np.concatenate([part.second[by][name].confidence for part in parts]),
                )
                for name in looks
            }
            for by, looks in parts[0].second.items()
        },
        np.concatenate([part.image_cue for part in parts]),
    )
