"""The accuracy gate on a GPU that is a stand-in: what runs there computes on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.support.engine_specs import SPEC, sidecar_for
from tests.support.fake_cuda import FakeDevice
from tests.support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.compile.build import BuildReport, BuiltEngine
from trt_moe.compile.cache import Engine
from trt_moe.compile.flavour import Flavour
from trt_moe.compile.gate import Samples
from trt_moe.compile.gate_runtime import logits
from trt_moe.cuda import check
from trt_moe.errors import DeviceError, EngineBuildError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The engines' logits are off by `error`, absolute, and by `scale`; `captured` has those that ran."""
    gpu = SimpleNamespace(error=0.0, scale=1.0, captured=[])

    def capture(source: Any, device: Any, *, name: str, input_shape: Any, **options: Any) -> Any:
        gpu.captured.append((name, options["buckets"], options["precision"]))

        def run(images: Any) -> Any:
            gpu.seen = images
            found = logits(onnx.load(str(gpu.bundle.file(gpu.bundle.entry(name)))), images)
            noise = np.random.default_rng(0).standard_normal(found.shape).astype(np.float32)
            return gpu.scale * found + gpu.error * noise

        return SimpleNamespace(input_shape=input_shape, logits=run)

    monkeypatch.setattr(check, "open_device", lambda: FakeDevice("8.6"))
    monkeypatch.setattr(check, "flavour_for", lambda device: None)
    monkeypatch.setattr(check, "TensorRt", lambda flavour: flavour.name)
    monkeypatch.setattr(check, "TensorRtSource", lambda tensorrt, engine, advice: engine)
    monkeypatch.setattr(check, "capture_model", capture)
    return gpu


@pytest.fixture
def bundle(tmp_path: Path, gpu: SimpleNamespace) -> Bundle:
    gpu.bundle = Bundle.load(write_tiny_bundle(tmp_path / "tiny").path)
    return gpu.bundle


def report(bundle: Bundle, judged: bool = False, **changes: Any) -> BuildReport:
    engines = []
    for entry in bundle.models():
        spec = SPEC.model_copy(update={"model": entry.name, **changes})
        sidecar = sidecar_for(b"plan", spec).model_copy(update={"engine_report": {"passed": True} if judged else None})
        # From the cache: an earlier build may have ended before they were judged.
        engines.append(BuiltEngine(Engine(Path("x"), b"plan", sidecar), False))
    return BuildReport(bundle, Flavour("tensorrt_rtx", version="1.7.1"), engines, 1.0)


def test_engines_that_were_built_are_judged_on_the_gpu(bundle: Bundle, gpu: SimpleNamespace) -> None:
    checked = check.check_engines(report(bundle))
    names = [entry.name for entry in bundle.models()]
    assert gpu.captured == [(name, (1, 2), "fp16") for name in names]
    assert list(checked.reports) == names
    for judged in checked.reports.values():
        assert (judged.method, judged.passed, judged.top1_agreement) == ("engine", True, 1.0)
    assert checked.to_json()["skipped"] is None
    assert str(checked).startswith("Checked on the GPU, answers that agree with float32: gater 100.0 %")


def test_an_engine_that_computes_otherwise_is_refused(bundle: Bundle, gpu: SimpleNamespace) -> None:
    gpu.error = 50.0
    with pytest.raises(
        EngineBuildError, match=r"gater: its engine is not accurate enough on Fake GPU: .*--precision fp32"
    ):
        check.check_engines(report(bundle))


def test_int8_is_judged_by_its_own_thresholds(bundle: Bundle, gpu: SimpleNamespace) -> None:
    gpu.scale = 1.07
    with pytest.raises(EngineBuildError, match=r"the largest logit error is 0.07.*, at most 0.05 is allowed"):
        check.check_engines(report(bundle))
    gpu.captured.clear()
    checked = check.check_engines(report(bundle, precision="int8"))
    assert [(judged.passed, judged.thresholds.logit_error) for judged in checked.reports.values()] == [(True, 0.1)] * 3
    assert [precision for _, _, precision in gpu.captured] == ["int8"] * 3
    _, others = Samples.of(bundle, bundle.experts[-1]).halves()  # the first half calibrated it
    np.testing.assert_array_equal(gpu.seen, others.images)
    gpu.scale = 1.2
    with pytest.raises(EngineBuildError, match=r"at most 0.1 is allowed.*Build it with --precision fp16"):
        check.check_engines(report(bundle, precision="int8"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "8.9 12.0"}, "the engines are for 8.9 12.0, and the GPU here has 8.6"),
        ({"buckets": (2, 4)}, "the smallest batch size is 2; add 1 to --buckets"),
        ({"precision": "fp32"}, "nothing was built that is less precise"),
        ({"judged": True}, "nothing was built that is less precise"),
    ],
)
def test_what_cannot_run_here_is_not_said_to_have(
    bundle: Bundle, gpu: SimpleNamespace, changes: dict[str, Any], why: str
) -> None:
    checked = check.check_engines(report(bundle, **changes))
    assert checked.reports == {}
    assert gpu.captured == []
    assert why in str(checked.skipped)
    assert str(checked).startswith("Accuracy was emulated on the CPU, and not checked on a GPU: ")


def test_without_a_gpu_the_reason_is_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DeviceError("no CUDA device")

    monkeypatch.setattr(check, "open_device", missing)
    assert check.check_engines(report(bundle)).skipped == "no CUDA device"
