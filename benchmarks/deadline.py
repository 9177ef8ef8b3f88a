"""Single images that come at random, at more than the experts can answer, each due after so many milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import Images
from benchmarks.tables import markdown, percentiles
from trt_moe import Bundle, DeadlineError, QueueFullError, ResultRow, Router

TITLE = "Single images at random times, each due in 20 ms"
DUE_MS = 20.0
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
CHEAPEST = 1e3  # a latency weight that sends all there

Submit = Callable[[Images], "Future[ResultRow]"]


@dataclass
class Tally:
    """What became of the images of one contender at one load."""

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
    del images  # of these the labels are not known
    turns, seconds = (1, 0.3) if quick else (3, 2.0)
    samples, labels, _ = bundle.samples()
    rng = np.random.default_rng(0)
    with Router(bundle) as router:
        shipped = router.latency_weight
        contenders: dict[str, tuple[float, Submit]] = {
            "deadline_ms": (shipped, lambda image: router.submit(image, deadline_ms=DUE_MS)),
            "no deadline": (shipped, router.submit),
            "no deadline, always the cheapest": (CHEAPEST, router.submit),
        }
        most = _most(router, samples, seconds)
        tallies = {(load, name): Tally() for load in LOADS for name in contenders}
        for _ in range(turns):
            for load in LOADS:
                for name, (weight, submit) in contenders.items():
                    router.latency_weight = weight
                    _drive(submit, samples, labels, load * most, seconds, rng, tallies[load, name])
    return {
        "due_ms": DUE_MS,
        "most_images_per_s": most,
        "loads": [
            {"load": load, "images_per_s": load * most, "runtime": name, **tally.row()}
            for (load, name), tally in tallies.items()
        ],
    }


def _most(router: Router, samples: Images, seconds: float) -> float:
    """Images a second of the mixture as it is shipped, 256 of them under way."""
    order = np.random.default_rng(1).permutation(len(samples))
    waiting: list[Future[ResultRow]] = []
    start = time.perf_counter()
    done = 0
    while time.perf_counter() - start < seconds:
        waiting.append(router.submit(samples[order[done % len(order)]]))
        done += 1
        if len(waiting) == 256:
            waiting.pop(0).result()
    for future in waiting:
        future.result()
    return done / (time.perf_counter() - start)


def _drive(
    submit: Submit, samples: Images, labels: Any, rate: float, seconds: float, rng: np.random.Generator, tally: Tally
) -> None:
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    chosen = rng.integers(len(samples), size=len(arrivals))
    futures: list[Future[ResultRow] | None] = []
    start = time.perf_counter()
    for at, index in zip(arrivals, chosen, strict=True):
        if (early := at - (time.perf_counter() - start)) > 0:
            time.sleep(early)
        try:
            futures.append(submit(samples[index]))
        except QueueFullError:
            futures.append(None)
    for index, future in zip(chosen, futures, strict=True):
        tally.images += 1
        try:
            row = future.result() if future is not None else None
        except DeadlineError:
            row = None
        if row is None:
            tally.refused += 1
            continue
        tally.latencies.append(row.latency_ms)
        in_time = row.latency_ms <= DUE_MS
        tally.in_time += in_time
        tally.right += in_time and row.label == labels[index]


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
    return (
        markdown(
            ["load", "runtime", "in time %", "in time and right %", "refused %", "p50 ms", "p90 ms", "p99 ms"], rows
        )
        + f"\n\nLoad 1 is {report['most_images_per_s']:.0f} images/s, the most that the mixture answers."
    )
