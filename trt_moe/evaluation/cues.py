"""What can be read off an image without a network: the cues that routing by image statistics would go by."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Cue = Callable[[NDArray[np.uint8]], Floats]
"""Uint8 [N, H, W, C] images in, float64 [N] out."""

EDGE_SLOPE = 0.1
"""Grey slope from which a pixel counts as an edge: full ranges per pixel."""
JPEG_QUALITY = 75

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_GREY_LEVELS = 256
_CHUNK_PIXELS = 1 << 22


def entropy(images: NDArray[np.uint8]) -> Floats:
    """Shannon entropy of the grey histogram in bits, 0 to 8."""
    return histogram_entropy(grey(images), _GREY_LEVELS)


def log_laplacian_variance(images: NDArray[np.uint8]) -> Floats:
    """log(1 + variance of the Laplacian): how much fine structure there is, noise included.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy: a comparative study, ICPR 2000.
    """
    pixels = _bordered(images)
    centre = pixels[:, 1:-1, 1:-1]
    laplacian = pixels[:, :-2, 1:-1] + pixels[:, 2:, 1:-1] + pixels[:, 1:-1, :-2] + pixels[:, 1:-1, 2:] - 4 * centre
    return np.asarray(np.log1p(laplacian.var(axis=(1, 2), dtype=np.float64)))


def edge_density(images: NDArray[np.uint8]) -> Floats:
    """Fraction of pixels whose Sobel slope is at least `EDGE_SLOPE`."""
    pixels = _bordered(images)
    down = pixels[:, :-2] + 2 * pixels[:, 1:-1] + pixels[:, 2:]
    across = pixels[:, :, :-2] + 2 * pixels[:, :, 1:-1] + pixels[:, :, 2:]
    # Sobel's kernels sum to 8 over two pixels' distance in the direction of the slope.
    slope = np.hypot(down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]) / 8
    return np.asarray((slope >= EDGE_SLOPE * 255).mean(axis=(1, 2)))


def jpeg_size(images: NDArray[np.uint8]) -> Floats:
    """Bytes of the image as JPEG of quality `JPEG_QUALITY`."""
    return np.array([_jpeg_bytes(image) for image in images], np.float64)


CUES: dict[str, Cue] = {
    "entropy": entropy,
    "laplacian variance": log_laplacian_variance,
    "edge density": edge_density,
    "JPEG size": jpeg_size,
}
"""The image cues by name."""


def measure(cue: Cue, images: NDArray[np.uint8]) -> Floats:
    """The cue of any number of images, in parts that fit into memory; float64 [N]."""
    step = max(1, _CHUNK_PIXELS // max(1, images[:1].size))
    parts = [cue(images[start : start + step]) for start in range(0, len(images), step)]
    return np.concatenate(parts) if parts else np.empty(0)


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uint8 [N, H, W]; a fourth channel (alpha) is left out."""
    if images.shape[3] == 1:
        return images[..., 0]
    return np.asarray(np.rint(images[..., :3] @ _LUMA), np.uint8)


def histogram_entropy(values: NDArray[np.uint8], levels: int) -> Floats:
    """Shannon entropy in bits of each image's histogram: uint8 [N, ...] below `levels` in, float64 [N] out."""
    count = len(values)
    flat = values.reshape(count, -1).astype(np.int64)
    flat += levels * np.arange(count)[:, None]
    share = np.bincount(flat.ravel(), minlength=levels * count).reshape(count, levels) / flat.shape[1]
    return np.asarray(-(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=1))


def _bordered(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey as float32 [N, H + 2, W + 2], the border repeated."""
    return np.pad(grey(images).astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")


def _jpeg_bytes(image: NDArray[np.uint8]) -> int:
    file = io.BytesIO()
    pixels = image[..., 0] if image.shape[2] == 1 else image[..., :3]
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.tell()
