"""trt-moe against the same models routed in Python, at several batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import Images, PythonRouting, markdown, onnxruntime_runner, openvino_runner, percentiles
from benchmarks.torch_peer import torch_runner
from trt_moe import Bundle, Router

TITLE = "Against the same models routed in Python (milliseconds a batch of mixed severities)"
OURS = "trt-moe"
BATCHES = (1, 8, 64)


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """All contenders answer the same batch in each round, in an order that rotates."""
    report: dict[str, Any] = {}
    with Router(bundle) as router:
        openvino = PythonRouting(bundle, openvino_runner(bundle))
        onnxruntime = PythonRouting(bundle, onnxruntime_runner(bundle))
        torch = PythonRouting(bundle, torch_runner(bundle, images))
        contenders: dict[str, Callable[[Images], Any]] = {
            OURS: router.predict,
            "OpenVINO Python, per image": openvino.per_image,
            "OpenVINO Python, grouped": openvino.grouped,
            "ONNX Runtime, per image": onnxruntime.per_image,
            "ONNX Runtime, grouped": onnxruntime.grouped,
            "torch eager, per image": torch.per_image,
            "torch eager, grouped": torch.grouped,
        }
        for size in BATCHES:
            rounds = max(3, (1200 if size == 1 else 240 if size == 8 else 60) // (10 if quick else 1))
            names = [name for name in contenders if size > 1 or not name.endswith("per image")]
            times: dict[str, list[float]] = {name: [] for name in names}
            warmup = max(2, rounds // 10)
            for turn in range(rounds + warmup):
                batch = np.take(images, range(turn * size, (turn + 1) * size), axis=0, mode="wrap")
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    start = perf_counter()
                    contenders[name](batch)
                    times[name].append((perf_counter() - start) * 1e3)
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
