"""The router on a tiny bundle whose routes and logits are known."""

import asyncio
import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trt_moe
import trt_moe.bundle
import trt_moe.router
from tests.support.tiny_bundle import TinyBundle, edit_manifest, write_tiny_bundle
from trt_moe.cuda.device import reason_against


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("router") / "tiny", experts=3, classes=4)


@pytest.fixture(scope="module")
def router(tiny: TinyBundle):
    with trt_moe.Router(tiny.path, precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def routers(router: trt_moe.Router, tiny: TinyBundle):
    """By whose second look it is."""
    with trt_moe.Router(tiny.path, precision="fp32", verify_by="mirror") as by_mirror:
        yield {"dearest": router, "mirror": by_mirror}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_predict_routes_and_answers_as_the_models_must(router: trt_moe.Router, tiny: TinyBundle) -> None:
    images = tiny.random(40)
    result = router.predict(images)
    expected = np.stack(
        [tiny.expert_logits(route, images[i : i + 1])[0] for i, route in enumerate(tiny.routes(images))]
    )
    assert result.experts.tolist() == tiny.routes(images).tolist()
    assert result.labels.tolist() == tiny.labels(images).tolist()
    assert result.classes == [f"class-{label}" for label in tiny.labels(images)]
    np.testing.assert_allclose(result.probabilities, softmax(expected), atol=1e-4)
    np.testing.assert_allclose(result.gater_logits, tiny.gater_logits(images), atol=1e-3)
    assert result.probabilities.dtype == np.float32
    assert (result.latency_ms > 0).all()
    assert set(result.experts.tolist()) == {0, 1, 2}


def test_a_result_indexes_and_iterates_rows(router: trt_moe.Router, tiny: TinyBundle) -> None:
    result = router.predict(tiny.random(3))
    rows = list(result)
    assert len(result) == len(rows) == 3
    assert rows[2].class_name == result.classes[2]
    assert rows[2].expert_name == f"expert-{result.experts[2]}"
    assert rows[2].probabilities.argmax() == rows[2].label
    part = result[np.int64(1) : 3]
    assert isinstance(part, trt_moe.Result)
    assert part.classes == result.classes[1:]
    assert part[-1].label == rows[2].label
    assert part.latency_ms.tolist() == result.latency_ms[1:].tolist()
    np.testing.assert_array_equal(part.gater_logits, result.gater_logits[1:])
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        result[[0, 1]]  # type: ignore[call-overload]


@settings(deadline=None, max_examples=25)
@given(levels=st.lists(st.integers(0, 255), min_size=1, max_size=70), cut=st.integers(0, 70))
def test_answers_do_not_depend_on_the_batch(
    router: trt_moe.Router, tiny: TinyBundle, levels: list[int], cut: int
) -> None:
    images = np.concatenate([tiny.grey(level) for level in levels])
    together = router.predict(images)
    parts = [router.predict(part) for part in (images[:cut], images[cut:]) if len(part)]
    alone = [router.predict(image[None]) for image in images]
    for pieces in (parts, alone):
        np.testing.assert_array_equal(np.concatenate([piece.probabilities for piece in pieces]), together.probabilities)
        np.testing.assert_array_equal(np.concatenate([piece.experts for piece in pieces]), together.experts)


def test_answers_are_the_same_from_16_threads(router: trt_moe.Router, tiny: TinyBundle) -> None:
    images = tiny.random(320, seed=3)
    together = router.predict(images)
    with ThreadPoolExecutor(16) as pool:
        alone = list(pool.map(lambda image: router.predict(image[None]), images))
        futures = list(pool.map(router.submit, images))
    np.testing.assert_array_equal(np.concatenate([one.probabilities for one in alone]), together.probabilities)
    np.testing.assert_array_equal(
        np.stack([future.result().probabilities for future in futures]), together.probabilities
    )
    assert [future.result().expert for future in futures] == together.experts.tolist()


def test_submit_answers_one_row(router: trt_moe.Router, tiny: TinyBundle) -> None:
    image = tiny.grey(200)[0]
    row = router.submit(image).result(timeout=30)
    assert (row.expert, row.expert_name) == (2, "expert-2")
    assert row.latency_ms > 0
    assert row.class_name == router.predict(image[None]).classes[0]


def test_predict_async(router: trt_moe.Router, tiny: TinyBundle) -> None:
    images = tiny.random(5)

    async def both() -> list[trt_moe.Result]:
        return await asyncio.gather(router.predict_async(images), router.predict_async(images[:1]))

    whole, first = asyncio.run(both())
    np.testing.assert_array_equal(whole.probabilities[:1], first.probabilities)


def test_coroutines_with_single_images_hold_no_thread(router: trt_moe.Router, tiny: TinyBundle) -> None:
    images = tiny.random(200)

    async def all_at_once() -> list[trt_moe.Result]:
        answers = await asyncio.gather(*(router.predict_async(image[None]) for image in images))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]
        return answers

    answers = asyncio.run(all_at_once())
    expected = router.predict(images)
    for field in ("probabilities", "experts", "gater_logits"):
        found = np.concatenate([getattr(answer, field) for answer in answers])
        np.testing.assert_array_equal(found, getattr(expected, field))
        assert found.dtype == getattr(expected, field).dtype
    assert all(answer.latency_ms.shape == (1,) and answer.latency_ms[0] > 0 for answer in answers)


