"""What runs on a GPU only; elsewhere it is skipped, and the reason is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gpu_router import open_router
from tests.support.tiny_bundle import TinyBundle, write_tiny_bundle
from trt_moe import Router
from trt_moe.cuda.device import open_device
from trt_moe.errors import DeviceError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    try:
        open_device()
    except DeviceError as error:
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=str(error)))
    for item in mine:
        item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    pytest.importorskip("onnx", reason="onnx is not installed: the models of the tiny bundle are made with it")
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"), experts=3, classes=4, channels=3)


@pytest.fixture(scope="module", params=["auto", "host-routed"])
def router(request: pytest.FixtureRequest, tiny: TinyBundle) -> Iterator[Router]:
    """A router on torch-captured models, with each plan."""
    with open_router(tiny, plan=request.param) as opened:
        yield opened
