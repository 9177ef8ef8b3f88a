"""The router and torch in one process, on one GPU."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.support.gpu_router import check, open_router
from tests.support.tiny_bundle import TinyBundle
from trt_moe import Router
from trt_moe.cuda.capture import capture_model
from trt_moe.cuda.device import open_device
from trt_moe.cuda.torch_source import HalfModel, TorchSource
from trt_moe.models import ImageModel, create_expert


def test_memory_of_a_graph_is_not_given_to_others(router: Router, tiny: TinyBundle) -> None:
    torch.cuda.empty_cache()
    images = tiny.random(33)
    # Were the graph's memory in torch's common pool, one of these would be it, and be overwritten with NaN.
    taken = [
        torch.full((size,), torch.nan, device="cuda") for size in (1, 64, 4096, 1 << 18, 1 << 22) for _ in range(8)
    ]
    torch.cuda.synchronize()
    check(router.predict(images), tiny, images)
    assert all(bool(tensor.isnan().all()) for tensor in taken)


def test_torch_works_meanwhile(router: Router, tiny: TinyBundle) -> None:
    stop = threading.Event()
    sums: list[float] = []

    def work() -> None:
        matrix = torch.eye(256, device="cuda")
        while not stop.is_set():
            sums.append(float((matrix @ matrix).sum()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for seed in range(50):
            images = tiny.random(5, seed)
            check(router.predict(images), tiny, images)
    finally:
        stop.set()
        thread.join()
    assert set(sums) == {256.0}


def test_memory_is_taken_while_torch_captures(router: Router, tiny: TinyBundle) -> None:
    """In torch's usual mode of capture, an allocation on any thread ends it, unless that thread says otherwise."""
    source = torch.ones(16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph):
        doubled = source * 2
        buffer = pool.submit(router.input_buffer, 4).result(30)
    graph.replay()
    assert doubled.tolist() == [2.0] * 16
    buffer[...] = images = tiny.random(4)
    check(router.predict(buffer), tiny, images)


@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_torch_captures_meanwhile(router: Router, tiny: TinyBundle, mode: str) -> None:
    source = torch.ones(16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    images = tiny.random(3)
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph, capture_error_mode=mode):
        doubled = source * 2
        check(pool.submit(router.predict, images).result(30), tiny, images)
    graph.replay()
    assert doubled.tolist() == [2.0] * 16


def test_a_router_outlives_the_references_to_its_modules(tiny: TinyBundle) -> None:
    with open_router(tiny) as router:
        torch.cuda.empty_cache()
        images = tiny.random(8)
        check(router.predict(images), tiny, images)
    del router
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("squeezenet1_1", False),
        ("squeezenet1_1", True),
        ("mobilenetv3_small_100", False),
        ("deit_tiny_patch16_224", False),
    ],
)
def test_a_real_network_in_half(name: str, compiled: bool) -> None:
    torch.manual_seed(0)
    network = create_expert(name, num_classes=5, image_size=224)
    model = ImageModel(network, (224, 224), (224, 224), [0.5] * 3, [0.5] * 3).eval()
    half = HalfModel(model).cuda()
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    captured = capture_model(
        TorchSource(torch.compile(half) if compiled else half), open_device(), name=name, input_shape=(224, 224, 3),
        outputs=5, buckets=(1, 2, 4), precision="fp16",
    )  # fmt: skip
    with torch.inference_mode():
        eager = half(torch.from_numpy(images).cuda()).cpu().numpy()
        exact = model(torch.from_numpy(images)).numpy()
    largest = np.abs(exact).max()
    for count in (1, 3, 4):
        found = captured.logits(images[:count])
        assert np.abs(found - eager[:count]).max() <= 0.01 * largest
        assert np.abs(found - exact[:count]).max() <= 0.02 * largest
    assert np.array_equal(captured.logits(images), captured.logits(images))
