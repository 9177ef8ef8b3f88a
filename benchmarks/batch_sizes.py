"""How large a batch pays on a CPU, by the size of the images: `python -m benchmarks.batch_sizes`.

Behind the batch sizes that the OpenVINO backend compiles unless it is told.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from torch import nn

from benchmarks.tables import markdown
from trt_moe import _core
from trt_moe.export.torch_export import export_onnx
from trt_moe.models import ImageModel, SqueezeNetLight, create_expert
from trt_moe.models.gater import GATER_SIDE

NETWORKS = {"squeezenet1_1": (64, 96, 128, 160, 224), "mobilenetv3_small_100": (64, 96, 128, 160, 224), "gater": (224,)}
BUCKETS = ([1], [1, 2], [1, 2, 4], [1, 2, 4, 8], [1, 2, 4, 8, 16])
IMAGES = 64
SECONDS = 10.0


def exported(name: str, side: int, folder: Path) -> bytes:
    gater = name == "gater"
    network: nn.Module = SqueezeNetLight(3) if gater else create_expert(name, num_classes=10, image_size=side)
    graph = GATER_SIDE if gater else side
    model = ImageModel(network.eval(), (side, side), (graph, graph), [0.5] * 3, [0.25] * 3).eval()
    file = folder / f"{name}-{side}.onnx"
    export_onnx(model, file, (side, side, 3))
    return file.read_bytes()


def milliseconds(onnx: bytes, side: int) -> list[float]:
    """Median milliseconds an image, by the largest bucket; all in turns."""
    models = [_core.Model(onnx, backend="openvino", precision="fp32", buckets=buckets) for buckets in BUCKETS]
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model.logits(images)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for model, measured in zip(models, times, strict=True):
            start = time.perf_counter()
            model.logits(images)
            measured.append((time.perf_counter() - start) * 1e3 / IMAGES)
    return [float(np.median(measured)) for measured in times]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, sides in NETWORKS.items():
            for side in sides:
                found = milliseconds(exported(name, side, Path(folder)), side)
                rows.append([name, str(side), *(f"{value:.2f}" for value in found)])
    print(markdown(["network", "pixels", *(f"up to {buckets[-1]}" for buckets in BUCKETS)], rows))


if __name__ == "__main__":
    main()