def test_latencies_of_predict_async_count_from_the_call(tiny: TinyBundle) -> None:
    with trt_moe.Router(tiny.path, max_batch=16) as router:
        latency_ms = asyncio.run(router.predict_async(tiny.random(48))).latency_ms
    first, second, third = latency_ms.reshape(3, 16)
    assert first.max() < second.min() and second.max() < third.min()


def test_results_are_equal_to_themselves_alone(router: trt_moe.Router, tiny: TinyBundle) -> None:
    result, other = router.predict(tiny.random(2)), router.predict(tiny.random(2))
    assert result == result and result != other
    rows = list(result)
    assert rows[1] in rows and len({*rows}) == 2


def test_latency_weight_moves_routes_at_run_time(tiny: TinyBundle) -> None:
    images = tiny.random(60, seed=5)
    with trt_moe.Router(tiny.path) as router:
        shares = []
        for weight in (0.0, 5.0, 1e6):
            router.latency_weight = weight
            result = router.predict(images)
            assert result.experts.tolist() == tiny.routes(images, weight).tolist()
            shares.append(float((result.experts == 0).mean()))
        assert shares == sorted(shares) and shares[-1] == 1.0
        assert router.latency_weight == 1e6


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "much"])
def test_a_latency_weight_that_is_no_weight(router: trt_moe.Router, weight: object) -> None:
    with pytest.raises(trt_moe.InputError, match="latency_weight"):
        router.latency_weight = weight  # type: ignore[assignment]


