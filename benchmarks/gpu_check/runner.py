"""Runs a part in a process of its own, since an error of the device may spoil the process that it happens in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any, Literal

from benchmarks.gpu_check.parts import Part

_HEAD, _TAIL = 3000, 9000
"""Characters that are kept of what a program prints: its first error says most, its summary comes last."""
_LEAST_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        status: "ran" also where tests failed; `result` says so then. "ended" by its time limit.
        seconds: it took.
        result: of the part; where it did not end well, what it had found until then, if anything.
        reason: why it did not, with what it printed.
    """

    status: Literal["ran", "failed", "ended", "interrupted", "skipped"]
    seconds: float
    result: Any = None
    reason: str | None = None


def run_part(part: Part, folder: Path, environment: dict[str, str], seconds: float) -> Outcome:
    """Run a part for at most so many seconds."""
    if seconds < _LEAST_S:
        return Outcome("ended", 0.0, reason="no time was left")
    start = monotonic()
    log = folder / f"{part.name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu_check.child", part.name, str(folder), str(time() + seconds)]
    with log.open("wb") as stream:
        # A group of its own: what it started ends with it. In the folder, where no trt_moe lies.
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
        try:
            code, stopped = process.wait(seconds), None
        except subprocess.TimeoutExpired:
            code, stopped = None, "ended"
        except KeyboardInterrupt:
            code, stopped = None, "interrupted"
        finally:
            _end(process)
    took = monotonic() - start
    found = folder / f"{part.name}.json"
    result = json.loads(found.read_text()) if found.exists() else None
    if code == 0:
        return Outcome("ran", took, result)
    printed = ends(log.read_text(errors="replace"))
    if stopped == "interrupted":
        return Outcome("interrupted", took, result, f"interrupted; it printed: {printed}")
    if stopped == "ended":
        return Outcome("ended", took, result, f"not done after {seconds:.0f} s; it printed: {printed}")
    return Outcome("failed", took, result, f"exit code {code}; it printed: {printed}")


def run_logged(
    command: Sequence[str | Path], cwd: Path | None = None, each: Callable[[str], None] = lambda line: None
) -> tuple[int, str]:
    """Run a command of a part: its exit code, and the ends of what it printed.

    What it prints goes on to the part's own log at once, so that it is not lost where the part is ended.

    Args:
        command: program and arguments.
        cwd: where it runs.
        each: is told every line that is printed.
    """
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=cwd
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
            each(line)
    return process.returncode, ends("".join(lines))


def ends(text: str) -> str:
    """The begin and the end of a text."""
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n...\n{text[-_TAIL:]}"


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
