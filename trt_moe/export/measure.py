"""Latency and logits of ONNX files on the CPU, by the engines of a router."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.hardware import cpu_report

_WARMUP = 20
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
    iterations: int = 1000,
    precision: str = "fp32",
    threads: int | None = None,
    always_fp32: Collection[str] = (),
) -> dict[str, Timing]:
    """Time every model at batch 1 as a router runs single images, in turns, so that a busy moment falls on all.

    Args:
        files: ONNX file by model name.
        iterations: timed inferences per model.
        precision: "fp32", "bf16" or "fp16".
        threads: that a model may use; as many as this process may where left out. Models that one serves better
            take one.
        always_fp32: models that a router runs in fp32 whatever the precision (the gater).
    """
    models = {
        name: _compile(file, "fp32" if name in always_fp32 else precision, threads, [1]) for name, file in files.items()
    }
    generator = np.random.Generator(np.random.PCG64(0))
    images = {
        name: generator.integers(0, 256, size=model.input_shape, dtype=np.uint8) for name, model in models.items()
    }
    for name, model in models.items():
        model.time(images[name], _WARMUP)
    # One run each in turn: in a mixture, too, other models have used the caches since a model's last image.
    rounds = [{name: model.time(images[name], 1) for name, model in models.items()} for _ in range(iterations)]
    return {name: Timing(np.concatenate([times[name] for times in rounds])) for name in models}


def predict_onnx(file: Path, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.float32]:
    """Logits float32 [N, K] of uint8 [N, H, W, C], in batches."""
    model = _compile(file, precision, None, [])
    batches = (np.ascontiguousarray(images[i : i + _PREDICT_BATCH]) for i in range(0, len(images), _PREDICT_BATCH))
    return np.concatenate([model.logits(batch) for batch in batches])


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


def _compile(file: Path, precision: str, threads: int | None, buckets: list[int]) -> _core.Model:
    return _core.Model(
        file.read_bytes(), backend="openvino", precision=precision, threads=threads or 0, buckets=buckets
    )
