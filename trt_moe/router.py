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
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.bundle import Bundle
from trt_moe.errors import DeviceError, InputError, TrtMoeError
from trt_moe.golden import check_golden, noise_images, same_in_any_batch
from trt_moe.inputs import as_image, as_images
from trt_moe.model import Model
from trt_moe.result import Result, ResultRow, join

_log = logging.getLogger("trt_moe")

_BACKEND_OF = {"cpu": "openvino", "cuda": "cuda"}
_DEVICE_OF = {backend: device for device, backend in _BACKEND_OF.items()}

MAX_BATCH = 1 << 16
MAX_WAIT_US = 10_000_000
MAX_QUEUE = 1 << 20
MAX_LATENCY_WEIGHT = 1e6


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
        check: first compare the compiled models with the bundle's golden logits, and their answers in every batch
            size with those for single images.
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
        self._backend = _backend_for(device)
        _check_count("max_batch", max_batch, 1, MAX_BATCH)
        _check_count("max_wait_us", max_wait_us, 0, MAX_WAIT_US)
        _check_count("max_queue", max_queue, 1, MAX_QUEUE)
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        weight = self._bundle.latency_weight if latency_weight is None else latency_weight
        self._latency_weight = _checked_weight(weight)
        self._max_batch = max_batch
        self._precision = precision
        self._threads = threads
        self._check = check
        golden = self._bundle.golden() if check and self._bundle.manifest.golden is not None else None
        self._probe = golden["images"] if golden is not None else noise_images(self._bundle.input_shape)
        self._models: dict[str, Model] = {}
        self._models_lock = threading.Lock()
        self._gater = self._load(self._bundle.gater.name, precision="fp32")
        self._experts = [self._load(entry.name, precision=precision) for entry in self._bundle.experts]
        if golden is not None:
            check_golden(self._bundle, golden, [self._gater, *self._experts])
        self._pipeline = _core.Pipeline(
            self._gater.core,
            [expert.core for expert in self._experts],
            names=self.expert_names,
            costs=[entry.relative_cost for entry in self._bundle.experts],
            latency_weight=self._latency_weight,
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
        return f"{_DEVICE_OF[self._backend]}: {self._gater.device}"

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
        return self._latency_weight

    @latency_weight.setter
    def latency_weight(self, value: float) -> None:
        weight = _checked_weight(value)
        self._pipeline.latency_weight = weight
        self._latency_weight = weight

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
        """`predict` for coroutines: the event loop goes on meanwhile.

        A cancelled call stops after at most `max_batch` more images.
        """
        images = as_images(batch, self._bundle.input_shape)
        parts = [images[begin : begin + self._max_batch] for begin in range(0, len(images), self._max_batch)]
        results = [await asyncio.to_thread(self.predict, part) for part in parts or [images]]
        return results[0] if len(results) == 1 else join(results)

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
        _close(self._pipeline, self._completions, cancel_pending)
        self._closer.detach()

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
            model = self._compile(name, precision, None)
            if self._check and not same_in_any_batch(model, self._probe):
                _log.info("%s answers differently in batches on this device; it runs image by image", name)
                model = self._compile(name, precision, [1])
                if not same_in_any_batch(model, self._probe):
                    _log.warning("%s: an image's logits may differ in their last bits from call to call", name)
            self._models[name] = model
        return self._models[name]

    def _compile(self, name: str, precision: str, buckets: list[int] | None) -> Model:
        return Model.load(
            self._bundle, name, backend=self._backend, precision=precision, threads=self._threads, buckets=buckets
        )


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
        except TrtMoeError:
            # Only these mean that the core did not take the image. After Ctrl-C, which can strike once it was
            # taken, the future must stay: its answer is on the way.
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


def _close(pipeline: _core.Pipeline, completions: _Completions, cancel_pending: bool = True) -> None:
    pipeline.close(cancel_pending)
    completions.join()


def _backend_for(device: str) -> str:
    if device not in ("auto", *_BACKEND_OF):
        raise InputError(f"device is {device!r}; expected 'auto', 'cpu' or 'cuda'")
    built = _core.built_backends()
    if device == "auto":
        return built[0]
    if _BACKEND_OF[device] not in built:
        raise DeviceError(
            f"device={device!r} needs the {_BACKEND_OF[device]} backend, and this build has: {', '.join(built)}; "
            "use device='cpu', and see `trt-moe doctor`"
        )
    return _BACKEND_OF[device]


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def _checked_weight(value: float) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MAX_LATENCY_WEIGHT:
        raise InputError(f"latency_weight is {value!r}; expected a number from 0 to {MAX_LATENCY_WEIGHT:g}")
    return weight
