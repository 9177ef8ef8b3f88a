"""The peer: the loop that users of `tensorrt` and `pycuda` write today, on the same engines as ours."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.mixture import CLASSES, EXPERTS, GATER, SIDE
from benchmarks.gpu_check.parts import Work
from benchmarks.gpu_check.routers import ONNX_FOLDER
from trt_moe import Bundle
from trt_moe.compile.build import BuildOptions, build_bundle
from trt_moe.compile.cache import Engine, EngineCache
from trt_moe.cuda.device import compute_capability, flavour_for, open_device
from trt_moe.cuda.tensorrt_source import TensorRt
from trt_moe.softmax import softmax

_LARGEST = 8


def open_loop(work: Work, engines: str) -> tuple[PycudaLoop | None, str]:
    """The loop, and why there is none."""
    if engines != "TensorRT":
        return None, "TensorRT does not run on this GPU"
    if importlib.util.find_spec("pycuda") is None:
        return None, "pycuda is not installed"
    device = open_device()
    flavour = flavour_for(device)
    capabilities = (compute_capability(device),) if flavour.is_rtx else ()
    options = BuildOptions(compute_capabilities=capabilities)
    # All of them lie in the cache since the probe.
    report = build_bundle(Bundle.load(work.folder / ONNX_FOLDER), flavour, EngineCache.of_user(), options)
    tensorrt = TensorRt(flavour)
    return PycudaLoop(tensorrt, {each.engine.sidecar.spec.model: each.engine for each in report.engines}), "it ran"


class PycudaLoop:
    """Pinned buffers, one stream, one context a model; a context is told its batch size when it changes."""

    def __init__(self, tensorrt: TensorRt, engines: dict[str, Engine]) -> None:
        # The device's primary context, where our graphs live too.
        importlib.import_module("pycuda.autoprimaryctx")
        self._cuda = cuda = importlib.import_module("pycuda.driver")
        self._stream = cuda.Stream()
        self._images = cuda.pagelocked_empty((_LARGEST, SIDE, SIDE, 3), np.uint8)
        self._device_images = cuda.mem_alloc(self._images.nbytes)
        self._logits = cuda.pagelocked_empty((_LARGEST, max(CLASSES, len(EXPERTS))), np.float32)
        self._device_logits = cuda.mem_alloc(self._logits.nbytes)
        self._opened = {name: tensorrt.open(engine, "trt-moe build") for name, engine in engines.items()}
        self._engines = engines
        self._contexts: dict[tuple[str, int], Any] = {}

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        routes = self._run(GATER, images, len(EXPERTS)).argmax(axis=1)
        logits = np.empty((len(images), CLASSES), np.float32)
        for index, name in enumerate(EXPERTS):
            rows = np.flatnonzero(routes == index)
            if len(rows):
                logits[rows] = self._run(name, images[rows], CLASSES)
        return softmax(logits)

    def _run(self, name: str, images: NDArray[np.uint8], outputs: int) -> NDArray[np.float32]:
        count = len(images)
        context = self._context(name, count)
        self._images[:count] = images
        self._cuda.memcpy_htod_async(self._device_images, self._images[:count], self._stream)
        if not context.execute_async_v3(self._stream.handle):
            raise RuntimeError(f"TensorRT could not run {name}")
        logits: NDArray[np.float32] = self._logits.reshape(-1)[: count * outputs]
        self._cuda.memcpy_dtoh_async(logits, self._device_logits, self._stream)
        self._stream.synchronize()
        answer: NDArray[np.float32] = logits.reshape(count, outputs).copy()
        return answer

    def _context(self, name: str, count: int) -> Any:
        if (name, count) not in self._contexts:
            sidecar = self._engines[name].sidecar
            context = self._opened[name].create_execution_context()
            context.set_optimization_profile_async(sidecar.spec.buckets.index(count), self._stream.handle)
            context.set_input_shape(sidecar.inputs[0].name, (count, SIDE, SIDE, 3))
            context.set_tensor_address(sidecar.inputs[0].name, int(self._device_images))
            context.set_tensor_address(sidecar.outputs[0].name, int(self._device_logits))
            self._contexts[name, count] = context
        return self._contexts[name, count]
