"""The C++ tests that need a device, the self-test of conditional graphs among them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.build import architectures
from benchmarks.gpu_check.parts import CHECKOUT, Work
from benchmarks.gpu_check.runner import run_logged

EXECUTABLE = "trt_moe_gpu_tests"
_LOST = ("--no-skip", "--test-case=an illegal access*")
"""The test that ends the device's context, and so runs in a process of its own."""


def run(work: Work) -> dict[str, Any]:
    """Build and run them; needs doctest, where CMake finds it (CMAKE_PREFIX_PATH)."""
    build = _folder(work)
    settings = ["TRT_MOE_PYTHON=OFF", "TRT_MOE_OPENVINO=OFF", "TRT_MOE_CUDA=ON", "TRT_MOE_TESTS=ON", *architectures()]
    settings.append(f"Python_EXECUTABLE={sys.executable}")
    configure = ["cmake", "-S", str(CHECKOUT), "-B", str(build), *(f"-D{setting}" for setting in settings)]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(build), "--parallel", "--target", EXECUTABLE], check=True)
    result: dict[str, Any] = {}
    for name, options in (("tests", ("--duration=true",)), ("device lost", _LOST)):
        code, printed = run_logged([executable(work), *options])
        result[name] = {"passed": passed(code, printed), "printed": printed}
        work.keep(result)
    return result


def passed(code: int, printed: str) -> bool:
    """Whether the tests ran and found nothing; where they find no device they say so, and nothing is wrong either."""
    return code == 0 and not re.search("^skipped: ", printed, re.MULTILINE)


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