@pytest.mark.parametrize("by", ["dearest", "mirror"])
@settings(deadline=None, max_examples=25)
@given(below=st.floats(0, 1, width=32), seed=st.integers(0, 1000))
def test_where_an_expert_is_unsure_two_looks_answer_in_any_batch(
    routers: dict[str, trt_moe.Router], tiny: TinyBundle, by: str, below: float, seed: int
) -> None:
    router = routers[by]
    assert router.verify_by == by

    def passed_on() -> list[int]:
        return [expert["passed_on"] for expert in router.stats()["experts"].values()]

    images = tiny.random(20, seed=seed)
    routes = tiny.routes(images)
    before = passed_on()
    router.verify_below = below
    try:
        result = router.predict(images)
        alone = [router.predict(image[None]) for image in images]
        submitted = [router.submit(image).result(timeout=30) for image in images]
    finally:
        router.verify_below = 0.0

    def look(experts: np.ndarray, at: np.ndarray) -> np.ndarray:
        pairs = zip(experts, at, strict=True)
        return softmax(np.concatenate([router.model(f"expert-{k}").logits(image[None]) for k, image in pairs]))

    own = look(routes, images)
    second = look(routes, images[:, :, ::-1]) if by == "mirror" else look(np.full(20, 2), images)
    confidence = own.max(axis=1)
    clear = np.abs(confidence - below) > 1e-5  # rounding decides the others
    twice = (confidence < below) & (routes != 2)
    last = np.where(twice & (by == "dearest"), 2, routes)
    assert result.experts[clear].tolist() == last[clear].tolist()
    expected = np.where(twice[:, None], (own + second) / 2, own)
    np.testing.assert_allclose(result.probabilities[clear], expected[clear], atol=1e-6)
    for row, (one, future) in enumerate(zip(alone, submitted, strict=True)):
        np.testing.assert_array_equal(one.probabilities[0], result.probabilities[row])
        np.testing.assert_array_equal(future.probabilities, result.probabilities[row])
        assert one.experts[0] == future.expert == result.experts[row]
    if clear.all():
        moved = [3 * int(((routes == k) & twice).sum()) for k in (0, 1)]
        assert [now - then for now, then in zip(passed_on(), before, strict=True)] == [*moved, 0]


def test_verify_below_is_set_at_run_time(tiny: TinyBundle) -> None:
    dark = tiny.grey(10)
    with trt_moe.Router(tiny.path) as router:
        assert router.verify_below == router.bundle.verify_below == 0.0
        assert router.predict(dark).experts.tolist() == [0]
        router.verify_below = 1.0
        assert router.verify_below == 1.0
        assert router.predict(dark).experts.tolist() == [2]


def test_a_bundle_says_from_where_on_to_verify(tmp_path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny", experts=2)
    edit_manifest(tiny.path, lambda data: data.update(verify_below=1.0))
    with trt_moe.Router(tiny.path) as router:
        assert router.verify_below == 1.0
        assert router.predict(tiny.grey(10)).experts.tolist() == [1]
    edit_manifest(tiny.path, lambda data: data.update(verify_by="mirror"))
    with trt_moe.Router(tiny.path) as router:
        assert router.verify_by == "mirror"
        assert router.predict(tiny.grey(10)).experts.tolist() == [0]
        assert router.stats()["experts"]["expert-0"]["passed_on"] == 1
    edit_manifest(tiny.path, lambda data: data.update(verify_by="dearest", latency_weight=5.0))
    with trt_moe.Router(tiny.path, verify_below=0.0, latency_weight=0.0) as router:
        assert (router.verify_below, router.latency_weight) == (0.0, 0.0)
        assert router.predict(tiny.grey(10)).experts.tolist() == [0]
        assert router.predict(tiny.grey(250)).experts.tolist() == [1]


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), "much"])
def test_a_probability_that_is_none(router: trt_moe.Router, probability: object) -> None:
    with pytest.raises(trt_moe.InputError, match=r"verify_below is .*; expected a number from 0 to 1"):
        router.verify_below = probability  # type: ignore[assignment]


