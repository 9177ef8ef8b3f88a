"""The router: images in, each answered by the expert that its gater picks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import threading
import weakref
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np

from trt_moe import _core
from trt_moe.bundle import Bundle
from trt_moe.errors import DeviceError, InputError
from trt_moe.golden import answers_vary_with_batch, check_golden
from trt_moe.inputs import as_image, as_images
from trt_moe.model import Model
from trt_moe.result import Result, ResultRow

_log = logging.getLogger("trt_moe")

_BACKEND_OF = {"cpu": "openvino", "cuda": "cuda"}


class Router:
    """Routes every image to one expert of a bundle and runs it there.

    Thread-safe. An image's answer is the same whether it comes alone, in a batch of any size or from many
    threads at once. Also a context manager.

    Args:
        bundle: a bundle, its folder, or the name of a shipped one such as "fashion-mnist".
        device: "auto" (CUDA where built and present, else the CPU), "cpu" or "cuda".
        max_batch: most images that run through a model together; larger batches are answered in turns.
        max_wait_us: microseconds that a submitted image may wait for company in its batch.
        max_queue: most unfinished images; past that `QueueFullError`.
        precision: of the experts: "auto" (the fastest the device has natively), "fp32", "bf16" or "fp16".
            The gater always runs in fp32, since coarser scores tie.
        warmup: run every model before the constructor returns.
        latency_weight: of the routing rule argmax(logit - latency_weight * relative_cost); None: the bundle's.
        check: compare the compiled models with the bundle's golden logits first.
        threads: CPU threads; None: all that this process may use (affinity and cgroup quota).

    Raises:
        BundleError: the bundle is missing, damaged or unsafe.
        DeviceError: the device asked for is absent.
        EngineBuildError: a model cannot be compiled for it.
        ModelOutputError: a compiled model misses its golden logits.
        InputError: an option is out of range.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        *,
        device: str = "auto",
        max_batch: int = 64,
        max_wait_us: int = 0,
        max_queue: int = 4096,
        precision: str = "auto",
        warmup: bool = True,
        latency_weight: float | None = None,
        check: bool = True,
        threads: int | None = None,
    ) -> None:
        """See the class."""
        _check_device(device)
        for name, value, least in (
            ("max_batch", max_batch, 1),
            ("max_wait_us", max_wait_us, 0),
            ("max_queue", max_queue, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; expected a whole number of at least {least}")
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        weight = _checked_weight(self._bundle.latency_weight if latency_weight is None else latency_weight)
        self._precision = precision
        self._threads = threads
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()
        self._gater = self._load(self._bundle.gater.name, precision="fp32")
        self._experts = [self._load(entry.name, precision=precision) for entry in self._bundle.experts]
        if check:
            check_golden(self._bundle, [self._gater, *self._experts])
        self._pipeline = _core.Pipeline(
            self._gater.core,
            [expert.core for expert in self._experts],
            names=self.expert_names,
            costs=[entry.relative_cost for entry in self._bundle.experts],
            latency_weight=weight,
            max_batch=max_batch,
            max_wait_us=max_wait_us,
            max_queue=max_queue,
            warmup=warmup,
        )
        self._completions = _Completions(self._pipeline, self._bundle.class_names, self.expert_names)
        self._closer = weakref.finalize(self, _close, self._pipeline, self._completions)

    @property
    def bundle(self) -> Bundle:
        """The bundle being served."""
        return self._bundle

    @property
    def device(self) -> str:
        """The device, for people, e.g. "cpu: AMD EPYC, 2 threads"."""
        return f"cpu: {self._gater.device}"

    @property
    def precision(self) -> str:
        """What the experts compute in."""
        return self._experts[0].precision

    @property
    def expert_names(self) -> list[str]:
        """Names of the experts, cheapest first; `Result.experts` indexes them."""
        return [entry.name for entry in self._bundle.experts]

    @property
    def latency_weight(self) -> float:
        """How much latency counts against the gater's scores; set it any time, it holds from the next batch on."""
        return self._pipeline.latency_weight

    @latency_weight.setter
    def latency_weight(self, value: float) -> None:
        self._pipeline.latency_weight = _checked_weight(value)

    def predict(self, batch: Any) -> Result:
        """Classify a batch of images; blocks until all are answered.

        Args:
            batch: uint8 [N, H, W, C] array, list of uint8 [H, W, C] arrays, or a DLPack tensor on the CPU.

        Raises:
            InputError: wrong dtype, rank or size, or an empty batch.
            QueueFullError: no room for it now; nothing was taken.
            RouterClosedError: the router was closed.
            ModelOutputError: a model gave logits that are not finite for one of the images.
        """
        images = as_images(batch, self._bundle.input_shape)
        probabilities, gater_logits, experts, latency_ms = self._pipeline.predict(images)
        return Result(
            probabilities,
            experts,
            latency_ms,
            gater_logits,
            self._completions.class_names,
            self._completions.expert_names,
        )

    def submit(self, image: Any) -> Future[ResultRow]:
        """Hand in one uint8 [H, W, C] image and go on; the future gives its `ResultRow`.

        Images of many callers form batches together. The image is copied.

        Raises:
            InputError, QueueFullError, RouterClosedError: as `predict`, at once; the future has later errors.
        """
        return self._completions.submit(as_image(image))

    async def predict_async(self, batch: Any) -> Result:
        """`predict` for coroutines: the event loop goes on meanwhile."""
        return await asyncio.to_thread(self.predict, batch)

    def model(self, name: str) -> Model:
        """One model of the bundle by itself: the router's own gater or experts, or a baseline, compiled now."""
        with self._models_lock:
            return self._load(name, precision=self._precision)

    def stats(self) -> dict[str, Any]:
        """Counts and latencies since the router was made.

        Returns:
            "stages": for gate, queue, gather, expert, scatter and total: count, mean_ms, p50_ms, p90_ms,
            p99_ms, p99_9_ms, max_ms (per image; quantiles to 3.2 %). "experts": by name: images, batches,
            share. "in_flight": unfinished images.
        """
        raw = self._pipeline.stats()
        total = sum(raw["images"])
        experts = {
            name: {"images": images, "batches": batches, "share": images / total if total else 0.0}
            for name, images, batches in zip(self.expert_names, raw["images"], raw["batches"], strict=True)
        }
        return {"stages": raw["stages"], "experts": experts, "in_flight": raw["in_flight"]}

    def close(self, *, cancel_pending: bool = False) -> None:
        """Take no more images, answer those that wait, and stop the workers. Closing twice is fine.

        Args:
            cancel_pending: fail the waiting images with `RouterClosedError` instead.
        """
        if self._closer.detach() is not None:
            _close(self._pipeline, self._completions, cancel_pending)

    def __enter__(self) -> Router:
        """The router itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error without waiting for pending images."""
        self.close(cancel_pending=kind is not None)

    def _load(self, name: str, precision: str) -> Model:
        if name not in self._models:
            model = Model.load(self._bundle, name, precision=precision, threads=self._threads)
            if max(model.core.buckets) > 1 and answers_vary_with_batch(model, self._bundle):
                _log.info("%s answers differently in batches on this device; it runs image by image", name)
                model = Model.load(self._bundle, name, precision=precision, threads=self._threads, buckets=[1])
            self._models[name] = model
        return self._models[name]


class _Completions:
    """Hands finished submissions to their futures, on one thread that starts with the first of them."""

    def __init__(self, pipeline: _core.Pipeline, class_names: list[str], expert_names: list[str]) -> None:
        self.class_names = class_names
        self.expert_names = expert_names
        self._pipeline = pipeline
        self._futures: dict[int, Future[ResultRow]] = {}
        self._tickets = itertools.count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, image: np.ndarray[Any, Any]) -> Future[ResultRow]:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trt-moe-completions", daemon=True)
                self._thread.start()
        ticket = next(self._tickets)
        future: Future[ResultRow] = Future()
        future.set_running_or_notify_cancel()
        self._futures[ticket] = future
        try:
            self._pipeline.submit(ticket, image)
        except BaseException:
            del self._futures[ticket]
            raise
        return future

    def join(self) -> None:
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while done := self._pipeline.take_completed():
            for ticket, error, probabilities, gater_logits, route, latency_ms in done:
                future = self._futures.pop(ticket)
                if error is not None:
                    future.set_exception(error)
                    continue
                label = int(probabilities.argmax())
                future.set_result(
                    ResultRow(
                        probabilities=probabilities,
                        label=label,
                        class_name=self.class_names[label],
                        expert=route,
                        expert_name=self.expert_names[route],
                        latency_ms=latency_ms,
                        gater_logits=gater_logits,
                    )
                )


def _close(pipeline: _core.Pipeline, completions: _Completions, cancel_pending: bool = True) -> None:
    pipeline.close(cancel_pending)
    completions.join()


def _check_device(device: str) -> None:
    if device not in ("auto", *_BACKEND_OF):
        raise InputError(f"device is {device!r}; expected 'auto', 'cpu' or 'cuda'")
    built = _core.built_backends()
    if device != "auto" and _BACKEND_OF[device] not in built:
        raise DeviceError(
            f"device={device!r} needs the {_BACKEND_OF[device]} backend, and this build has: {', '.join(built)}; "
            "use device='cpu', and see `trt-moe doctor`"
        )


def _checked_weight(value: float) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"latency_weight is {value!r}; expected a finite number of at least 0")
    return weight
