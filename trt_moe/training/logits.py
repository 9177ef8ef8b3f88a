"""The experts' logits on images that they did not train on, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trt_moe.models import ImageModel
from trt_moe.training.config import TrainConfig, digest
from trt_moe.training.experts import predict
from trt_moe.training.processes import connect
from trt_moe.training.splits import Corrupted, Parts, derived_seed, draw, every_severity

UNIFORM = (1.0,) * 6


@dataclass(frozen=True)
class Judged:
    """Corrupted images and every expert's logits float32 [N, K, classes] on them."""

    images: Corrupted
    logits: NDArray[np.float32]

    @property
    def losses(self) -> NDArray[np.float32]:
        """Cross-entropy of every expert on every image, float32 [N, K], in nats."""
        shifted = self.logits - self.logits.max(2, keepdims=True)
        normaliser = np.log(np.exp(shifted).sum(2))
        picked = np.take_along_axis(shifted, self.images.labels[:, None, None], axis=2)[:, :, 0]
        losses: NDArray[np.float32] = (normaliser - picked).astype(np.float32)
        return losses

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each expert is right, bool [N, K]."""
        right: NDArray[np.bool_] = self.logits.argmax(2) == self.images.labels[:, None]
        return right

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Largest probability of the cheapest expert, float32 [N]."""
        cheap = self.logits[:, 0]
        confidence: NDArray[np.float32] = 1 / np.exp(cheap - cheap.max(1, keepdims=True)).sum(1)
        return confidence


def judge_parts(
    config: TrainConfig,
    models: Mapping[str, ImageModel],
    parts: Parts,
    folder: Path,
    log: Callable[[str], None] = print,
) -> tuple[Judged, Judged]:
    """Return the gater's training images and the validation images, judged by all experts.

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
    judged = []
    for what, images in (("gater", training), ("validation", validation)):
        columns = []
        for expert in config.experts:
            identity = digest([config.expert_hash(expert), what, config.seed, len(images.labels)])
            file = folder / f"logits-{what}-{expert.name}.safetensors"
            columns.append(_cached(file, identity, models[expert.name], images, config.precision, log))
        judged.append(Judged(images, np.stack(columns, axis=1)))
    return judged[0], judged[1]


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
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"logits": np.ascontiguousarray(logits)}, file, {"identity": identity})
    return logits
