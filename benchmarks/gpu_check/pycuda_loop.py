"""The peer: the loop that users of `tensorrt` and `pycuda` write today, on the same engines as ours."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.engines import engines_of, onnx_folder
from benchmarks.gpu_check.mixture import CLASSES, EXPERTS, GATER, Images
from benchmarks.gpu_check.parts import Work
from trt_moe import Bundle
from trt_moe.compile.cache import Engine
from trt_moe.compile.trt_types import ICudaEngine, IExecutionContext
from trt_moe.cuda.tensorrt_source import TensorRt
from trt_moe.softmax import softmax

_LARGEST = 8


def open_loop(work: Work, engines: str, images: Images) -> tuple[PycudaLoop | None, str]:
    """The loop, once it has answered `images` one by one, and why there is none."""
    if engines != "TensorRT":
        return None, "TensorRT does not run on this GPU"
    if importlib.util.find_spec("pycuda") is None:
        return None, "pycuda is not installed"
    # Whatever a peer raises, it must not end what is measured of ours.
    try:
        flavour, made = engines_of(Bundle.load(onnx_folder(work)))
        loop = PycudaLoop(TensorRt(flavour), made, images.shape[1:])
        for image in images:
            loop.predict(image[None])
    except Exception:
        return None, traceback.format_exc(limit=1)
    return loop, "it ran"


class PycudaLoop:
    """Pinned buffers, one stream, one context for each batch size of a model.

    Args:
        tensorrt: that runs the engines.
        engines: by model.
        image: (H, W, C).
    """

    def __init__(self, tensorrt: TensorRt, engines: dict[str, Engine], image: tuple[int, ...]) -> None:
        """See the class."""
        # The device's primary context, where our graphs live too.
        importlib.import_module("pycuda.autoprimaryctx")
        self._cuda = cuda = importlib.import_module("pycuda.driver")
        self._stream = cuda.Stream()
        self._images = cuda.pagelocked_empty((_LARGEST, *image), np.uint8)
        self._device_images = cuda.mem_alloc(self._images.nbytes)
        self._logits = cuda.pagelocked_empty(_LARGEST * max(CLASSES, len(EXPERTS)), np.float32)
        self._device_logits = cuda.mem_alloc(self._logits.nbytes)
        self._tensorrt = tensorrt
        self._opened = {name: tensorrt.open(engine, "trt-moe build") for name, engine in engines.items()}
        self._sidecars = {name: engine.sidecar for name, engine in engines.items()}
        self._contexts: dict[tuple[str, int], Any] = {}
        self._memory: list[Any] = []

    def predict(self, images: Images) -> NDArray[np.float32]:
        routes = self._run(GATER, images, len(EXPERTS)).argmax(axis=1)
        logits = np.empty((len(images), CLASSES), np.float32)
        for index, name in enumerate(EXPERTS):
            rows = np.flatnonzero(routes == index)
            if len(rows):
                logits[rows] = self._run(name, images[rows], CLASSES)
        return softmax(logits)

    def _run(self, name: str, images: Images, outputs: int) -> NDArray[np.float32]:
        count = len(images)
        if (name, count) not in self._contexts:
            self._contexts[name, count] = self._make_context(name, count)
        context: IExecutionContext = self._contexts[name, count]
        self._images[:count] = images
        self._cuda.memcpy_htod_async(self._device_images, self._images[:count], self._stream)
        self._expect(context.execute_async_v3(self._stream.handle), f"to run {name}")
        logits: NDArray[np.float32] = self._logits[: count * outputs]
        self._cuda.memcpy_dtoh_async(logits, self._device_logits, self._stream)
        self._stream.synchronize()
        answer: NDArray[np.float32] = logits.reshape(count, outputs).copy()
        return answer

    def _make_context(self, name: str, count: int) -> IExecutionContext:
        trt = self._tensorrt.flavour.trt
        engine: ICudaEngine = self._opened[name]
        sidecar = self._sidecars[name]
        # Engines for RTX are built to be given their memory.
        context: IExecutionContext = engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._expect(context, f"a context of {name}")
        profile = sidecar.spec.buckets.index(count)
        self._expect(context.set_optimization_profile_async(profile, self._stream.handle), f"profile {profile}")
        self._expect(context.set_input_shape(sidecar.inputs[0].name, (count, *self._images.shape[1:])), "the shape")
        self._expect(not context.infer_shapes(), "the shapes")
        if size := int(context.update_device_memory_size_for_shapes()):
            self._memory.append(self._cuda.mem_alloc(size))
            context.set_device_memory(int(self._memory[-1]), size)
        self._expect(context.set_tensor_address(sidecar.inputs[0].name, int(self._device_images)), "its input")
        self._expect(context.set_tensor_address(sidecar.outputs[0].name, int(self._device_logits)), "its output")
        return context

    def _expect(self, answer: object, what: str) -> None:
        if not answer:
            raise RuntimeError(f"{self._tensorrt.flavour} refuses {what}: {self._tensorrt.complaint()}")
