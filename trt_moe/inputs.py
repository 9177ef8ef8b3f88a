"""What users hand in as images, as the arrays the core takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.errors import InputError


def as_images(batch: Any, shape: tuple[int, int, int]) -> NDArray[Any]:
    """A batch as one C-contiguous array; whether there is an image in it is the core's to check.

    Args:
        batch: uint8 [N, H, W, C] array, list of uint8 [H, W, C] arrays, or anything with DLPack on the CPU.
        shape: (H, W, C) that images must have.

    Raises:
        InputError: not an array, or of another dtype or shape; an item of a list is named.
    """
    if isinstance(batch, (list, tuple)):
        items = [as_image(item) for item in batch]
        for index, item in enumerate(items):
            _check(f"image {index} of the list is", item, shape)
        return np.stack(items) if items else np.empty((0, *shape), np.uint8)
    images = as_image(batch)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        expected = f"[N, {', '.join(map(str, shape))}]"
        raise InputError(f"images are {_found(images)}; expected uint8 {expected}; {_advice(images, shape)}")
    return images


def as_one_image(image: Any, shape: tuple[int, int, int]) -> NDArray[Any]:
    """One uint8 [H, W, C] image as a C-contiguous array.

    Raises:
        InputError: not an array, or of another dtype or shape.
    """
    array = as_image(image)
    _check("the image is", array, shape)
    return array


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
        "a DLPack tensor; trt_moe.load_images(images, router.bundle) reads files and Pillow's images"
    )


def _check(what: str, image: NDArray[Any], shape: tuple[int, int, int]) -> None:
    if image.dtype != np.uint8 or image.shape != shape:
        raise InputError(f"{what} {_found(image)}; expected uint8 {list(shape)}; {_advice(image, shape)}")


def _found(images: NDArray[Any]) -> str:
    return f"{images.dtype} {list(images.shape)}"


def _advice(images: NDArray[Any], shape: tuple[int, int, int]) -> str:
    height, width, channels = shape
    if images.dtype != np.uint8:
        return "the models take bytes and normalise them themselves: scale to 0 to 255 and call .astype(np.uint8)"
    if images.shape == shape:
        return "one image is a batch of one: pass image[None]"
    if images.shape[-3:] == (channels, height, width):
        return "channels come last: pass np.moveaxis(np.asarray(images), -3, -1)"
    if channels == 1 and images.shape[-2:] == (height, width):
        return "the channels' axis is missing: pass images[..., None]"
    if images.shape[1:] == shape:
        return "one image has no axis for a batch: pass images[0]"
    return "trt_moe.load_images(images, router.bundle) resizes arrays and files"
