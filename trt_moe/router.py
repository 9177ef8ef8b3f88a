"""The router: images in, each answered by the expert that its gater picks."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.arguments import call_times, flag, real, whole, word
from trt_moe.bundle import Bundle
from trt_moe.bundle.manifest import MAX_LATENCY_WEIGHT, VerifyBy
from trt_moe.completions import Completions
from trt_moe.errors import DeviceError, EngineBuildError, InputError, MissingDependencyError
from trt_moe.golden import check_golden, noise_images, same_in_any_batch
from trt_moe.in_parts import predict_in_parts
from trt_moe.inputs import as_images, as_one_image
from trt_moe.model import PRECISIONS, Model, checked_threads
from trt_moe.result import DeviceResult, Result, ResultRow, as_result

if TYPE_CHECKING:
    from trt_moe.cuda.load import CudaModels

_log = logging.getLogger("trt_moe")

_BACKEND_OF = {"cpu": "openvino", "cuda": "cuda"}
_DEVICE_OF = {backend: device for device, backend in _BACKEND_OF.items()}

PLANS = ("auto", "host-routed")
VERIFY_BY: tuple[VerifyBy, ...] = get_args(VerifyBy)

MAX_BATCH = 1 << 16
MAX_WAIT_US = 10_000_000
MAX_QUEUE = 1 << 20


class Router:
    """Routes every image to one expert of a bundle and runs it there.

    Thread-safe. An image's answer is the same whether it comes alone, in a batch of any size or from many
    threads at once, unless it is due in time (`deadline_ms` of `predict`). Also a context manager.

    Args:
        bundle: a bundle, its folder, or the name of a shipped one such as "fashion-mnist".
        device: "auto" (the GPU where the CUDA core, a device and TensorRT are there and the models can be captured,
            else the CPU; the log says why), "cpu" or "cuda".
        max_batch: most images that run through a model together; larger batches are answered in turns.
        max_wait_us: microseconds that a submitted image may wait for company in its batch; those of `predict` do not.
        max_queue: most unfinished images; past that `QueueFullError`.
        precision: of the experts: "auto" (the fastest the device has natively), "fp32", "fp16", on the CPU "bf16", or
            on the GPU "int8" for TensorRT's engines. The gater runs in fp32, since coarser scores tie; on the GPU one
            that `trt-moe train` did not export, in the experts' precision, or fp16 where that is int8.
        warmup: run every model before the constructor returns.
        latency_weight: of the routing rule argmax(logit - latency_weight * relative_cost); None: the bundle's.
        verify_below: gate, then verify: an image whose expert gives its likeliest class a probability below this is
            seen a second time and answered by the mean of both looks' probabilities. Only the dearest expert's word
            always stands. 0: never. None: the bundle's.
        verify_by: whose the second look is: the "dearest" expert's, which costs its latency on top, or by "mirror" the
            same expert's at the image mirrored left to right, which costs that expert's once more. A mirror image must
            mean the same: with letters or left and right hands it does not. None: the bundle's.
        check: first compare the compiled models with the bundle's golden logits, and their answers in every batch
            size with those for single images.
        threads: CPU threads; None: all that this process may use (affinity and cgroup quota).
        plan: on the GPU: "auto" (routes on the device where the driver and the models allow it, see `plan_reason`) or
            "host-routed".
        modules: on the GPU: torch modules to run in place of TensorRT engines, one for each model by name; uint8
            [N, H, W, C] in, float [N, K] logits out. For GPUs that TensorRT does not support.
        speculate: on the GPU: a lone image starts the cheapest expert beside the gater, whose answer counts only if
            the gater agrees. Faster where most images are easy, slower where both have no room.

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
        verify_below: float | None = None,
        verify_by: VerifyBy | None = None,
        check: bool = True,
        threads: int | None = None,
        plan: str = "auto",
        modules: Mapping[str, Any] | None = None,
        speculate: bool = False,
    ) -> None:
        """See the class."""
        self._backend = _backend_for(device, with_modules=bool(modules))
        plan = word("plan", plan, PLANS)
        if flag("speculate", speculate) and self._backend != "cuda":
            raise InputError("speculate=True needs the GPU; leave it out")
        self._max_batch = whole("max_batch", max_batch, 1, MAX_BATCH)
        max_wait_us = whole("max_wait_us", max_wait_us, 0, MAX_WAIT_US)
        max_queue = whole("max_queue", max_queue, 1, MAX_QUEUE)
        self._precision = word("precision", precision, (*PRECISIONS, "int8"))
        if self._precision == "int8" and self._backend != "cuda":
            raise InputError("precision is 'int8', which needs TensorRT's engines on a GPU; leave it out on the CPU")
        self._threads = checked_threads(threads)
        self._bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        weight = self._bundle.latency_weight if latency_weight is None else latency_weight
        self._latency_weight = real("latency_weight", weight, MAX_LATENCY_WEIGHT)
        below = self._bundle.verify_below if verify_below is None else verify_below
        self._verify_below = real("verify_below", below, 1.0)
        self._verify_by = self._bundle.verify_by if verify_by is None else word("verify_by", verify_by, VERIFY_BY)
        self._check = flag("check", check)
        golden = self._bundle.golden() if self._check and self._bundle.manifest.golden is not None else None
        self._probe = golden["images"] if golden is not None else noise_images(self._bundle.input_shape)
        self._models_lock = threading.Lock()
        options = {
            "max_batch": self._max_batch,
            "max_wait_us": max_wait_us,
            "max_queue": max_queue,
            "warmup": flag("warmup", warmup),
            "device_routed": plan == "auto",
            "speculate": speculate,
        }
        try:
            self._pipeline = self._start(modules or {}, golden, options)
        except (DeviceError, EngineBuildError, MissingDependencyError) as error:
            if device != "auto" or self._backend != "cuda" or "openvino" not in _core.built_backends():
                raise
            _log.warning("device='auto' takes the CPU, as the GPU failed: %s", error)
            self._backend = "openvino"
            self._pipeline = self._start({}, golden, options)
        self._completions = Completions(self._pipeline, self._bundle.class_names, self.expert_names)
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
    def plan(self) -> str:
        """Where routes are taken: "host-routed" or "device-routed"."""
        return self._pipeline.plan

    @property
    def plan_reason(self) -> str:
        """Why it is this plan."""
        return self._pipeline.plan_reason

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
        weight = real("latency_weight", value, MAX_LATENCY_WEIGHT)
        self._pipeline.latency_weight = weight
        self._latency_weight = weight

    @property
    def verify_below(self) -> float:
        """Confidence below which an answer is verified; set it any time, like `latency_weight`."""
        return self._verify_below

    @verify_below.setter
    def verify_below(self, value: float) -> None:
        probability = real("verify_below", value, 1.0)
        self._pipeline.verify_below = probability
        self._verify_below = probability

    @property
    def verify_by(self) -> VerifyBy:
        """How an answer is verified: "dearest" or "mirror"."""
        return self._verify_by

    @overload
    def predict(
        self, batch: Any, *, device_output: Literal[False] = False, deadline_ms: float | None = None
    ) -> Result: ...
    @overload
    def predict(
        self, batch: Any, *, device_output: Literal[True], deadline_ms: float | None = None
    ) -> DeviceResult: ...

    def predict(
        self, batch: Any, *, device_output: bool = False, deadline_ms: float | None = None
    ) -> Result | DeviceResult:
        """Classify a batch of images; blocks until all are answered.

        Args:
            batch: uint8 [N, H, W, C] array, list of uint8 [H, W, C] arrays, or a DLPack tensor on the CPU. On the
                GPU also what lies there, by DLPack or `__cuda_array_interface__`: the router's work then waits for
                the producer's stream, on the device.
            device_output: leave the answers on the GPU, for torch or cupy to go on with. Needs the device-routed plan
                and no verification.
            deadline_ms: milliseconds from this call on in which the answers are due. Each image goes to the best
                expert, by the routing rule, that can answer in time, by how long each one's runs have been taking and
                by what waits for it; a second look that would come too late is left out. What comes late all the same
                is given: see `Result.latency_ms`, which counts from the call as well then.

        Raises:
            InputError: wrong dtype, rank or size, an empty batch, or answers that cannot stay on the GPU.
            QueueFullError: no room for it now; nothing was taken.
            DeadlineError: there is an image that no expert can answer in time; the others are not run any more. Behind
                images that have no deadline this shows only when the turn comes.
            RouterClosedError: the router was closed.
            ModelOutputError: a model gave logits that are not finite for one of the images.
        """
        if device_output:
            self._check_stays_on_device()
        times = call_times(deadline_ms)
        found = None
        if self._cuda is not None and not isinstance(batch, np.ndarray):
            found = self._cuda.on_device(batch, self._pipeline.input_stream)
        if found is not None:
            keep = self._pipeline.device_rows(found.count) if device_output else None
            answers = self._pipeline.predict_device(found.address, found.count, found.stream, keep, times)
        else:
            images = as_images(batch, self._bundle.input_shape)
            # An empty batch is predict's to refuse.
            keep = self._pipeline.device_rows(len(images)) if device_output and len(images) else None
            answers = self._pipeline.predict(images, keep, times)
        return self._result(answers) if keep is None else self._device_result(keep, answers[-1])

    def _check_stays_on_device(self) -> None:
        if self.plan != "device-routed":
            raise InputError(
                f"device_output=True needs the device-routed plan, and this router is {self.plan}: {self.plan_reason}; "
                "leave it out"
            )
        if self._verify_below > 0:
            raise InputError(
                f"device_output=True, but answers below {self._verify_below} are verified, which takes images through "
                "the host; set router.verify_below = 0, or leave it out"
            )

    def _device_result(self, rows: _core.DeviceRows, latency_ms: NDArray[np.float32]) -> DeviceResult:
        from trt_moe.cuda.device import ORDINAL
        from trt_moe.cuda.device_array import DeviceArray
        from trt_moe.cuda.dlpack import CUDA_DEVICES

        images, classes, experts = len(latency_ms), len(self._bundle.class_names), len(self.expert_names)
        device = (CUDA_DEVICES[0], ORDINAL)
        return DeviceResult(
            DeviceArray(rows.probabilities, (images, classes), "float32", device, rows),
            DeviceArray(rows.routes, (images,), "int32", device, rows),
            DeviceArray(rows.gater_logits, (images, experts), "float32", device, rows),
            latency_ms,
            self._completions.class_names,
            self._completions.expert_names,
        )

    def submit(self, image: Any, *, deadline_ms: float | None = None) -> Future[ResultRow]:
        """Hand in one uint8 [H, W, C] image and go on; the future gives its `ResultRow`.

        Images of many callers form batches together. The image is copied. Keep the router until the answer is there:
        one that is dropped closes, and the future gets `RouterClosedError`. Callbacks of the future run on the one
        thread that hands out answers, and must not wait for another answer.

        Args:
            image: what to classify.
            deadline_ms: as in `predict`; the future gets the `DeadlineError`, and `max_wait_us` does not hold.

        Raises:
            InputError, QueueFullError, RouterClosedError: as `predict`, at once; the future has later errors.
        """
        times = call_times(deadline_ms)
        return self._completions.submit(as_one_image(image, self._bundle.input_shape), times)

    async def predict_async(self, batch: Any, *, deadline_ms: float | None = None) -> Result:
        """`predict` for coroutines: the event loop goes on meanwhile.

        A single image goes the way of `submit`, and forms batches with those of other calls. Larger batches wait in a
        thread of asyncio's, `max_batch` images at a time: the first find room or are refused, the others wait for it,
        however long that takes, unless they are due (see also `asyncio.wait_for`). A cancelled call stops after at most
        `max_batch` more images.
        `deadline_ms` counts for all of them from when the coroutine begins, which is when it is awaited.
        """
        import asyncio  # who uses no coroutines need not wait for it

        times = call_times(deadline_ms) or _core.CallTimes()
        images = as_images(batch, self._bundle.input_shape)
        if len(images) == 1:
            return as_result(
                await asyncio.wrap_future(self._completions.submit(images[0], times)),
                self._completions.class_names,
                self._completions.expert_names,
            )

        def answer(part: NDArray[np.uint8], times: _core.CallTimes) -> Result:
            return self._result(self._pipeline.predict(part, None, times))

        return await predict_in_parts(answer, images, self._max_batch, times)

    def _result(self, answers: tuple[NDArray[Any], ...]) -> Result:
        probabilities, gater_logits, experts, latency_ms = answers
        return Result(
            probabilities,
            experts,
            latency_ms,
            gater_logits,
            self._completions.class_names,
            self._completions.expert_names,
        )

    def model(self, name: str) -> Model:
        """One model of the bundle by itself: the router's own gater or experts, or a baseline, compiled now."""
        with self._models_lock:
            return self._load(name, precision=self._precision)

    def input_buffer(self, images: int) -> NDArray[np.uint8]:
        """Memory to write images into, uint8 [images, H, W, C]; as many buffers as are wanted.

        Where the router routes on the device, the memory is page-locked, and `predict` of the array, or of a part of
        it, copies nothing on the host: the GPU reads it where it is. Elsewhere a plain array. A new buffer is slow to
        make: use it again, once `predict` has returned.

        Raises:
            InputError: more images than `max_batch`.
            DeviceError: there is no memory for it.
        """
        return self._pipeline.input_buffer(whole("images", images, 1, self._max_batch))

    def memory_report(self) -> dict[str, dict[str, int]]:
        """By model: bytes on the GPU ("device") and page-locked on the host ("pinned"), without weights; CPU: empty."""
        return self._pipeline.memory()

    def stats(self) -> dict[str, Any]:
        """Counts and latencies since the router was made.

        Returns:
            "stages": for gate, queue, gather, expert, scatter and total: count, mean_ms, p50_ms, p90_ms,
            p99_ms, p99_9_ms, max_ms (per image; quantiles to 3.2 %). "experts": by name: images it
            answered, alone or second, their share, images it was unsure of and passed on to be verified, batches it
            ran.
            "deadlines": how many images were "moved" to another expert for a deadline's sake, and how often one was
            "missed" (`DeadlineError`; by a call of more than `max_batch` images up to twice). "in_flight": unfinished
            images.
        """
        raw = self._pipeline.stats()
        total = sum(raw["images"])
        experts = {
            name: {
                "images": images,
                "share": images / total if total else 0.0,
                "passed_on": passed_on,
                "batches": batches,
            }
            for name, images, passed_on, batches in zip(
                self.expert_names, raw["images"], raw["passed_on"], raw["batches"], strict=True
            )
        }
        return {
            "stages": raw["stages"],
            "experts": experts,
            "deadlines": {"moved": raw["moved"], "missed": raw["missed"]},
            "in_flight": raw["in_flight"],
        }

    def latencies(self, limits_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
        """Latencies since the router was made, counted for whoever keeps histograms, such as Prometheus.

        Args:
            limits_ms: upper limits in milliseconds, in any order.

        Returns:
            By stage, as in `stats`: "within", how many images took at most each limit (to 3.2 %), their "count" and
            "sum_ms".

        Raises:
            InputError: a limit is no number from 0 to a million.
        """
        limits_ns = [round(1e6 * real("a limit", limit, 1e6)) for limit in limits_ms]
        return {
            stage: {"within": within, "count": count, "sum_ms": sum_ms}
            for stage, (within, count, sum_ms) in self._pipeline.latencies(limits_ns).items()
        }

    @property
    def closed(self) -> bool:
        """Whether it takes no more images: it was closed, or its GPU failed."""
        return self._pipeline.closed

    def close(self, *, cancel_pending: bool = False) -> None:
        """Take no more images, answer those that wait, and stop the workers. Closing twice is fine.

        In a signal handler that interrupts this router's own `predict`, it takes no more images and returns; the
        workers stop when it is closed once more, or dropped.

        Args:
            cancel_pending: fail the waiting images with `RouterClosedError` instead.
        """
        if _close(self._pipeline, self._completions, cancel_pending):
            self._closer.detach()

    def __enter__(self) -> Router:
        """The router itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after an error without waiting for pending images."""
        self.close(cancel_pending=kind is not None)

    def _start(
        self, modules: Mapping[str, Any], golden: dict[str, NDArray[Any]] | None, options: dict[str, Any]
    ) -> _core.Pipeline:
        self._models: dict[str, Model] = {}
        self._cuda = _cuda_models(self._bundle, self._precision, modules) if self._backend == "cuda" else None
        self._gater = self._load(self._bundle.gater.name, precision="fp32")
        self._experts = [self._load(entry.name, precision=self._precision) for entry in self._bundle.experts]
        if golden is not None:
            check_golden(self._bundle, golden, [self._gater, *self._experts])
        if self._cuda is None:
            options = {**options, "device_routed": False, "speculate": False}
        return _core.Pipeline(
            self._gater.core,
            [expert.core for expert in self._experts],
            names=self.expert_names,
            costs=[entry.relative_cost for entry in self._bundle.experts],
            latency_weight=self._latency_weight,
            verify_below=self._verify_below,
            verify_by_mirror=self._verify_by == "mirror",
            **options,
        )

    def _load(self, name: str, precision: str) -> Model:
        if name not in self._models and self._cuda is not None:
            self._models[name] = self._cuda.load(name)
        elif name not in self._models:
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


def _close(pipeline: _core.Pipeline, completions: Completions, cancel_pending: bool = True) -> bool:
    closed = pipeline.close(cancel_pending)
    if closed:
        completions.join()
    return closed


def _cuda_models(bundle: Bundle, precision: str, modules: Mapping[str, Any]) -> CudaModels:
    # Who routes on the CPU need not wait for what this imports.
    from trt_moe.cuda.load import CudaModels

    return CudaModels(bundle, precision, modules)


def _backend_for(device: str, with_modules: bool) -> str:
    from trt_moe.cuda.device import reason_against

    device = word("device", device, ("auto", *_BACKEND_OF))
    if with_modules and device != "cuda":
        raise InputError(f"modules run on the GPU only, and device is {device!r}; pass device='cuda'")
    against = None
    if device == "cuda" or (device == "auto" and (against := reason_against()) is None):
        return "cuda"
    if "openvino" not in _core.built_backends():
        raise DeviceError(
            "this build of trt-moe has no CPU backend: OpenVINO was left out when it was built; build it again with "
            f"TRT_MOE_OPENVINO=ON, or use device='cuda'{f', which is not possible here: {against}' if against else ''}"
        )
    if against is not None:
        _say_once(against)
    return "openvino"


@functools.cache
def _say_once(against: str) -> None:
    _log.info("device='auto' takes the CPU: %s", against)
