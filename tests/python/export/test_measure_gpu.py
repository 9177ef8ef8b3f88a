"""Latencies on a GPU, on a stand-in: what is captured, how it is timed, and when a GPU is asked for."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from tests.support.fake_cuda import FakeCapture, FakeDevice  # noqa: E402
from trt_moe.errors import DeviceError  # noqa: E402
from trt_moe.export import measure_gpu  # noqa: E402
from trt_moe.models import ImageModel, SqueezeNetLight  # noqa: E402

SHAPE = (16, 16, 1)


class TimedCapture(FakeCapture):
    calls: ClassVar[list[str]] = []

    def time(self, image: Any, iterations: int, warmup: int) -> Any:
        assert image.shape == SHAPE and image.dtype == np.uint8 and warmup == 0
        self.calls.append(self.options["name"])
        return np.full(iterations, {"gater": 0.5, "light": 1.0, "heavy": 4.0}[self.options["name"]])


class FakeSource:
    def __init__(self, module: Any) -> None:
        self.module = module

    def bind(self, capture: Any) -> None:
        pass

    def enqueue(self, bucket: int) -> None:
        pass


def image_model(network: Any) -> ImageModel:
    return ImageModel(network, SHAPE[:2], SHAPE[:2], [0.5], [0.5]).eval()


@pytest.mark.parametrize(("width", "precision"), [(16, "fp32"), (8, "fp16")])
def test_all_models_are_captured_alone_and_timed_in_turns(
    monkeypatch: pytest.MonkeyPatch, width: int, precision: str
) -> None:
    captures: list[TimedCapture] = []

    def capture(device: Any, **options: Any) -> TimedCapture:
        captures.append(TimedCapture(device, **options))
        return captures[-1]

    monkeypatch.setattr("trt_moe._core.CudaCapture", capture, raising=False)
    monkeypatch.setattr(measure_gpu, "TorchSource", FakeSource)
    monkeypatch.setattr(TimedCapture, "calls", calls := [])
    classifiers = {name: image_model(torch.nn.Flatten()) for name in ("light", "heavy")}
    gater = image_model(SqueezeNetLight(2, 1, 16, width))
    found: Any = measure_gpu.measure_latency_on_gpu(FakeDevice(), gater, 2, classifiers, SHAPE, 10, iterations=3)  # type: ignore[arg-type]
    assert {name: timing.milliseconds.tolist() for name, timing in found.items()} == {
        "light": [1.0] * 3, "heavy": [4.0] * 3, "gater": [0.5] * 3,
    }  # fmt: skip
    assert calls[-6:] == ["light", "heavy", "gater"] * 2
    options = {each.options["name"]: each.options for each in captures}
    assert {name: (each["outputs"], each["buckets"], each["precision"]) for name, each in options.items()} == {
        "light": (10, [1], "fp16"), "heavy": (10, [1], "fp16"), "gater": (2, [1], precision),
    }  # fmt: skip
    assert [event[0] for event in captures[-1].events].count("hold gater") == (width == 16)


def test_a_gpu_is_opened_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DeviceError("no device")

    monkeypatch.setattr(measure_gpu, "open_device", missing)
    assert measure_gpu.gpu_for("cpu") is None
    assert measure_gpu.gpu_for("auto") is None
    with pytest.raises(DeviceError, match="no device"):
        measure_gpu.gpu_for("cuda")
    monkeypatch.setattr(measure_gpu, "open_device", lambda: "a GPU")
    assert measure_gpu.gpu_for("cpu") is None
    assert measure_gpu.gpu_for("auto") == measure_gpu.gpu_for("cuda") == "a GPU"
