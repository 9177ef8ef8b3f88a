"""What the GPU check found, as JSON and Markdown, written anew after every part."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.goals import goals
from benchmarks.gpu_check.parts import CHECKOUT, Part, write_whole
from benchmarks.gpu_check.runner import Outcome
from benchmarks.tables import markdown

_SHORT = 160
_PROOFS = ("device_tests", "latency", "parity")
"""Parts that show that what is timed gives the right answers."""


class Report:
    """Collects outcomes.

    Args:
        folder: that the two files are written to.
        command: that was typed.
    """

    def __init__(self, folder: Path, command: str) -> None:
        """See the class."""
        self._folder = folder
        self._command = command
        self._parts: dict[str, tuple[Part, Outcome]] = {}
        self._no_device: str | None = None
        self._lack: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a part failed, was ended, or found something wrong."""
        return any(_verdict(outcome) not in ("ran", "skipped") for _, outcome in self._parts.values())

    def add(self, part: Part, outcome: Outcome) -> None:
        """Note what became of a part."""
        self._parts[part.name] = (part, outcome)
        self._write()

    def finish(self, no_device: str | None, lack: str | None) -> None:
        """Write all, and print the short tables.

        Args:
            no_device: what was looked for in vain; None where there is a device.
            lack: what the check stopped for; None where all is there that it needs.
        """
        self._no_device = no_device
        self._lack = lack
        self._write()
        print(self._markdown(details=False))

    def _write(self) -> None:
        data = {
            "command": self._command,
            "no_device": self._no_device,
            "lack": self._lack,
            "goals": [dict(zip(("what", "found", "goal", "reached"), row, strict=True)) for row in self._goals()],
            "parts": {name: asdict(outcome) | {"what": part.what} for name, (part, outcome) in self._parts.items()},
        }
        for name, text in (("json", json.dumps(data, indent=1) + "\n"), ("md", self._markdown(details=True))):
            write_whole(self._folder / f"gpu_check.{name}", text.replace(str(CHECKOUT), "."))

    def _goals(self) -> list[tuple[str, str, str, str]]:
        results = {name: outcome.result for name, (_, outcome) in self._parts.items() if outcome.result is not None}
        measured = any(part.needs_device and outcome.status != "skipped" for part, outcome in self._parts.values())
        return goals(results) if measured else []

    def _doubts(self) -> list[str]:
        """What is not shown to be right, and so makes the figures worth nothing yet."""
        states = {name: _verdict(outcome) for name, (_, outcome) in self._parts.items()}
        return [f"{name} ({states.get(name, 'not run')})" for name in _PROOFS if states.get(name) != "ran"]

    def _markdown(self, details: bool) -> str:
        lines = ["# GPU check", "", f"`{self._command}`", ""]
        rows = [
            [name, _verdict(outcome), f"{outcome.seconds:.0f}", part.what if details else _short(part, outcome)]
            for name, (part, outcome) in self._parts.items()
        ]
        lines += [markdown(["part", "state", "seconds", "what" if details else "remark"], rows), ""]
        if found := self._goals():
            if doubts := self._doubts():
                lines += [f"Believe no figure before these ran and found no error: {', '.join(doubts)}.", ""]
            lines += [markdown(["figure", "found", "goal", "reached"], [list(row) for row in found]), ""]
        if details:
            for name, (_, outcome) in self._parts.items():
                result = None if outcome.result is None else json.dumps(outcome.result, indent=1)
                text = "\n".join(filter(None, [outcome.reason, result]))
                lines += [f"## {name}", "", "```", text, "```", ""]
        if self._lack:
            lines += [
                f"Stopped: {self._lack}. Install it where {sys.executable} and CMake find it. Without it, --only PARTS "
                "runs as far as it can where `environment` is not among the parts.",
                "",
            ]
        if self._no_device:
            waiting = [f"- {name}: {part.what}" for name, (part, _) in self._parts.items() if part.needs_device]
            lines += [f"Stopped: {self._no_device}.", ""]
            if waiting:
                lines += ["With a device, these parts would run next:", "", *waiting, ""]
        return "\n".join(lines)


def _verdict(outcome: Outcome) -> str:
    """The status, or "found errors" where a part ran and says that something is wrong."""
    return "found errors" if _says_wrong(outcome.result) else outcome.status


def _says_wrong(result: Any) -> bool:
    if not isinstance(result, dict):
        return False
    if any(result.get(key) is False for key in ("passed", "clean", "routes_right")):
        return True
    return any(_says_wrong(value) for value in result.values())


def _short(part: Part, outcome: Outcome) -> str:
    missing = (outcome.result or {}).get("missing")
    text = outcome.reason or (f"missing: {', '.join(missing)}" if missing else part.what)
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT // 2]} ... {text[-_SHORT // 2 :]}"
