"""INT8 against float32 and bf16 on the CPU: Q/DQ models in OpenVINO, those of TensorRT and those with zero points."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.common import Images, markdown
from trt_moe import Bundle
from trt_moe.compile.gate import Samples
from trt_moe.compile.int8 import quantize
from trt_moe.data import load_dataset
from trt_moe.evaluation.evaluate import make_test_sets
from trt_moe.export.measure import measure_latency, native_precision, predict_onnx

TITLE = "INT8 on the CPU (OpenVINO, single images; milliseconds)"
TEST_SET = Path("/usr/share/datasets/fashion-mnist")
FP32, BF16 = "fp32", "bf16"
INT8, INT8_ZERO_POINTS = "int8 as for TensorRT", "int8 with zero points"
DEIT = "deit_tiny_patch16_224, random weights"

_SAMPLED = 1000
"""The shipped samples, which calibrate, are among the first so many test images."""


@dataclass(frozen=True)
class Judged:
    """Images to calibrate on, and others to judge on; uint8 [N, H, W, C], labels int64 [N]."""

    calibration: Images
    images: Images
    labels: NDArray[np.int64]
    source: str


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Every model in every precision on the same images; latencies of one model are measured in turns."""
    judged = _judged(bundle, per_severity=50 if quick else 200)
    report: dict[str, Any] = {"source": judged.source, "load_average": os.getloadavg(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        models = {entry.name: bundle.file(entry) for entry in bundle.experts}
        models[DEIT] = _export_deit(bundle, Path(folder))
        for name, file in models.items():
            if name == DEIT:
                # Attention on 196 patches is slow, and random weights have no accuracy to be exact about.
                few = slice(None, None, 20)
                judged = replace(judged, calibration=judged.calibration[few], images=judged.images[few])
            files = {FP32: file}
            for label, zero_points in ((INT8, False), (INT8_ZERO_POINTS, True)):
                files[label] = Path(folder) / f"{label}.onnx"
                model = quantize(onnx.load(file), judged.calibration, zero_points=zero_points)
                onnx.save(model, files[label])
            iterations = 200 if quick or name == DEIT else 1000
            report["models"][name] = _compare(files, judged, iterations, trained=name != DEIT)
    return report


def table(report: dict[str, Any]) -> str:
    rows = []
    for name, precisions in report["models"].items():
        for precision, row in precisions.items():
            if row is None:
                rows.append([name, precision, *["-"] * 6, "this CPU has none"])
                continue
            accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"
            times = [f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
            faster = f"{precisions[FP32]['p50_ms'] / row['p50_ms']:.2f}"
            agreement = f"{100 * row['agreement']:.1f}"
            rows.append([name, precision, str(row["images"]), accuracy, agreement, *times, faster])
    header = ["model", "precision", "images", "accuracy %", "answers as fp32 %"]
    header += ["p50", "p90", "p99", "faster than fp32 by (p50)"]
    return markdown(header, rows) + f"\n\nImages of all severities: {report['source']}."


def _compare(files: dict[str, Path], judged: Judged, iterations: int, trained: bool) -> dict[str, Any]:
    native = native_precision()
    always_fp32 = tuple(files)
    if native == BF16:
        files = files | {BF16: files[FP32]}
    shape = (judged.images.shape[1], judged.images.shape[2], judged.images.shape[3])
    timings = measure_latency(files, shape, iterations, native, always_fp32=always_fp32)
    answers = {
        name: predict_onnx(path, judged.images, BF16 if name == BF16 else FP32).argmax(axis=1)
        for name, path in files.items()
    }
    rows: dict[str, Any] = {
        name: timing.summary()
        | {"images": len(judged.images)}
        | {"agreement": float((answers[name] == answers[FP32]).mean())}
        | {"accuracy": float((answers[name] == judged.labels).mean()) if trained else None}
        for name, timing in timings.items()
    }
    return {FP32: rows[FP32], BF16: None} | rows


def _judged(bundle: Bundle, per_severity: int) -> Judged:
    samples = Samples.of(bundle, bundle.experts[0])
    if TEST_SET.is_dir():
        dataset = load_dataset(TEST_SET, "test", bundle.input_shape)
        unseen = replace(dataset, images=dataset.images[_SAMPLED:], labels=dataset.labels[_SAMPLED:])
        sets = make_test_sets(unseen, bundle, images=per_severity)
        images, labels = (np.concatenate([getattr(part, what) for part in sets]) for what in ("images", "labels"))
        return Judged(samples.images, images, labels, f"{dataset.name}, test images that are not among the samples")
    calibration, rest = samples.halves()
    if rest.labels is None:
        raise SystemExit(f"{bundle.name} ships no labelled samples; give a bundle that does")
    return Judged(calibration.images, rest.images, rest.labels, "half of the shipped samples, the others calibrated")


def _export_deit(bundle: Bundle, folder: Path) -> Path:
    import torch

    from trt_moe.export.torch_export import export_onnx
    from trt_moe.models import ImageModel, create_expert

    torch.manual_seed(0)
    height, width, channels = bundle.input_shape
    network = create_expert(
        "deit_tiny_patch16_224", num_classes=len(bundle.class_names), in_chans=channels, image_size=224
    )
    model = ImageModel(network, (height, width), (224, 224), [0.5] * channels, [0.5] * channels)
    file = folder / "deit.onnx"
    export_onnx(model, file, bundle.input_shape)
    return file
