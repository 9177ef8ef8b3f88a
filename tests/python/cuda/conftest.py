from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_cuda import FakeCapture
from tests.support.tensorrt_fixtures import tensorrt  # noqa: F401


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> list[FakeCapture]:
    """The captures that are made, in place of the core's."""
    captures: list[FakeCapture] = []

    def capture(device: Any, **options: Any) -> FakeCapture:
        captures.append(FakeCapture(device, **options))
        return captures[-1]

    monkeypatch.setattr("trt_moe._core.CudaCapture", capture, raising=False)
    return captures
