"""What the machine has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu_check.parts import CHECKOUT, Work
from benchmarks.gpu_check.prerequisites import missing
from trt_moe.hardware import cpu_report, gpu_report, nvcc_version

_CLOCKS = (
    "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,"
    "power.draw,power.limit,persistence_mode,compute_mode,mig.mode.current"
)
_VERSIONS = (
    "torch", "torchvision", "timm", "triton", "cupy-cuda13x", "pycuda", "onnx", "onnxruntime", "onnxscript",
    "accelerate", "tensorrt", "tensorrt-rtx", "openvino", "numpy", "pydantic", "pytest", "scikit-build-core",
    "pybind11",
)  # fmt: skip


def run(work: Work) -> dict[str, Any]:
    del work
    return {
        "gpu": gpu_report(),
        "nvidia_smi": _run("nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv"),
        "nvcc": nvcc_version(),
        "cpu": cpu_report(),
        "load_average": os.getloadavg(),
        "kernel": platform.release(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "commit": _run("git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=40", "--dirty"),
        "packages": {name: _version(name) for name in _VERSIONS},
        "missing": missing(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _run(*command: str) -> str:
    """What a command printed, or why it did not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
