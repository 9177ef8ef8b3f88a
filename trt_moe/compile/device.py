"""What an engine is built for: the GPU in this machine, or compute capabilities for TensorRT-RTX."""

from __future__ import annotations

import platform
import re
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
        InputError: a compute capability that is none, or that `tensorrt` cannot build for here. Whether TensorRT-RTX
            knows it is said by `check_capabilities_rtx`.
        DeviceError: `tensorrt` without a GPU.
    """
    if flavour.is_rtx:
        return _joined(compute_capabilities)
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


def check_capabilities_rtx(flavour: Flavour, device: str) -> None:
    """Raise InputError where TensorRT-RTX builds for none of that name; it must be loaded for that."""
    names = [name for name in flavour.trt.ComputeCapability.__members__ if name.startswith("SM")]
    known = [f"{name[2:-1]}.{name[-1]}" for name in names]
    unknown = [capability for capability in device.split() if capability not in (*known, DEFAULT)]
    if unknown:
        raise InputError(
            f"{flavour} builds for no compute capability {', '.join(unknown)}; it knows {', '.join(known)}"
        )


def _joined(asked: Sequence[str]) -> str:
    """Each once, in ascending order: the same choice is the same device."""
    for capability in asked:
        if not re.fullmatch(r"[1-9]\d*\.\d", capability):
            raise InputError(f"compute capability is {capability!r}; expected one such as 8.6, or some: 8.6,8.9")
    return " ".join(sorted(set(asked), key=lambda capability: tuple(map(int, capability.split("."))))) or DEFAULT


def _gpu() -> tuple[str | None, str | None]:
    devices = gpu_report()["devices"]
    if devices:
        return devices[0]["name"], devices[0]["compute_capability"]
    # The integrated GPU of a Jetson answers neither nvidia-smi nor NVML on every release.
    if platform.machine() == "aarch64" and _JETSON_MODEL.exists():
        return _JETSON_MODEL.read_text(encoding="utf-8", errors="replace").strip("\0\n "), None
    return None, None
