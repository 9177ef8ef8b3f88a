import json

import numpy as np
import pytest

from support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.errors import InputError, RouterClosedError
from trt_moe.profiling import profile
from trt_moe.profiling.measure import profile_images, summary
from trt_moe.router import Router


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("b"), experts=2)


def test_profile_is_complete(tiny):
    seen = []
    with Router(tiny.path, threads=1) as router:
        data = profile(router, tiny.random(10), 25, (1, 3), 0.2, progress=lambda *args: seen.append(args))
    data = json.loads(json.dumps(data, allow_nan=False))
    assert set(data["latency"]) == {"mixture", "gater", "expert-0", "expert-1", "robust-light"}
    for row in data["latency"].values():
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["p99_9_ms"] <= row["max_ms"]
    assert set(data["stages"]) == {"gate", "queue", "gather", "expert", "scatter", "total"}
    assert sum(data["share"].values()) == pytest.approx(1)
    assert [row["clients"] for row in data["clients"]] == [1, 3]
    assert all(row["images_per_s"] > 0 for row in data["clients"])
    assert {what for what, _, _ in seen} == {"single images", "1 client", "3 clients"}


def test_images_at_random_times(tiny):
    seen = []
    with Router(tiny.path, threads=1) as router:
        names = router.expert_names
        data = profile(
            router,
            tiny.random(10),
            25,
            (),
            0.2,
            lambda *args: seen.append(args),
            rates=(50, 100),
            deadline_ms=np.float32(60_000),
        )
        assert router.stats()["experts"][names[0]]["images"] > 0
    data = json.loads(json.dumps(data, allow_nan=False))
    assert (data["clients"], data["deadline_ms"]) == ([], 60_000)
    assert [(row["rate"], row["images"]) for row in data["rates"]] == [(50, 10), (100, 20)]
    for row in data["rates"]:
        assert (row["refused"], row["in_time"]) == (0, 1)
        assert 0 < row["p50_ms"] <= row["p99_9_ms"] <= row["max_ms"]
        assert list(row["share"]) == names and sum(row["share"].values()) == pytest.approx(1)
        assert row["client_late_p99_ms"] >= 0
    assert [args for args in seen if "/s" in args[0]] == [
        (what, done, 1) for what in ("50 images/s for 0.2 s", "100 images/s for 0.2 s") for done in (0, 1)
    ]


def test_without_a_deadline_nothing_is_in_time_or_late(tiny):
    with Router(tiny.path, threads=1) as router:
        (row,) = profile(router, tiny.random(10), 25, (), 0.2, rates=(50,))["rates"]
    assert "in_time" not in row and row["refused"] == 0


def test_where_all_are_refused_there_are_no_latencies(tiny):
    with Router(tiny.path, threads=1) as router:
        (row,) = profile(router, tiny.random(10), 25, (), 0.2, rates=np.array([50]), deadline_ms=1e-5)["rates"]
    late = row.pop("client_late_p99_ms")
    assert late >= 0 and json.dumps(row) == '{"rate": 50, "images": 10, "refused": 1.0, "in_time": 0.0}'


def test_too_many_images_are_refused_before_anything_is_timed(tiny):
    with Router(tiny.path, threads=1) as router:
        with pytest.raises(InputError, match="expected at most 1,000,000"):
            profile(router, tiny.random(10), 25, (), 3600, rates=(1, 100_000))
        assert router.stats()["stages"]["total"]["count"] == 0


def test_a_client_that_fails_ends_the_profile(tiny):
    router = Router(tiny.path, threads=1)
    original, calls = router.predict, []

    def predict(batch):
        calls.append(1)
        if len(calls) > 60:
            router.close()
        return original(batch)

    router.predict = predict
    with pytest.raises(RouterClosedError):
        profile(router, tiny.random(10), 25, (2,), 30.0)


def test_images_are_the_samples_or_noise(tiny, tmp_path):
    images, what = profile_images(Bundle.load(tiny.path))
    assert len(images) == 18
    assert "samples" in what
    bare = write_tiny_bundle(tmp_path, samples_per_class=0)
    images, what = profile_images(Bundle.load(bare.path))
    assert images.shape == (64, 8, 8, 1)
    assert "noise" in what


def test_samples_come_in_mixed_order(tiny):
    bundle = Bundle.load(tiny.path)
    by_severity, _, severities = bundle.samples()
    images, _ = profile_images(bundle)
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in by_severity)
    came = [severities[(by_severity == image).all(axis=(1, 2, 3))][0] for image in images]
    assert len(set(came[: len(came) // 3])) > 3


def test_summary():
    row = summary(np.array([1.0, 2.0, 3.0]))
    assert row["mean_ms"] == 2.0
    assert row["images_per_s"] == 500.0
    thousand = summary(np.arange(1001.0))
    assert [thousand[f"p{part}_ms"] for part in ("50", "90", "99", "99_9")] == pytest.approx([500, 900, 990, 999])
    assert (thousand["min_ms"], thousand["max_ms"]) == (0, 1000)
