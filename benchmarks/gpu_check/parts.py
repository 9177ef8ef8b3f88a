"""What the GPU check consists of. Each part is a module here with `run(work)`, started in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
BUDGET_S = 520.0
"""Of all parts together, so that the whole ends within 9 minutes."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of its module.
        seconds: after which it is ended, unless parts that come later can do without more.
        needs_device: whether it is pointless without a GPU.
        what: it does, for people.
        answers: whether the goals are held against what it finds.
    """

    name: str
    seconds: float
    needs_device: bool
    what: str
    answers: bool = False


@dataclass(frozen=True)
class Work:
    """What a part is given.

    Attributes:
        folder: for files of its own and of earlier parts.
        seconds: that it may take.
        name: of the part.
        started: when it began, by `monotonic`.
    """

    folder: Path
    seconds: float
    name: str
    started: float = field(default_factory=monotonic)

    @property
    def left(self) -> float:
        """Seconds until it is ended."""
        return self.seconds - (monotonic() - self.started)

    def keep(self, result: Any) -> None:
        """Note what was found so far, which counts also where the part fails or is ended later on."""
        write_whole(self.folder / f"{self.name}.json", json.dumps(result))


def write_whole(file: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    # Not trt_moe's own: this must work, and report, where packages that it needs are missing.
    part = file.with_suffix(f"{file.suffix}.part")
    part.write_text(text)
    part.replace(file)


PARTS = (
    Part("environment", 20, False, "device, driver, clocks, versions, and what is missing"),
    Part("build", 200, False, "the module with the CUDA core, by pip, offline, without OpenVINO"),
    Part("device_tests", 120, True, "the C++ tests on the device, the conditional-graph self-test among them"),
    Part("memcheck", 20, True, "the kernels' tests under compute-sanitizer's memcheck"),
    Part("racecheck", 20, True, "the kernels' tests under compute-sanitizer's racecheck"),
    Part("conformance", 120, True, "pytest -m gpu"),
    Part("probe", 60, True, "whether the installed TensorRT runs on this GPU, and what it says"),
    Part("engines", 120, True, "TensorRT's engines of the mixture, where it runs on this GPU"),
    Part("latency", 160, True, "both plans, bare graphs and torch eager, in turns", answers=True),
    Part("idle", 70, True, "a call after a second of idleness, with and without keep-alive", answers=True),
    Part("compiled", 130, True, "against torch.compile with CUDA graphs", answers=True),
    Part("parity", 150, True, "logits and routes against torch in float32"),
)


def seconds_for(part: Part, later: Sequence[Part], left: float) -> float:
    """What a part may take of the seconds that are left.

    Its own, or more where all that come later have theirs as well; never those of the later ones that answer the goals.
    """
    spare = left - sum(each.seconds for each in later)
    return min(max(part.seconds, spare), left - sum(each.seconds for each in later if each.answers))
