"""The C++ tests on the device under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device_tests import executable
from benchmarks.gpu_check.parts import Work

_TOOLS = ("memcheck", "racecheck")
_ERROR = 86


def run(work: Work) -> dict[str, Any]:
    """Each tool by itself; where it does not work on this machine, what it said is kept."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"found": None, "why": "there is no compute-sanitizer on the PATH or in /usr/local/cuda/bin"}
    tests = executable(work)
    results: dict[str, Any] = {"found": program}
    for tool in _TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(_ERROR), str(tests)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=work.seconds / len(_TOOLS) - 1
            )
        except subprocess.TimeoutExpired:
            results[tool] = {"clean": None, "printed": "it did not end in time"}
            continue
        results[tool] = {"clean": done.returncode == 0, "printed": (done.stdout + done.stderr)[-3000:]}
    return results
