"""The mixture that is measured: real architectures, random weights, and images whose routes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trt_moe.bundle import Bundle, InputSpec, Manifest, ModelEntry, sha256_file, write_manifest
from trt_moe.cuda.torch_source import HalfModel
from trt_moe.models import ImageModel, SqueezeNetLight, create_expert, fused_gater
from trt_moe.models.gater import GATER_SIDE

SIDE, CLASSES = 224, 6
GATER = "gater"
EXPERTS = {
    "squeezenet": "squeezenet1_1",
    "mobilenet": "mobilenetv3_small_100",
    "deit-small": "deit_small_patch16_224",
}
DEAREST = "deit-small"
WEIGHTS = "random weights: their speed is that of trained ones, their accuracy is none"

NO_FILE = "0" * 64
"""In place of the hash of a file, for models that `Router(modules=...)` runs."""

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Mixture:
    """A gater and experts.

    Attributes:
        models: float32 modules by name, on the CPU.
        images: uint8 [experts, 224, 224, 3]; the gater sends image k to expert k.
    """

    models: dict[str, ImageModel]
    images: Images

    def halves(self) -> dict[str, HalfModel]:
        """What the torch peers run, and what is captured of the experts: float16 networks, channels last."""
        return {name: HalfModel(model) for name, model in self.models.items()}

    def bundle(self) -> Bundle:
        """A bundle for `Router(modules=...)`, which reads no file of it."""
        return Bundle(Path("random-weights"), _manifest(dict.fromkeys(self.models, NO_FILE)))

    def export(self, folder: Path) -> Bundle:
        """The same with ONNX files, for TensorRT. Needs onnx, onnxscript and onnxruntime."""
        from trt_moe.export.torch_export import export_onnx

        for name, model in self.models.items():
            export_onnx(model, folder / f"{name}.onnx", (SIDE, SIDE, 3))
        write_manifest(folder, _manifest({name: sha256_file(folder / f"{name}.onnx") for name in self.models}))
        return Bundle.load(folder)

    def batch(self, counts: tuple[int, ...]) -> Images:
        """So many images for each expert, in turns."""
        return self.images[[k for turn in range(max(counts)) for k, count in enumerate(counts) if turn < count]]


def make_mixture() -> Mixture:
    """The mixture of every part, the same each time."""
    torch.manual_seed(0)
    images = _make_images()
    mean = std = [0.5] * 3
    models = {
        name: ImageModel(
            create_expert(architecture, num_classes=CLASSES, image_size=SIDE), (SIDE, SIDE), (SIDE, SIDE), mean, std
        ).eval()
        for name, architecture in EXPERTS.items()
    }
    gater = SqueezeNetLight(len(EXPERTS))
    model = ImageModel(gater, (SIDE, SIDE), (GATER_SIDE, GATER_SIDE), mean, std).eval()
    _fit_head(gater, model, images)
    return Mixture({GATER: fused_gater(model), **models}, images)


def _make_images() -> Images:
    """Noise around a dark, a middle and a bright grey."""
    random = np.random.default_rng(0)
    spread = ((30, 10), (128, 40), (200, 50))
    return np.stack([random.integers(mid - half, mid + half, (SIDE, SIDE, 3)) for mid, half in spread]).astype(np.uint8)


def _fit_head(gater: SqueezeNetLight, model: ImageModel, images: Images) -> None:
    """Solve for the head that scores 1 where image and expert go together and 0 elsewhere."""
    with torch.no_grad():
        features = gater.features(model.preprocess(torch.from_numpy(images))).mean(dim=(2, 3)).double()
        gater.head.weight.copy_((torch.linalg.pinv(features) @ torch.eye(len(images), dtype=torch.float64)).T)


def model_entry(name: str, architecture: str, graph_size: Sequence[int], cost: float, sha256: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        file=f"{name}.onnx",
        sha256=sha256,
        parameters=0,
        architecture=architecture,
        graph_size=list(graph_size),
        relative_cost=cost,
    )


def _manifest(sha256: dict[str, str]) -> Manifest:
    def entry(name: str, architecture: str, side: int, cost: float) -> ModelEntry:
        return model_entry(name, architecture, (side, side), cost, sha256[name])

    # The costs are in the order of the experts and count for nothing: the latency weight is 0.
    costs = [(index + 1) / len(EXPERTS) for index in range(len(EXPERTS))]
    return Manifest(
        name="random-weights",
        class_names=[f"class-{index}" for index in range(CLASSES)],
        input=InputSpec(height=SIDE, width=SIDE, channels=3),
        latency_weight=0.0,
        gater=entry(GATER, "SqueezeNetLight", GATER_SIDE, 0.0),
        experts=[entry(name, EXPERTS[name], SIDE, cost) for name, cost in zip(EXPERTS, costs, strict=True)],
    )
