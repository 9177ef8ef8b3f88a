"""The order of a capture."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from tests.support.fake_cuda import FakeCapture, FakeDevice
from trt_moe.cuda.capture import capture_model
from trt_moe.errors import DeviceError


class Source:
    """Notes its calls among those of the capture; fails at the n-th run."""

    def __init__(self, fails_at: int = 0) -> None:
        self.fails_at = fails_at
        self.runs = 0
        self.collects: list[bool] = []

    def bind(self, capture: Any) -> None:
        self.events = capture.events
        self.events.append("bind")

    def enqueue(self, bucket: int) -> None:
        self.runs += 1
        self.collects.append(gc.isenabled())
        self.events.append(("run", bucket))
        if self.runs == self.fails_at:
            raise DeviceError("refused")


def capture(source: Source) -> Any:
    return capture_model(
        source, FakeDevice(), name="light", input_shape=(4, 4, 1), outputs=3, buckets=(1, 2), precision="fp16"
    )


def test_each_bucket_runs_once_before_it_is_captured(core: list[FakeCapture]) -> None:
    source = Source()
    model = capture(source)
    assert model.events == [
        "bind",
        ("run", 1), "synchronize", ("begin", 1), ("run", 1), "end",
        ("run", 2), "synchronize", ("begin", 2), ("run", 2), "end",
    ]  # fmt: skip
    assert model.options == {
        "name": "light", "input_shape": (4, 4, 1), "outputs": 3, "buckets": [1, 2], "precision": "fp16",
    }  # fmt: skip
    assert model.owner is source  # the graphs use its memory


@pytest.mark.parametrize(("fails_at", "last"), [(1, ("run", 1)), (2, "discard"), (4, "discard")])
def test_a_capture_that_was_begun_is_discarded(core: list[FakeCapture], fails_at: int, last: Any) -> None:
    with pytest.raises(DeviceError, match="refused"):
        capture(Source(fails_at))
    assert core[0].events[-1] == last
    assert core[0].owner is None


def test_no_garbage_is_collected_while_work_is_captured(core: list[FakeCapture]) -> None:
    source = Source()
    capture(source)
    assert source.collects == [True, False, True, False]
    with pytest.raises(DeviceError, match="refused"):
        capture(Source(fails_at=2))
    assert gc.isenabled()
    gc.disable()
    try:
        capture(Source())
        assert not gc.isenabled()
    finally:
        gc.enable()
