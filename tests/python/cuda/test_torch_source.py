"""Torch modules as a source, with the CPU in place of the GPU: which calls of torch.cuda are made, in which order."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.fake_cuda import FakeCapture, FakeDevice
from trt_moe.cuda import torch_source
from trt_moe.cuda.torch_source import HalfModel, TorchSource
from trt_moe.models import ImageModel


class Sums(nn.Module):
    """Three logits: the image's sum, once, twice and three times."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
        return images.float().sum(dim=(1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of torch.cuda, which do nothing else."""
    noted: list[Any] = []

    def scope(name: str) -> Any:
        @contextmanager
        def enter(argument: Any) -> Iterator[None]:
            noted.append((f"enter {name}", argument))
            yield
            noted.append((f"leave {name}", argument))

        return enter

    for name in ("use_mem_pool", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, scope(name))
    monkeypatch.setattr(torch.cuda, "MemPool", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ("stream", handle, str(device)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: noted.append("synchronize"))
    monkeypatch.setattr(nn.Module, "to", lambda self, device: noted.append(("to", str(device))) or self)
    monkeypatch.setattr(torch_source, "_view", host_view)
    return noted


def host_view(address: int, shape: tuple[int, ...], dtype: str, device: torch.device) -> torch.Tensor:
    """As `_view`, over the CPU's memory."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * count).from_address(address)
    return torch.from_numpy(np.frombuffer(raw, np.dtype(dtype)).reshape(shape))


def test_a_run_reads_and_writes_memory_of_the_core(calls: list[Any]) -> None:
    images = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2, 1)
    logits = np.full((2, 3), -1, np.float32)
    capture = FakeCapture(FakeDevice(), input_shape=(2, 2, 1), outputs=3, buckets=[1, 2])
    capture.input_address, capture.output_address = images.ctypes.data, logits.ctypes.data  # type: ignore[misc]
    source = TorchSource(Sums())
    source.bind(capture)
    source.enqueue(1)
    assert logits.tolist() == [[6, 12, 18], [-1, -1, -1]]
    source.enqueue(2)
    assert logits.tolist() == [[6, 12, 18], [22, 44, 66]]
    images[0, 0, 0, 0] = 10
    source.enqueue(1)
    assert logits.tolist()[0] == [16, 32, 48]


def test_a_run_is_on_the_stream_of_the_core_and_allocates_from_its_own_pool(calls: list[Any]) -> None:
    room = np.zeros(64, np.uint8)
    capture = FakeCapture(FakeDevice(), input_shape=(2, 2, 1), outputs=3, buckets=[1])
    capture.input_address = capture.output_address = room.ctypes.data  # type: ignore[misc]
    source = TorchSource(Sums())
    source.bind(capture)
    calls.clear()
    source.enqueue(1)
    stream = ("stream", capture.stream, "cuda:0")
    # The pool before the stream: see torch_source.
    assert [call for call in calls if call[0].startswith("enter")] == [
        ("enter device", torch.device("cuda", 0)),
        ("enter use_mem_pool", "pool"),
        ("enter stream", stream),
    ]
    assert [call[0] for call in calls if call[0].startswith("leave")] == [
        "leave stream", "leave use_mem_pool", "leave device",
    ]  # fmt: skip
    assert "synchronize" not in calls


def test_half_models_compute_the_network_in_half_and_leave_their_argument_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ImageModel(network, (8, 8), (8, 8), [0.5] * 3, [0.5] * 3)
    half = HalfModel(model)
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found, expected = half(images), model(images)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max()) < 5e-3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    with torch.inference_mode():
        torch.testing.assert_close(HalfModel(model.with_temperature(4.0))(images), found / 4)
