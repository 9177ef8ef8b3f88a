"""What the machine has: CPU, quota, NVIDIA GPU and driver, CUDA, Jetson. Nothing here raises."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

# Those that decide which precision and which kernels a CPU backend uses.
CPU_FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip

_NVIDIA_VENDOR = "0x10de"
_PCI_DISPLAY = "0x03"
_TIMEOUT_S = 10


def cpu_report() -> dict[str, Any]:
    """Name, features, and how many CPUs are online, in the affinity mask, in the cgroup's quota, and so usable."""
    info = _read("/proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable, quota = _of_the_core() or (affinity, 0)
    return {
        "name": name[1].strip() if name else platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": [feature for feature in CPU_FEATURES if feature in present],
        "online": os.cpu_count() or 1,
        "affinity": affinity,
        "quota": quota or None,
        "usable": usable,
    }


def gpu_report() -> dict[str, Any]:
    """Devices (name, memory, compute capability), the driver's version, NVIDIA devices on the PCI bus."""
    pci = _pci_devices()
    driver = _driver_version()
    devices = _from_nvidia_smi()
    source = "nvidia-smi"
    if not devices:
        devices, source = _from_nvml(), "NVML"
    why = ""
    if not devices:
        why = "none found"
        if pci and not driver:
            why = f"{len(pci)} on the PCI bus, but the NVIDIA driver is not loaded"
        elif driver:
            why = "the driver is loaded, but shows this process no device (a container without --gpus all?)"
    if devices and not driver:
        driver = devices[0].get("driver")
    return {
        "devices": devices,
        "source": source if devices else None,
        "driver": driver,
        "pci_devices": pci,
        "why_none": why,
    }


def has_cuda_driver() -> bool:
    """Whether CUDA's driver can be loaded: where it cannot, no GPU can be used."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def jetson_report() -> dict[str, str | None]:
    """Release of Jetson Linux and of JetPack, None on other machines."""
    text = _read("/etc/nv_tegra_release")
    release = None
    if text:
        found = re.search(r"R(\d+).*REVISION:\s*([\d.]+)", text)
        release = f"Jetson Linux {found[1]}.{found[2]}" if found else text.splitlines()[0]
    jetpack = _run("dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack") if release else None
    return {"release": release, "jetpack": f"JetPack {jetpack}" if jetpack else None}


def nvcc_version() -> str | None:
    """Version of the CUDA compiler on the PATH or under /usr/local/cuda."""
    command = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    found = re.search(r"release ([\d.]+)", _run(command, "--version") or "")
    return found[1] if found else None


def library(name: str) -> str | None:
    """File name of the shared library `name` that the dynamic linker would find."""
    try:
        return ctypes.util.find_library(name)
    except (OSError, subprocess.SubprocessError):
        return None


def _of_the_core() -> tuple[int, int] | None:
    """Usable CPUs and those of the quota; None where the module was not built."""
    try:
        from trt_moe import _core
    except ImportError:
        return None
    return _core.usable_cpus(), _core.cpu_quota()


def _driver_version() -> str | None:
    text = _read("/proc/driver/nvidia/version") or ""
    found = re.search(r"(?:Kernel Module.*?)(\d+\.\d+(?:\.\d+)?)", text)
    return found[1] if found else None


def _pci_devices() -> list[str]:
    found = []
    try:
        for device in sorted(Path("/sys/bus/pci/devices").iterdir()):
            vendor = (_read(device / "vendor") or "").strip()
            kind = (_read(device / "class") or "").strip()
            if vendor == _NVIDIA_VENDOR and kind.startswith(_PCI_DISPLAY):
                found.append(device.name)
    except OSError:
        pass
    return found


def _from_nvidia_smi() -> list[dict[str, Any]]:
    fields = "name,memory.total,compute_cap,driver_version"
    text = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits") or ""
    devices = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4:
            memory = int(parts[1]) if parts[1].isdigit() else 0
            devices.append({"name": parts[0], "memory_mib": memory, "compute_capability": parts[2], "driver": parts[3]})
    return devices


def _from_nvml() -> list[dict[str, Any]]:
    class Memory(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return []
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        driver = ctypes.create_string_buffer(96)
        nvml.nvmlSystemGetDriverVersion(driver, 96)
        devices = []
        for index in range(count.value):
            handle, memory = ctypes.c_void_p(), Memory()
            name = ctypes.create_string_buffer(96)
            major, minor = ctypes.c_int(), ctypes.c_int()
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
                continue
            nvml.nvmlDeviceGetName(handle, name, 96)
            nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
            nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
            devices.append(
                {
                    "name": name.value.decode(errors="replace"),
                    "memory_mib": memory.total >> 20,
                    "compute_capability": f"{major.value}.{minor.value}",
                    "driver": driver.value.decode(errors="replace"),
                }
            )
        nvml.nvmlShutdown()
        return devices
    except (OSError, AttributeError):
        return []


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None
