"""The C++ tests that need a device, the self-test of conditional graphs among them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.build import architectures
from benchmarks.gpu_check.parts import CHECKOUT, Work

EXECUTABLE = "trt_moe_gpu_tests"


def run(work: Work) -> dict[str, Any]:
    """Build and run them; needs doctest, where CMake finds it (CMAKE_PREFIX_PATH)."""
    build = _folder(work)
    settings = ["TRT_MOE_PYTHON=OFF", "TRT_MOE_OPENVINO=OFF", "TRT_MOE_CUDA=ON", "TRT_MOE_TESTS=ON", *architectures()]
    settings.append(f"Python_EXECUTABLE={sys.executable}")
    configure = ["cmake", "-S", str(CHECKOUT), "-B", str(build), *(f"-D{setting}" for setting in settings)]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", EXECUTABLE], check=True)
    done = subprocess.run([str(executable(work))], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return {"passed": done.returncode == 0, "printed": (done.stdout + done.stderr)[-4000:]}


def executable(work: Work) -> Path:
    """The tests' program.

    Raises:
        FileNotFoundError: they were not built.
    """
    for path in _folder(work).rglob(EXECUTABLE):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{EXECUTABLE} was not built; see the part device_tests")


def _folder(work: Work) -> Path:
    return work.folder / "tests"
