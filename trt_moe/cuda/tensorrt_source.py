"""Engines of the cache, run by TensorRT's own Python bindings while the core captures what they enqueue."""

from __future__ import annotations

from trt_moe.compile.cache import Engine
from trt_moe.compile.flavour import Flavour, title
from trt_moe.compile.trt_logger import make_logger
from trt_moe.compile.trt_types import (
    ICudaEngine,
    IExecutionContext,
    ILogger,
    IRuntimeConfig,
    Runtime,
)
from trt_moe.cuda.capture import Capture
from trt_moe.errors import DeviceError, EngineBuildError


class TensorRt:
    """One started TensorRT; all engines of a process share it, since it has one logger only."""

    def __init__(self, flavour: Flavour) -> None:
        """Start it.

        Raises:
            DeviceError: it does not start.
        """
        self.flavour = flavour
        self._errors: list[str] = []
        self._logger: ILogger = make_logger(flavour.trt, self._errors)
        try:
            self._runtime: Runtime = flavour.trt.Runtime(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind11's words for a null pointer
            raise DeviceError(f"{flavour} does not start: {self.complaint() or error}; see `trt-moe doctor`") from None

    def open(self, engine: Engine, advice: str) -> ICudaEngine:
        """Open an engine.

        Args:
            engine: checked against its sidecar.
            advice: what to type to build it again.

        Raises:
            EngineBuildError: TensorRT cannot open it.
        """
        self._errors.clear()
        opened: ICudaEngine = self._runtime.deserialize_cuda_engine(engine.plan)
        if opened is None:
            spec = engine.sidecar.spec
            raise EngineBuildError(
                f"{engine.path}: {self.flavour} cannot open the engine of {spec.model}, built by "
                f"{title(spec.flavour, spec.flavour_version)} for {spec.device}: {self.complaint()}; build it again: "
                f"`trt-moe cache clear`, then `{advice}`"
            )
        return opened

    def complaint(self) -> str:
        """TensorRT's last errors."""
        return "; ".join(dict.fromkeys(self._errors[-5:])) or "it gives no reason"


class TensorRtSource:
    """An engine with one execution context for each of its buckets, for `capture_model`.

    Contexts have no memory of their own: they share one block of the core's, since of one model one runs at a time.

    Args:
        tensorrt: that runs it.
        engine: from the cache.
        advice: what to type to build it again.
    """

    def __init__(self, tensorrt: TensorRt, engine: Engine, advice: str) -> None:
        """See the class.

        Raises:
            EngineBuildError: TensorRT cannot open the engine.
        """
        self._tensorrt = tensorrt
        self._sidecar = engine.sidecar
        self._engine: ICudaEngine = tensorrt.open(engine, advice)
        self._contexts: dict[int, IExecutionContext] = {}
        self._stream = 0

    def bind(self, capture: Capture) -> None:
        """See `Source`.

        Raises:
            EngineBuildError: the engine gives another number of logits.
            DeviceError: TensorRT refuses a shape or an address, or says that a context cannot be captured.
        """
        self._stream = capture.stream
        sizes = [self._open_context(capture, bucket) for bucket in capture.buckets]
        memory = max(sizes)
        address = capture.reserve_activation(memory) if memory else 0
        for bucket in capture.buckets:
            context: IExecutionContext = self._contexts[bucket]
            if memory:
                context.set_device_memory(address, memory)
            self._expect(context.set_tensor_address(self._sidecar.inputs[0].name, capture.input_address), "its input")
            self._expect(
                context.set_tensor_address(self._sidecar.outputs[0].name, capture.output_address), "its output"
            )
            if self._tensorrt.flavour.is_rtx:
                self._check_capturable_rtx(context, bucket)

    def enqueue(self, bucket: int) -> None:
        """See `Source`.

        Raises:
            DeviceError: TensorRT could not enqueue it.
        """
        context: IExecutionContext = self._contexts[bucket]
        self._expect(context.execute_async_v3(self._stream), f"to run a batch of {bucket}")

    def _open_context(self, capture: Capture, bucket: int) -> int:
        """Make the context of a bucket; returns the bytes of activation memory that it needs."""
        context: IExecutionContext = (
            self._create_context_rtx() if self._tensorrt.flavour.is_rtx else self._create_context_classic()
        )
        self._expect(context, f"a context for a batch of {bucket}")
        profile = self._sidecar.spec.buckets.index(bucket)
        shape = (bucket, *capture.input_shape)
        self._expect(context.set_optimization_profile_async(profile, self._stream), f"profile {profile}")
        self._expect(context.set_input_shape(self._sidecar.inputs[0].name, shape), f"a batch of {bucket}")
        self._expect(not context.infer_shapes(), f"the shapes of a batch of {bucket}")
        # A file need not say how many logits its model gives, and the core has room for these.
        logits, expected = tuple(context.get_tensor_shape(self._sidecar.outputs[0].name)), (bucket, capture.outputs)
        if logits != expected:
            raise EngineBuildError(
                f"{self._sidecar.spec.model}: of a batch of {bucket} its engine gives logits {list(logits)}; "
                f"expected {list(expected)}"
            )
        self._contexts[bucket] = context
        return int(context.update_device_memory_size_for_shapes())

    def _create_context_classic(self) -> IExecutionContext:
        trt = self._tensorrt.flavour.trt
        return self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _create_context_rtx(self) -> IExecutionContext:
        trt = self._tensorrt.flavour.trt
        config: IRuntimeConfig = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # All kernels are compiled in the warm-up run: one that comes later would end a capture. And no graphs of its
        # own, since its work becomes part of ours.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        return self._engine.create_execution_context(config)

    def _check_capturable_rtx(self, context: IExecutionContext, bucket: int) -> None:
        self._expect(context.is_stream_capturable(self._stream), f"to be captured with a batch of {bucket}")

    def _expect(self, answer: object, what: str) -> None:
        if not answer:
            model = self._sidecar.spec.model
            raise DeviceError(
                f"{model}: {self._tensorrt.flavour} refuses {what}: {self._tensorrt.complaint()}; "
                "`trt-moe doctor` shows the versions; device='cpu' runs without TensorRT"
            )
