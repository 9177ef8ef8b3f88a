"""ONNX to TensorRT plan, the same way with every flavour; the only module that builds with TensorRT."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_moe.bundle.writer import write_bytes
from trt_moe.compile.device import DEFAULT, sm_name
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.host_code import has_host_code
from trt_moe.compile.sidecar import EngineSpec, Port
from trt_moe.compile.trt_logger import make_logger
from trt_moe.compile.trt_types import (
    Builder,
    IBuilderConfig,
    ICudaEngine,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    OnnxParser,
    ParserError,
    Runtime,
)
from trt_moe.errors import DeviceError, EngineBuildError

BuildProgress = Callable[[float], None]
"""Called a few times a second with the fraction that is done, 0 to 1."""

_POLL_S = 0.2
_MOST_ERRORS = 5
# The phase of a build that goes through the optimisation profiles, and takes the time.
_PROFILE_PHASE = "Computing profile costs"
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Built:
    """A plan and what is known of it, see `Sidecar`."""

    plan: bytes
    inputs: list[Port]
    outputs: list[Port]
    layers: int
    host_code: bool
    options: dict[str, Any]
    seconds: float


class EngineBuilder:
    """Builds engines with one flavour of TensorRT; not thread-safe.

    Networks are strongly typed: what an engine computes in is what its ONNX says, and no flag changes it.
    """

    def __init__(self, flavour: Flavour) -> None:
        """Start TensorRT.

        Raises:
            DeviceError: it does not start, as `tensorrt` does without a GPU.
        """
        self._flavour = flavour
        self._trt = flavour.trt
        self._errors: list[str] = []
        # One logger for all: TensorRT ignores a second one while an object of the first lives.
        self._logger: ILogger = make_logger(self._trt, self._errors)
        try:
            self._builder: Builder = self._trt.Builder(self._logger)
        except (TypeError, RuntimeError) as error:  # pybind11's words for a null pointer
            raise DeviceError(f"{flavour} does not start: {self._complaint() or error}; see `trt-moe doctor`") from None

    def build(
        self,
        onnx: bytes,
        spec: EngineSpec,
        timing_cache: Path,
        progress: BuildProgress = lambda fraction: None,
    ) -> Built:
        """Build one engine with one optimisation profile for each bucket.

        Ctrl-C stops TensorRT at its next step.

        Args:
            onnx: a model with one input whose first dimension is dynamic, in the precision that is wanted.
            spec: what to build.
            timing_cache: file of measured kernels, read and written by `tensorrt`; TensorRT-RTX has none.
            progress: called from the caller's thread.

        Raises:
            EngineBuildError: the parser refuses the model (node and operator are named), TensorRT builds no engine,
                or one with other properties than asked.
        """
        refuse_unsupported(self._flavour, spec)
        self._errors.clear()
        start = time.perf_counter()
        # Not in the main thread: TensorRT swallows a Ctrl-C that comes while it calls the logger.
        with ThreadPoolExecutor(1, "trt-moe-parse") as pool:
            network, config, options = pool.submit(self._compose, onnx, spec, timing_cache).result()
        plan = self._run(network, config, spec.model, progress)
        host_code = has_host_code(plan)
        if not self._flavour.is_rtx:
            write_timing_cache_classic(config, timing_cache)
            embedded, found = self._read_back_classic(plan, spec)
            host_code |= embedded
            options |= found
        options |= self._read_back(network, config, spec.model)
        seconds = time.perf_counter() - start
        inputs = [_port(network.get_input(index)) for index in range(network.num_inputs)]
        outputs = [_port(network.get_output(index)) for index in range(network.num_outputs)]
        return Built(plan, inputs, outputs, network.num_layers, host_code, options, seconds)

    def _compose(
        self, onnx: bytes, spec: EngineSpec, timing_cache: Path
    ) -> tuple[INetworkDefinition, IBuilderConfig, dict[str, Any]]:
        network = self._parse(onnx, spec.model)
        config = self._configure(network, spec)
        options: dict[str, Any] = {}
        if self._flavour.is_rtx:
            options |= self._configure_rtx(config, spec)
        else:
            self._configure_classic(config, spec, timing_cache)
        return network, config, options

    def _parse(self, onnx: bytes, model: str) -> INetworkDefinition:
        flags = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network: INetworkDefinition = self._builder.create_network(flags)
        parser: OnnxParser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse(onnx):
            errors = [_describe(parser.get_error(index)) for index in range(min(parser.num_errors, _MOST_ERRORS))]
            raise EngineBuildError(
                f"{model}: {self._flavour} cannot read the graph: {'; '.join(errors) or self._complaint()}; "
                "export the model with other operators, or keep it on the CPU"
            )
        return network

    def _configure(self, network: INetworkDefinition, spec: EngineSpec) -> IBuilderConfig:
        trt = self._trt
        config: IBuilderConfig = self._builder.create_builder_config()
        # Branches of an engine on streams of their own cannot be captured with it.
        config.max_aux_streams = 0
        # Float32 means float32: by default TensorRT rounds the factors of float32 products to TF32's 10 bits.
        config.clear_flag(trt.BuilderFlag.TF32)
        images: ITensor = network.get_input(0)
        for bucket in spec.buckets:
            shape = (bucket, *tuple(images.shape)[1:])
            profile: IOptimizationProfile = self._builder.create_optimization_profile()
            profile.set_shape(images.name, shape, shape, shape)
            if config.add_optimization_profile(profile) < 0:
                raise EngineBuildError(f"{spec.model}: {self._flavour} takes no batch of {bucket}: {self._complaint()}")
        return config

    def _configure_rtx(self, config: IBuilderConfig, spec: EngineSpec) -> dict[str, Any]:
        trt = self._trt
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        asked = [] if spec.device == DEFAULT else [sm_name(each) for each in spec.device.split()]
        config.num_compute_capabilities = len(asked)
        for index, name in enumerate(asked):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        found = [config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)]
        if found != asked or not config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION):
            raise EngineBuildError(
                f"{spec.model}: {self._flavour} was asked for {asked} without memory of its own, and takes {found}: "
                f"{self._complaint()}"
            )
        return {"compute_capabilities": found or [DEFAULT], "require_user_allocation": True}

    def _configure_classic(self, config: IBuilderConfig, spec: EngineSpec, timing_cache: Path) -> None:
        trt = self._trt
        if spec.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if spec.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        known: ITimingCache = config.create_timing_cache(read_timing_cache(timing_cache))
        if not config.set_timing_cache(known, False):
            # Of another GPU or version: measured anew, and overwritten.
            fresh: ITimingCache = config.create_timing_cache(b"")
            config.set_timing_cache(fresh, False)

    def _run(self, network: INetworkDefinition, config: IBuilderConfig, model: str, progress: BuildProgress) -> bytes:
        monitor: IProgressMonitor = _make_monitor(self._trt)
        config.progress_monitor = monitor
        # In a thread of its own, since Python sees Ctrl-C only between two steps of its main thread.
        with ThreadPoolExecutor(1, "trt-moe-build") as pool:
            future: Future[Any] = pool.submit(self._builder.build_serialized_network, network, config)
            try:
                while wait([future], _POLL_S).not_done:
                    progress(monitor.fraction)
            except BaseException:
                monitor.stop = True
                raise
            memory = future.result()
        if memory is None:
            raise EngineBuildError(f"{model}: {self._flavour} builds no engine: {self._complaint()}")
        return bytes(memory)

    def _read_back(self, network: INetworkDefinition, config: IBuilderConfig, model: str) -> dict[str, Any]:
        trt = self._trt
        found = {
            "strongly_typed": bool(network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)),
            "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
            "max_aux_streams": int(config.max_aux_streams),
        }
        if found != {"strongly_typed": True, "tf32": False, "max_aux_streams": 0}:
            raise EngineBuildError(f"{model}: {self._flavour} did not keep to what was asked, it took {found}")
        return found

    def _read_back_classic(self, plan: bytes, spec: EngineSpec) -> tuple[bool, dict[str, Any]]:
        """Open the engine and hold it against the spec; also returns whether it has host code."""
        trt = self._trt
        runtime: Runtime = trt.Runtime(self._logger)
        engine: ICudaEngine = runtime.deserialize_cuda_engine(plan)
        # A version-compatible plan has the lean runtime inside, and TensorRT opens it with this permission only.
        embedded = engine is None and spec.version_compatible
        if embedded:
            runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineBuildError(f"{spec.model}: {self._flavour} cannot open its own engine: {self._complaint()}")
        name = engine.get_tensor_name(0)
        found = {
            "version_compatible": embedded,
            "hardware_compatible": engine.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "buckets": tuple(
                int(engine.get_tensor_profile_shape(name, index)[1][0])
                for index in range(engine.num_optimization_profiles)
            ),
        }
        asked = spec.model_dump(include=set(found))
        if found != asked:
            raise EngineBuildError(f"{spec.model}: {self._flavour} built {found}, asked was {asked}")
        return embedded, {key: found[key] for key in ("version_compatible", "hardware_compatible")}

    def _complaint(self) -> str:
        return "; ".join(dict.fromkeys(self._errors[-_MOST_ERRORS:])) or "it gives no reason"


def refuse_unsupported(flavour: Flavour, spec: EngineSpec) -> None:
    """Raise EngineBuildError where a flavour cannot build what a spec says; TensorRT-RTX would only warn, or not."""
    if flavour.is_rtx and (spec.version_compatible or spec.hardware_compatible):
        raise EngineBuildError(
            f"{flavour} builds no version-compatible or hardware-compatible engines: its engines run on all compute "
            "capabilities that they are built for, with the version that built them. Name those with "
            "--compute-capability, or build with --flavour tensorrt"
        )


def read_timing_cache(file: Path) -> bytes:
    """The timing cache in a file, or nothing where there is none or it was changed since it was written."""
    try:
        digest, data = (content := file.read_bytes())[:32], content[32:]
    except OSError:
        return b""
    return data if hashlib.sha256(data).digest() == digest else b""


def write_timing_cache_classic(config: IBuilderConfig, file: Path) -> None:
    """Keep what was measured for the next build, where there is room for it: the engine is worth more."""
    known: ITimingCache = config.get_timing_cache()
    data = bytes(known.serialize())
    with suppress(OSError):
        write_bytes(file, hashlib.sha256(data).digest() + data)


def _port(tensor: ITensor) -> Port:
    dtype = tensor.dtype.name
    return Port(name=tensor.name, dtype=_DTYPES.get(dtype, dtype.lower()), shape=list(tensor.shape))


def _describe(error: ParserError) -> str:
    node = f"node {error.node_name() or error.node()} (operator {error.node_operator()}): " if error.node() >= 0 else ""
    return f"{node}{error.code().name}: {error.desc()}"


def _make_monitor(trt: Any) -> IProgressMonitor:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.fraction = 0.0
            self.stop = False
            self._steps = 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if phase_name == _PROFILE_PHASE:
                self._steps = max(1, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == _PROFILE_PHASE:
                self.fraction = max(self.fraction, min(1.0, (step + 1) / self._steps))
            return not self.stop

    return Monitor()
