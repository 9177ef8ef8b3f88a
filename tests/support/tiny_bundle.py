"""Tiny but complete bundles made by script, with routes and logits that can be computed by hand.

    bundle = write_tiny_bundle(tmp_path / "tiny", experts=3, classes=4, size=(8, 8), channels=3)

writes a valid bundle folder (manifest, ONNX models "gater", "expert-0" .. "expert-<K-1>" and the baseline
"robust-light", golden.npz, samples) and returns a `TinyBundle`:

    .path                    the folder
    .gater_logits(images)    float32 [N, experts], what the gater must give
    .expert_logits(k, images) float32 [N, classes], what expert k must give
    .routes(images, latency_weight=0.0)  int64 [N], the expert each image must go to
    .grey(value, n=1)        uint8 [n, H, W, C], every pixel `value`

How the models work: the gater scores expert k by how near the mean brightness b (0 to 1) is to the middle of
the k-th of K equal intervals, so at latency weight 0 an image goes to expert floor(b * K): dark images to
the cheapest, bright ones to the dearest. Every expert picks class floor(m * classes), where m is the mean
brightness of the left half of the image; expert k's logits are (k + 1) times those of expert 0, so that
logits tell which expert answered. Expert k has relative cost (k + 1) / K, the gater 0.05.

Options for what tests need:
    work=(0, 0, 40)      extra 128 x 128 matrix products in expert k, to make it slow (logits unchanged)
    nan=("expert-1",)    models (also "gater") that give NaN
    latency_weight=0.0   written to the manifest
    samples_per_class=1  images per severity and class (0: a bundle without samples)
    golden=4             golden images (0: a bundle without golden file)
    baseline=True        add "robust-light"
`edit_manifest(path, change)` rewrites bundle.json after `change(data)` altered the decoded JSON, unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trt_moe.bundle import (
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
    write_golden,
    write_manifest,
)

GATER_SCALE = 40.0
EXPERT_SCALE = 20.0
SEVERITIES = 6


@dataclass(frozen=True)
class TinyBundle:
    """A tiny bundle on disk and the numpy reference of its models."""

    path: Path
    experts: int
    classes: int
    shape: tuple[int, int, int]

    def gater_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Float32 [N, experts]."""
        brightness = (images.astype(np.float32) / 255).mean(axis=(1, 2, 3), dtype=np.float64)
        return _score(brightness, self.experts, GATER_SCALE)

    def expert_logits(self, expert: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Float32 [N, classes]."""
        left = images[:, :, : self.shape[1] // 2].astype(np.float32) / 255
        return _score(left.mean(axis=(1, 2, 3), dtype=np.float64), self.classes, EXPERT_SCALE * (expert + 1))

    def costs(self) -> NDArray[np.float64]:
        """Relative cost of each expert, float64 [experts]."""
        return np.arange(1, self.experts + 1) / self.experts

    def routes(self, images: NDArray[np.uint8], latency_weight: float = 0.0) -> NDArray[np.int64]:
        """The expert of each image, int64 [N]."""
        return np.argmax(self.gater_logits(images) - latency_weight * self.costs(), axis=1).astype(np.int64)

    def labels(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The class that every expert gives, int64 [N]."""
        return np.argmax(self.expert_logits(0, images), axis=1).astype(np.int64)

    def grey(self, value: int, n: int = 1) -> NDArray[np.uint8]:
        """Images of one brightness, uint8 [n, H, W, C]."""
        return np.full((n, *self.shape), value, np.uint8)

    def random(self, n: int, seed: int = 0) -> NDArray[np.uint8]:
        """Images of mixed brightness that no route or class boundary is near to, uint8 [n, H, W, C]."""
        rng = np.random.default_rng(seed)
        levels = (rng.integers(0, self.experts * self.classes, n) + 0.5) / (self.experts * self.classes) * 255
        noise = rng.integers(-2, 3, (n, *self.shape))
        return np.clip(levels[:, None, None, None] + noise, 0, 255).astype(np.uint8)


def write_tiny_bundle(
    path: str | Path,
    experts: int = 2,
    classes: int = 3,
    size: tuple[int, int] = (8, 8),
    channels: int = 1,
    latency_weight: float = 0.0,
    work: Sequence[int] = (),
    nan: Collection[str] = (),
    samples_per_class: int = 1,
    golden: int = 4,
    baseline: bool = True,
    name: str = "tiny",
) -> TinyBundle:
    """Write a whole valid bundle to the folder `path`; see the module's docstring for every option."""
    # Tests of the GPU use what else is here where onnx may be missing.
    from tests.support.tiny_onnx import ONNX_VERSION, write_model

    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    shape = (*size, channels)
    tiny = TinyBundle(root, experts, classes, shape)
    names = [f"expert-{k}" for k in range(experts)]
    write_model(root, "gater", shape, experts, GATER_SCALE, left=False, nan="gater" in nan)
    for k, expert in enumerate(names):
        scale = EXPERT_SCALE * (k + 1)
        extra = work[k] if k < len(work) else 0
        write_model(root, expert, shape, classes, scale, left=True, nan=expert in nan, work=extra)
    baselines = []
    if baseline:
        write_model(root, "robust-light", shape, classes, EXPERT_SCALE, left=True)
        baselines = [_entry(root, "robust-light", size, 1 / experts)]
    golden_spec = None
    if golden:
        images = tiny.random(golden, seed=1)
        logits = {"gater": tiny.gater_logits(images)}
        logits |= {expert: tiny.expert_logits(k, images) for k, expert in enumerate(names)}
        write_golden(root / "golden.npz", images, logits)
        tolerance: dict[Any, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}
        golden_spec = Golden(file="golden.npz", sha256=sha256_file(root / "golden.npz"), tolerance=tolerance)
    samples = _write_samples(tiny, samples_per_class) if samples_per_class else None
    accuracy = {expert: 1.0 for expert in names}
    row = SeverityEvaluation(mixture=1.0, experts=accuracy, share={expert: 1 / experts for expert in names})
    latency = Latency(mean_ms=1.0, p50_ms=1.0, p90_ms=1.1, p99_ms=1.2)
    manifest = Manifest(
        name=name,
        class_names=[f"class-{j}" for j in range(classes)],
        input=InputSpec(height=size[0], width=size[1], channels=channels),  # type: ignore[arg-type]
        latency_weight=latency_weight,
        gater=_entry(root, "gater", size, 0.05),
        experts=[_entry(root, expert, size, (k + 1) / experts) for k, expert in enumerate(names)],
        baselines=baselines,
        latency=[
            LatencyTable(
                device="none", backend="none", precision="fp32", threads=1,
                models={model: latency for model in ("gater", *names)},
            )
        ],
        training=Training(
            dataset="made by script", method="benefit", latency_weight=latency_weight, seed=0,
            commit="0" * 40,
            corruption=Corruption(blur_sigma=[0.0] * 6, noise_sigma=[0.0] * 6, reference_side=32),
            packages={"onnx": ONNX_VERSION}, command="write_tiny_bundle",
        ),
        evaluation=Evaluation(
            dataset="made by script", images=1, severities={str(s): row for s in range(SEVERITIES)}  # type: ignore[misc]
        ),
        golden=golden_spec,
        samples=samples,
    )  # fmt: skip
    write_manifest(root, manifest)
    return tiny


def edit_manifest(path: str | Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Decode bundle.json, let `change` alter it in place, write it back without any check."""
    file = Path(path) / "bundle.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def rehash(path: Path, name: str) -> None:
    """Write the sha256 of a model's file into bundle.json, after the file was changed."""
    digest = sha256_file(path / f"{name}.onnx")

    def change(data: dict[str, Any]) -> None:
        for entry in [data["gater"], *data["experts"], *data["baselines"]]:
            if entry["name"] == name:
                entry["sha256"] = digest

    edit_manifest(path, change)


def _score(position: NDArray[np.float64], count: int, scale: float) -> NDArray[np.float32]:
    weight, bias = linear_weights(count, scale)
    return (position[:, None] * weight + bias).astype(np.float32)


def linear_weights(count: int, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias, float32 [count] each, that score a brightness of 0 to 1."""
    # -scale * (x - middle)^2 without the x^2 that all have in common: linear in x.
    middle = (np.arange(count) + 0.5) / count
    return (scale * 2 * middle).astype(np.float32), (-scale * middle**2).astype(np.float32)


def _entry(root: Path, name: str, size: tuple[int, int], cost: float) -> ModelEntry:
    return ModelEntry(
        name=name,
        file=f"{name}.onnx",
        sha256=sha256_file(root / f"{name}.onnx"),
        parameters=7,
        architecture="linear in the mean brightness",
        graph_size=list(size),
        relative_cost=cost,
        trained_on=None,
    )


def _write_samples(tiny: TinyBundle, per_class: int) -> Samples:
    count = 0
    for severity in range(SEVERITIES):
        for label in range(tiny.classes):
            folder = tiny.path / "samples" / str(severity) / f"class-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(per_class):
                # The left half tells the class, the right half is as bright as the severity.
                image = tiny.grey(round((label + 0.5) / tiny.classes * 255))[0]
                image[:, tiny.shape[1] // 2 :] = round(severity / (SEVERITIES - 1) * 255)
                Image.fromarray(image.squeeze(-1) if tiny.shape[2] == 1 else image).save(folder / f"{index}.png")
                count += 1
    return Samples(folder="samples", images=count)
