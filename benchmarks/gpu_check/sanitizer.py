"""The tests of the kernels under compute-sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device_tests import executable
from benchmarks.gpu_check.parts import Work

_ERROR = 86
# All tests take too long under these tools. Conditional graphs come last, and by themselves: their second run has ended
# in the tool's own crash (racecheck, so they are left out there) and in an illegal access (memcheck, once of three
# times) that no run without the tool shows.
_ALONE = "the kernels alone*"
_GRAPHS = "every conditional body*,images of any size*,an image with a logit*,a single image*"
_RUNS = {
    "memcheck": ("memcheck", _ALONE),
    "racecheck": ("racecheck", _ALONE),
    "memcheck of graphs": ("memcheck", _GRAPHS),
}
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
    for index, (name, (tool, cases)) in enumerate(_RUNS.items()):
        command = [program, "--tool", tool, "--error-exitcode", str(_ERROR), str(tests), f"--test-case={cases}"]
        seconds = (work.left - _SPARE_S) / (len(_RUNS) - index)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
            results[name] = {"clean": done.returncode == 0, "printed": _ends(done.stdout + done.stderr)}
        except subprocess.TimeoutExpired:
            results[name] = {"clean": None, "printed": f"it did not end in {seconds:.0f} s"}
        work.keep(results)
    return results


def _ends(text: str) -> str:
    return text if len(text) <= 2 * _KEPT else f"{text[:_KEPT]}\n...\n{text[-_KEPT:]}"
