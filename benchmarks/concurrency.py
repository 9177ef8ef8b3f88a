"""Sixteen client threads that each send one image after the other."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import Images, OpenVinoPeer, PythonRouting
from benchmarks.tables import markdown, percentiles, speed_cells
from trt_moe import Bundle, DeadlineError, Router

TITLE = "16 client threads, single images"
CLIENTS = 16


class GroupingServer:
    """What users write today: a thread that takes all waiting images, groups them by expert and runs OpenVINO.

    With `due_s` it drops those that are older when their turn comes.
    """

    def __init__(self, routing: PythonRouting, max_batch: int = 64, due_s: float = math.inf) -> None:
        self._routing = routing
        self._max_batch = max_batch
        self._due_s = due_s
        self._queue: queue.Queue[tuple[Images, float, Future[Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def predict(self, image: Images) -> Any:
        return self.submit(image).result()

    def submit(self, image: Images, late_s: float = 0.0) -> Future[Any]:
        future: Future[Any] = Future()
        self._queue.put((image, perf_counter() - late_s, future))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            waiting = [first]
            while len(waiting) < self._max_batch and not self._queue.empty():
                item = self._queue.get()
                if item is None:
                    self._queue.put(None)
                    break
                waiting.append(item)
            self._answer(waiting)

    def _answer(self, waiting: list[tuple[Images, float, Future[Any]]]) -> None:
        oldest = perf_counter() - self._due_s
        for _, entered, future in waiting:
            if entered < oldest:
                future.set_exception(DeadlineError("dropped"))
        left = [(image, future) for image, entered, future in waiting if entered >= oldest]
        if not left:
            return
        answers = self._routing.grouped(np.concatenate([image for image, _ in left]))
        for answer, (_, future) in zip(answers, left, strict=True):
            future.set_result(answer)


class LockedLoop:
    """The simplest thing that is thread-safe: one lock around everything."""

    def __init__(self, routing: PythonRouting) -> None:
        self._routing = routing
        self._lock = threading.Lock()

    def predict(self, image: Images) -> Any:
        with self._lock:
            return self._routing.grouped(image)


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Contenders take turns of some seconds, several times over."""
    turns, seconds = (1, 1.0) if quick else (5, 3.0)
    with Router(bundle) as router:
        openvino = OpenVinoPeer(bundle)
        grouping = GroupingServer(PythonRouting(bundle, openvino.run_batch))
        locked = LockedLoop(PythonRouting(bundle, openvino.run_one))
        contenders: dict[str, Callable[[Images], Any]] = {
            "trt-moe predict": router.predict,
            "trt-moe submit": lambda image: router.submit(image[0]).result(),
            "OpenVINO Python, grouping thread": grouping.predict,
            "OpenVINO Python, one lock": locked.predict,
        }
        latencies: dict[str, list[float]] = {name: [] for name in contenders}
        walls = dict.fromkeys(contenders, 0.0)
        try:
            for call in contenders.values():
                _drive(call, images, 0.5)
            for _ in range(turns):
                for name, call in contenders.items():
                    wall, times = _drive(call, images, seconds)
                    walls[name] += wall
                    latencies[name] += times
        finally:
            grouping.close()
    return {name: percentiles(times) | {"images_per_s": len(times) / walls[name]} for name, times in latencies.items()}


def _drive(call: Callable[[Images], Any], images: Images, seconds: float) -> tuple[float, list[float]]:
    times: list[list[float]] = [[] for _ in range(CLIENTS)]
    start = perf_counter()

    def client(index: int) -> None:
        turn = index
        while (before := perf_counter()) - start < seconds:
            call(images[turn % len(images)][None])
            times[index].append((perf_counter() - before) * 1e3)
            turn += CLIENTS

    threads = [threading.Thread(target=client, args=(index,)) for index in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return perf_counter() - start, [value for mine in times for value in mine]


def table(report: dict[str, Any]) -> str:
    rows = [[name, *speed_cells(row)] for name, row in report.items()]
    return markdown(["runtime", "images/s", "p50 ms", "p90 ms", "p99 ms"], rows)
