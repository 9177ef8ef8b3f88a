"""INT8 against float32 and bf16 on the CPU: Q/DQ models in OpenVINO, those of TensorRT and those with zero points.

python -m benchmarks.int8 [--bundle fashion-mnist] [--out benchmarks/results] [--quick] writes int8.json and int8.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.common import Images, environment, load_mixed_images
from benchmarks.tables import markdown
from trt_moe import Bundle
from trt_moe.compile import gate, half
from trt_moe.compile.gate import Samples
from trt_moe.compile.gate_emulation import emulate
from trt_moe.compile.gate_runtime import logits
from trt_moe.compile.int8 import quantize
from trt_moe.data import SEVERITIES, load_dataset
from trt_moe.evaluation.evaluate import make_test_sets
from trt_moe.export.measure import load_onnx, measure_latency, native_precision

TITLE = "INT8 on the CPU (OpenVINO, single images; milliseconds)"
TEST_SET = Path("/usr/share/datasets/fashion-mnist")
FP32, BF16 = "fp32", "bf16"
INT8, INT8_ZERO_POINTS = "int8 as for TensorRT", "int8 with zero points"
DEIT = "deit_tiny_patch16_224, random body and fitted head"

_BATCH = 16
_RIDGE = 1.0
_SHARPNESS = 10.0
_SAMPLED = 1000
"""The shipped samples, half of which calibrate, are among the first so many test images."""


@dataclass(frozen=True)
class Judged:
    """Images to calibrate on, those that `trt-moe build` judges on, and others that neither has seen.

    uint8 [N, H, W, C], labels and severities int64 [N].
    """

    calibration: Samples
    gate: Samples
    images: Images
    labels: NDArray[np.int64]
    severities: NDArray[np.int64]
    source: str

    def part(self, every: int) -> Judged:
        """With one in so many of all images; they are ordered by severity, so that each keeps its share."""
        few = slice(None, None, every)
        return Judged(
            _part(self.calibration, every),
            _part(self.gate, every),
            self.images[few],
            self.labels[few],
            self.severities[few],
            self.source,
        )


def run(bundle: Bundle, images: Images, quick: bool) -> dict[str, Any]:
    """Every model in every precision on the same images; latencies of one model are measured in turns."""
    judged = _judged(bundle, per_severity=50 if quick else 200)
    seen_by_gater = judged.images if quick else _all_test_images(bundle, judged)
    report: dict[str, Any] = {"source": judged.source, "native": native_precision(), "models": {}}
    report["gater"] = _gater_in_fp16(bundle, seen_by_gater)
    with tempfile.TemporaryDirectory() as folder:
        forms: dict[str, dict[str, Path]] = {}
        for entry in bundle.experts:
            forms[entry.name] = _quantized(bundle.file(entry), Path(folder) / entry.name, judged.calibration.images)
            report["models"][entry.name] = _rows(forms[entry.name], judged)
        # Attention on 196 patches is slow.
        less = judged.part(20 if quick else 4)
        deit = _export_deit(bundle, Path(folder), 300 if quick else 3000, depth=1 if quick else 12)
        forms[DEIT] = _quantized(deit, Path(folder) / "deit", less.calibration.images)
        report["models"][DEIT] = _rows(forms[DEIT], less)
        print("latencies ...", file=sys.stderr, flush=True)
        report["load_average"] = os.getloadavg()
        for name, files in forms.items():
            iterations = 20 if quick else 200 if name == DEIT else 1000
            timings = measure_latency(files, iterations, native_precision(), always_fp32=[FP32])
            for precision, timing in timings.items():
                report["models"][name][precision] |= timing.summary()
    return report


def table(report: dict[str, Any]) -> str:
    rows = []
    for name, precisions in report["models"].items():
        for precision in (FP32, BF16, INT8, INT8_ZERO_POINTS):
            row = precisions.get(precision)
            if row is None:
                rows.append([name, precision, *["-"] * 10, "this CPU has none"])
                continue
            accuracy = [f"{100 * value:.1f}" for value in row["accuracy"].values()]
            times = [f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
            faster = f"{precisions[FP32]['p50_ms'] / row['p50_ms']:.2f}"
            rows.append([name, precision, *accuracy, f"{100 * row['agreement']:.1f}", *times, faster])
    header = ["model", "precision", *(f"accuracy % at severity {severity}" for severity in range(SEVERITIES))]
    header += ["answers as fp32 %", "p50", "p90", "p99", "faster than fp32 by (p50)"]
    shared = f"The load of the machine was {report['load_average'][0]:.1f} processes while latencies were measured."
    rest = f"What is not int8 computes in {report['native']}, as OpenVINO does on this CPU unless told."
    head = f"{DEIT}: on {report['models'][DEIT][FP32]['images']:,} of the images."
    lines = [markdown(header, rows), "", f"Images: {report['source']}. {head} {rest} {shared}"]
    for name, precisions in report["models"].items():
        if verdict := precisions[INT8].get("gate"):
            outcome = "passes" if verdict["passed"] else f"misses ({'; '.join(verdict['failures'])})"
            changes = ", ".join(f"{100 * value:+.1f}" for value in verdict["accuracy_difference"].values())
            agree, error = 100 * verdict["top1_agreement"], verdict["largest_logit_error"]
            lines.append(
                f"{name} in {INT8} {outcome} the gate of `trt-moe build --precision int8`, in the arithmetic of a GPU: "
                f"{agree:.1f} % of {verdict['images']} answers agree, the largest logit error is {error:.3f}, accuracy "
                f"changes by {changes} points (severity 0 to 5)."
            )
    routes = report["gater"]
    lines.append(
        f"In fp16 (emulated) the gater sends {routes['changed']} of {routes['images']:,} images to another expert than "
        f"in fp32, at latency weight {routes['latency_weight']:g}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("--bundle", default="fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="few images and rounds, to see that everything runs")
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    report = {"command": " ".join(["python -m benchmarks.int8", *sys.argv[1:]]), "environment": environment(bundle)}
    report |= run(bundle, load_mixed_images(bundle), options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "int8.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "int8.md").write_text(f"### {TITLE}\n\n{table(report)}\n")
    print((options.out / "int8.md").read_text())


def _quantized(file: Path, folder: Path, calibration: Images) -> dict[str, Path]:
    """A model by precision, those that differ in nothing but OpenVINO's settings as the same file."""
    folder.mkdir()
    files = {FP32: file, INT8: folder / "int8.onnx", INT8_ZERO_POINTS: folder / "zero-points.onnx"}
    for label in (INT8, INT8_ZERO_POINTS):
        onnx.save(quantize(onnx.load(file), calibration, zero_points=label == INT8_ZERO_POINTS), files[label])
    return files | ({BF16: file} if native_precision() == BF16 else {})


