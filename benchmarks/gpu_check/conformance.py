"""pytest -m gpu."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks.gpu_check.parts import CHECKOUT, Work


def run(work: Work) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        str(CHECKOUT / "tests/python/gpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work.folder, check=False)
    print(done.stdout, done.stderr)
    return {"command": "pytest -m gpu tests/python/gpu", "passed": done.returncode == 0, "printed": done.stdout[-4000:]}
