"""Which packages and tools the parts cannot do without, and which of them are missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Collection
from pathlib import Path

from trt_moe.hardware import nvcc_version

_CORE = ("numpy", "pydantic", "filelock")
_TENSORRT = (*_CORE, "platformdirs", "onnx", "onnxruntime")
_TORCH = (*_CORE, "torch", "torchvision", "timm", "safetensors")
PACKAGES = {
    "build": ("pip", "scikit_build_core", "pathspec", "packaging", "pybind11"),
    "probe": _TENSORRT,
    "engines": (*_TENSORRT, *_TORCH, "onnxscript"),
    "latency": _TORCH,
    "idle": _TORCH,
    "compiled": (*_TORCH, "triton"),
    "parity": _TORCH,
    "conformance": (*_TORCH, "pytest", "onnx", "onnxruntime", "PIL", "accelerate", "yaml"),
}
"""Modules by part, as they are imported."""
_SYSTEM = ("/usr", "/usr/local")


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _has_nvcc() -> bool:
    # The places that csrc/backends/cuda/nvcc.cmake looks into.
    of_pip = (nvcc for folder in sys.path for nvcc in Path(folder).glob("nvidia/cu*/bin/nvcc"))
    return "CUDACXX" in os.environ or nvcc_version() is not None or any(of_pip)


def _has_compiler() -> bool:
    return "CXX" in os.environ or any(map(shutil.which, ("c++", "g++", "clang++")))


def _has_cmake() -> bool:
    return shutil.which("cmake") is not None or _has_module("cmake")


def _has_make() -> bool:
    return any(map(shutil.which, ("ninja", "ninja-build", "make"))) or _has_module("ninja")


def _has_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def _has_doctest() -> bool:
    prefixes = [*os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep), *_SYSTEM]
    places = ("", "lib*/", "lib/*/", "share/")
    return "doctest_DIR" in os.environ or any(
        next(Path(prefix).glob(f"{place}cmake/doctest*/doctestConfig.cmake"), None)
        for prefix in filter(None, prefixes)
        for place in places
    )


_BUILDING: dict[str, Callable[[], bool]] = {
    "nvcc": _has_nvcc,
    "a C++ compiler": _has_compiler,
    "CMake": _has_cmake,
    "Ninja or make": _has_make,
}
TOOLS = {
    "build": {**_BUILDING, "Python.h": _has_headers},
    "device_tests": {**_BUILDING, "doctest": _has_doctest},
}
"""What looks for each tool, by part."""


def missing() -> dict[str, list[str]]:
    """What is missing, and the parts that need it."""
    found: dict[str, list[str]] = {}
    for part in dict.fromkeys((*PACKAGES, *TOOLS)):
        absent = [name for name in PACKAGES.get(part, ()) if not _has_module(name)]
        absent += [name for name, has in TOOLS.get(part, {}).items() if not has()]
        for name in absent:
            found.setdefault(name, []).append(part)
    return found


def why_not(missing: dict[str, list[str]], parts: Collection[str]) -> str | None:
    """What these parts lack, for people; None where they have all that they need."""
    needs = [
        f"{name} (for {', '.join(needing)})"
        for name, parts_of_name in missing.items()
        if (needing := [part for part in parts_of_name if part in parts])
    ]
    return f"what the check cannot do without is missing: {'; '.join(needs)}" if needs else None
