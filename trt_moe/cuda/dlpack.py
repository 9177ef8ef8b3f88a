"""DLPack capsules taken apart, as https://dmlc.github.io/dlpack describes them; numpy reads those of the CPU only.

Those that the package gives are made by the core, `_core.dlpack_capsule`.
"""

from __future__ import annotations

import ctypes
from typing import Any

from trt_moe.errors import InputError

CUDA_DEVICES = (2, 13)
"""kDLCUDA and kDLCUDAManaged."""
HOST_DEVICES = (1, 3)
"""kDLCPU and kDLCUDAHost."""

_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]

_NAME = b"dltensor"


class DlpackTensor:
    """A tensor that somebody else owns, for as long as this object lives.

    Attributes:
        address: of its first element.
        dtype: such as "uint8".
        shape: of the tensor.
        strides: in elements; None: C-contiguous.
    """

    def __init__(self, capsule: Any) -> None:
        """Use `open_dlpack`."""
        # The capsule is not consumed: its owner lives as long as it does, and its own destructor frees it.
        self._capsule = capsule
        tensor = _Tensor.from_address(_get_pointer(capsule, _NAME))
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)
        code = _CODES.get(tensor.dtype.code, f"type {tensor.dtype.code} of ")
        lanes = f"x{tensor.dtype.lanes}" if tensor.dtype.lanes != 1 else ""
        self.dtype = f"{code}{tensor.dtype.bits}{lanes}"
        self.shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
        self.strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None


def open_dlpack(capsule: Any) -> DlpackTensor:
    """Read what `__dlpack__` gave.

    Raises:
        InputError: it is no unused capsule of an unversioned tensor, which is what `__dlpack__` gives unless asked
            for a version.
    """
    if not _is_valid(capsule, _NAME):
        raise InputError(f"__dlpack__ gave {capsule!r}; expected an unused capsule called {_NAME.decode()!r}")
    return DlpackTensor(capsule)
