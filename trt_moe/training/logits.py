"""The experts' logits on images that they did not train on, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from trt_moe.bundle.writer import write_bytes
from trt_moe.models import ImageModel
from trt_moe.softmax import log_softmax, softmax
from trt_moe.training.config import ExpertConfig, TrainConfig, digest
from trt_moe.training.experts import predict
from trt_moe.training.processes import connect
from trt_moe.training.run_files import writing
from trt_moe.training.splits import Corrupted, Parts, derived_seed, draw, every_severity

UNIFORM = (1.0,) * 6
GATER_PART, VALIDATION_PART = "gater", "validation"
"""What the kept logits of `judge_parts` are called."""


@dataclass(frozen=True)
class Judged:
    """Corrupted images and every expert's logits float32 [N, K, classes] on them."""

    images: Corrupted
    logits: NDArray[np.float32]

    @property
    def losses(self) -> NDArray[np.float32]:
        """Cross-entropy of every expert on every image, float32 [N, K], in nats."""
        scores = log_softmax(self.logits)
        losses: NDArray[np.float32] = -np.take_along_axis(scores, self.images.labels[:, None, None], axis=2)[:, :, 0]
        return losses

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each expert is right, bool [N, K]."""
        right: NDArray[np.bool_] = self.logits.argmax(2) == self.images.labels[:, None]
        return right

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Largest probability of every expert, float32 [N, K]."""
        confidence: NDArray[np.float32] = softmax(self.logits).max(2)
        return confidence

    def right_with(self, second: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the mean of an expert's and a second look's probabilities is right, bool [N, K].

        `second` are the second looks' logits, [N, K, classes], or of one for all experts [N, 1, classes].
        """
        both = softmax(self.logits) + softmax(second)
        right: NDArray[np.bool_] = both.argmax(2) == self.images.labels[:, None]
        return right

    def divided_by(self, temperatures: Sequence[float]) -> Judged:
        """Return the same with each expert's logits divided by its temperature, of K."""
        return Judged(self.images, self.logits / np.asarray(temperatures, np.float32)[:, None])

    def of(self, columns: Sequence[int]) -> Judged:
        """Return the same with some of the experts, in the order of `columns`."""
        return Judged(self.images, self.logits[:, list(columns)])

    def thinned(self, count: int) -> Judged:
        """Return about `count` of the images, or all of fewer: every n-th, which keeps the balance of severities."""
        images, step = self.images, max(1, len(self.images.labels) // count)
        return Judged(
            Corrupted(images.images[::step], images.labels[::step], images.severities[::step]), self.logits[::step]
        )


def judge_parts(
    config: TrainConfig,
    classifiers: Sequence[ExpertConfig],
    models: Mapping[str, ImageModel],
    parts: Parts,
    folder: Path,
    log: Callable[[str], None] = print,
) -> tuple[Judged, Judged]:
    """Return the gater's training images and the validation images, judged by the classifiers.

    The gater trains on `config.gater.passes` corrupted copies of its part, severities uniform; validation
    sees every image at every severity. Logits are kept in `folder`.
    """
    passes = [
        draw(parts.gater, UNIFORM, config.corruption, derived_seed("gater", config.seed, n))
        for n in range(config.gater.passes)
    ]
    training = Corrupted(
        np.concatenate([p.images for p in passes]),
        np.concatenate([p.labels for p in passes]),
        np.concatenate([p.severities for p in passes]),
    )
    validation = every_severity(parts.validation, config.corruption, derived_seed("validation", config.seed))
    return (
        judge(config, classifiers, models, GATER_PART, training, folder, log),
        judge(config, classifiers, models, VALIDATION_PART, validation, folder, log),
    )


def judge(
    config: TrainConfig,
    classifiers: Sequence[ExpertConfig],
    models: Mapping[str, ImageModel],
    what: str,
    images: Corrupted,
    folder: Path,
    log: Callable[[str], None] = print,
) -> Judged:
    """Return the images with the classifiers' logits on them, kept in `folder` under the name `what`.

    The name stands for the images: another `what` for every other way to draw them.
    """
    columns = []
    for classifier in classifiers:
        model = models[classifier.name]
        # Weights that were trained again by the same settings are others all the same.
        settings = [config.expert_hash(classifier), _weights_hash(model)]
        identity = digest([settings, what, config.seed, len(images.labels)])
        file = folder / f"logits-{what}-{classifier.name}.safetensors"
        columns.append(_cached(file, identity, model, images, config.precision, log))
    return Judged(images, np.stack(columns, axis=1))


def _weights_hash(model: ImageModel) -> str:
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _cached(
    file: Path,
    identity: str,
    model: ImageModel,
    images: Corrupted,
    precision: str,
    log: Callable[[str], None],
) -> NDArray[np.float32]:
    """Read the logits [N, classes] back where they were computed for the same thing, else compute them."""
    try:
        with safe_open(file, framework="np") as stored:
            if (stored.metadata() or {}).get("identity") == identity:
                kept: NDArray[np.float32] = stored.get_tensor("logits")
                return kept
    except (OSError, SafetensorError):
        pass
    log(f"{file.stem}: {len(images.labels)} images")
    logits = predict(model.to(connect().device), images.images, precision)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, save({"logits": np.ascontiguousarray(logits)}, {"identity": identity}))
    return logits
