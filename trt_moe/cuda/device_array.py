"""Arrays that stay on the GPU, for torch, cupy, numba and pycuda to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trt_moe import _core
from trt_moe.cuda.dlpack import CUDA_DEVICES

_TYPESTR = {"float32": "<f4", "int32": "<i4"}


class DeviceArray:
    """A C-contiguous array in a GPU's memory, complete: no stream has to be waited for.

    Read it through DLPack, `torch.from_dlpack(array)`, or through `__cuda_array_interface__`, `cupy.asarray(array)`.
    Its memory is used again for later answers once the array and all that was made of it are gone; work that reads it
    must be done, or be on a stream that the next images come from.

    Attributes:
        address: of its first element.
        shape: of the array.
        dtype: "float32" or "int32".
        device: (type, id) as DLPack numbers them.
    """

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int], owner: object
    ) -> None:
        """See the class; `owner` keeps the memory."""
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.device = device
        self._owner = owner

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Type, shape and device."""
        return f"DeviceArray({self.dtype} {list(self.shape)} on DLPack device {self.device})"

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where it is."""
        return self.device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export it without a copy; there is nothing on any stream to wait for.

        Raises:
            BufferError: a copy, or another device, was asked for.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.device):
            raise BufferError(f"{self!r} is given as it is: without a copy, and where it is")
        return _core.dlpack_capsule(self.address, list(self.shape), self.dtype, self.device, self._owner)

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Version 3 of the CUDA array interface."""
        if self.device[0] not in CUDA_DEVICES:
            raise AttributeError("__cuda_array_interface__: not on a CUDA device")
        return {
            "shape": self.shape,
            "typestr": _TYPESTR[self.dtype],
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }
