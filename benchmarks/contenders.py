"""Every way to answer a batch of images that the benchmarks compare, each in a process of its own.

Runtimes leave threads behind that spin for a while after a call; in one process they would slow whoever runs
next. So each contender lives in a child, and only the one that is asked works.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from time import perf_counter, sleep
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.common import Images, OpenVinoPeer, PythonRouting, load_mixed_images, onnxruntime_runner
from trt_moe import Bundle, Router

OURS = "trt-moe"
OURS_FP32 = "trt-moe, fp32"
SAME_ANSWERS = ("OpenVINO", "ONNX Runtime")
_SETTLE_S = 0.01


def _ours(bundle: Bundle, precision: str) -> Callable[[Images], Any]:
    router = Router(bundle, precision=precision)
    return lambda images: router.predict(images).probabilities


def _torch(bundle: Bundle, grouped: bool) -> Callable[[Images], Any]:
    from benchmarks.torch_peer import torch_runner

    routing = PythonRouting(bundle, torch_runner(bundle, load_mixed_images(bundle)))
    return routing.grouped if grouped else routing.per_image


CONTENDERS: dict[str, Callable[[Bundle], Callable[[Images], Any]]] = {
    OURS: lambda bundle: _ours(bundle, "auto"),
    OURS_FP32: lambda bundle: _ours(bundle, "fp32"),
    "OpenVINO Python, per image": lambda bundle: PythonRouting(bundle, OpenVinoPeer(bundle).run_one).per_image,
    "OpenVINO Python, grouped": lambda bundle: PythonRouting(bundle, OpenVinoPeer(bundle).run_batch).grouped,
    "OpenVINO Python, grouped, async queue": lambda bundle: (
        PythonRouting(bundle, OpenVinoPeer(bundle).run_async).grouped
    ),
    "ONNX Runtime, per image": lambda bundle: PythonRouting(bundle, onnxruntime_runner(bundle)).per_image,
    "ONNX Runtime, grouped": lambda bundle: PythonRouting(bundle, onnxruntime_runner(bundle)).grouped,
    "torch eager, per image": lambda bundle: _torch(bundle, False),
    "torch eager, grouped": lambda bundle: _torch(bundle, True),
}


class Contender:
    """A contender in its process; a context manager."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, str(bundle.path), other), daemon=True)
        self._process.start()

    def time(self, start: int, size: int) -> float:
        """Milliseconds for the batch of `size` images from image `start` on (it wraps round)."""
        sleep(_SETTLE_S)
        return float(self._ask(("time", start, size)))

    def labels(self, start: int, size: int) -> list[int]:
        """What it answers."""
        return list(self._ask(("labels", start, size)))

    def _ask(self, request: tuple[str, int, int]) -> Any:
        self._connection.send(request)
        return self._connection.recv()

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=30)


def open_all(bundle: Bundle, stack: ExitStack) -> dict[str, Contender]:
    """All contenders, checked to give the same answers where they have the same weights."""
    contenders = {name: stack.enter_context(Contender(name, bundle)) for name in CONTENDERS}
    expected = np.array(contenders[OURS_FP32].labels(0, 64))
    for name, contender in contenders.items():
        if name.startswith(SAME_ANSWERS):
            agreement = float((np.array(contender.labels(0, 64)) == expected).mean())
            if agreement < 0.95:
                raise RuntimeError(f"{name} gives the same label for {agreement:.0%} of the images only")
    return contenders


def _serve(name: str, path: str, connection: Connection) -> None:
    bundle = Bundle.load(path)
    images = load_mixed_images(bundle)
    predict = CONTENDERS[name](bundle)
    while True:
        try:
            what, start, size = connection.recv()
        except EOFError:
            return
        batch = np.take(images, range(start, start + size), axis=0, mode="wrap")
        begin = perf_counter()
        probabilities = predict(batch)
        elapsed = (perf_counter() - begin) * 1e3
        connection.send(elapsed if what == "time" else probabilities.argmax(axis=1).tolist())
