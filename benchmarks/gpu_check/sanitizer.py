"""The tests of the kernels under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device_tests import executable
from benchmarks.gpu_check.parts import Work

_ERROR = 86
# Each kernel with each of its branches; all tests take too long under these tools. Racecheck fails on conditional
# graphs, with no hazard found, so it gets the kernels alone.
_CASES = {
    "memcheck": "every conditional body*,images of any size*,an image with a logit*,the kernels alone*",
    "racecheck": "the kernels alone*",
}
_SPARE_S = 3.0


def run(work: Work) -> dict[str, Any]:
    """Each tool by itself; where it does not work on this machine, what it said is kept."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"found": None, "why": "there is no compute-sanitizer on the PATH or in /usr/local/cuda/bin"}
    tests = executable(work)
    results: dict[str, Any] = {"found": program}
    for index, (tool, cases) in enumerate(_CASES.items()):
        command = [program, "--tool", tool, "--error-exitcode", str(_ERROR), str(tests), f"--test-case={cases}"]
        seconds = (work.left - _SPARE_S) / (len(_CASES) - index)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
            results[tool] = {"clean": done.returncode == 0, "printed": (done.stdout + done.stderr)[-3000:]}
        except subprocess.TimeoutExpired:
            results[tool] = {"clean": None, "printed": f"it did not end in {seconds:.0f} s"}
        work.keep(results)
    return results
