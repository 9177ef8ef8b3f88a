"""What the GPU check consists of. Each part is a module here with `run(work)`, started in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUDGET_S = 520.0
"""Of all parts together, so that the whole ends within 9 minutes."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of its module.
        seconds: after which it is ended.
        needs_device: whether it is pointless without a GPU.
        what: it does, for people.
    """

    name: str
    seconds: float
    needs_device: bool
    what: str


@dataclass(frozen=True)
class Work:
    """What a part is given.

    Attributes:
        folder: for files of its own and of earlier parts.
        seconds: that it may take.
    """

    folder: Path
    seconds: float


PARTS = (
    Part("environment", 20, False, "device, driver, clocks, versions, and which packages are missing"),
    Part("build", 170, False, "the module with the CUDA core, by pip, offline, without OpenVINO"),
    Part("device_tests", 120, True, "the C++ tests on the device, the conditional-graph self-test among them"),
    Part("probe", 120, True, "whether the installed TensorRT runs on this GPU, and what it says"),
    Part("parity", 60, True, "logits and routes against torch in float32"),
    Part("latency", 110, True, "both plans, bare graphs and torch eager, in turns"),
    Part("idle", 40, True, "a call after a second of idleness, with and without keep-alive"),
    Part("compiled", 110, True, "against torch.compile with CUDA graphs"),
    Part("conformance", 90, True, "pytest -m gpu"),
    Part("sanitizer", 60, True, "the C++ tests under compute-sanitizer: memcheck, racecheck"),
)
