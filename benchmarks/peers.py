"""trt-moe against the same models routed in Python, at several batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.common import Images, OpenVinoPeer, PythonRouting, markdown, onnxruntime_runner, percentiles
from benchmarks.torch_peer import torch_runner
from trt_moe import Bundle, Router

TITLE = "Against the same models routed in Python (milliseconds a batch of mixed severities)"
OURS = "trt-moe"
OURS_FP32 = "trt-moe, fp32"
BATCHES = (1, 8, 64)


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """All contenders answer the same batch in each round, in a new random order each time."""
    report: dict[str, Any] = {}
    order = np.random.default_rng(0)
    with Router(bundle) as router, Router(bundle, precision="fp32") as router_fp32:
        openvino = OpenVinoPeer(bundle)
        onnxruntime = PythonRouting(bundle, onnxruntime_runner(bundle))
        torch = PythonRouting(bundle, torch_runner(bundle, images))
        contenders: dict[str, Callable[[Images], Any]] = {
            OURS: router.predict,
            OURS_FP32: router_fp32.predict,
            "OpenVINO Python, per image": PythonRouting(bundle, openvino.run_one).per_image,
            "OpenVINO Python, grouped": PythonRouting(bundle, openvino.run_batch).grouped,
            "OpenVINO Python, grouped, async queue": PythonRouting(bundle, openvino.run_async).grouped,
            "ONNX Runtime, per image": onnxruntime.per_image,
            "ONNX Runtime, grouped": onnxruntime.grouped,
            "torch eager, per image": torch.per_image,
            "torch eager, grouped": torch.grouped,
        }
        _check_answers(contenders, images[:64])
        for size in BATCHES:
            rounds = max(3, (1200 if size == 1 else 240 if size == 8 else 60) // (10 if quick else 1))
            names = [name for name in contenders if size > 1 or not name.endswith(("grouped", "async queue"))]
            times: dict[str, list[float]] = {name: [] for name in names}
            warmup = max(2, rounds // 10)
            for turn in range(rounds + warmup):
                batch = np.take(images, range(turn * size, (turn + 1) * size), axis=0, mode="wrap")
                for name in order.permutation(names):
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


def _check_answers(contenders: dict[str, Callable[[Images], Any]], images: Images) -> None:
    """A peer that gives other answers would be measured at another task; torch has random weights."""
    ours = contenders[OURS_FP32](images).probabilities
    for name, predict in contenders.items():
        if name.startswith(("OpenVINO", "ONNX Runtime")):
            difference = float(np.abs(predict(images) - ours).max())
            agreement = float((predict(images).argmax(axis=1) == ours.argmax(axis=1)).mean())
            if agreement < 0.95:
                raise RuntimeError(
                    f"{name} agrees on {agreement:.0%} of the labels, probabilities {difference:.2g} off"
                )


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
