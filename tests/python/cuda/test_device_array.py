"""What the GPU's answers look like to other libraries; the memory is the CPU's, which numpy can read."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from trt_moe import InputError, _core
from trt_moe.cuda.device_array import DeviceArray

CPU = (1, 0)
CUDA = (2, 0)


class Owner:
    """Memory, seen through a weak reference."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def array(self, device: tuple[int, int] = CPU) -> DeviceArray:
        values = self.values
        return DeviceArray(values.ctypes.data, values.shape, str(values.dtype), device, self)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numpy_and_torch_read_it_in_place(dtype: Any) -> None:
    owner = Owner(np.arange(6, dtype=dtype).reshape(2, 3))
    for read in (np.from_dlpack, torch.from_dlpack):
        seen = read(owner.array())
        assert tuple(seen.shape) == (2, 3)
        assert seen.tolist() == owner.values.tolist()
        owner.values[1, 2] = 77
        assert float(seen[1, 2]) == 77
        owner.values[1, 2] = 5


def test_one_axis() -> None:
    assert np.from_dlpack(Owner(np.array([3, 1], np.int32)).array()).tolist() == [3, 1]


@pytest.mark.parametrize("consume", [True, False], ids=["consumed", "unused"])
def test_the_owner_lives_as_long_as_anything_made_of_it(consume: bool) -> None:
    owner = Owner(np.ones(4, np.float32))
    gone = weakref.ref(owner)
    array = owner.array()
    capsule = array.__dlpack__()
    seen = torch.from_dlpack(capsule) if consume else None
    del owner, array
    gc.collect()
    assert gone() is not None
    if seen is not None:
        assert seen.tolist() == [1, 1, 1, 1]
    del capsule, seen
    gc.collect()
    assert gone() is None


def test_the_interface_says_that_nothing_is_to_be_waited_for() -> None:
    owner = Owner(np.zeros((2, 3), np.float32))
    array = owner.array(CUDA)
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3), "typestr": "<f4", "data": (owner.values.ctypes.data, False), "strides": None, "stream": None,
        "version": 3,
    }  # fmt: skip
    assert array.__dlpack_device__() == CUDA
    assert len(array) == 2
    assert repr(array) == "DeviceArray(float32 [2, 3] on DLPack device (2, 0))"
    assert not hasattr(owner.array(CPU), "__cuda_array_interface__")


def test_no_copy_is_made() -> None:
    array = Owner(np.zeros(2, np.float32)).array()
    for wrong in ({"copy": True}, {"dl_device": CUDA}):
        with pytest.raises(BufferError, match="without a copy, and where it is"):
            array.__dlpack__(**wrong)  # type: ignore[arg-type]
    array.__dlpack__(copy=False, dl_device=CPU, max_version=(1, 0), stream=None)


def test_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="dtype is float64; expected float32 or int32"):
        _core.dlpack_capsule(0, [1], "float64", CPU, None)
