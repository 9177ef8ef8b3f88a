"""Arrays on the GPU, by the two protocols; the addresses lead nowhere."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from trt_moe.cuda.dlpack import open_dlpack
from trt_moe.cuda.interop import LEGACY_STREAM, DeviceImages, device_images, is_on_device
from trt_moe.errors import InputError

SHAPE = (4, 5, 3)
STREAM = 0x77


class Interface:
    def __init__(self, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, *SHAPE), "typestr": "|u1", "data": (0xABC0, False), "version": 3, "stream": None, **changes,
        }  # fmt: skip


class OnDevice:
    """A CPU tensor of torch that says it is on a GPU: its DLPack capsule is a real one."""

    def __init__(self, tensor: torch.Tensor, device: tuple[int, int] = (2, 0)) -> None:
        self.tensor = tensor
        self.device = device
        self.asked: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int) -> Any:
        self.asked.append(stream)
        return self.tensor.__dlpack__()


def images(count: int = 2) -> torch.Tensor:
    return torch.zeros((count, *SHAPE), dtype=torch.uint8)


def read(batch: Any) -> DeviceImages:
    return device_images(batch, SHAPE, 0, STREAM)


@pytest.mark.parametrize(
    ("changes", "stream"),
    [
        ({}, LEGACY_STREAM),
        ({"stream": 1}, 1),
        ({"stream": 2}, 2),
        ({"stream": 0x5000}, 0x5000),
        ({"version": 2}, LEGACY_STREAM),
        ({"strides": (60, 15, 3, 1)}, LEGACY_STREAM),
        ({"strides": None}, LEGACY_STREAM),
        ({"typestr": "<u1"}, LEGACY_STREAM),
    ],
)
def test_an_interface_tells_address_count_and_stream(changes: dict[str, Any], stream: int) -> None:
    batch = Interface(**changes)
    assert is_on_device(batch)
    assert read(batch) == DeviceImages(0xABC0, 2, stream, batch)


def test_the_stride_of_an_axis_of_one_counts_for_nothing() -> None:
    assert read(Interface(shape=(1, *SHAPE), strides=(7, 15, 3, 1))).count == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"typestr": "<f4"}, r"is <f4 \[2, 4, 5, 3\]; expected uint8 \[N, 4, 5, 3\]$"),
        ({"shape": (2, 4, 5, 4)}, r"is uint8 \[2, 4, 5, 4\]; expected"),
        ({"shape": SHAPE}, r"is uint8 \[4, 5, 3\]; expected .*; one image is a batch of one: pass image\[None\]"),
        ({"shape": (0, *SHAPE)}, r"is uint8 \[0, 4, 5, 3\]; expected"),
        ({"strides": (120, 15, 3, 1)}, r"has strides \[120, 15, 3, 1\]; expected C-contiguous \[60, 15, 3, 1\]"),
        ({"stream": 0}, "names stream 0, which"),
        ({"mask": Interface}, "has a mask"),
    ],
)
def test_what_an_interface_may_not_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"test_interop\.Interface {words}"):
        read(Interface(**changes))


def test_a_dlpack_producer_is_told_our_stream() -> None:
    batch = OnDevice(images(3))
    assert is_on_device(batch)
    found = read(batch)
    assert (found.address, found.count, found.stream) == (batch.tensor.data_ptr(), 3, STREAM)
    assert batch.asked == [STREAM]


def test_a_view_into_a_tensor_is_read_at_its_own_address() -> None:
    whole = images(3)
    assert read(OnDevice(whole[1:])).address == whole.data_ptr() + 60


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (images().float(), r"is float32 \[2, 4, 5, 3\]; expected uint8"),
        (images().to(torch.bfloat16), r"is bfloat16 \[2, 4, 5, 3\]"),
        (images().bool(), r"is bool8 \[2, 4, 5, 3\]"),
        (images()[0], r"is uint8 \[4, 5, 3\]; .* pass image\[None\]"),
        (images(4)[::2], r"has strides \[120, 15, 3, 1\]; expected C-contiguous \[60, 15, 3, 1\].*call .contiguous"),
        (torch.zeros((2, 5, 4, 3), dtype=torch.uint8).transpose(1, 2), r"has strides \[60, 3, 12, 1\]"),
    ],
)
def test_what_a_dlpack_tensor_may_not_be(tensor: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(OnDevice(tensor))


@pytest.mark.parametrize("device", [(2, 1), (10, 0)])
def test_another_device_is_refused(device: tuple[int, int]) -> None:
    words = rf"is on DLPack device \({device[0]}, {device[1]}\); expected CUDA device 0"
    with pytest.raises(InputError, match=words):
        read(OnDevice(images(), device))


def test_a_producer_that_refuses_is_named() -> None:
    class Refusing(OnDevice):
        def __dlpack__(self, stream: int) -> Any:
            raise BufferError("requires gradient")

    with pytest.raises(InputError, match="Refusing cannot be read through DLPack: requires gradient"):
        read(Refusing(images()))


def test_what_is_on_the_cpu_is_left_to_the_cpu() -> None:
    assert not any(is_on_device(batch) for batch in (np.zeros(3), images(), [np.zeros(3)], "text"))


def test_a_capsule_holds_its_owner_and_lets_it_go() -> None:
    array = np.zeros((2, 3), np.uint8)
    alive = weakref.ref(array)
    tensor = open_dlpack(array.__dlpack__())
    assert (tensor.address, tensor.shape, tensor.dtype) == (array.ctypes.data, (2, 3), "uint8")
    del array
    gc.collect()
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None


def test_a_used_capsule_is_refused() -> None:
    capsule = np.zeros(3).__dlpack__()
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    used = b"used_dltensor"
    rename(capsule, used)
    with pytest.raises(InputError, match="expected an unused capsule called 'dltensor'"):
        open_dlpack(capsule)
    rename(capsule, b"dltensor")
