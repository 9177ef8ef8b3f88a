"""pytest -m gpu."""

from __future__ import annotations

import re
import sys
from typing import Any

from benchmarks.gpu_check.parts import CHECKOUT, Work
from benchmarks.gpu_check.runner import run_logged

_LINE = re.compile(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b")


def run(work: Work) -> dict[str, Any]:
    # A line a test: where one hangs, the last line says which. A module that cannot be imported stops no other.
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
    command.append("--continue-on-collection-errors")
    counts = dict.fromkeys(("PASSED", "FAILED", "ERROR", "SKIPPED"), 0)
    wrong: list[str] = []
    found: dict[str, Any] = {"command": "pytest -m gpu tests/python/gpu", "counts": counts, "wrong": wrong}

    def note(line: str) -> None:
        if told := _LINE.match(line):
            test, verdict = told.groups()
            counts[verdict] += 1
            if verdict in ("FAILED", "ERROR"):
                wrong.append(test)
            work.keep(found)

    code, printed = run_logged([*command, CHECKOUT / "tests/python/gpu"], cwd=work.folder, each=note)
    # Where all tests are skipped, pytest is content.
    return found | {"passed": code == 0 and counts["PASSED"] > 0, "printed": printed}
