"""Latency and logits of ONNX files in OpenVINO on the CPU, as a router's CPU backend runs them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from trt_moe.errors import InputError
from trt_moe.hardware import cpu_report

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

_ROUNDS = 20
_PREDICT_BATCH = 64


@dataclass(frozen=True)
class Timing:
    """Latency of one image in milliseconds, float64 [iterations]."""

    milliseconds: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Return mean, p50, p90 and p99, rounded to 0.1 us."""
        p50, p90, p99 = np.percentile(self.milliseconds, [50, 90, 99])
        values = {"mean_ms": self.milliseconds.mean(), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
        return {key: round(float(value), 4) for key, value in values.items()}


def measure_latency(
    files: Mapping[str, Path],
    shape: tuple[int, int, int],
    iterations: int = 1000,
    precision: str = "fp32",
    threads: int | None = None,
    always_fp32: Collection[str] = (),
) -> dict[str, Timing]:
    """Time every model at batch 1, in turns, so that a busy moment falls on all of them.

    Models are compiled as a router's latency lane compiles them: batch 1 static, one stream, not pinned.

    Args:
        files: ONNX file by model name.
        shape: (H, W, C) of an image.
        iterations: timed inferences per model.
        precision: "fp32", "bf16" or "fp16".
        threads: of OpenVINO; as many as this process may use where left out.
        always_fp32: models that a router runs in fp32 whatever the precision (the gater).
    """
    count = threads or available_threads()
    requests = {
        name: _compile(file, "fp32" if name in always_fp32 else precision, count, (1, *shape))
        for name, file in files.items()
    }
    generator = np.random.Generator(np.random.PCG64(0))
    image = generator.integers(0, 256, size=(1, *shape), dtype=np.uint8)
    per_round = max(1, iterations // _ROUNDS)
    for request in requests.values():
        request.set_input_tensor(openvino.Tensor(image))
        _time(request, per_round)
    rounds = [[_time(request, per_round) for request in requests.values()] for _ in range(_ROUNDS)]
    return {name: Timing(np.concatenate([rows[k] for rows in rounds])) for k, name in enumerate(requests)}


def _time(request: Any, iterations: int) -> NDArray[np.float64]:
    """Milliseconds of every one of some inferences."""
    times = np.empty(iterations)
    for i in range(iterations):
        started = time.perf_counter_ns()
        request.infer()
        times[i] = (time.perf_counter_ns() - started) / 1e6
    return times


def predict_onnx(file: Path, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.float32]:
    """Logits float32 [N, K] of uint8 [N, H, W, C], in batches."""
    request = _compile(file, precision, available_threads())
    rows = []
    for start in range(0, len(images), _PREDICT_BATCH):
        batch = np.ascontiguousarray(images[start : start + _PREDICT_BATCH])
        rows.append(np.array(request.infer([batch])[0], dtype=np.float32))
    return np.concatenate(rows)


def native_precision() -> str:
    """Name the fastest precision that this CPU has natively: what a router's "auto" comes to."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def available_threads() -> int:
    """CPUs that this process may use: its affinity mask and cgroup quota."""
    usable: int = cpu_report()["usable"]
    return usable


def cpu_name() -> str:
    """What the processor calls itself."""
    return str(cpu_report()["name"])


def _compile(file: Path, precision: str, threads: int, shape: tuple[int, ...] | None = None) -> Any:
    """Return an inference request, for a static input shape where one is given."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    model = core.read_model(file)
    if shape is not None:
        model.reshape(list(shape))
    return core.compile_model(model, "CPU", options).create_infer_request()
