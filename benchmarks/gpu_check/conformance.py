"""pytest -m gpu."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.gpu_check.parts import CHECKOUT, Work
from benchmarks.gpu_check.runner import run_logged


def run(work: Work) -> dict[str, Any]:
    # A line a test: where one hangs, the last line says which.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    code, printed = run_logged([*command, CHECKOUT / "tests/python/gpu"], cwd=work.folder)
    return {"command": "pytest -m gpu tests/python/gpu", "passed": code == 0, "printed": printed}