def _rows(files: Mapping[str, Path], judged: Judged) -> dict[str, Any]:
    """By precision: accuracy, agreement with float32, and for engines the verdict of `trt-moe build`."""
    answers = {
        name: load_onnx(path, FP32 if name == FP32 else native_precision())(judged.images).argmax(axis=1)
        for name, path in files.items()
    }
    rows: dict[str, Any] = {}
    for name, found in answers.items():
        right = found == judged.labels
        accuracy = {str(each): float(right[judged.severities == each].mean()) for each in range(SEVERITIES)}
        rows[name] = {
            "images": len(found),
            "agreement": float((found == answers[FP32]).mean()),
            "accuracy": accuracy,
        }
    rows[INT8]["gate"] = _gate(files, judged)
    return rows


def _gate(files: Mapping[str, Path], judged: Judged) -> dict[str, Any]:
    """What `trt-moe build --precision int8` says of it."""
    verdict = gate.check(onnx.load(files[FP32]), half.to_half(onnx.load(files[INT8])), judged.gate)
    said = {"passed", "failures", "images", "top1_agreement", "largest_logit_error", "accuracy_difference"}
    return verdict.model_dump(mode="json", include=said)


def _gater_in_fp16(bundle: Bundle, images: Images) -> dict[str, Any]:
    """How many images take another route where the gater computes in fp16, as the engine does."""
    model, bias = onnx.load(bundle.file(bundle.gater)), Samples.of(bundle, bundle.gater).bias
    routes = [(logits(each, images) + bias).argmax(axis=1) for each in (model, emulate(half.to_half(model)))]
    changed = int((routes[0] != routes[1]).sum())
    return {"images": len(images), "changed": changed, "latency_weight": bundle.latency_weight}


