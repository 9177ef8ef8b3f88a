"""Finished submissions, handed to their futures."""

from __future__ import annotations

import itertools
import logging
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.errors import TrtMoeError
from trt_moe.result import ResultRow

_log = logging.getLogger("trt_moe")


class Completions:
    """Hands finished submissions to their futures, on one thread that starts with the first of them."""

    def __init__(self, pipeline: _core.Pipeline, class_names: list[str], expert_names: list[str]) -> None:
        """See the class."""
        self.class_names = class_names
        self.expert_names = expert_names
        self._pipeline = pipeline
        self._futures: dict[int, Future[ResultRow]] = {}
        self._tickets = itertools.count()
        # A signal handler that closes may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def submit(self, image: np.ndarray[Any, Any], times: _core.CallTimes | None) -> Future[ResultRow]:
        """Give the core an image; the future gets its row or its error.

        Raises:
            TrtMoeError: the core did not take it.
        """
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="trt-moe-completions", daemon=True)
                thread.start()
                self._thread = thread
        ticket = next(self._tickets)
        future: Future[ResultRow] = Future()
        future.set_running_or_notify_cancel()
        self._futures[ticket] = future
        try:
            self._pipeline.submit(ticket, image, times)
        except TrtMoeError:
            # Only these mean that the core did not take the image. After Ctrl-C, which can strike once it was
            # taken, the future must stay: its answer is on the way.
            del self._futures[ticket]
            raise
        return future

    def join(self) -> None:
        """Wait for the thread, which ends once the pipeline is closed and has answered all."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while done := self._pipeline.take_completed():
            for ticket, error, probabilities, gater_logits, expert, latency_ms in done:
                future = self._futures.pop(ticket)
                try:
                    if error is not None:
                        future.set_exception(error)
                    else:
                        future.set_result(self._row(probabilities, gater_logits, expert, latency_ms))
                except BaseException:
                    # A callback of the future's owner failed; the other futures must get their answers.
                    _log.exception("a callback of a submitted image failed")

    def _row(
        self,
        probabilities: NDArray[np.float32],
        gater_logits: NDArray[np.float32],
        expert: int,
        latency_ms: float,
    ) -> ResultRow:
        label = int(probabilities.argmax())
        return ResultRow(
            probabilities=probabilities,
            label=label,
            class_name=self.class_names[label],
            expert=expert,
            expert_name=self.expert_names[expert],
            latency_ms=latency_ms,
            gater_logits=gater_logits,
        )
