"""Whether the router can use the GPU, and with which TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_moe import _core
from trt_moe.errors import DeviceError, InputError, MissingDependencyError, TrtMoeError

if TYPE_CHECKING:
    from trt_moe.compile.flavour import Flavour

ORDINAL = 0
"""The first device that the process sees; `CUDA_VISIBLE_DEVICES` chooses another."""


def expect_device() -> None:
    """Say what is missing where there is no GPU; of one that is there nothing is taken yet.

    Raises:
        DeviceError: this build has no CUDA, or there is no device; the message says what was looked for.
    """
    if not _core.cuda_built():
        raise DeviceError(
            "device='cuda' needs the CUDA core, and this build has none: nvcc was not found, or TRT_MOE_CUDA was OFF. "
            "Install the CUDA toolkit and build again (docs/cuda.md), or use device='cpu'; see `trt-moe doctor`"
        )
    _core.expect_cuda_device(ORDINAL)


def open_device() -> _core.CudaDevice:
    """The GPU.

    Raises:
        DeviceError: see `expect_device`, or it does not start.
    """
    expect_device()
    return _core.CudaDevice(ORDINAL)


def compute_capability(device: _core.CudaDevice) -> str:
    """Such as "8.6"."""
    return str(device.info["compute_capability"])


def flavour_for(device: _core.CudaDevice) -> Flavour:
    """The installed TensorRT that runs on a GPU.

    Raises:
        DeviceError: none is installed, or it does not support the GPU.
    """
    # Not where there is no GPU.
    from trt_moe.compile.device import check_capabilities_rtx

    gpu = f"{device.info['name']} (compute capability {compute_capability(device)})"
    flavour = _flavour(gpu)
    try:
        if flavour.is_rtx:
            check_capabilities_rtx(flavour, compute_capability(device))
    except InputError as error:
        raise _no_engine(gpu, error) from error
    return flavour


def reason_against() -> str | None:
    """Why device="auto" does not take the GPU; None where it does."""
    try:
        expect_device()
        # Before the device is opened: a process that goes on with the CPU is to have no context on it.
        _flavour("the GPU")
        flavour_for(open_device())
    except TrtMoeError as error:
        return str(error)
    return None


def _flavour(gpu: str) -> Flavour:
    from trt_moe.compile.flavour import find_flavour

    try:
        return find_flavour()
    except (InputError, MissingDependencyError) as error:
        raise _no_engine(gpu, error) from error


def _no_engine(gpu: str, why: Exception) -> DeviceError:
    return DeviceError(
        f"no engine runs on {gpu}: {why}. device='cpu' needs no TensorRT, and torch modules can take its place "
        "(docs/cuda.md)"
    )
