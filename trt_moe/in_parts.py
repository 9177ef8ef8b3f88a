"""A large batch for a coroutine: part after part in a thread, so that the event loop goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.errors import DeadlineError, QueueFullError
from trt_moe.result import Result, join

_ROOM_AGAIN_S = 0.001


async def predict_in_parts(
    answer: Callable[[NDArray[np.uint8], _core.CallTimes], Result],
    images: NDArray[np.uint8],
    max_batch: int,
    times: _core.CallTimes,
) -> Result:
    """The answers to images, at most `max_batch` of them under way at a time.

    Args:
        answer: gives those of a part, whose times say how many more images follow.
        images: uint8 [N, H, W, C].
        max_batch: images of a part.
        times: of all.

    Raises:
        QueueFullError: no room for the first part; the others wait for it.
        DeadlineError: they waited for room until all were late.
        Exception: of `answer`.
    """
    import asyncio  # who uses no coroutines need not wait for it

    results: list[Result] = []
    begin = 0
    # An empty batch is the first part's to refuse.
    while begin < len(images) or not results:
        part = images[begin : begin + max_batch]
        try:
            results.append(await asyncio.to_thread(answer, part, times.before(len(images) - begin - len(part))))
            begin += max_batch
        except QueueFullError:
            if not results:
                raise
            if times.over:
                raise DeadlineError(
                    f"{begin} of {len(images)} images were answered when the deadline passed, and there was no room "
                    "for more; allow more time, raise max_queue, or hand in fewer images at once"
                ) from None
            await asyncio.sleep(_ROOM_AGAIN_S)
    return results[0] if len(results) == 1 else join(results)
