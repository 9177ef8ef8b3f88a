"""When the GPU is taken, and what is said where it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.fake_cuda import FakeDevice
from trt_moe import _core
from trt_moe.compile.flavour import Flavour
from trt_moe.cuda.device import flavour_for, open_device, reason_against
from trt_moe.errors import DeviceError, MissingDependencyError

RTX = SimpleNamespace(__version__="1.7.1", ComputeCapability=SimpleNamespace(__members__={"SM86": 1, "SM120": 2}))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A build with CUDA on a machine with a GPU and TensorRT-RTX; its attributes can be changed."""
    machine = SimpleNamespace(built=True, device=FakeDevice("8.6"), flavour=Flavour("tensorrt_rtx", RTX), opened=0)

    def capability(ordinal: int) -> str:
        assert ordinal == 0
        if isinstance(machine.device, Exception):
            raise machine.device
        return str(machine.device.info["compute_capability"])

    def opened(ordinal: int) -> FakeDevice:
        capability(ordinal)
        machine.opened += 1
        return machine.device

    def found() -> Flavour:
        if isinstance(machine.flavour, Exception):
            raise machine.flavour
        return machine.flavour

    monkeypatch.setattr(_core, "cuda_built", lambda: machine.built, raising=False)
    monkeypatch.setattr(_core, "cuda_compute_capability", capability)
    monkeypatch.setattr(_core, "CudaDevice", opened, raising=False)
    monkeypatch.setattr("trt_moe.compile.flavour.find_flavour", found)
    return machine


def test_all_is_there(machine: Any) -> None:
    assert open_device() is machine.device
    assert flavour_for(machine.device) is machine.flavour
    assert reason_against() is None


def test_a_build_without_cuda(machine: Any) -> None:
    machine.built = False
    with pytest.raises(DeviceError, match=r"this build has none: nvcc was not found, .* or use device='cpu'"):
        open_device()
    assert "this build has none" in str(reason_against())


def test_no_device(machine: Any) -> None:
    machine.device = DeviceError("no NVIDIA driver: looked for libcuda.so.1")
    assert reason_against() == "no NVIDIA driver: looked for libcuda.so.1"


def test_no_tensorrt(machine: Any) -> None:
    machine.flavour = MissingDependencyError("no TensorRT can be loaded in this Python")
    words = r"no engine runs on Fake GPU \(compute capability 8.6\): no TensorRT can be loaded.*device='cpu' needs no"
    with pytest.raises(DeviceError, match=words):
        flavour_for(machine.device)
    assert machine.opened == 0
    assert "no engine runs on the GPU (compute capability 8.6): no TensorRT can be loaded" in str(reason_against())
    assert machine.opened == 0, "a process that takes the CPU has no context on the GPU"


def test_a_gpu_that_tensorrt_rtx_does_not_support(machine: Any) -> None:
    machine.device = FakeDevice("9.0")
    words = r"compute capability 9.0\): TensorRT-RTX 1.7.1 builds for no .* 9.0; it knows 8.6, 12.0.*torch modules"
    with pytest.raises(DeviceError, match=words):
        flavour_for(machine.device)
    assert "9.0; it knows 8.6, 12.0" in str(reason_against())
    assert machine.opened == 0


def test_tensorrt_supports_them_all(machine: Any) -> None:
    machine.flavour = Flavour("tensorrt", SimpleNamespace(__version__="10.3.0"))
    assert flavour_for(FakeDevice("9.0")) is machine.flavour
