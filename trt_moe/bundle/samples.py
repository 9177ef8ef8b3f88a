"""The test images inside a bundle: `samples/<severity>/<class>/<index>.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_moe.bundle.manifest import Samples
from trt_moe.bundle.safety import inside
from trt_moe.errors import BundleError

MAX_SAMPLE_BYTES = 1 << 30
_SEVERITIES = range(6)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_samples(
    root: Path, samples: Samples, class_names: Sequence[str], shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Read all samples, ordered by severity, class, file name.

    Returns:
        images uint8 [N, H, W, C], labels int64 [N], severities int64 [N].

    Raises:
        BundleError: an image is unreadable or of another size, the number of files is not the manifest's,
            the decoded images would pass 1 GiB, or a path leads out of the bundle.
    """
    height, width, channels = shape
    total = samples.images * height * width * channels
    if total > MAX_SAMPLE_BYTES:
        raise BundleError(f"{root}: samples decode to {total:,} bytes; at most {MAX_SAMPLE_BYTES:,} are read")
    found = find_samples(root, samples, class_names)
    if len(found) != samples.images:
        raise BundleError(
            f"{root}: bundle.json says {samples.images} sample images, {samples.folder} has {len(found)}; "
            "copy the whole bundle again"
        )
    images = np.empty((len(found), *shape), np.uint8)
    for row, (_, _, relative) in enumerate(found):
        images[row] = _read_png(inside(root, relative), shape)
    labels = np.array([label for _, label, _ in found], np.int64)
    return images, labels, np.array([severity for severity, _, _ in found], np.int64)


def find_samples(root: Path, samples: Samples, class_names: Sequence[str]) -> list[tuple[int, int, str]]:
    """Severity, label and path inside the bundle of each sample that is there, in that order."""
    found: list[tuple[int, int, str]] = []
    for severity in _SEVERITIES:
        for label, class_name in enumerate(class_names):
            relative = f"{samples.folder}/{severity}/{class_name}"
            folder = root / relative
            if folder.is_dir():
                files = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".png")
                found += [(severity, label, f"{relative}/{name}") for name in files]
    return found


def _read_png(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    height, width, channels = shape
    try:
        with Image.open(path, formats=("PNG",)) as image:
            # Before the pixels are decoded: the header alone tells of a decompression bomb.
            if image.size != (width, height) or image.mode != _MODES[channels]:
                raise BundleError(
                    f"{path}: is {image.size[0]} x {image.size[1]} {image.mode}; "
                    f"expected {width} x {height} {_MODES[channels]}"
                )
            pixels = np.asarray(image, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BundleError(f"{path}: not a readable PNG ({error})") from error
    return pixels.reshape(shape)
