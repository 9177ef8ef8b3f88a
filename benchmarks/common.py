"""What the benchmarks share: images, percentiles, tables, and the peers that route in Python."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe import Bundle, _core

Images = NDArray[np.uint8]


def environment() -> dict[str, Any]:
    packages = {}
    for name in ("trt-moe", "openvino", "onnxruntime", "torch", "timm", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "cpu": _core.cpu_name(),
        "usable_cpus": _core.usable_cpus(),
        "python": platform.python_version(),
        "packages": packages,
    }


def load_mixed_images(bundle: Bundle) -> Images:
    """The bundle's sample images of all severities, in an order that mixes them the same way every time."""
    images, _, _ = bundle.samples()
    return images[np.random.default_rng(0).permutation(len(images))]


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    values = np.asarray(milliseconds)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"mean_ms": float(values.mean()), "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


class PythonRouting:
    """The same routing rule, written the way users do: numpy around any runtime's `run(name, images)`."""

    def __init__(self, bundle: Bundle, run: Callable[[str, Images], NDArray[np.float32]]) -> None:
        self.run = run
        self.gater = bundle.gater.name
        self.experts = [entry.name for entry in bundle.experts]
        self.costs = np.array([entry.relative_cost for entry in bundle.experts], np.float32)
        self.weight = bundle.latency_weight
        self.classes = len(bundle.class_names)

    def grouped(self, images: Images) -> NDArray[np.float32]:
        routes = np.argmax(self.run(self.gater, images) - self.weight * self.costs, axis=1)
        logits = np.empty((len(images), self.classes), np.float32)
        for index, expert in enumerate(self.experts):
            chosen = np.flatnonzero(routes == index)
            if len(chosen):
                logits[chosen] = self.run(expert, images[chosen])
        return softmax(logits)

    def per_image(self, images: Images) -> NDArray[np.float32]:
        return np.concatenate([self.grouped(images[i : i + 1]) for i in range(len(images))])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def openvino_runner(bundle: Bundle) -> Callable[[str, Images], NDArray[np.float32]]:
    """OpenVINO's Python API on the bundle's files: one request a model, low-latency hint, all usable CPUs."""
    import openvino

    core = openvino.Core()
    requests = {}
    for entry in bundle.models():
        model = core.read_model(bundle.file(entry))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _core.usable_cpus()}
        requests[entry.name] = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(name: str, images: Images) -> NDArray[np.float32]:
        request = requests[name]
        request.infer({0: np.ascontiguousarray(images)}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


def onnxruntime_runner(bundle: Bundle) -> Callable[[str, Images], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _core.usable_cpus()
    sessions = {
        entry.name: onnxruntime.InferenceSession(bundle.file(entry), options, providers=["CPUExecutionProvider"])
        for entry in bundle.models()
    }
    return lambda name, images: sessions[name].run(None, {"images": images})[0]


def rss_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
