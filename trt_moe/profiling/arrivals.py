"""Single images at random times, as from many clients that know nothing of one another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trt_moe._core import MIN_DEADLINE_MS
from trt_moe.collector import no_collection
from trt_moe.errors import DeadlineError, InputError, QueueFullError

_MOST_IMAGES = 1_000_000
_SHORTLY_S = 0.001


class Outcome(NamedTuple):
    """What became of one image, by its index; latency and value are None where it was refused."""

    image: int
    latency_ms: float | None = None
    value: int | None = None


class Sent(NamedTuple):
    """What became of all, in the order of their answers, and how late the client handed each of them in."""

    outcomes: list[Outcome]
    late_ms: NDArray[np.float64]


def images_at(rate: float, seconds: float) -> int:
    """How many images come.

    Raises:
        InputError: more than a client can remember.
    """
    count = max(1, round(rate * seconds))
    if count > _MOST_IMAGES:
        raise InputError(
            f"{rate:,} images a second for {seconds:g} seconds are {count:,} images; expected at most "
            f"{_MOST_IMAGES:,}, so send them for a shorter time"
        )
    return count


def left_of(deadline_ms: float, late_ms: float) -> float:
    """The milliseconds that an image handed in late has left, or the fewest that a router takes."""
    return max(deadline_ms - late_ms, MIN_DEADLINE_MS)


def send_at_random(
    submit: Callable[[int, float], Future[Any]],
    value: Callable[[Any], int],
    images: int,
    rate: float,
    seconds: float,
    rng: np.random.Generator,
) -> Sent:
    """Hand in images, chosen and timed at random (a Poisson process), and wait for all answers.

    A latency counts from when the image was to come, as in MLPerf's LoadGen: a client that is late itself hides
    nothing. Python's garbage collector is off meanwhile, which may stop the client for more than a tenth of a second.

    Args:
        submit: hands in the image of an index, which is late by so many milliseconds.
        value: what of an answer is kept.
        images: how many there are to choose from.
        rate: images per second.
        seconds: how long.
        rng: chooses.

    Raises:
        InputError: too many images.
        Exception: of a submission or an answer, unless it says that the image is late or finds no room.
    """
    count = images_at(rate, seconds)
    arrivals = np.sort(rng.uniform(0, count / rate, count))
    chosen = rng.integers(images, size=count).tolist()
    late_ms = np.zeros(count)
    outcomes: list[Outcome] = []
    errors: list[Exception] = []

    def finish(image: int, due: float, future: Future[Any]) -> None:
        latency_ms = (time.perf_counter() - due) * 1e3
        # Not raised here: with the collector off, a traceback and the frames that it holds would stay.
        error = future.exception()
        if isinstance(error, DeadlineError):
            outcomes.append(Outcome(image))
        elif isinstance(error, Exception):
            errors.append(error)
        else:
            try:
                outcomes.append(Outcome(image, latency_ms, value(future.result())))
            except Exception as unreadable:
                errors.append(unreadable)

    gc.collect()
    with no_collection():
        start = time.perf_counter()
        for number, (arrival, image) in enumerate(zip(arrivals.tolist(), chosen, strict=True)):
            due = start + arrival
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            late = (time.perf_counter() - due) * 1e3
            late_ms[number] = late
            try:
                future = submit(image, late)
            except (DeadlineError, QueueFullError):
                outcomes.append(Outcome(image))
            else:
                future.add_done_callback(partial(finish, image, due))
            if errors:
                break
        while len(outcomes) < count and not errors:
            time.sleep(_SHORTLY_S)
    if errors:
        raise errors[0]
    return Sent(outcomes, late_ms)
