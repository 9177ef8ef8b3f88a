"""torch eager as a peer: the bundle's architectures, since torch cannot run ONNX files.

The weights are random, which does not change the speed; so that the same experts run on the same images, every
output is replaced by that of the bundle's own model after it has run.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Images
from trt_moe import Bundle, Model, _core
from trt_moe.bundle import ModelEntry
from trt_moe.models import ImageModel, SqueezeNetLight, create_expert


def torch_runner(bundle: Bundle, images: Images) -> Callable[[str, Images], NDArray[np.float32]]:
    torch.set_num_threads(_core.usable_cpus())
    modules = {entry.name: _module(bundle, entry) for entry in bundle.models()}
    # Second looks may be at mirrored images.
    seen = np.concatenate([images, images[:, :, ::-1]])
    known = {
        entry.name: dict(
            zip(
                (image.tobytes() for image in seen),
                Model.load(bundle, entry.name, precision="fp32").logits(seen),
                strict=True,
            )
        )
        for entry in bundle.models()
    }

    def run(name: str, batch: Images) -> NDArray[np.float32]:
        with torch.inference_mode():
            modules[name](torch.from_numpy(batch))
        return np.stack([known[name][image.tobytes()] for image in batch])

    return run


def _module(bundle: Bundle, entry: ModelEntry) -> torch.nn.Module:
    call = ast.parse(entry.architecture, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    height, width, channels = bundle.input_shape
    graph_size = (entry.graph_size[0], entry.graph_size[1])
    network: torch.nn.Module
    if entry.name == bundle.gater.name:
        network = SqueezeNetLight(bundle.outputs(entry), channels, min(graph_size), **options).fused()
    else:
        side = options.pop("img_size", None)
        network = create_expert(
            call.func.id, num_classes=bundle.outputs(entry), in_chans=channels, image_size=side, options=options
        )
    model = ImageModel(network, (height, width), graph_size, [0.5] * channels, [0.5] * channels)
    return model.eval()
