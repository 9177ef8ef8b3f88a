"""A bundle's models on the GPU: found in the cache, built where they are not there, captured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from trt_moe.bundle import Bundle
from trt_moe.compile.build import BUCKETS, BuildOptions, Step, build_bundle
from trt_moe.compile.cache import Engine, EngineCache
from trt_moe.compile.sidecar import Precision
from trt_moe.cuda.capture import Source, capture_model
from trt_moe.cuda.device import ORDINAL, compute_capability, flavour_for, open_device
from trt_moe.cuda.gater_source import GaterSource, weights_of_bundle, weights_of_module
from trt_moe.cuda.interop import DeviceImages, device_images, is_on_device
from trt_moe.errors import InputError
from trt_moe.model import Model

_log = logging.getLogger("trt_moe")

_PRECISIONS: dict[str, Precision] = {"auto": "fp16", "fp16": "fp16", "fp32": "fp32", "int8": "int8"}


class CudaModels:
    """The gater and the experts of a bundle on one GPU, captured when they are asked for.

    Args:
        bundle: whose models they are.
        precision: of the experts, and of a gater that runs like them: "auto", which is "fp16", "fp16", "fp32" or
            "int8", whose gater is "fp16". Of modules: what they compute in, which is not "int8".
        modules: torch modules to run in place of engines, by model name: uint8 [N, H, W, C] in, float [N, K] logits
            out. Empty: engines.

    A gater that `trt-moe train` exports, or an `ImageModel` of one among the modules, runs on the core's own kernels.
    """

    def __init__(self, bundle: Bundle, precision: str, modules: Mapping[str, Any]) -> None:
        """See the class.

        Raises:
            DeviceError: there is no GPU, no TensorRT, or none that supports the GPU.
            EngineBuildError: an engine cannot be built.
            InputError: another precision, or modules that are not the bundle's models.
        """
        self._bundle = bundle
        self._modules = modules
        if precision not in _PRECISIONS:
            raise InputError(f"precision is {precision!r}; on the GPU expected {', '.join(_PRECISIONS)}")
        self._precision = _PRECISIONS[precision]
        if modules and precision == "int8":
            raise InputError("precision is 'int8', which TensorRT's engines have, and modules have not; leave out one")
        names = [entry.name for entry in bundle.models()]
        if modules and sorted(modules) != sorted(names):
            raise InputError(f"modules are of {sorted(modules)}; expected one for each of {names}")
        self.device = open_device()
        gater = bundle.manifest.gater
        self._gater = (
            weights_of_module(modules[gater.name], bundle.input_shape, bundle.outputs(gater))
            if modules
            else weights_of_bundle(bundle)
        )
        if self._gater is None:
            _log.debug("%s is no gater as `trt-moe train` exports it: it runs like the experts", gater.name)
        self._engines = {} if modules else self._find_or_build()

    def load(self, name: str) -> Model:
        """Capture one model.

        Raises:
            EngineBuildError: TensorRT cannot open its engine, or it cannot be captured.
            DeviceError: the device has no memory left, or failed.
            InputError: the bundle has no gater and no expert of that name; baselines run on the CPU only.
        """
        entry = self._bundle.entry(name)
        if entry not in self._bundle.models():
            raise InputError(f"{name} is a baseline, which runs on the CPU only; open a router with device='cpu'")
        gater = self._gater if name == self._bundle.manifest.gater.name else None
        core = capture_model(
            self._source(name) if gater is None else GaterSource(gater),
            self.device,
            name=name,
            input_shape=self._bundle.input_shape,
            outputs=self._bundle.outputs(entry),
            buckets=BUCKETS,
            precision=self._precision_of(name) if gater is None else "fp32",
        )
        return Model(name, core)

    def on_device(self, batch: Any, stream: int) -> DeviceImages | None:
        """The batch, if it lies on a GPU; None where it is the CPU's to read.

        Args:
            batch: of any kind.
            stream: of the router's, see `device_images`.

        Raises:
            InputError: it is on another GPU, or no batch of the bundle's images.
        """
        return device_images(batch, self._bundle.input_shape, ORDINAL, stream) if is_on_device(batch) else None

    def _precision_of(self, name: str) -> Precision:
        return self._precision if self._modules else self._engines[name].sidecar.spec.precision

    def _source(self, name: str) -> Source:
        if self._modules:
            from trt_moe.cuda.torch_source import TorchSource

            return TorchSource(self._modules[name], ORDINAL)
        from trt_moe.cuda.tensorrt_source import TensorRtSource

        return TensorRtSource(self._tensorrt, self._engines[name], self._command)

    def _find_or_build(self) -> dict[str, Engine]:
        from trt_moe.cuda.tensorrt_source import TensorRt

        flavour, capability = flavour_for(self.device), compute_capability(self.device)
        self._command = f"trt-moe build {self._bundle.path} --flavour {flavour.name} --precision {self._precision}"
        capabilities: tuple[str, ...] = ()
        if flavour.is_rtx:
            capabilities = (capability,)
            self._command += f" --compute-capability {capability}"
        needed = () if self._gater is None else tuple(entry.name for entry in self._bundle.manifest.experts)
        options = BuildOptions(precision=self._precision, compute_capabilities=capabilities, models=needed)
        report = build_bundle(self._bundle, flavour, EngineCache.of_user(_log.info), options, self._tell)
        self._tensorrt = TensorRt(flavour)
        return {each.engine.sidecar.spec.model: each.engine for each in report.engines}

    def _tell(self, step: Step) -> None:
        if step.stage == "converting":
            _log.warning("building the engine of %s for this GPU; beforehand: %s", step.model, self._command)
