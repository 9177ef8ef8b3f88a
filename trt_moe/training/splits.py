"""Which training image serves which phase, and the corrupted copy of it that an epoch sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.data import Dataset, corrupt
from trt_moe.data.corruptions import Kind
from trt_moe.errors import DataError
from trt_moe.training.config import CorruptionConfig, SplitConfig

KINDS: tuple[Kind, ...] = ("both", "blur", "noise")


@dataclass(frozen=True)
class Part:
    """The images of one phase.

    Attributes:
        images: uint8 [N, H, W, C], clean.
        labels: int64 [N].
        indices: int64 [N], positions in the training split; they seed the corruptions.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64] | slice) -> Part:
        """Return some of the images, in the order of `rows`."""
        return Part(self.images[rows], self.labels[rows], self.indices[rows])


@dataclass(frozen=True)
class Parts:
    """The three disjoint parts of a training split."""

    experts: Part
    gater: Part
    validation: Part


@dataclass(frozen=True)
class Corrupted:
    """Images uint8 [N, H, W, C] as they come out of the corruption, with labels and severities int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    severities: NDArray[np.int64]

    def mirrored(self) -> Corrupted:
        """Return the same images, left and right exchanged."""
        return Corrupted(np.ascontiguousarray(self.images[:, :, ::-1]), self.labels, self.severities)


def split(data: Dataset, config: SplitConfig) -> Parts:
    """Divide a training split at random, the same way for the same seed.

    Raises:
        DataError: fewer images than the three parts need.
    """
    needed = config.experts + config.gater + config.validation
    if len(data) < needed:
        raise DataError(
            f"{data.name} has {len(data)} training images, the splits need {needed}; make splits: smaller in the config"
        )
    order = np.random.Generator(np.random.PCG64(config.seed)).permutation(len(data))[:needed]
    pieces = np.split(order, [config.experts, config.experts + config.gater])
    return Parts(*(Part(data.images[p], data.labels[p], p.astype(np.int64)) for p in pieces))


def derived_seed(*parts: object) -> int:
    """Make a 63-bit seed out of anything printable: streams of different purposes never coincide."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def draw(
    part: Part,
    weights: tuple[float, ...],
    corruption: CorruptionConfig,
    seed: int,
    rows: NDArray[np.int64] | None = None,
) -> Corrupted:
    """Give every image a severity at random by weight, and corrupt it: by blur and noise, or by one of them.

    `seed` names the pass: the same seed gives the same severities and the same pixels. With `rows` only those
    images are returned, in that order, each as it is in the whole draw.
    """
    shares = np.asarray(weights, dtype=np.float64)
    generator = np.random.Generator(np.random.PCG64(seed))
    severities = generator.choice(len(shares), size=len(part.images), p=shares / shares.sum())
    # Drawn after the severities, so that these are the same whatever the share of single corruptions is.
    kinds = _kinds(len(part.images), corruption.alone, generator)
    if rows is not None:
        part, severities, kinds = part.take(rows), severities[rows], kinds[rows]
    images = np.empty_like(part.images)
    for kind in np.unique(kinds):
        chosen = np.flatnonzero(kinds == kind)
        images[chosen] = apply(part.take(chosen), severities[chosen], corruption, seed, KINDS[kind])
    return Corrupted(images, part.labels, severities)


def _kinds(count: int, alone: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Positions in `KINDS`, int64 [count]."""
    if alone == 0:
        return np.zeros(count, np.int64)
    return generator.choice(len(KINDS), size=count, p=[1 - alone, alone / 2, alone / 2])


def every_severity(part: Part, corruption: CorruptionConfig, seed: int) -> Corrupted:
    """Every image at every severity, severity by severity: N * 6 images."""
    levels = len(corruption.blur_sigma)
    images = [apply(part, np.full(len(part.images), s), corruption, seed) for s in range(levels)]
    return Corrupted(
        np.concatenate(images),
        np.tile(part.labels, levels),
        np.repeat(np.arange(levels), len(part.images)),
    )


def apply(
    part: Part, severities: NDArray[np.int64], corruption: CorruptionConfig, seed: int, kind: Kind = "both"
) -> NDArray[np.uint8]:
    """Corrupt a part as the config says."""
    return corrupt(
        part.images,
        severities,
        seed,
        part.indices,
        corruption.blur_sigma,
        corruption.noise_sigma,
        corruption.reference_side,
        kind,
    )