def test_inputs_of_many_kinds_give_one_answer(router: trt_moe.Router, tiny: TinyBundle) -> None:
    torch = pytest.importorskip("torch")
    images = tiny.random(6)
    expected = router.predict(images).probabilities
    wide = np.zeros((6, 8, 16, 1), np.uint8)
    wide[:, :, ::2] = images
    assert not wide[:, :, ::2].flags.c_contiguous
    for batch in (list(images), torch.from_numpy(images), wide[:, :, ::2], np.asfortranarray(images)):
        np.testing.assert_array_equal(router.predict(batch).probabilities, expected)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"float32 \[2, 8, 8, 1\]; expected .*uint8 \[N, 8, 8, 1\]"),
        (np.zeros((2, 8, 8, 1), np.float32), r"astype\(np.uint8\)"),
        ([np.zeros((8, 8, 1), np.float32)], r"astype\(np.uint8\)"),
        (np.zeros((8, 8, 1), np.uint8), r"image\[None\]"),
        (np.zeros((2, 8, 8), np.uint8), r"pass images\[\.\.\., None\]"),
        ([np.zeros((8, 8), np.uint8)], r"pass images\[\.\.\., None\]"),
        (np.zeros((2, 1, 8, 8), np.uint8), "channels"),
        (np.zeros((2, 8, 9, 1), np.uint8), r"\[2, 8, 9, 1\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "empty"),
        (np.zeros((1, 0, 8, 1), np.uint8), r"\[1, 0, 8, 1\]"),
        ([], "empty"),
        ([np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)], "image 1 of the list"),
        ("image.png", "load_images"),
        (None, "NoneType"),
    ],
)
def test_bad_batches_say_what_was_found_and_expected(router: trt_moe.Router, batch: object, says: str) -> None:
    with pytest.raises(trt_moe.InputError, match=says):
        router.predict(batch)


def test_a_bad_image_is_refused_at_submit(router: trt_moe.Router) -> None:
    with pytest.raises(trt_moe.InputError, match=r"expected uint8 \[8, 8, 1\]; .* pass images\[0\]"):
        router.submit(np.zeros((1, 8, 8, 1), np.uint8))


def test_a_tensor_that_is_not_in_cpu_memory(router: trt_moe.Router) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(trt_moe.InputError, match="CPU memory"):
        router.predict(torch.zeros((1, 8, 8, 1), dtype=torch.uint8, device="meta"))


def test_more_than_max_batch_is_answered_in_turns(tiny: TinyBundle) -> None:
    images = tiny.random(23)
    with trt_moe.Router(tiny.path, max_batch=4, max_queue=5) as router:
        assert router.predict(images).experts.tolist() == tiny.routes(images).tolist()


def test_a_full_queue_is_said_and_nothing_is_lost(tmp_path) -> None:
    slow = write_tiny_bundle(tmp_path / "slow", work=(60, 60), golden=0, size=(64, 64))
    with trt_moe.Router(slow.path, max_queue=3, warmup=False) as router:
        futures = []
        with pytest.raises(trt_moe.QueueFullError, match="max_queue=3"):
            for _ in range(200):
                futures.append(router.submit(slow.grey(20)[0]))
        assert len(futures) >= 3
        assert [future.result(timeout=60).expert for future in futures] == [0] * len(futures)
        assert not router._completions._futures, "a refused one is forgotten"


@pytest.mark.parametrize("model", ["gater", "expert-0"])
def test_nan_logits_are_an_error_that_names_the_model(tmp_path, model: str) -> None:
    broken = write_tiny_bundle(tmp_path / "nan", nan=(model,), golden=0)
    with trt_moe.Router(broken.path) as router:
        with pytest.raises(trt_moe.ModelOutputError, match=model):
            router.predict(broken.grey(20))
        with pytest.raises(trt_moe.ModelOutputError, match="not finite"):
            router.predict(broken.grey(20, n=9))
        with pytest.raises(trt_moe.ModelOutputError, match="not finite"):
            router.submit(broken.grey(20)[0]).result(timeout=30)
        if model != "gater":
            assert router.predict(broken.grey(230)).experts.tolist() == [1]


