"""Engines that were just built, judged on the GPU that they were built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from trt_moe import _core
from trt_moe.compile import gate, gate_runtime
from trt_moe.compile.build import BuildReport
from trt_moe.compile.cache import Engine
from trt_moe.compile.device import DEFAULT
from trt_moe.compile.gate import GateReport, Samples
from trt_moe.cuda.capture import capture_model
from trt_moe.cuda.device import compute_capability, flavour_for, open_device
from trt_moe.cuda.tensorrt_source import TensorRt, TensorRtSource
from trt_moe.errors import DeviceError, EngineBuildError
from trt_moe.model import Model

_ADVICE = "trt-moe build BUNDLE"


@dataclass(frozen=True)
class EngineCheck:
    """How engines do on the GPU.

    Attributes:
        reports: of the accuracy gate, by model; empty where they did not run.
        skipped: why they did not; None where they did.
    """

    reports: dict[str, GateReport]
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        reports = {name: report.model_dump(mode="json") for name, report in self.reports.items()}
        return {"reports": reports, "skipped": self.skipped}

    def __str__(self) -> str:
        """For people."""
        if self.skipped is not None:
            return f"Accuracy was emulated on the CPU, and not checked on a GPU: {self.skipped}"
        agree = ", ".join(f"{name} {100 * report.top1_agreement:.1f} %" for name, report in self.reports.items())
        return f"Checked on the GPU, answers that agree with float32: {agree}"


def check_engines(report: BuildReport) -> EngineCheck:
    """Run what is not judged yet on the bundle's samples, and compare it with the float32 model.

    Raises:
        EngineBuildError: an engine misses the accuracy gate's thresholds, or TensorRT cannot open it.
        DeviceError: the GPU fails.
    """
    engines = report.unjudged()
    if not engines:
        return EngineCheck({}, "nothing was built that is less precise than float32")
    try:
        device = open_device()
        flavour_for(device)
    except DeviceError as error:
        return EngineCheck({}, str(error))
    spec = engines[0].sidecar.spec
    capability = compute_capability(device)
    if report.flavour.is_rtx and spec.device != DEFAULT and capability not in spec.device.split():
        return EngineCheck({}, f"the engines are for {spec.device}, and the GPU here has {capability}")
    if spec.buckets[0] != 1:
        return EngineCheck({}, f"the smallest batch size is {spec.buckets[0]}; add 1 to --buckets")
    tensorrt = TensorRt(report.flavour)
    return EngineCheck({engine.sidecar.spec.model: _judge(report, engine, device, tensorrt) for engine in engines})


def _judge(report: BuildReport, engine: Engine, device: _core.CudaDevice, tensorrt: TensorRt) -> GateReport:
    bundle, spec = report.bundle, engine.sidecar.spec
    entry = bundle.entry(spec.model)
    samples, thresholds, instead = Samples.of(bundle, entry), gate.Thresholds(), "fp32"
    if spec.precision == "int8":
        _, samples = samples.halves()  # the others calibrated it
        thresholds, instead = gate.INT8_THRESHOLDS, "fp16"
    core = capture_model(
        TensorRtSource(tensorrt, engine, _ADVICE),
        device,
        name=entry.name,
        input_shape=bundle.input_shape,
        outputs=bundle.outputs(entry),
        buckets=spec.buckets,
        precision=spec.precision,
    )
    expected = gate_runtime.logits(onnx.load_from_string(bundle.read(entry)), samples.images)
    judged = gate.compare(expected, Model(entry.name, core).logits(samples.images), samples, "engine", thresholds)
    if not judged.passed:
        raise EngineBuildError(
            f"{entry.name}: its engine is not accurate enough on {device.info['name']}: {'; '.join(judged.failures)}; "
            f"its graph was, in the CPU's emulation. Build it with --precision {instead}"
        )
    return judged
