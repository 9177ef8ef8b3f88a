"""A whole bundle from trained models: ONNX files, golden logits, samples, accuracies, provenance."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_moe.bundle import (
    Bundle,
    Corruption,
    Evaluation,
    Golden,
    InputSpec,
    Latency,
    LatencyTable,
    Manifest,
    ModelEntry,
    Samples,
    SeverityEvaluation,
    Training,
    sha256_file,
    write_manifest,
)
from trt_moe.bundle.manifest import HeldOut, VerifyBy
from trt_moe.data import EVALUATION_SEED, SEVERITIES, Dataset, corrupt
from trt_moe.data.choose import evenly
from trt_moe.errors import DataError
from trt_moe.export.destination import new_bundle
from trt_moe.export.measure import Timing, available_threads, cpu_name, load_onnx
from trt_moe.export.reference import record_golden
from trt_moe.routing_rule import asked_last, route, unsure
from trt_moe.softmax import softmax

GATER = "gater"
_ON = " on "
PACKAGES = ("numpy", "onnx", "onnxscript", "openvino", "safetensors", "timm", "torch", "torchvision")

Log = Callable[[str], None]


@dataclass(frozen=True)
class ModelSource:
    """A model to put into a bundle.

    Attributes:
        name: in the bundle; the gater's is "gater".
        onnx: file to copy.
        parameters: number of trained values.
        architecture: for people.
        graph_size: (height, width) that the network sees.
        trained_on: weight per severity, or None.
    """

    name: str
    onnx: Path
    parameters: int
    architecture: str
    graph_size: tuple[int, int]
    trained_on: Sequence[float] | None = None


@dataclass(frozen=True)
class BundleSource:
    """Everything that a bundle is written from; experts in any order."""

    name: str
    gater: ModelSource
    experts: Sequence[ModelSource]
    baselines: Sequence[ModelSource]
    timings: Mapping[str, Mapping[str, Timing]]
    """By precision, of a GPU as `on_device` says it, then by model name; empty where latencies were given instead."""
    costs: Mapping[str, float]
    """Of every model, see `relative_costs`."""
    latency_weight: float
    verify_below: float
    verify_by: VerifyBy
    method: str
    seed: int
    command: str
    blur_sigma: Sequence[float]
    noise_sigma: Sequence[float]
    reference_side: int
    test: Dataset
    held_out: HeldOut | None = None
    evaluation_images: int = 10_000
    sample_images: int = 120
    golden_images: int = 12
    backend: str = field(default="openvino")


def write_bundle(source: BundleSource, out: Path, log: Log = print) -> Path:
    """Write the bundle beside `out`, load it as a user would, then put it in place of what was there.

    Returns:
        `out`.

    Raises:
        BundleError: what was written does not validate.
        DataError: the test set is too small, or the folder cannot be written.
        InputError: `out` is there, and is not a bundle.
    """
    with new_bundle(out) as work:
        write_manifest(work, _fill(source, work, log))
        bundle = Bundle.load(work)
        bundle.golden()
        bundle.samples()
    return out.absolute()


def relative_costs(timings: Mapping[str, Timing], experts: Sequence[str]) -> dict[str, float]:
    """Mean latency of every model over that of the dearest expert."""
    means = {name: float(timing.milliseconds.mean()) for name, timing in timings.items()}
    dearest = max(means[name] for name in experts)
    return {name: round(mean / dearest, 6) for name, mean in means.items()}


def _fill(source: BundleSource, work: Path, log: Log) -> Manifest:
    """Write all files except the manifest, which is returned."""
    costs = source.costs
    experts = sorted(source.experts, key=lambda e: costs[e.name])
    models = [source.gater, *experts, *source.baselines]
    for model in models:
        shutil.copyfile(model.onnx, work / f"{model.name}.onnx")
    entries = {m.name: _entry(m, work, costs[m.name]) for m in models}
    height, width, channels = source.test.images.shape[1:]
    return Manifest(
        name=source.name,
        class_names=list(source.test.class_names),
        input=InputSpec(height=height, width=width, channels=channels),
        latency_weight=source.latency_weight,
        verify_below=source.verify_below,
        verify_by=source.verify_by,
        gater=entries[GATER],
        experts=[entries[e.name] for e in experts],
        baselines=[entries[b.name] for b in source.baselines],
        latency=[_latency_table(source, precision) for precision in source.timings],
        training=_training(source),
        evaluation=_evaluate(source, experts, costs, work, log),
        golden=_write_golden(source, models, work),
        samples=_write_samples(source, work),
    )


def _entry(model: ModelSource, work: Path, cost: float) -> ModelEntry:
    trained_on = None
    if model.trained_on is not None:
        total = sum(model.trained_on)
        trained_on = {str(s): round(weight / total, 6) for s, weight in enumerate(model.trained_on)}
    return ModelEntry(
        name=model.name,
        file=f"{model.name}.onnx",
        sha256=sha256_file(work / f"{model.name}.onnx"),
        parameters=model.parameters,
        architecture=model.architecture,
        graph_size=list(model.graph_size),
        relative_cost=cost,
        trained_on=trained_on,  # type: ignore[arg-type]
    )


def on_device(precision: str, gpu: str) -> str:
    """What timings on a GPU are kept under."""
    return f"{precision}{_ON}{gpu}"


def _latency_table(source: BundleSource, kept_under: str) -> LatencyTable:
    timings = source.timings[kept_under]
    precision, _, gpu = kept_under.partition(_ON)
    return LatencyTable(
        device=gpu or cpu_name(),
        backend="cuda" if gpu else source.backend,
        precision=precision,
        threads=1 if gpu else available_threads(),
        models={name: Latency(**timing.summary()) for name, timing in timings.items()},
    )


def _training(source: BundleSource) -> Training:
    return Training(
        dataset=source.test.name,
        corruption=Corruption(
            blur_sigma=list(source.blur_sigma),
            noise_sigma=list(source.noise_sigma),
            reference_side=source.reference_side,
        ),
        latency_weight=source.latency_weight,
        method=source.method,  # type: ignore[arg-type]
        seed=source.seed,
        commit=_commit(),
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        command=source.command,
        held_out=source.held_out,
    )


def _evaluate(
    source: BundleSource, experts: Sequence[ModelSource], costs: Mapping[str, float], work: Path, log: Log
) -> Evaluation:
    """Accuracies on the test images, from the very files that are shipped."""
    chosen = evenly(len(source.test), source.evaluation_images)
    count, labels = len(chosen), source.test.labels[chosen]
    weights = np.asarray([costs[e.name] for e in experts])
    names = [GATER, *(model.name for model in (*experts, *source.baselines))]
    models = {name: load_onnx(work / f"{name}.onnx") for name in names}
    rows = {}
    for severity in range(SEVERITIES):
        images = _corrupted(source, chosen, severity)
        scores = models[GATER](images)
        logits = np.stack([models[e.name](images) for e in experts], axis=1)
        right = logits.argmax(2) == labels[:, None]
        probabilities = softmax(logits)
        routes = route(scores, weights, source.latency_weight)
        passed_on = unsure(routes, probabilities.max(2), source.verify_below)
        second = probabilities[:, -1:]
        if passed_on.any() and source.verify_by == "mirror":
            second = softmax(np.stack([models[e.name](images[:, :, ::-1]) for e in experts], axis=1))
        verified = (probabilities + second).argmax(2) == labels[:, None]
        accuracy = np.where(passed_on, verified[np.arange(count), routes], right[np.arange(count), routes]).mean()
        last = asked_last(routes, passed_on, len(experts), source.verify_by)
        share = np.bincount(last, minlength=len(experts)) / count
        rows[str(severity)] = SeverityEvaluation(
            mixture=round(float(accuracy), 6),
            experts={e.name: round(float(right[:, k].mean()), 6) for k, e in enumerate(experts)},
            baselines={
                b.name: round(float(_right(models[b.name](images), labels).mean()), 6) for b in source.baselines
            },
            share={e.name: round(float(share[k]), 6) for k, e in enumerate(experts)},
        )
        shares = " ".join(f"{e.name} {share[k]:6.1%}" for k, e in enumerate(experts))
        log(f"test severity {severity}: {shares}  accuracy {accuracy:.4f}")
    return Evaluation(
        dataset=source.test.name,
        images=count,
        severities=rows,  # type: ignore[arg-type]
    )


def _right(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = logits.argmax(1) == labels
    return right


def _corrupted(source: BundleSource, indices: NDArray[np.int64], severity: int) -> NDArray[np.uint8]:
    """Test images at one severity; the same index gives the same pixels everywhere in the bundle."""
    return corrupt(
        source.test.images[indices],
        severity,
        EVALUATION_SEED,
        indices,
        source.blur_sigma,
        source.noise_sigma,
        source.reference_side,
    )


def _write_golden(source: BundleSource, models: Sequence[ModelSource], work: Path) -> Golden:
    """Golden images spread over the severities."""
    severities = np.arange(source.golden_images) % SEVERITIES
    chosen = _choose(source.test, source.golden_images)
    images = np.concatenate([_corrupted(source, chosen[i : i + 1], int(s)) for i, s in enumerate(severities)])
    return record_golden(work, [model.name for model in models], images)


def _write_samples(source: BundleSource, work: Path) -> Samples:
    """The same test images at every severity, in class folders, named by their index in the test set."""
    chosen = _choose(source.test, source.sample_images)
    for severity in range(SEVERITIES):
        for index, image in zip(chosen, _corrupted(source, chosen, severity), strict=True):
            folder = work / "samples" / str(severity) / source.test.class_names[source.test.labels[index]]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[..., 0] if image.shape[2] == 1 else image
            Image.fromarray(pixels).save(folder / f"{index:05d}.png", optimize=True)
    return Samples(folder="samples", images=len(chosen) * SEVERITIES)


def check_test_images(test: Dataset, count: int) -> None:
    """Refuse a bundle of more test images than there are.

    Raises:
        DataError: names both numbers.
    """
    if len(test) < count:
        raise DataError(
            f"{test.name} has {len(test)} test images, the bundle ships {count}; lower sample_images or golden_images"
        )


def _choose(test: Dataset, count: int) -> NDArray[np.int64]:
    """Indices of test images: the first of every class in turn, so that classes are balanced."""
    check_test_images(test, count)
    by_class = [np.flatnonzero(test.labels == label) for label in range(len(test.class_names))]
    turns = max(len(indices) for indices in by_class)
    dealt = [int(indices[turn]) for turn in range(turns) for indices in by_class if turn < len(indices)]
    return np.asarray(dealt[:count], dtype=np.int64)


def _commit() -> str:
    """Commit of the source tree that this file lies in; "unknown" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
