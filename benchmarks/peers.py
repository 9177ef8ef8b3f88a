"""trt-moe against the same models routed in Python, at several batch sizes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.common import Images
from benchmarks.contenders import OURS, open_all
from benchmarks.tables import markdown, percentiles
from trt_moe import Bundle

TITLE = "Against the same models routed in Python (milliseconds a batch of mixed severities)"
ROUNDS = {1: 1000, 8: 200, 64: 50}


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """All contenders answer the same batch in each round, in a new random order each time."""
    report: dict[str, Any] = {}
    order = np.random.default_rng(0)
    with ExitStack() as stack:
        contenders = open_all(bundle, stack)
        for size, full in ROUNDS.items():
            rounds = max(3, full // 20) if quick else full
            names = [name for name in contenders if size > 1 or "grouped" not in name]
            times: dict[str, list[float]] = {name: [] for name in names}
            warmup = max(2, rounds // 10)
            for turn in range(rounds + warmup):
                for name in order.permutation(names):
                    times[name].append(contenders[name].time(turn * size, size))
            times = {name: values[warmup:] for name, values in times.items()}
            ours = np.array(times[OURS])
            report[str(size)] = {
                name: percentiles(values)
                | {"speedup_of_trt_moe": float(np.median(values) / np.median(ours))}
                | {"images_per_s": size * 1e3 / float(np.mean(values))}
                for name, values in times.items()
            }
    return report


def table(report: dict[str, Any]) -> str:
    rows = [
        [
            size,
            name,
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{row['images_per_s']:.0f}",
            f"{row['speedup_of_trt_moe']:.2f}",
        ]
        for size, contenders in report.items()
        for name, row in contenders.items()
    ]
    return markdown(["batch", "runtime", "p50", "p90", "p99", "images/s", "trt-moe is faster by (p50)"], rows)
