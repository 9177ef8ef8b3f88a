"""One client that keeps so many single images under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import Any

from benchmarks.common import Images, OpenVinoPeer, PythonRouting
from benchmarks.concurrency import GroupingServer
from benchmarks.tables import markdown, percentiles, speed_cells
from trt_moe import Bundle, Router

TITLE = "One client, so many single images under way"
UNDER_WAY = (1, 4, 16, 64, 256)


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Contenders take turns of some seconds, several times over."""
    turns, seconds = (1, 0.3) if quick else (5, 2.0)
    grouping = GroupingServer(PythonRouting(bundle, OpenVinoPeer(bundle).run_batch))
    try:
        with Router(bundle) as router:
            contenders: dict[str, Callable[[Images], Future[Any]]] = {
                "trt-moe submit": router.submit,
                "OpenVINO Python, grouping thread": lambda image: grouping.submit(image[None]),
            }
            times: dict[tuple[int, str], list[float]] = {(n, name): [] for n in UNDER_WAY for name in contenders}
            walls = dict.fromkeys(times, 0.0)
            for submit in contenders.values():
                _drive(submit, images, UNDER_WAY[-1], 0.5)
            for _ in range(turns):
                for count, name in times:
                    wall, ms = _drive(contenders[name], images, count, seconds)
                    walls[count, name] += wall
                    times[count, name] += ms
    finally:
        grouping.close()
    return {
        "rows": [
            {"under_way": count, "runtime": name, "images_per_s": len(ms) / walls[count, name], **percentiles(ms)}
            for (count, name), ms in times.items()
        ]
    }


def _drive(
    submit: Callable[[Images], Future[Any]], images: Images, count: int, seconds: float
) -> tuple[float, list[float]]:
    times: list[float] = []
    places = threading.Semaphore(count)
    start = perf_counter()
    turn = 0
    while perf_counter() - start < seconds:
        places.acquire()
        before = perf_counter()

        def done(future: Future[Any], before: float = before) -> None:
            times.append((perf_counter() - before) * 1e3)
            places.release()

        submit(images[turn % len(images)]).add_done_callback(done)
        turn += 1
    for _ in range(count):
        places.acquire()
    return perf_counter() - start, times


def table(report: dict[str, Any]) -> str:
    rows = [[str(row["under_way"]), row["runtime"], *speed_cells(row)] for row in report["rows"]]
    return markdown(["under way", "runtime", "images/s", "p50 ms", "p90 ms", "p99 ms"], rows)