def test_golden_logits_are_checked_unless_switched_off(tmp_path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    other = write_tiny_bundle(tmp_path / "other", experts=2, classes=3, nan=("expert-1",), golden=0)
    swapped = other.path / "expert-1.onnx"
    (bundle.path / "expert-1.onnx").write_bytes(swapped.read_bytes())
    digest = trt_moe.bundle.sha256_file(swapped)
    edit_manifest(bundle.path, lambda data: data["experts"][1].update(sha256=digest))
    with pytest.raises(trt_moe.ModelOutputError, match=r"expert-1.*golden"):
        trt_moe.Router(bundle.path)
    trt_moe.Router(bundle.path, check=False).close()


def test_a_closed_router_says_so(tiny: TinyBundle) -> None:
    router = trt_moe.Router(tiny.path)
    futures = [router.submit(image) for image in tiny.random(30)]
    router.close()
    router.close()
    assert all(future.done() for future in futures)
    assert [future.result().expert for future in futures] == tiny.routes(tiny.random(30)).tolist()
    for call in (lambda: router.predict(tiny.grey(1)), lambda: router.submit(tiny.grey(1)[0])):
        with pytest.raises(trt_moe.RouterClosedError, match="closed"):
            call()


def test_closing_with_cancel_answers_or_refuses_every_future(tmp_path) -> None:
    slow = write_tiny_bundle(tmp_path / "slow", work=(60, 60), golden=0, size=(64, 64))
    router = trt_moe.Router(slow.path)
    futures = [router.submit(slow.grey(20)[0]) for _ in range(500)]
    router.close(cancel_pending=True)
    errors = [future.exception(timeout=30) for future in futures]
    assert all(error is None or isinstance(error, trt_moe.RouterClosedError) for error in errors)
    assert any(errors)


def test_leaving_with_an_error_does_not_wait_for_pending_images(tmp_path) -> None:
    slow = write_tiny_bundle(tmp_path / "slow", work=(60, 60), golden=0, size=(64, 64))
    with pytest.raises(ZeroDivisionError), trt_moe.Router(slow.path) as router:
        futures = [router.submit(slow.grey(20)[0]) for _ in range(500)]
        raise ZeroDivisionError
    assert all(future.done() for future in futures)
    assert any(isinstance(future.exception(), trt_moe.RouterClosedError) for future in futures)


def test_a_callback_that_fails_costs_no_other_future_its_answer(tiny: TinyBundle) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    with trt_moe.Router(tiny.path) as router:
        for _ in range(20):
            future = router.submit(tiny.grey(20)[0])
            with contextlib.suppress(SystemExit):  # where the image was answered already
                future.add_done_callback(leave)
            assert router.submit(tiny.grey(20)[0]).result(timeout=30).expert == 0
            assert future.result(timeout=30).expert == 0
        assert router.stats()["in_flight"] == 0


def test_a_cancelled_predict_async_stops_after_a_batch(tmp_path) -> None:
    slow = write_tiny_bundle(tmp_path / "slow", work=(60, 60), golden=0, size=(64, 64))

    async def run(router: trt_moe.Router) -> None:
        task = asyncio.create_task(router.predict_async(np.repeat(slow.grey(20), 100_000, axis=0)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with trt_moe.Router(slow.path, max_batch=16) as router:
        asyncio.run(run(router))
        assert router.stats()["stages"]["total"]["count"] < 100_000


def test_a_forgotten_router_stops_its_threads(tiny: TinyBundle) -> None:
    before = threading.active_count()
    router = trt_moe.Router(tiny.path)
    router.submit(tiny.grey(3)[0]).result(timeout=30)
    assert threading.active_count() == before + 1
    del router
    gc.collect()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"max_batch": 0},
        {"max_queue": 0},
        {"max_wait_us": -1},
        {"max_wait_us": 10**18},
        {"max_queue": 10**12},
        {"max_batch": 1.5},
        {"max_batch": True},
        {"precision": "int3"},
        {"precision": None},
        {"precision": "int8"},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": "2"},
        {"threads": 10**30},
        {"latency_weight": 10**400},
        {"latency_weight": 10**5000},
        {"latency_weight": True},
        {"latency_weight": -1},
        {"verify_below": 1.5},
        {"verify_by": "cheapest"},
        {"check": "no"},
        {"warmup": None},
        {"speculate": "no"},
    ],
)
def test_options_out_of_range_are_named(tiny: TinyBundle, options: dict[str, object]) -> None:
    with pytest.raises(trt_moe.InputError, match=next(iter(options))) as caught:
        trt_moe.Router(tiny.path, **options)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_numbers_of_numpy_are_numbers(tiny: TinyBundle) -> None:
    with trt_moe.Router(tiny.path, max_batch=np.int64(4), threads=np.int32(1), latency_weight=np.float32(2)) as router:
        assert router.latency_weight == 2.0
        assert len(router.predict(tiny.random(9))) == 9
        assert len(router.model("gater").time(tiny.random(1)[0], iterations=np.int64(3), warmup=0)) == 3


