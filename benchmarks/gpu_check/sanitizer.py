"""The tests of the kernels under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device_tests import executable
from benchmarks.gpu_check.parts import Work

_ERROR = 86
# All tests take too long under these tools, and conditional graphs are beyond them (Compute Sanitizer 2025.3):
# racecheck crashes; memcheck calls accesses out of bounds that by its own words lie inside an allocation, or ends in
# error 700, which it also does with a plain SWITCH graph that has nothing of ours.
_CASES = "the kernels alone*,the gater's kernels*"
_TOOLS = ("memcheck", "racecheck")
_KEPT = 3000
"""Characters of the begin and of the end of what a tool prints: the first error says most."""
_SPARE_S = 3.0


def run(work: Work) -> dict[str, Any]:
    """Each tool by itself; where it does not work on this machine, what it said is kept."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"found": None, "why": "there is no compute-sanitizer on the PATH or in /usr/local/cuda/bin"}
    tests = executable(work)
    results: dict[str, Any] = {"found": program}
    for index, tool in enumerate(_TOOLS):
        command = [program, "--tool", tool, "--error-exitcode", str(_ERROR), str(tests), f"--test-case={_CASES}"]
        seconds = (work.left - _SPARE_S) / (len(_TOOLS) - index)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
            results[tool] = {"clean": done.returncode == 0, "printed": _ends(done.stdout + done.stderr)}
        except subprocess.TimeoutExpired:
            results[tool] = {"clean": None, "printed": f"it did not end in {seconds:.0f} s"}
        work.keep(results)
    return results


def _ends(text: str) -> str:
    return text if len(text) <= 2 * _KEPT else f"{text[:_KEPT]}\n...\n{text[-_KEPT:]}"
