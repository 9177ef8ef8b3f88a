"""Latency and logits of ONNX files on the CPU, by the engines of a router."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trt_moe.hardware import cpu_report
from trt_moe.percentiles import percentiles

if TYPE_CHECKING:
    from trt_moe import _core

_WARMUP = 20
_PREDICT_BATCH = 64


@dataclass(frozen=True)
class Timing:
    """Latency of one image in milliseconds, float64 [iterations]."""

    milliseconds: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Return mean, p50, p90 and p99, rounded to 0.1 us."""
        return {key: round(value, 4) for key, value in percentiles(self.milliseconds).items()}


def measure_latency(
    files: Mapping[str, Path],
    iterations: int = 1000,
    precision: str = "fp32",
    always_fp32: Collection[str] = (),
) -> dict[str, Timing]:
    """Time every model at batch 1 as a router runs single images, in turns, so that a busy moment falls on all.

    Args:
        files: ONNX file by model name.
        iterations: timed inferences per model.
        precision: "fp32", "bf16" or "fp16".
        always_fp32: models that a router runs in fp32 whatever the precision (the gater).
    """
    models = {name: _compile(file, "fp32" if name in always_fp32 else precision, [1]) for name, file in files.items()}
    generator = np.random.Generator(np.random.PCG64(0))
    images = {
        name: generator.integers(0, 256, size=model.input_shape, dtype=np.uint8) for name, model in models.items()
    }
    return time_in_turns(models, images, iterations)


def time_in_turns(
    models: Mapping[str, _core.Model],
    images: Mapping[str, NDArray[np.uint8]],
    iterations: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Timing]:
    """Time each model on its image, uint8 [H, W, C], so often; progress(done, total) is told of the rounds."""
    for name, model in models.items():
        model.time(images[name], _WARMUP, 0)
    rounds = []
    for done in range(iterations):
        # One run each in turn: in a mixture, too, other models have used the caches since a model's last image.
        rounds.append({name: model.time(images[name], 1, 0) for name, model in models.items()})
        progress(done + 1, iterations)
    return {name: Timing(np.concatenate([times[name] for times in rounds])) for name in models}


def load_onnx(file: Path, precision: str = "fp32") -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """Compile a model; the result gives logits float32 [N, K] of uint8 [N, H, W, C], in batches."""
    model = _compile(file, precision, [])

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batches = (np.ascontiguousarray(images[i : i + _PREDICT_BATCH]) for i in range(0, len(images), _PREDICT_BATCH))
        return np.concatenate([model.logits(batch) for batch in batches])

    return predict


def native_precision() -> str:
    """Name the fastest precision that this CPU has natively: what a router's "auto" comes to."""
    import openvino  # not where a GPU is timed

    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def available_threads() -> int:
    """CPUs that this process may use: its affinity mask and cgroup quota."""
    usable: int = cpu_report()["usable"]
    return usable


def cpu_name() -> str:
    """What the processor calls itself."""
    return str(cpu_report()["name"])


def _compile(file: Path, precision: str, buckets: list[int]) -> _core.Model:
    from trt_moe import _core

    return _core.Model(file.read_bytes(), backend="openvino", precision=precision, buckets=buckets)