def _all_test_images(bundle: Bundle, judged: Judged) -> Images:
    """The whole test set at every severity, where there is one: the gater is quick, and few routes are close."""
    if not TEST_SET.is_dir():
        return judged.images
    sets = make_test_sets(load_dataset(TEST_SET, "test", bundle.input_shape), bundle)
    return np.concatenate([part.images for part in sets])


def _judged(bundle: Bundle, per_severity: int) -> Judged:
    calibration, rest = Samples.of(bundle, bundle.experts[0]).halves()
    if rest.labels is None:
        raise SystemExit(f"{bundle.name} ships no labelled samples; give a bundle that does")
    if not TEST_SET.is_dir():
        source = "the half of the shipped samples that did not calibrate"
        return Judged(calibration, rest, rest.images, rest.labels, rest.severities, source)
    dataset = load_dataset(TEST_SET, "test", bundle.input_shape)
    unseen = replace(dataset, images=dataset.images[_SAMPLED:], labels=dataset.labels[_SAMPLED:])
    sets = make_test_sets(unseen, bundle, images=per_severity)
    images, labels = (np.concatenate([getattr(part, what) for part in sets]) for what in ("images", "labels"))
    severities = np.repeat([part.severity for part in sets], [len(part.images) for part in sets])
    source = f"{dataset.name}, {per_severity:,} test images a severity that are not among the samples"
    return Judged(calibration, rest, images, labels, severities, source)


def _part(samples: Samples, every: int) -> Samples:
    assert samples.labels is not None
    few = slice(None, None, every)
    return Samples(samples.images[few], samples.severities[few], samples.labels[few])


def _export_deit(bundle: Bundle, folder: Path, examples: int, depth: int) -> Path:
    """DeiT-Tiny whose weights are random but for the last layer, which is fitted in closed form.

    It knows the classes well enough for its answers to be told right from wrong, without hours of training.
    """
    import torch

    from trt_moe.export.torch_export import export_onnx
    from trt_moe.models import ImageModel, create_expert

    torch.manual_seed(0)
    height, width, channels = bundle.input_shape
    classes = len(bundle.class_names)
    network: Any = create_expert(
        "deit_tiny_patch16_224", num_classes=classes, in_chans=channels, image_size=224, options={"depth": depth}
    )
    model = ImageModel(network, (height, width), (224, 224), [0.5] * channels, [0.5] * channels).eval()
    images, labels = _examples(bundle, examples)
    head, network.head = network.head, torch.nn.Identity()
    with torch.no_grad():
        parts = torch.from_numpy(images).split(_BATCH)
        features = torch.cat([model(part) for part in parts]).double()
        mean, spread = features.mean(dim=0), features.std(dim=0)
        scaled = (features - mean) / spread
        wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).double()
        penalty = _RIDGE * torch.eye(scaled.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (wanted - wanted.mean(dim=0)))
        head.weight.copy_(_SHARPNESS * (solved / spread[:, None]).T)
        head.bias.copy_(_SHARPNESS * (wanted.mean(dim=0) - (mean / spread) @ solved))
    network.head = head
    file = folder / "deit.onnx"
    export_onnx(model, file, bundle.input_shape)
    return file


def _examples(bundle: Bundle, count: int) -> tuple[Images, NDArray[np.int64]]:
    """Images of all severities to learn from, and their classes; where there are no others, those that calibrate."""
    if not TEST_SET.is_dir():
        calibration, _ = Samples.of(bundle, bundle.experts[0]).halves()
        assert calibration.labels is not None
        return calibration.images, calibration.labels
    dataset = load_dataset(TEST_SET, "train", bundle.input_shape)
    sets = make_test_sets(dataset, bundle, images=count // SEVERITIES)
    return np.concatenate([part.images for part in sets]), np.concatenate([part.labels for part in sets])


if __name__ == "__main__":
    main()
