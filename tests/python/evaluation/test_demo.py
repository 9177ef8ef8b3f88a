"""What the demo asks the router for, and which of the report's figures it takes."""

from types import SimpleNamespace

import numpy as np
import pytest

from trt_moe import demo
from trt_moe.evaluation import Report

ROW = {
    "share": {"small": 0.9, "large": 0.1}, "accuracy": 0.7, "mean_ms": 1.0, "p99_ms": 2.0,
    "experts": {"small": 0.6, "middle": 0.65, "large": 0.8}, "images": 2,
}  # fmt: skip
DATA = {
    "bundle": "tiny", "device": "cpu", "precision": "fp32", "experts": ["small", "middle", "large"], "images": 4,
    "latency_weight": 0.7, "verify_below": 0.0, "verify_by": "dearest", "severities": {"0": ROW, "5": ROW},
    "overall": {
        name: {"accuracy": place / 10, "mean_ms": place + 1.0, "p99_ms": place + 5.0, "p50_ms": 9.0}
        for place, name in enumerate(("mixture", "small", "middle", "large"))
    },
    "disagreements": 0,
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """What is asked of router and evaluation, which are not there."""
    asked = SimpleNamespace(options=None, sets=None)

    class Router:
        def __init__(self, bundle, **options):
            asked.options = options

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    def evaluate(router, sets, *_):
        asked.sets = sets
        return Report(DATA, (), (), ())

    samples = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1), np.array([3, 1, 2, 0]), np.array([0, 5, 0, 5])
    monkeypatch.setattr(demo.Bundle, "load", lambda path: SimpleNamespace(samples=lambda: samples))
    monkeypatch.setattr(demo, "Router", Router)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    return asked


def test_the_router_is_made_as_told_and_sees_every_severity(asked):
    options = {
        "device": "cpu", "precision": "int8", "threads": 3, "latency_weight": 0.2, "verify_below": 0.4,
        "verify_by": "mirror",
    }  # fmt: skip
    demo.run_demo("tiny", **options)
    assert asked.options == options
    found = [(of.severity, of.images.ravel().tolist(), of.labels.tolist()) for of in asked.sets]
    assert found == [(0, [0, 2], [3, 2]), (5, [1, 3], [1, 0])]


def test_the_cheapest_and_the_dearest_expert_are_the_first_and_the_last(asked):
    data = demo.run_demo("tiny").data
    assert data["mixture"] == {"accuracy": 0.0, "mean_ms": 1.0, "p99_ms": 5.0}
    assert data["cheapest"] == {"accuracy": 0.1, "mean_ms": 2.0, "p99_ms": 6.0}
    assert data["dearest"] == {"accuracy": 0.3, "mean_ms": 4.0, "p99_ms": 8.0}
    row = data["severities"]["5"]
    assert (row["cheapest_accuracy"], row["dearest_accuracy"], row["p99_ms"]) == (0.6, 0.8, 2.0)


@pytest.mark.parametrize("count", [0, 2])
def test_images_that_were_answered_in_two_ways_are_told(asked, monkeypatch, capsys, count):
    for name in ("print_shares", "print_accuracies", "print_strategies", "print_frontier"):
        monkeypatch.setattr(demo, name, lambda _: None)
    demo.print_demo(demo.Demo({}, Report({**DATA, "disagreements": count}, (), (), ())))
    printed = capsys.readouterr().out
    assert printed.startswith("tiny: 4 real test images on cpu, experts in fp32, latency weight 0.7\n")
    assert ("2 images were answered differently alone than in a batch." in printed) is bool(count)
