"""Single images at random times, as from many clients that know nothing of one another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from trt_moe.collector import no_collection
from trt_moe.errors import DeadlineError, QueueFullError

_SHORTLY_S = 0.001


class Outcome(NamedTuple):
    """What became of one image, by its index; latency and value are None where it was refused."""

    image: int
    latency_ms: float | None = None
    value: int | None = None


class Sent(NamedTuple):
    """What became of all, in the order of their answers, and the seconds that handing them in took."""

    outcomes: list[Outcome]
    seconds: float


def send_at_random(
    submit: Callable[[int], Future[Any]],
    value: Callable[[Any], int],
    images: int,
    rate: float,
    seconds: float,
    rng: np.random.Generator,
) -> Sent:
    """Hand in images, chosen and timed at random (a Poisson process), and wait for all answers.

    Python's garbage collector is off meanwhile: a collection may stop the client for more than a tenth of a second.

    Args:
        submit: hands in the image of an index.
        value: what of an answer is kept.
        images: how many there are to choose from.
        rate: images per second.
        seconds: how long.
        rng: chooses.

    Raises:
        Exception: of a submission or an answer, unless it says that the image is late or finds no room.
    """
    arrivals = np.cumsum(rng.exponential(1 / rate, max(1, round(rate * seconds)))).tolist()
    chosen = rng.integers(images, size=len(arrivals)).tolist()
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []

    def finish(index: int, begin: float, future: Future[Any]) -> None:
        latency_ms = (time.perf_counter() - begin) * 1e3
        try:
            outcomes.append(Outcome(index, latency_ms, value(future.result())))
        except DeadlineError:
            outcomes.append(Outcome(index))
        except BaseException as error:
            errors.append(error)

    gc.collect()
    with no_collection():
        start = time.perf_counter()
        for arrival, index in zip(arrivals, chosen, strict=True):
            if (early := arrival - (time.perf_counter() - start)) > 0:
                time.sleep(early)
            begin = time.perf_counter()
            try:
                future = submit(index)
            except (DeadlineError, QueueFullError):
                outcomes.append(Outcome(index))
            else:
                future.add_done_callback(partial(finish, index, begin))
        took = time.perf_counter() - start
        while len(outcomes) + len(errors) < len(arrivals):
            time.sleep(_SHORTLY_S)
    if errors:
        raise errors[0]
    return Sent(outcomes, took)
