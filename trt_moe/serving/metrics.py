"""What a router has done so far, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from trt_moe.router import Router

LIMITS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper limits of the histograms' buckets, in seconds."""


class RouterMetrics(Collector):
    """Counts and latencies of one router, read when they are asked for; routing pays nothing for it.

        prometheus_client.REGISTRY.register(RouterMetrics(router))

    Args:
        router: any; it is kept alive.
    """

    def __init__(self, router: Router) -> None:
        """See the class."""
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """Everything, at this moment."""
        router = self._router
        stats = router.stats()
        info = GaugeMetricFamily(
            "trt_moe_info", "What answers; always 1.", labels=("bundle", "device", "precision", "plan")
        )
        info.add_metric((router.bundle.name, router.device, router.precision, router.plan), 1)
        yield info
        yield GaugeMetricFamily("trt_moe_latency_weight", "Of the routing rule.", value=router.latency_weight)
        yield GaugeMetricFamily(
            "trt_moe_verify_below", "Confidence below which an image gets a second look.", value=router.verify_below
        )
        yield GaugeMetricFamily("trt_moe_in_flight", "Unfinished images.", value=stats["in_flight"])
        for key, name, told in (
            ("images", "trt_moe_images", "Images that an expert answered, alone or second."),
            ("passed_on", "trt_moe_passed_on", "Images that an expert was unsure of and passed on to be verified."),
            ("batches", "trt_moe_batches", "Batches that an expert ran."),
        ):
            counter = CounterMetricFamily(name, told, labels=("expert",))
            for expert, counts in stats["experts"].items():
                counter.add_metric((expert,), counts[key])
            yield counter
        deadlines = stats["deadlines"]
        yield CounterMetricFamily(
            "trt_moe_deadline_moved", "Images that took another expert for a deadline's sake.", value=deadlines["moved"]
        )
        yield CounterMetricFamily(
            "trt_moe_deadline_missed", "Deadlines that no expert could meet.", value=deadlines["missed"]
        )
        yield self._latencies()

    def _latencies(self) -> Metric:
        family = HistogramMetricFamily(
            "trt_moe_stage_seconds", "Latency of each stage of an image, and of all together.", labels=("stage",)
        )
        edges = [*map(str, LIMITS_S), "+Inf"]
        for stage, counted in self._router.latencies([1e3 * limit for limit in LIMITS_S]).items():
            within = [*counted["within"], counted["count"]]
            family.add_metric((stage,), list(zip(edges, within, strict=True)), sum_value=1e-3 * counted["sum_ms"])
        return family
