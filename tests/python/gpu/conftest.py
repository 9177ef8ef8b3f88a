"""What runs on a GPU only; elsewhere it is skipped, and the reason is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cuda_on_host import HostSource
from tests.support.gpu_router import open_router
from tests.support.tiny_bundle import TinyBundle, write_tiny_bundle
from trt_moe import Router, _core
from trt_moe.cuda import torch_source
from trt_moe.cuda.device import open_device
from trt_moe.errors import DeviceError

IS_ON_HOST = "tests" in _core.cuda_build()
"""Whether CUDA runs on the CPU: the core was built with TRT_MOE_CUDA=ON_HOST."""

NOT_ON_HOST = {
    "test_beside_torch.py": "torch sees no GPU",
    "test_costs_gpu.py": "torch sees no GPU",
    "test_interop_gpu.py": "torch sees no GPU",
    "test_training_gpu.py": "torch sees no GPU",
    "test_a_router_takes_the_kernels_for_a_gater_as_it_was_trained": "a DeiT-S takes minutes there",
}


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
        for name in (item.path.name, item.name):
            if IS_ON_HOST and name in NOT_ON_HOST:
                item.add_marker(pytest.mark.skip(reason=f"where CUDA runs on the CPU, {NOT_ON_HOST[name]}"))
        if not IS_ON_HOST and item.path.name == "test_interop_on_host.py":
            item.add_marker(pytest.mark.skip(reason="the host cannot write to a GPU's memory"))
    # Where the time ends early, the router was tested; where a capture of torch's ends badly, so does what comes after.
    items.sort(key=lambda item: (item.path.name == "test_beside_torch.py", item.path.name != "test_router_gpu.py"))


@pytest.fixture(scope="session", autouse=True)
def modules_on_host() -> Iterator[None]:
    """Where CUDA runs on the CPU, so do torch modules."""
    with pytest.MonkeyPatch.context() as patch:
        if IS_ON_HOST:
            patch.setattr(torch_source, "TorchSource", HostSource)
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    pytest.importorskip("onnx", reason="onnx is not installed: the models of the tiny bundle are made with it")
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"), experts=3, classes=4, channels=3)


@pytest.fixture(scope="module", params=["auto", "host-routed"])
def router(request: pytest.FixtureRequest, tiny: TinyBundle) -> Iterator[Router]:
    """A router on torch-captured models, with each plan."""
    with open_router(tiny, plan=request.param) as opened:
        yield opened
