"""Whether the router can use the GPU, and with which TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_moe import _core
from trt_moe.errors import DeviceError, InputError, MissingDependencyError, TrtMoeError

if TYPE_CHECKING:
    from trt_moe.compile.flavour import Flavour

ORDINAL = 0
"""The first device that the process sees; `CUDA_VISIBLE_DEVICES` chooses another."""


def open_device() -> _core.CudaDevice:
    """The GPU.

    Raises:
        DeviceError: this build has no CUDA, or there is no device; the message says what was looked for.
    """
    _expect_cuda()
    return _core.CudaDevice(ORDINAL)


def compute_capability(device: _core.CudaDevice) -> str:
    """Such as "8.6"."""
    return str(device.info["compute_capability"])


def flavour_for(device: _core.CudaDevice) -> Flavour:
    """The installed TensorRT that runs on a GPU.

    Raises:
        DeviceError: none is installed, or it does not support the GPU.
    """
    return _flavour_for(device.info["name"], compute_capability(device))


def reason_against() -> str | None:
    """Why device="auto" does not take the GPU, on which it then leaves no context; None where it does."""
    try:
        _expect_cuda()
        _flavour_for("the GPU", _core.cuda_compute_capability(ORDINAL))
    except TrtMoeError as error:
        return str(error)
    return None


def _expect_cuda() -> None:
    if not _core.cuda_built():
        raise DeviceError(
            "device='cuda' needs the CUDA core, and this build has none: nvcc was not found, or TRT_MOE_CUDA was OFF. "
            "Install the CUDA toolkit and build again (docs/cuda.md), or use device='cpu'; see `trt-moe doctor`"
        )


def _flavour_for(gpu: str, capability: str) -> Flavour:
    # Not where there is no GPU.
    from trt_moe.compile.device import check_capabilities_rtx
    from trt_moe.compile.flavour import find_flavour

    try:
        flavour = find_flavour()
        if flavour.is_rtx:
            check_capabilities_rtx(flavour, capability)
    except (InputError, MissingDependencyError) as error:
        raise DeviceError(
            f"no engine runs on {gpu} (compute capability {capability}): {error}. device='cpu' needs no TensorRT, and "
            "torch modules can take its place (docs/cuda.md)"
        ) from error
    return flavour
