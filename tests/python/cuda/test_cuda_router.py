"""What the router hands to the GPU and what to the CPU; the GPU, its models and the pipeline are stand-ins."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_bundle import TinyBundle, write_tiny_bundle
from trt_moe import DeviceResult, Router, _core, router
from trt_moe.cuda.interop import DeviceImages
from trt_moe.errors import DeviceError, EngineBuildError, InputError, MissingDependencyError


class FakeModels:
    """Like `CudaModels`: everything with an `address` is on the GPU."""

    def __init__(self, bundle: Any, precision: str, modules: Any) -> None:
        self.given = (bundle.name, precision, modules)

    def load(self, name: str) -> Any:
        return SimpleNamespace(name=name, core=f"core of {name}", device="Fake GPU", precision="fp16")

    def on_device(self, batch: Any, stream: int) -> DeviceImages | None:
        address = getattr(batch, "address", None)
        return None if address is None else DeviceImages(address, 2, stream, batch)


class FakePipeline:
    """Like `_core.Pipeline` with two experts and three classes."""

    plan, plan_reason, input_stream = "device-routed", "the driver has SWITCH nodes", 0x77

    def __init__(self, gater: Any, experts: Any, **options: Any) -> None:
        self.models, self.options = [gater, *experts], options
        self.calls: list[Any] = []

    def predict(self, images: Any, keep: Any, times: Any) -> Any:
        self.calls.append(("predict", images.shape, None if times is None else times.later, keep))
        return self._answers(len(images))

    def predict_device(self, address: int, count: int, stream: int, keep: Any, times: Any) -> Any:
        self.calls.append(("predict_device", address, count, stream, None if times is None else times.later, keep))
        return self._answers(count)

    def device_rows(self, count: int) -> Any:
        return SimpleNamespace(probabilities=0x100, gater_logits=0x200, routes=0x300, images=count)

    def input_buffer(self, images: int) -> Any:
        return f"buffer of {images}"

    def memory(self) -> dict[str, dict[str, int]]:
        return {"gater": {"device": 1, "pinned": 2}}

    def close(self, cancel_pending: bool) -> bool:
        return True

    def _answers(self, count: int) -> Any:
        return np.ones((count, 3)), np.ones((count, 2)), np.zeros(count, np.int64), np.ones(count)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyBundle:
    return write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trt_moe.cuda.device.reason_against", lambda: None)
    monkeypatch.setattr("trt_moe.cuda.load.CudaModels", FakeModels)
    monkeypatch.setattr(_core, "Pipeline", FakePipeline)


def pipeline(opened: Router) -> Any:
    return opened._pipeline


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_models_are_the_gpus(gpu: None, tiny: TinyBundle, device: str) -> None:
    with Router(tiny.path, device=device, check=False) as opened:
        assert pipeline(opened).models == ["core of gater", "core of expert-0", "core of expert-1"]
        assert opened.device == "cuda: Fake GPU"
        assert (opened.plan, opened.plan_reason) == ("device-routed", "the driver has SWITCH nodes")
        assert opened.memory_report() == {"gater": {"device": 1, "pinned": 2}}
        assert opened.input_buffer(3) == "buffer of 3"
        with pytest.raises(InputError, match=r"images is 65; expected a whole number from 1 to 64"):
            opened.input_buffer(65)


@pytest.mark.parametrize(
    "error",
    [
        EngineBuildError("gater cannot be captured"),
        DeviceError("no memory is left"),
        MissingDependencyError("building engines needs onnx"),
    ],
)
def test_auto_takes_the_cpu_where_the_models_cannot_be_captured(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr("trt_moe.cuda.device.reason_against", lambda: None)
    monkeypatch.setattr("trt_moe.cuda.load.CudaModels.__init__", refused)
    with Router(tiny.path) as opened:
        assert opened.device.startswith("cpu: ")
        assert opened.predict(tiny.grey(0, 2)).experts.tolist() == [0, 0]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"device='auto' takes the CPU, as the GPU failed: {error}"]
    with pytest.raises(type(error), match=str(error)):
        Router(tiny.path, device="cuda")


@pytest.mark.parametrize(("plan", "device_routed"), [("auto", True), ("host-routed", False)])
def test_the_plan_is_asked_for(gpu: None, tiny: TinyBundle, plan: str, device_routed: bool) -> None:
    with Router(tiny.path, device="cuda", check=False, plan=plan) as opened:
        assert pipeline(opened).options["device_routed"] is device_routed


def test_images_go_where_they_are(gpu: None, tiny: TinyBundle) -> None:
    with Router(tiny.path, device="cuda", check=False) as opened:
        opened.predict(tiny.grey(0, 2))
        opened.predict(SimpleNamespace(address=0xABC), deadline_ms=20)
        opened.predict([tiny.grey(0)[0]], deadline_ms=0.5)
        assert pipeline(opened).calls == [
            ("predict", (2, 8, 8, 1), None, None),
            ("predict_device", 0xABC, 2, 0x77, 0, None),
            ("predict", (1, 8, 8, 1), 0, None),
        ]


def test_parts_of_predict_async_say_what_follows_them(gpu: None, tiny: TinyBundle) -> None:
    with Router(tiny.path, device="cuda", check=False, max_batch=2) as opened:
        asyncio.run(opened.predict_async(tiny.random(5)))
        assert [call[1:3] for call in pipeline(opened).calls] == [
            ((2, 8, 8, 1), 3),
            ((2, 8, 8, 1), 1),
            ((1, 8, 8, 1), 0),
        ]


def test_answers_stay_on_the_gpu(gpu: None, tiny: TinyBundle) -> None:
    with Router(tiny.path, device="cuda", check=False) as opened:
        for batch in (tiny.grey(0, 2), SimpleNamespace(address=0xABC)):
            result = opened.predict(batch, device_output=True)
            assert isinstance(result, DeviceResult)
            assert len(result) == 2
            assert result.latency_ms.tolist() == [1.0, 1.0]
            kept = pipeline(opened).calls[-1][-1]
            assert kept.images == 2
            arrays = (result.probabilities, result.gater_logits, result.experts)
            assert [each.address for each in arrays] == [0x100, 0x200, 0x300]
            classes, experts = len(result.class_names), len(result.expert_names)
            assert [each.shape for each in arrays] == [(2, classes), (2, experts), (2,)]
            assert [each.dtype for each in arrays] == ["float32", "float32", "int32"]
            assert {each.device for each in arrays} == {(2, 0)}


def test_answers_that_cannot_stay_on_the_gpu(gpu: None, tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Router(tiny.path, device="cuda", check=False, verify_below=0.5) as opened:
        with pytest.raises(InputError, match=r"answers below 0\.5 are verified, .*set router.verify_below = 0"):
            opened.predict(tiny.grey(0), device_output=True)
        opened.verify_below = 0
        opened.predict(tiny.grey(0), device_output=True)
    monkeypatch.setattr(FakePipeline, "plan", "host-routed")
    with (
        Router(tiny.path, device="cuda", check=False) as opened,
        pytest.raises(InputError, match="this router is host-routed: the driver has SWITCH nodes; leave it out"),
    ):
        opened.predict(tiny.grey(0), device_output=True)


def test_answers_cannot_stay_on_a_gpu_that_is_not_there(tiny: TinyBundle) -> None:
    with (
        Router(tiny.path, device="cpu") as opened,
        pytest.raises(InputError, match="host-routed: the models run on the CPU; leave it out"),
    ):
        opened.predict(tiny.grey(0), device_output=True)


def test_options_reach_the_models(gpu: None, tiny: TinyBundle) -> None:
    modules = {"gater": object()}
    with Router(tiny.path, device="cuda", check=False, precision="fp32", modules=modules) as opened:
        assert opened._cuda is not None
        assert opened._cuda.given == ("tiny", "fp32", modules)  # type: ignore[attr-defined]


def test_speculation_is_asked_for_and_needs_the_gpu(gpu: None, tiny: TinyBundle) -> None:
    for plan in ("auto", "host-routed"):
        for speculate in (False, True):
            with Router(tiny.path, device="cuda", check=False, plan=plan, speculate=speculate) as opened:
                assert pipeline(opened).options["speculate"] is speculate
    with pytest.raises(InputError, match="speculate=True needs the GPU"):
        Router(tiny.path, device="cpu", speculate=True)


def test_what_is_refused(tiny: TinyBundle) -> None:
    with pytest.raises(InputError, match="plan is 'fast'; expected auto or host-routed"):
        Router(tiny.path, plan="fast")
    with pytest.raises(InputError, match="modules run on the GPU only, and device is 'cpu'; pass device='cuda'"):
        Router(tiny.path, device="cpu", modules={"gater": object()})


def test_auto_takes_the_cpu_and_says_why_once(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router._say_once.cache_clear()
    monkeypatch.setattr("trt_moe.cuda.device.reason_against", lambda: "no NVIDIA driver was found")
    with caplog.at_level(logging.INFO, "trt_moe"):
        for _ in range(2):
            with Router(tiny.path) as opened:
                assert opened.device.startswith("cpu: ")
                assert opened.memory_report() == {}
                assert opened.input_buffer(2).shape == (2, 8, 8, 1)
    said = [record.getMessage() for record in caplog.records if "device=" in record.getMessage()]
    assert said == ["device='auto' takes the CPU: no NVIDIA driver was found"]


def test_a_build_without_the_cpu_backend(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "built_backends", list)
    monkeypatch.setattr("trt_moe.cuda.device.reason_against", lambda: "there is no driver")
    words = "OpenVINO was left out when it was built; build it again with TRT_MOE_OPENVINO=ON, or use device='cuda'"
    with pytest.raises(DeviceError, match=words):
        Router(tiny.path, device="cpu")
    with pytest.raises(DeviceError, match=f"{words}, which is not possible here: there is no driver"):
        Router(tiny.path)
