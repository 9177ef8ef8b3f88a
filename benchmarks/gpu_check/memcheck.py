"""The kernels under compute-sanitizer's memcheck: accesses out of bounds."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.sanitizer import run_tool


def run(work: Work) -> dict[str, Any]:
    return run_tool(work, "memcheck")
