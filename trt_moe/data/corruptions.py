"""Gaussian blur and Gaussian noise at severity 0 (clean) to 5 (harsh), reproducible image by image.

The noise comes from a counter-based generator (SplitMix64 and Box-Muller) keyed by seed, image index and
severity, not from `numpy.random`: an image gets the same corruption in every batch, and numpy may change
its streams between releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trt_moe.errors import InputError

SEVERITIES = 6
BLUR_SIGMA: tuple[float, ...] = (0.0, 0.5, 0.8, 1.1, 1.5, 2.0)
"""Blur sigma per severity, in pixels of an image whose shorter side is `REFERENCE_SIDE` or less."""
NOISE_SIGMA: tuple[float, ...] = (0.0, 0.06, 0.12, 0.20, 0.30, 0.40)
"""Noise sigma per severity, as a fraction of the full range."""
REFERENCE_SIDE = 32
EVALUATION_SEED = 0
"""Seed of every corrupted test set, so that tables made at different times compare the same images."""

Kind = Literal["both", "blur", "noise"]
UInt64s = NDArray[np.uint64]

_CHUNK_VALUES = 1 << 22
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def corrupt(
    images: NDArray[np.uint8],
    severity: ArrayLike,
    seed: int = EVALUATION_SEED,
    indices: ArrayLike | None = None,
    blur_sigma: Sequence[float] = BLUR_SIGMA,
    noise_sigma: Sequence[float] = NOISE_SIGMA,
    reference_side: int = REFERENCE_SIDE,
    kind: Kind = "both",
) -> NDArray[np.uint8]:
    """Blur, then add noise, clip and round to 8 bits.

    Args:
        images: uint8 [N, H, W, C]; not changed.
        severity: one integer for all images or an integer array [N], each in 0..len(blur_sigma) - 1.
        seed: non-negative; another seed gives another noise.
        indices: integers [N] that identify the images in their data set; 0..N-1 where left out.
        blur_sigma: pixels per severity at `reference_side`; scaled up for larger images.
        noise_sigma: fraction of full range per severity.
        reference_side: shorter side, in pixels, up to which `blur_sigma` is taken as it is.
        kind: apply both corruptions, or one of them alone.

    Returns:
        A new uint8 array [N, H, W, C]. An image depends on its own index, severity and the seed only.

    Raises:
        InputError: wrong dtype, rank, range or length.
    """
    severities, ids = _checked(images, severity, seed, indices, blur_sigma, noise_sigma, kind)
    out = np.empty_like(images, order="C")
    height, width, channels = images.shape[1:]
    scale = max(1.0, min(height, width) / reference_side)
    step = max(1, _CHUNK_VALUES // max(1, height * width * channels))
    for level in np.unique(severities):
        blur = blur_sigma[level] * scale if kind != "noise" else 0.0
        noise = noise_sigma[level] if kind != "blur" else 0.0
        chosen = np.flatnonzero(severities == level)
        if blur == 0 and noise == 0:
            out[chosen] = images[chosen]
            continue
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            pixels = np.ascontiguousarray(images[part].transpose(0, 3, 1, 2), dtype=np.float32)
            if blur > 0:
                pixels = _blur(pixels, blur)
            if noise > 0:
                keys = _keys(seed, ids[part], int(level))
                pixels += np.float32(255 * noise) * _normals(keys, pixels[0].size).reshape(pixels.shape)
            rounded = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
            out[part] = rounded.transpose(0, 2, 3, 1)
    return out


def _checked(
    images: NDArray[np.uint8],
    severity: ArrayLike,
    seed: int,
    indices: ArrayLike | None,
    blur_sigma: Sequence[float],
    noise_sigma: Sequence[float],
    kind: str,
) -> tuple[NDArray[np.int64], UInt64s]:
    """Refuse wrong arguments; returns severities int64 [N] and indices uint64 [N]."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"images are {images.dtype} of rank {images.ndim}; expected uint8 [N, H, W, C]")
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}")
    if seed < 0:
        raise InputError(f"seed is {seed}; expected 0 or more")
    if len(blur_sigma) != len(noise_sigma) or min([*blur_sigma, *noise_sigma], default=-1.0) < 0:
        raise InputError("blur_sigma and noise_sigma must have one value >= 0 per severity each")
    count = len(images)
    levels = np.asarray(severity)
    if levels.dtype.kind not in "iu" or levels.shape not in ((), (count,)):
        raise InputError(f"severity must be an integer or integers [{count}], got {levels.dtype} {levels.shape}")
    if levels.size and (levels.min() < 0 or levels.max() >= len(blur_sigma)):
        raise InputError(f"severity must lie in 0..{len(blur_sigma) - 1}, got {levels.min()}..{levels.max()}")
    ids = np.arange(count) if indices is None else np.asarray(indices)
    if ids.dtype.kind not in "iu" or ids.shape != (count,) or (count and ids.min() < 0):
        raise InputError(f"indices must be {count} integers >= 0, got {ids.dtype} {ids.shape}")
    return np.broadcast_to(levels.astype(np.int64), (count,)), ids.astype(np.uint64)


def _blur(pixels: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Separable Gaussian over float32 [N, C, H, W]; at the border the kernel is cut and normalised again."""
    height, width = pixels.shape[2:]
    rows, columns = _blur_matrix(height, sigma), _blur_matrix(width, sigma)
    blurred: NDArray[np.float32] = np.matmul(np.matmul(rows, pixels), columns.T)
    return blurred


def _blur_matrix(side: int, sigma: float) -> NDArray[np.float32]:
    """Return the rows of a Gaussian, float32 [side, side]; each sums to 1."""
    position = np.arange(side, dtype=np.float64)
    weights = np.exp(-((position[:, None] - position[None]) ** 2) / (2 * sigma * sigma))
    rows: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return rows


def _mix(state: UInt64s) -> UInt64s:
    """Finalise SplitMix64: uint64 in, well mixed uint64 out (multiplication wraps on purpose)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64s = state ^ (state >> np.uint64(31))
    return mixed


def _keys(seed: int, ids: UInt64s, severity: int) -> UInt64s:
    """One stream key per image, uint64 [N]."""
    start = np.full(len(ids), seed % (1 << 64), dtype=np.uint64)
    return _mix(_mix(_mix(start + _GOLDEN) + ids) + np.uint64(severity))


def _normals(keys: UInt64s, size: int) -> NDArray[np.float32]:
    """Standard normals float32 [N, size], a pure function of each image's key."""
    pairs = (size + 1) // 2
    counters = (np.arange(1, pairs + 1, dtype=np.uint64) * _GOLDEN)[None]
    bits = _mix(keys[:, None] + counters)
    # 24 high bits each: exact in float32, and never 0 for the logarithm.
    first = ((bits >> np.uint64(40)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-24)
    second = ((bits >> np.uint64(8)) & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)
    radius = np.sqrt(np.float32(-2) * np.log(first))
    angle = np.float32(2 * np.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :size]
