"""The router on the GPU: the same suite for both plans."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.gpu_router import check, open_router
from tests.support.tiny_bundle import TinyBundle
from tests.support.tiny_modules import tiny_modules
from trt_moe import DeadlineError, ModelOutputError, Result, Router, RouterClosedError
from trt_moe.softmax import softmax

BATCHES = (1, 2, 3, 5, 8, 31, 32, 33, 64, 100)
"""Buckets, batches that are padded, those above the largest bucket, and one above max_batch."""


@pytest.mark.parametrize("count", BATCHES)
def test_every_batch_is_answered_as_by_hand(router: Router, tiny: TinyBundle, count: int) -> None:
    images = tiny.random(count, seed=count)
    check(router.predict(images), tiny, images)


def test_batches_of_one_expert_only(router: Router, tiny: TinyBundle) -> None:
    for value in (0, 127, 255):
        images = tiny.grey(value, 32)
        check(router.predict(images), tiny, images)


def test_submitted_images(router: Router, tiny: TinyBundle) -> None:
    images = tiny.random(50, seed=7)
    rows = [future.result(30) for future in [router.submit(image) for image in images]]
    assert [row.expert for row in rows] == tiny.routes(images).tolist()
    assert [row.label for row in rows] == tiny.labels(images).tolist()


def test_many_threads(router: Router, tiny: TinyBundle) -> None:
    def work(seed: int) -> None:
        for turn in range(20):
            images = tiny.random(1 + (seed + turn) % 9, seed=100 * seed + turn)
            check(router.predict(images), tiny, images)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_each_thread_may_be_new(router: Router, tiny: TinyBundle) -> None:
    images = tiny.random(3)
    answers: list[Result] = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: answers.append(router.predict(images)))
        thread.start()
        thread.join()
    assert len(answers) == 20
    check(answers[-1], tiny, images)


def test_the_latency_weight_holds_from_the_next_batch_on(tiny: TinyBundle) -> None:
    images = tiny.random(40, seed=3)
    for plan in ("auto", "host-routed"):
        with open_router(tiny, plan) as router:
            for weight in (0.0, 5.0, 1000.0, 0.0):
                router.latency_weight = weight
                assert router.predict(images).experts.tolist() == tiny.routes(images, weight).tolist()


def test_both_plans_agree(tiny: TinyBundle) -> None:
    images = tiny.random(64, seed=11)
    with open_router(tiny) as device, open_router(tiny, "host-routed") as host:
        print(device.plan, device.plan_reason)
        assert host.plan == "host-routed"
        first, second = device.predict(images), host.predict(images)
    assert first.experts.tolist() == second.experts.tolist()
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-6)


@pytest.mark.parametrize("plan", ["auto", "host-routed"])
def test_speculation_changes_no_answer(tiny: TinyBundle, plan: str) -> None:
    with open_router(tiny, plan, speculate=True) as router:
        for seed, count in enumerate((1, 1, 1, 1, 1, 1, 2, 33)):
            images = tiny.random(count, seed)
            check(router.predict(images), tiny, images)
        for value in (0, 127, 255):
            check(router.predict(tiny.grey(value)), tiny, tiny.grey(value))


@pytest.mark.parametrize("plan", ["auto", "host-routed"])
@pytest.mark.parametrize("by", ["dearest", "mirror"])
def test_where_an_expert_is_unsure_two_looks_answer(tiny: TinyBundle, plan: str, by: str) -> None:
    images = tiny.random(33, seed=5)
    routes = tiny.routes(images)

    def look(experts: NDArray[np.int64], at: NDArray[np.uint8]) -> NDArray[np.float32]:
        return softmax(
            np.stack([tiny.expert_logits(int(k), image[None])[0] for k, image in zip(experts, at, strict=True)])
        )

    own = look(routes, images)
    second = look(routes, images[:, :, ::-1]) if by == "mirror" else look(np.full(len(images), 2), images)
    with open_router(tiny, plan, verify_below=0.7, verify_by=by) as router:
        result = router.predict(images)
        rows = [future.result(30) for future in [router.submit(image) for image in images]]
    unsure = (own.max(axis=1) < 0.7) & (routes != 2)
    assert 0 < unsure.sum() < len(images)
    expected = np.where(unsure[:, None], (own + second) / 2, own)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-4)
    np.testing.assert_allclose([row.probabilities for row in rows], expected, atol=1e-4)
    assert result.experts.tolist() == np.where(unsure & (by == "dearest"), 2, routes).tolist()


@pytest.mark.parametrize("plan", ["auto", "host-routed"])
@pytest.mark.parametrize("model", ["gater", "expert-1"])
def test_logits_that_are_not_finite(tiny: TinyBundle, plan: str, model: str) -> None:
    modules = tiny_modules(tiny, nan=[model])
    with Router(tiny.path, device="cuda", precision="fp32", modules=modules, plan=plan, check=False) as router:
        with pytest.raises(ModelOutputError, match=model):
            router.predict(tiny.grey(127, 3))
        if model != "gater":
            check(router.predict(tiny.grey(0)), tiny, tiny.grey(0))


def test_modules_that_are_not_the_bundles_are_found(tiny: TinyBundle) -> None:
    modules = tiny_modules(tiny)
    modules["expert-0"] = modules["expert-2"]
    with pytest.raises(ModelOutputError, match=r"expert-0 in fp32 .* off the bundle's golden logits"):
        Router(tiny.path, device="cuda", precision="fp32", modules=modules)


def test_buffers_to_write_images_into(router: Router, tiny: TinyBundle) -> None:
    buffers = [router.input_buffer(4), router.input_buffer(40)]
    for seed in range(3):
        written = [tiny.random(len(buffer), seed) for buffer in buffers]
        for buffer, images in zip(buffers, written, strict=True):
            buffer[...] = images
        # Nobody else's images get there.
        check(router.predict(tiny.random(32, seed + 10)), tiny, tiny.random(32, seed + 10))
        router.submit(tiny.grey(255)[0]).result(30)
        for buffer, images in zip(buffers, written, strict=True):
            check(router.predict(buffer), tiny, images)
            check(router.predict(buffer[1:2]), tiny, images[1:2])
            check(router.predict(buffer[2:]), tiny, images[2:])


def test_memory_is_reported(router: Router) -> None:
    report = router.memory_report()
    for name in ("gater", "expert-0", "expert-1", "expert-2"):
        assert report[name]["device"] > 0
        assert report[name]["pinned"] > 0


def test_a_closed_router(tiny: TinyBundle) -> None:
    router = open_router(tiny)
    router.close()
    with pytest.raises(RouterClosedError):
        router.predict(tiny.grey(0))


def test_deadlines(router: Router, tiny: TinyBundle) -> None:
    for count in (1, 5, 64):
        images = tiny.random(count)
        check(router.predict(images, deadline_ms=600_000), tiny, images)
        with pytest.raises(DeadlineError, match="to be answered in"):
            router.predict(images, deadline_ms=1e-5)
        check(router.predict(images), tiny, images)
    assert router.submit(tiny.grey(0)[0], deadline_ms=600_000).result(30).expert == 0