def test_a_gpu_that_is_not_there_is_said(tiny: TinyBundle) -> None:
    if reason_against() is None:
        pytest.skip("here is a GPU, and TensorRT for it")
    with pytest.raises(trt_moe.DeviceError, match="trt-moe doctor"):
        trt_moe.Router(tiny.path, device="cuda")


def test_a_model_alone(router: trt_moe.Router, tiny: TinyBundle) -> None:
    images = tiny.random(9)
    for name, expected in (
        ("gater", tiny.gater_logits(images)),
        ("expert-1", tiny.expert_logits(1, images)),
        ("robust-light", tiny.expert_logits(0, images)),
    ):
        np.testing.assert_allclose(router.model(name).logits(images), expected, atol=1e-3)
    times = router.model("expert-0").time(images[0], iterations=7)
    assert times.shape == (7,) and (times > 0).all()
    with pytest.raises(trt_moe.InputError, match="expert-1"):
        router.model("expert1")


def test_max_wait_gathers_submissions_and_still_answers_one(tiny: TinyBundle) -> None:
    with trt_moe.Router(tiny.path, max_wait_us=2000) as router:
        assert router.submit(tiny.grey(20)[0]).result(timeout=30).expert == 0
        futures = [router.submit(tiny.grey(20)[0]) for _ in range(64)]
        assert {future.result(timeout=30).expert for future in futures} == {0}


def test_options_reach_the_core_and_the_models(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    pipeline = trt_moe.router._core.Pipeline

    def spy(*models: object, **options: object) -> object:
        given.update(options)
        return pipeline(*models, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(trt_moe.router._core, "Pipeline", spy)
    with trt_moe.Router(tiny.path, max_wait_us=2000, max_batch=7, max_queue=9, warmup=False, threads=1) as router:
        assert [given[name] for name in ("max_wait_us", "max_batch", "max_queue", "warmup")] == [2000, 7, 9, False]
        assert [router.model(name).core.threads for name in ("gater", "expert-0")] == [1, 1]
        assert router.model("gater").precision == "fp32"


def test_a_model_that_answers_otherwise_in_batches_runs_image_by_image(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, list[int] | None]] = []
    load = trt_moe.Router._compile

    def spy(self: trt_moe.Router, name: str, precision: str, buckets: list[int] | None) -> trt_moe.Model:
        compiled.append((name, buckets))
        return load(self, name, precision, buckets)

    answers = iter([False, True, True, True, True])
    monkeypatch.setattr(trt_moe.Router, "_compile", spy)
    monkeypatch.setattr(trt_moe.router, "same_in_any_batch", lambda model, images: next(answers))
    trt_moe.Router(tiny.path, precision="fp32").close()
    experts = [(f"expert-{index}", None) for index in range(3)]
    assert compiled == [("gater", None), ("gater", [1]), *experts]


def test_a_submitted_image_is_not_cancelled_and_its_callback_may_close(
    tiny: TinyBundle, caplog: pytest.LogCaptureFixture
) -> None:
    with trt_moe.Router(tiny.path, max_wait_us=100_000) as router:
        future = router.submit(tiny.grey(20)[0])
        assert not future.cancel()
        future.add_done_callback(lambda done: router.close())
        assert future.result(timeout=30).expert == 0
    assert caplog.text == ""


def test_modules_on_the_cpu_are_refused(tiny: TinyBundle) -> None:
    with pytest.raises(trt_moe.InputError, match="modules run on the GPU only"):
        trt_moe.Router(tiny.path, device="cpu", modules={"gater": object()})
