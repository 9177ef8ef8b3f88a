"""Images that lie on the GPU already: read through DLPack or `__cuda_array_interface__`, without a copy or a wait.

Both protocols say where the bytes are, and on which stream they are being written. Nothing here waits for that: the
core lets its own stream wait on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trt_moe.cuda.dlpack import CUDA_DEVICES, HOST_DEVICES, open_dlpack
from trt_moe.errors import InputError

LEGACY_STREAM = 1


@dataclass(frozen=True)
class DeviceImages:
    """A batch on the GPU.

    Attributes:
        address: of uint8 [count, H, W, C], C-contiguous.
        count: number of images.
        stream: that its work must be waited for on.
        keep: the memory's owner, to be held until the images were read.
    """

    address: int
    count: int
    stream: int
    keep: object


def is_on_device(batch: Any) -> bool:
    """Whether it is an array of a GPU, rather than something for `as_images`."""
    if hasattr(batch, "__dlpack_device__"):
        return batch.__dlpack_device__()[0] not in HOST_DEVICES
    # The property of torch's CPU tensors raises AttributeError.
    return hasattr(batch, "__cuda_array_interface__")


def device_images(batch: Any, shape: tuple[int, int, int], ordinal: int, stream: int) -> DeviceImages:
    """Look into a batch on the GPU.

    Args:
        batch: with DLPack or `__cuda_array_interface__`, uint8 [N, H, W, C].
        shape: (H, W, C).
        ordinal: of the router's device.
        stream: of the router's, that a DLPack producer is told to make wait for its work.

    Raises:
        InputError: another dtype, shape, layout or device; what was found is named.
    """
    if hasattr(batch, "__dlpack__") and hasattr(batch, "__dlpack_device__"):
        return _from_dlpack(batch, shape, ordinal, stream)
    return _from_interface(batch, shape)


def _from_dlpack(batch: Any, shape: tuple[int, int, int], ordinal: int, stream: int) -> DeviceImages:
    kind, found = batch.__dlpack_device__()
    if kind not in CUDA_DEVICES or found != ordinal:
        raise InputError(
            f"{_name(batch)} is on DLPack device ({int(kind)}, {found}); expected CUDA device {ordinal}, where the "
            "router is: move it there, or to the CPU"
        )
    try:
        tensor = open_dlpack(batch.__dlpack__(stream=stream))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{_name(batch)} cannot be read through DLPack: {error}") from error
    _check(batch, tensor.dtype, tensor.shape, tensor.strides, shape)
    return DeviceImages(tensor.address, tensor.shape[0], stream, tensor)


def _from_interface(batch: Any, shape: tuple[int, int, int]) -> DeviceImages:
    interface = batch.__cuda_array_interface__
    found = tuple(interface["shape"])
    if interface.get("mask") is not None:
        raise InputError(f"{_name(batch)} has a mask; expected plain uint8 images")
    strides = interface.get("strides")
    dtype = {"|u1": "uint8", "<u1": "uint8"}.get(interface["typestr"], interface["typestr"])
    # Of one byte each, strides in bytes are strides in elements.
    _check(batch, dtype, found, None if strides is None else tuple(strides), shape)
    # Version 3 names the stream; before, it was the legacy default stream by custom. Where none is named, nothing need
    # be waited for; but pycuda always says so, and its copy of a small array from the host may still run on that one.
    written_on = interface.get("stream") if interface["version"] >= 3 else None
    if written_on == 0:
        raise InputError(
            f"{_name(batch)} names stream 0, which __cuda_array_interface__ does not allow; expected 1 or 2"
        )
    return DeviceImages(int(interface["data"][0]), found[0], written_on or LEGACY_STREAM, batch)


def _check(
    batch: Any, dtype: str, found: tuple[int, ...], strides: tuple[int, ...] | None, shape: tuple[int, int, int]
) -> None:
    if dtype != "uint8" or len(found) != 4 or found[1:] != shape or found[0] == 0:
        expected = ", ".join(map(str, shape))
        hint = "; one image is a batch of one: pass image[None]" if found == shape else ""
        raise InputError(f"{_name(batch)} is {dtype} {list(found)}; expected uint8 [N, {expected}]{hint}")
    contiguous = tuple(math.prod(found[axis + 1 :]) for axis in range(4))
    # The stride of an axis of length 1 is never used.
    if strides is not None and any(a != b for a, b, n in zip(strides, contiguous, found, strict=True) if n > 1):
        raise InputError(
            f"{_name(batch)} has strides {list(strides)}; expected C-contiguous {list(contiguous)}, since a copy would "
            "be hidden: call .contiguous() (torch) or ascontiguousarray (cupy) first"
        )


def _name(batch: Any) -> str:
    return f"{type(batch).__module__}.{type(batch).__name__}"
