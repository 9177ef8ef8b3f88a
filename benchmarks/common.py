"""What the benchmarks share: images, percentiles, tables, and the peers that route in Python."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe import Bundle, Router, _core
from trt_moe.softmax import softmax

Images = NDArray[np.uint8]


def environment(bundle: Bundle) -> dict[str, Any]:
    packages = {}
    for name in ("trt-moe", "openvino", "onnxruntime", "torch", "timm", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    with Router(bundle) as router:
        described = {"device": router.device, "precision": router.precision, "latency_weight": router.latency_weight}
    return {
        **described,
        "bundle": {entry.name: entry.sha256 for entry in bundle.models()},
        "cpu": _core.cpu_name(),
        "usable_cpus": _core.usable_cpus(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": packages,
    }


def load_mixed_images(bundle: Bundle) -> Images:
    """The bundle's sample images of all severities, in an order that mixes them the same way every time."""
    images, _, _ = bundle.samples()
    return images[np.random.default_rng(0).permutation(len(images))]


class PythonRouting:
    """The same routing and verifying, written the way users do: numpy around any runtime's `run(name, images)`."""

    def __init__(self, bundle: Bundle, run: Callable[[str, Images], NDArray[np.float32]]) -> None:
        self.run = run
        self.gater = bundle.gater.name
        self.experts = [entry.name for entry in bundle.experts]
        self.costs = np.array([entry.relative_cost for entry in bundle.experts], np.float32)
        self.weight, self.verify_below = bundle.latency_weight, bundle.verify_below
        self.by_mirror = bundle.verify_by == "mirror"
        self.classes = len(bundle.class_names)

    def grouped(self, images: Images) -> NDArray[np.float32]:
        routes = np.argmax(self.run(self.gater, images) - self.weight * self.costs, axis=1)
        probabilities = np.empty((len(images), self.classes), np.float32)
        for index, expert in enumerate(self.experts):
            chosen = np.flatnonzero(routes == index)
            if len(chosen):
                probabilities[chosen] = softmax(self.run(expert, images[chosen]))
        dearest = len(self.experts) - 1
        unsure = np.flatnonzero((probabilities.max(axis=1) < self.verify_below) & (routes != dearest))
        verifier = routes if self.by_mirror else np.full_like(routes, dearest)
        for index, expert in enumerate(self.experts):
            chosen = unsure[verifier[unsure] == index]
            if len(chosen):
                seen = images[chosen][:, :, ::-1] if self.by_mirror else images[chosen]
                second = softmax(self.run(expert, np.ascontiguousarray(seen)))
                probabilities[chosen] = (probabilities[chosen] + second) / 2
        return probabilities

    def per_image(self, images: Images) -> NDArray[np.float32]:
        return np.concatenate([self.grouped(images[i : i + 1]) for i in range(len(images))])


class OpenVinoPeer:
    """OpenVINO's Python API on the bundle's files, tuned the three ways its documentation suggests.

    - `run_one`: single images, models reshaped to batch 1, latency hint.
    - `run_batch`: any batch at once, models with a dynamic batch, latency hint.
    - `run_async`: single images through an AsyncInferQueue, models reshaped to batch 1, throughput hint.

    The gater computes in fp32 as ours does, the experts in what OpenVINO chooses for the CPU.
    """

    def __init__(self, bundle: Bundle) -> None:
        import openvino

        core = openvino.Core()
        self._one, self._batch, self._queues = {}, {}, {}
        for entry in bundle.models():
            settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": _core.usable_cpus()}
            if entry.name == bundle.gater.name:
                settings["INFERENCE_PRECISION_HINT"] = "f32"
            latency = {**settings, "PERFORMANCE_HINT": "LATENCY"}
            throughput = {**settings, "PERFORMANCE_HINT": "THROUGHPUT"}
            dynamic = core.read_model(bundle.file(entry))
            self._batch[entry.name] = core.compile_model(dynamic, "CPU", latency).create_infer_request()
            static = core.read_model(bundle.file(entry))
            static.reshape([1, *bundle.input_shape])
            self._one[entry.name] = core.compile_model(static, "CPU", latency).create_infer_request()
            queue = openvino.AsyncInferQueue(core.compile_model(static, "CPU", throughput))
            queue.set_callback(_store)
            self._queues[entry.name] = queue

    def run_one(self, name: str, images: Images) -> NDArray[np.float32]:
        return _infer(self._one[name], images)

    def run_batch(self, name: str, images: Images) -> NDArray[np.float32]:
        return _infer(self._batch[name], images)

    def run_async(self, name: str, images: Images) -> NDArray[np.float32]:
        rows: list[Any] = [None] * len(images)
        queue = self._queues[name]
        for index in range(len(images)):
            queue.start_async({0: images[index : index + 1]}, (rows, index), share_inputs=True)
        queue.wait_all()
        return np.concatenate(rows)


def _infer(request: Any, images: Images) -> NDArray[np.float32]:
    request.infer({0: images}, share_inputs=True)
    logits: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
    return logits


def _store(request: Any, place: tuple[list[Any], int]) -> None:
    rows, index = place
    rows[index] = request.get_output_tensor(0).data.copy()


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
