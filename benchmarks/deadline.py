"""Single images that come at random, at more than the experts can answer, each due after so many milliseconds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import Images, OpenVinoPeer, PythonRouting
from benchmarks.concurrency import GroupingServer
from benchmarks.tables import markdown, percentiles
from trt_moe import Bundle, DeadlineError, QueueFullError, Router

TITLE = "Single images at random times, each due in 20 ms"
DUE_MS = 20.0
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
CHEAPEST = 1e3  # a latency weight that sends all there


@dataclass(frozen=True)
class Contender:
    """Who answers, and how its answers name a class."""

    submit: Callable[[Images], Future[Any]]
    label: Callable[[Any], int]
    latency_weight: float


@dataclass
class Tally:
    """What became of the images of one contender at one load; latencies are the client's."""

    images: int = 0
    in_time: int = 0
    right: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        return percentiles(self.latencies or [float("nan")]) | {
            "images": self.images,
            "in_time": self.in_time / self.images,
            "in_time_and_right": self.right / self.images,
            "refused": self.refused / self.images,
        }


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Contenders take turns of some seconds at each load, which is in parts of what the mixture answers at most."""
    del images  # their labels are not among them
    turns, seconds = (1, 0.2) if quick else (3, 2.0)
    samples, labels, _ = bundle.samples()
    rng = np.random.default_rng(0)
    dropping = GroupingServer(PythonRouting(bundle, OpenVinoPeer(bundle).run_batch), due_s=DUE_MS / 1e3)
    try:
        with Router(bundle) as router:
            shipped = router.latency_weight
            ours = {"label": lambda row: row.label, "latency_weight": shipped}
            contenders = {
                "trt-moe, deadline_ms": Contender(lambda image: router.submit(image, deadline_ms=DUE_MS), **ours),
                "trt-moe, no deadline": Contender(router.submit, **ours),
                "the same, always the cheapest": Contender(router.submit, ours["label"], CHEAPEST),
                "OpenVINO Python, grouping thread that drops the late": Contender(
                    lambda image: dropping.submit(image[None]), np.argmax, shipped
                ),
            }
            most = _most(router, samples, seconds)
            tallies = {(load, name): Tally() for load in LOADS for name in contenders}
            for _ in range(turns):
                for load in LOADS:
                    for name, contender in contenders.items():
                        router.latency_weight = contender.latency_weight
                        _drive(contender, samples, labels, load * most, seconds, rng, tallies[load, name])
    finally:
        dropping.close()
    return {
        "due_ms": DUE_MS,
        "most_images_per_s": most,
        "loads": [
            {"load": load, "images_per_s": load * most, "runtime": name, **tally.row()}
            for (load, name), tally in tallies.items()
        ],
    }


@contextmanager
def _no_collection() -> Iterator[None]:
    """The client keeps thousands of futures, among which Python's collector would look for cycles for up to 130 ms."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_no_collection()
def _most(router: Router, samples: Images, seconds: float) -> float:
    """Images a second of the mixture as it is shipped, 256 of them under way."""
    order = np.random.default_rng(1).permutation(len(samples))
    waiting: list[Future[Any]] = []
    done = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        waiting.append(router.submit(samples[order[done % len(order)]]))
        done += 1
        if len(waiting) == 256:
            waiting.pop(0).result()
    wait(waiting)
    return done / (time.perf_counter() - start)


@_no_collection()
def _drive(
    contender: Contender,
    samples: Images,
    labels: Any,
    rate: float,
    seconds: float,
    rng: np.random.Generator,
    tally: Tally,
) -> None:
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    chosen = rng.integers(len(samples), size=len(arrivals))
    under_way: list[tuple[int, Future[Any], list[float]]] = []
    tally.images += len(arrivals)
    start = time.perf_counter()
    for at, index in zip(arrivals, chosen, strict=True):
        if (early := at - (time.perf_counter() - start)) > 0:
            time.sleep(early)
        took: list[float] = []
        begin = time.perf_counter()
        try:
            future = contender.submit(samples[index])
        except QueueFullError:
            tally.refused += 1
            continue
        future.add_done_callback(lambda _, begin=begin, took=took: took.append((time.perf_counter() - begin) * 1e3))
        under_way.append((index, future, took))
    for index, future, took in under_way:
        try:
            label = contender.label(future.result())
        except DeadlineError:
            tally.refused += 1
            continue
        while not took:  # the callback comes just after the result
            time.sleep(0)
        tally.latencies += took
        tally.in_time += took[0] <= DUE_MS
        tally.right += took[0] <= DUE_MS and label == labels[index]


def table(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['load']:.1f}",
            row["runtime"],
            *(f"{100 * row[key]:.1f}" for key in ("in_time", "in_time_and_right", "refused")),
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        ]
        for row in report["loads"]
    ]
    header = ["load", "runtime", "in time %", "in time and right %", "refused %", "p50 ms", "p90 ms", "p99 ms"]
    return (
        f"{markdown(header, rows)}\n\nLoad 1 is {report['most_images_per_s']:.0f} images/s, the most that the mixture "
        "answers. Latencies are of what was answered, as the client saw them."
    )
