"""Calls whose answers are due in time; who answers then is tested in tests/cpp/test_scheduler_deadlines.cc."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import trt_moe
from tests.support.tiny_bundle import TinyBundle, write_tiny_bundle

Call = Callable[[trt_moe.Router, Any, float], Any]

CALLS: dict[str, Call] = {
    "predict": lambda router, images, due: router.predict(images, deadline_ms=due),
    "submit": lambda router, images, due: [router.submit(image, deadline_ms=due) for image in images][-1].result(30),
    "predict_async": lambda router, images, due: asyncio.run(router.predict_async(images, deadline_ms=due)),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("deadlines") / "tiny", experts=3, classes=4)


@pytest.fixture(scope="module")
def router(tiny: TinyBundle) -> Iterator[trt_moe.Router]:
    with trt_moe.Router(tiny.path, precision="fp32") as opened:
        yield opened


@pytest.mark.parametrize("count", [1, 2, 40, 150])
def test_where_there_is_time_the_answers_are_the_same(router: trt_moe.Router, tiny: TinyBundle, count: int) -> None:
    images = tiny.random(count)
    expected = router.predict(images)
    results = [
        router.predict(images, deadline_ms=60_000),
        asyncio.run(router.predict_async(images, deadline_ms=np.float64(60_000))),
    ]
    for result in results:
        np.testing.assert_array_equal(result.experts, expected.experts)
        np.testing.assert_array_equal(result.probabilities, expected.probabilities)
    row = router.submit(images[0], deadline_ms=60_000).result(30)
    np.testing.assert_array_equal(row.probabilities, expected.probabilities[0])


@pytest.mark.parametrize("count", [1, 5, 150])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_nobody_can_answer_in_time_is_told(
    router: trt_moe.Router, tiny: TinyBundle, call: Call, count: int
) -> None:
    images = tiny.random(count)
    before = router.stats()["deadlines"]["missed"]
    with pytest.raises(trt_moe.DeadlineError, match=r"was to be answered in 0\.001 ms"):
        call(router, images, 0.001)
    assert router.stats()["deadlines"]["missed"] > before
    assert router.stats()["deadlines"]["moved"] == 0
    # Nothing is left behind.
    assert router.predict(images).experts.tolist() == tiny.routes(images).tolist()
    assert router.stats()["in_flight"] == 0


@pytest.mark.parametrize("due", [0, -1, math.nan, math.inf, 1e-9, 1e10, "5", True], ids=lambda due: str(due))
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_is_no_deadline_is_refused(router: trt_moe.Router, tiny: TinyBundle, call: Call, due: Any) -> None:
    with pytest.raises(trt_moe.InputError, match=r"deadline_ms is .*; expected a number"):
        call(router, tiny.random(2), due)


class SlowToRead:
    """A tensor that takes 50 ms to hand over its image."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image

    def __dlpack__(self, **options: Any) -> Any:
        time.sleep(0.05)
        return self.image.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.image.__dlpack_device__()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_deadline_counts_from_the_call(router: trt_moe.Router, tiny: TinyBundle, call: Call) -> None:
    images = [SlowToRead(image) for image in tiny.random(2)]
    with pytest.raises(trt_moe.DeadlineError, match="to be answered in 25 ms, which were over"):
        call(router, images, 25)


def test_the_dear_expert_answers_where_there_is_time_for_it_only(tmp_path: Path) -> None:
    slow = write_tiny_bundle(tmp_path / "slow", work=(0, 800), golden=0, size=(64, 64))
    bright = slow.grey(230)
    with trt_moe.Router(slow.path) as router:
        takes_ms = np.median([router.predict(bright).latency_ms[0] for _ in range(5)])
        assert router.predict(bright, deadline_ms=100 * takes_ms).experts.tolist() == [1]
        experts: list[int] = []
        patience = time.monotonic() + 60
        # A machine that was held up expects too much of the cheap expert for a while.
        while not experts and time.monotonic() < patience:
            try:
                experts = router.predict(bright, deadline_ms=takes_ms / 3).experts.tolist()
            except trt_moe.DeadlineError:
                time.sleep(0.05)
        assert experts == [0]
        assert router.stats()["deadlines"]["moved"] >= 1
        assert router.predict(bright).experts.tolist() == [1]
