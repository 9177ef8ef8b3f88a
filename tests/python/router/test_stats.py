"""What a router says of what it has done."""

import numpy as np
import pytest

import trt_moe
from support.tiny_bundle import TinyBundle, write_tiny_bundle
from trt_moe.errors import InputError

STAGES = ("gate", "queue", "gather", "expert", "scatter", "total")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", experts=3, classes=4, channels=3)


def test_stats_count_every_image_once(tiny: TinyBundle) -> None:
    images = tiny.random(20)
    with trt_moe.Router(tiny.path) as router:
        router.predict(images)
        router.predict(images[:1])
        stats = router.stats()
    assert {stage: numbers["count"] for stage, numbers in stats["stages"].items()} == dict.fromkeys(STAGES, 21)
    routes = [*tiny.routes(images), tiny.routes(images[:1])[0]]
    assert [expert["images"] for expert in stats["experts"].values()] == np.bincount(routes, minlength=3).tolist()
    assert sum(expert["share"] for expert in stats["experts"].values()) == pytest.approx(1.0)
    assert stats["in_flight"] == 0
    assert (
        stats["stages"]["total"]["p50_ms"] <= stats["stages"]["total"]["p99_ms"] <= stats["stages"]["total"]["max_ms"]
    )


def test_a_router_that_answered_nothing_has_statistics(tiny: TinyBundle) -> None:
    with trt_moe.Router(tiny.path) as router:
        assert [expert["share"] for expert in router.stats()["experts"].values()] == [0.0, 0.0, 0.0]


def test_latencies_are_counted_by_limit(tiny: TinyBundle) -> None:
    with trt_moe.Router(tiny.path) as router:
        assert router.latencies([])["total"] == {"within": [], "count": 0, "sum_ms": 0.0}
        router.predict(tiny.random(20))
        latencies = router.latencies([600_000, 0, 1e-6])
        stages = router.stats()["stages"]
    assert tuple(latencies) == STAGES
    for stage, counted in latencies.items():
        assert counted["count"] == 20
        assert counted["within"][0] == 20
        assert counted["sum_ms"] == pytest.approx(20 * stages[stage]["mean_ms"])
    assert latencies["total"]["within"] == [20, 0, 0]


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "1", None])
def test_limits_out_of_range_are_refused(tiny: TinyBundle, limit: object) -> None:
    with trt_moe.Router(tiny.path) as router, pytest.raises(InputError, match="a limit is"):
        router.latencies([1.0, limit])  # type: ignore[list-item]


def test_it_says_whether_it_is_closed(tiny: TinyBundle) -> None:
    router = trt_moe.Router(tiny.path)
    assert not router.closed
    router.close()
    assert router.closed
