"""What users hand in as images, as the arrays the core takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.errors import InputError


def as_images(batch: Any, shape: tuple[int, int, int]) -> NDArray[Any]:
    """A batch as one C-contiguous array; dtype and shape of an array are the core's to check.

    Args:
        batch: uint8 [N, H, W, C] array, list of uint8 [H, W, C] arrays, or anything with DLPack on the CPU.
        shape: (H, W, C) that list items must have.

    Raises:
        InputError: not an array, or a list item has another dtype or shape; the item is named.
    """
    if isinstance(batch, np.ndarray):
        return np.ascontiguousarray(batch)
    if isinstance(batch, (list, tuple)):
        items = [as_image(item) for item in batch]
        for index, item in enumerate(items):
            if item.dtype != np.uint8 or item.shape != shape:
                raise InputError(
                    f"image {index} of the list is {item.dtype} {list(item.shape)}; expected uint8 {list(shape)}; "
                    "read and resize files with trt_moe.load_images(paths, router.bundle)"
                )
        return np.stack(items) if items else np.empty((0, *shape), np.uint8)
    return as_image(batch)


def as_image(image: Any) -> NDArray[Any]:
    """One array-like as a C-contiguous numpy array, without a copy where DLPack allows it.

    Raises:
        InputError: neither an array nor a DLPack tensor that the CPU can read.
    """
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(image)
    if hasattr(image, "__dlpack__"):
        try:
            return np.ascontiguousarray(np.from_dlpack(image))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{type(image).__module__}.{type(image).__name__} cannot be read through DLPack ({error}); expected a "
                "uint8 tensor in CPU memory, so move it there first (torch: tensor.detach().cpu())"
            ) from error
    raise InputError(
        f"images are {type(image).__module__}.{type(image).__name__}; expected a uint8 numpy array, a list of them or "
        "a DLPack tensor; read files with trt_moe.load_images(paths, router.bundle)"
    )
