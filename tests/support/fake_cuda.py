"""Stand-ins for the C++ core's CUDA classes on machines without a GPU: they note what they were told.

What tests with them show is which calls are made in which order, not that a GPU does anything.
"""

from __future__ import annotations

from typing import Any


class FakeDevice:
    """Like `_core.CudaDevice`."""

    def __init__(self, compute_capability: str = "8.6") -> None:
        self.info = {"name": "Fake GPU", "compute_capability": compute_capability}


class FakeCapture:
    """Like `_core.CudaCapture`; `events` has its calls, and those that a source adds."""

    stream, input_address, output_address, activation_address = 0x51, 0x1000, 0x2000, 0x3000

    def __init__(self, device: Any, **options: Any) -> None:
        self.device = device
        self.options = options
        self.events: list[Any] = []
        self.owner: object = None
        self.buckets, self.input_shape, self.outputs = (options[name] for name in ("buckets", "input_shape", "outputs"))
        self.precision = options.get("precision")

    def reserve_activation(self, bytes: int) -> int:
        self.events.append(("reserve", bytes))
        return self.activation_address

    def hold_gater(self, weights: Any, *, side: tuple[int, int], third: bool) -> None:
        self.events.append(("hold gater", len(weights), side, third))

    def enqueue_gater(self, bucket: int) -> None:
        self.events.append(("enqueue gater", bucket))

    def synchronize(self) -> None:
        self.events.append("synchronize")

    def begin(self, bucket: int) -> None:
        self.events.append(("begin", bucket))

    def end(self) -> dict[str, int]:
        self.events.append("end")
        return {"kernel": 1}

    def discard(self) -> None:
        self.events.append("discard")

    def finish(self, owner: object) -> FakeCapture:
        self.owner = owner
        return self
