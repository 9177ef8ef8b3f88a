"""DLPack tensors of any device; numpy reads those of the CPU only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trt_moe import _core

CUDA_DEVICES = (2, 13)
"""kDLCUDA and kDLCUDAManaged."""
HOST_DEVICES = (1, 3)
"""kDLCPU and kDLCUDAHost."""


@dataclass(frozen=True)
class DlpackTensor:
    """A tensor that somebody else owns, for as long as this object lives.

    Attributes:
        address: of its first element.
        dtype: such as "uint8".
        shape: of the tensor.
        strides: in elements; None: C-contiguous.
        capsule: what keeps it.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    capsule: object


def open_dlpack(capsule: Any) -> DlpackTensor:
    """Read what `__dlpack__` gave.

    Raises:
        InputError: it is no unused capsule of an unversioned tensor, which is what `__dlpack__` gives unless asked
            for a version.
    """
    address, dtype, shape, strides = _core.read_dlpack(capsule)
    # The capsule is not consumed: its owner lives as long as it does, and its own destructor frees it.
    return DlpackTensor(address, dtype, tuple(shape), None if strides is None else tuple(strides), capsule)
