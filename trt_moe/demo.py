"""`trt-moe demo`: the shipped bundle on its shipped test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_moe.bundle import Bundle
from trt_moe.bundle.manifest import MIXTURE, VerifyBy
from trt_moe.console import ProgressCallback, routing_rule, stdout
from trt_moe.evaluation import Report, TestSet, evaluate
from trt_moe.evaluation.tables import print_accuracies, print_frontier, print_shares, print_strategies
from trt_moe.router import Router

_STRATEGY_KEYS = ("accuracy", "mean_ms", "p99_ms")


@dataclass(frozen=True)
class Demo:
    """Outcome of a demo.

    Attributes:
        data: ready for JSON: device, experts, severities, mixture, cheapest, dearest, images.
        report: the whole evaluation.
    """

    data: dict[str, Any]
    report: Report


def run_demo(
    bundle: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    latency_weight: float | None = None,
    verify_below: float | None = None,
    verify_by: VerifyBy | None = None,
    progress: ProgressCallback = lambda what, done, total: None,
) -> Demo:
    """Route the bundle's samples at every severity, and compare the strategies.

    Args:
        bundle: with samples.
        device: of the router.
        precision: of the experts.
        threads: CPU threads; None: all usable.
        latency_weight: None: the bundle's.
        verify_below: None: the bundle's.
        verify_by: None: the bundle's.
        progress: called as progress(what, done, total).

    Raises:
        BundleError: the bundle is damaged or ships no samples.
    """
    loaded = Bundle.load(bundle)
    images, labels, severities = loaded.samples()
    sets = [
        TestSet(int(severity), images[severities == severity], labels[severities == severity])
        for severity in np.unique(severities)
    ]
    with Router(
        loaded,
        device=device,
        precision=precision,
        threads=threads,
        latency_weight=latency_weight,
        verify_below=verify_below,
        verify_by=verify_by,
    ) as router:
        report = evaluate(router, sets, "shipped samples", None, progress)
    return Demo(_demo_data(report), report)


def print_demo(demo: Demo) -> None:
    """Print the demo as tables."""
    data = demo.report.data
    out = stdout()
    rule = routing_rule(data["latency_weight"], data["verify_below"], data["verify_by"])
    out.print(
        f"{data['bundle']}: {data['images']} real test images on {data['device']}, "
        f"experts in {data['precision']}, {rule}",
        style="bold",
    )
    print_shares(data)
    print_accuracies(data)
    print_strategies(data)
    print_frontier(data)
    if data["disagreements"]:
        out.print(f"{data['disagreements']} images were answered differently alone than in a batch.", style="red")


def _demo_data(report: Report) -> dict[str, Any]:
    data, overall = report.data, report.data["overall"]
    cheapest, dearest = data["experts"][0], data["experts"][-1]
    rows = {
        severity: {
            "share": row["share"],
            "accuracy": row["accuracy"],
            "mean_ms": row["mean_ms"],
            "p99_ms": row["p99_ms"],
            "cheapest_accuracy": row["experts"][cheapest],
            "dearest_accuracy": row["experts"][dearest],
            "images": row["images"],
        }
        for severity, row in data["severities"].items()
    }
    return {
        "device": data["device"],
        "experts": data["experts"],
        "severities": rows,
        "mixture": {key: overall[MIXTURE][key] for key in _STRATEGY_KEYS},
        "cheapest": {key: overall[cheapest][key] for key in _STRATEGY_KEYS},
        "dearest": {key: overall[dearest][key] for key in _STRATEGY_KEYS},
        "images": data["images"],
    }
