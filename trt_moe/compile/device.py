"""What an engine is built for: the GPU in this machine, or compute capabilities for TensorRT-RTX."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from trt_moe.compile.flavour import Flavour, install_command
from trt_moe.errors import DeviceError, InputError
from trt_moe.hardware import gpu_report

DEFAULT = "default"
_JETSON_MODEL = Path("/proc/device-tree/model")


def device_for(flavour: Flavour, compute_capabilities: Sequence[str] = ()) -> str:
    """What engines will be built for, as `EngineSpec.device` says it.

    Args:
        flavour: that builds.
        compute_capabilities: such as "8.6"; empty: TensorRT-RTX's own choice, or the GPU of this machine.

    Raises:
        InputError: a compute capability that the flavour cannot build for here.
        DeviceError: `tensorrt` without a GPU.
    """
    if flavour.is_rtx:
        return _capabilities_rtx(flavour, compute_capabilities)
    name, capability = _gpu()
    if name is None:
        raise DeviceError(
            f"{flavour} builds only where the GPU is, and here is none; TensorRT-RTX builds without: "
            f"{install_command()}, then --flavour tensorrt_rtx"
        )
    if compute_capabilities and list(compute_capabilities) != [capability]:
        raise InputError(
            f"{flavour} builds for the GPU of this machine ({name}, compute capability {capability or 'unknown'}), "
            f"not for {', '.join(compute_capabilities)}; leave --compute-capability out, or use --flavour tensorrt_rtx"
        )
    return name


def sm_name(compute_capability: str) -> str:
    """TensorRT's name of a compute capability: SM86 for "8.6"."""
    return "SM" + compute_capability.replace(".", "")


def _capabilities_rtx(flavour: Flavour, asked: Sequence[str]) -> str:
    names = [name for name in flavour.trt.ComputeCapability.__members__ if name.startswith("SM")]
    known = [f"{name[2:-1]}.{name[-1]}" for name in names]
    unknown = [capability for capability in asked if capability not in known]
    if unknown:
        raise InputError(
            f"{flavour} builds for no compute capability {', '.join(unknown)}; it knows {', '.join(known)}"
        )
    return " ".join(capability for capability in known if capability in asked) or DEFAULT


def _gpu() -> tuple[str | None, str | None]:
    devices = gpu_report()["devices"]
    if devices:
        return devices[0]["name"], devices[0]["compute_capability"]
    # The integrated GPU of a Jetson answers neither nvidia-smi nor NVML on every release.
    if platform.machine() == "aarch64" and _JETSON_MODEL.exists():
        return _JETSON_MODEL.read_text(encoding="utf-8", errors="replace").strip("\0\n "), None
    return None, None
