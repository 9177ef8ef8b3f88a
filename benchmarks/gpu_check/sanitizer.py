"""The tests of the kernels under a tool of compute-sanitizer; each is a part, which ends with all that it started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device_tests import executable, passed
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.runner import run_logged

_ERROR = 86
# All tests take too long under these tools, and conditional graphs are beyond them (Compute Sanitizer 2025.3):
# racecheck crashes; memcheck calls accesses out of bounds that by its own words lie inside an allocation, or ends in
# error 700, which it also does with a plain SWITCH graph that has nothing of ours.
_CASES = "the kernels alone*,the gater's kernels*"


def run_tool(work: Work, tool: str) -> dict[str, Any]:
    """What a tool says, where there is a compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"found": None, "why": "there is no compute-sanitizer on the PATH or in /usr/local/cuda/bin"}
    options = ("--tool", tool, "--error-exitcode", str(_ERROR))
    code, printed = run_logged([program, *options, executable(work), f"--test-case={_CASES}"])
    return {"found": program, "clean": passed(code, printed), "printed": printed}
