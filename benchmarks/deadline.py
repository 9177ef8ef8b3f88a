"""Single images that come at random, at more than the experts can answer, each due after so many milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import Images, OpenVinoPeer, PythonRouting
from benchmarks.concurrency import GroupingServer
from benchmarks.tables import markdown, percentiles
from trt_moe import Bundle, Router
from trt_moe.profiling.arrivals import Outcome, left_of, send_at_random

TITLE = "Single images at random times, each due in 20 ms"
DUE_MS = 20.0
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
CHEAPEST = 1e3  # a latency weight that sends all there


@dataclass(frozen=True)
class Contender:
    """Who answers images, each late by some milliseconds, and how its answers name a class."""

    submit: Callable[[Images, float], Future[Any]]
    label: Callable[[Any], int]
    latency_weight: float


@dataclass
class Tally:
    """What became of the images of one contender at one load; latencies count from when an image was to come."""

    images: int = 0
    in_time: int = 0
    right: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    def add(self, outcomes: list[Outcome], labels: Any) -> None:
        self.images += len(outcomes)
        for image, latency_ms, label in outcomes:
            if latency_ms is None:
                self.refused += 1
                continue
            self.latencies.append(latency_ms)
            self.in_time += latency_ms <= DUE_MS
            self.right += latency_ms <= DUE_MS and label == labels[image]

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

            def whenever(image: Images, late_ms: float) -> Future[Any]:
                return router.submit(image)

            contenders = {
                "trt-moe, deadline_ms": Contender(
                    lambda image, late_ms: router.submit(image, deadline_ms=left_of(DUE_MS, late_ms)), **ours
                ),
                "trt-moe, no deadline": Contender(whenever, **ours),
                "the same, always the cheapest": Contender(whenever, ours["label"], CHEAPEST),
                "OpenVINO Python, grouping thread that drops the late": Contender(
                    lambda image, late_ms: dropping.submit(image[None], late_ms / 1e3), np.argmax, shipped
                ),
            }
            most = _most(router, samples, seconds)
            tallies = {(load, name): Tally() for load in LOADS for name in contenders}
            for _ in range(turns):
                for load in LOADS:
                    for name, contender in contenders.items():
                        router.latency_weight = contender.latency_weight
                        sent = send_at_random(
                            lambda index, late_ms, submit=contender.submit: submit(samples[index], late_ms),
                            contender.label,
                            len(samples),
                            load * most,
                            seconds,
                            rng,
                        )
                        tallies[load, name].add(sent.outcomes, labels)
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
        "answers. Latencies are of what was answered, from when an image was to come."
    )
