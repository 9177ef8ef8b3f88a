"""Batches of coroutines, part by part."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from trt_moe import DeadlineError, InputError, QueueFullError, Result, _core
from trt_moe.in_parts import predict_in_parts


class Answering:
    """Answers an image by its brightness; where `full` says so, there is no room."""

    def __init__(self, full: Sequence[bool] = ()) -> None:
        self.full = iter(full)
        self.parts: list[tuple[list[int], int]] = []

    def __call__(self, images: NDArray[np.uint8], times: _core.CallTimes) -> Result:
        assert threading.current_thread() is not threading.main_thread()
        levels = images[:, 0, 0, 0].astype(np.int64)
        self.parts.append((levels.tolist(), times.later))
        if next(self.full, False):
            raise QueueFullError("full")
        if not len(images):
            raise InputError("no images")
        rows = np.zeros((len(images), 2), np.float32)
        return Result(rows, levels, rows[:, 0], rows, ["a", "b"], ["cheap", "dear"])


def predict(answering: Answering, count: int, max_batch: int, due: float | None = None) -> list[int]:
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return asyncio.run(predict_in_parts(answering, images, max_batch, _core.CallTimes(due))).experts.tolist()


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (1, [([0], 0)]),
        (3, [([0, 1, 2], 0)]),
        (4, [([0, 1, 2], 1), ([3], 0)]),
        (7, [([0, 1, 2], 4), ([3, 4, 5], 1), ([6], 0)]),
    ],
)
def test_parts_follow_one_another(count: int, parts: list[tuple[list[int], int]]) -> None:
    answering = Answering()
    assert predict(answering, count, max_batch=3) == list(range(count))
    assert answering.parts == parts


def test_what_has_begun_waits_for_room() -> None:
    answering = Answering([False, True, True, False, True, False])
    assert predict(answering, 5, max_batch=2) == [0, 1, 2, 3, 4]
    assert [len(levels) for levels, _ in answering.parts] == [2, 2, 2, 2, 1, 1]
    assert [others for _, others in answering.parts] == [3, 1, 1, 1, 0, 0]


def test_what_waits_for_room_learns_that_it_is_late() -> None:
    answering = Answering([False, *[True] * 1000])
    with pytest.raises(
        DeadlineError, match="2 of 5 images were answered when the deadline passed, and there was no room"
    ):
        predict(answering, 5, max_batch=2, due=50)
    assert len(answering.parts) > 2


def test_what_has_not_is_refused() -> None:
    answering = Answering([True])
    with pytest.raises(QueueFullError):
        predict(answering, 5, max_batch=2)
    assert len(answering.parts) == 1


def test_an_empty_batch_is_for_the_core_to_refuse() -> None:
    with pytest.raises(InputError, match="no images"):
        predict(Answering(), 0, max_batch=2)
