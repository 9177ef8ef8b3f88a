"""The gater on the core's own kernels: three launches for what takes an engine one for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.bundle.onnx_graph import read_graph
from trt_moe.cuda.capture import Capture
from trt_moe.cuda.gater_graph import canonical, exported_gater

_WIDTH = 16
_LEAST_SIDE, _MOST_CHANNELS = 8, 4
_HEAD_BIAS = "network.head.bias"
_THIRD_FROM = 33
"""Pixels from which on the network has a third Fire block."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GaterWeights:
    """A `SqueezeNetLight` of the usual width, without batch norms, as the kernels read it.

    Attributes:
        packed: float32 [n]: each layer's weights [row, column, input, output] and bias, the head's, scale, bias.
        side: rows and columns that images are resized to.
        third: whether it has a third Fire block.
    """

    packed: Floats
    side: tuple[int, int]
    third: bool


def weights_of(
    tensors: Mapping[str, Floats], side: tuple[int, int], channels: int, experts: int
) -> GaterWeights | None:
    """Pack what `fused_gater` leaves of a gater; None where it is another network, or not finite.

    Args:
        tensors: by name, as in its state or its ONNX file.
        side: rows and columns that it sees.
        channels: of the images.
        experts: that it scores.
    """
    third = "network.features.6.0.weight" in tensors
    fires = [(_WIDTH, _WIDTH), (_WIDTH, 2 * _WIDTH), (2 * _WIDTH, 4 * _WIDTH)][: 3 if third else 2]
    shapes = _layer("network.features.0", (_WIDTH, channels, 3, 3))
    for index, (inputs, outputs) in enumerate(fires):
        shapes |= _layer(f"network.features.{2 + 2 * index}.0", (inputs // 2, inputs, 1, 1))
        shapes |= _layer(f"network.features.{2 + 2 * index}.2", (outputs, inputs // 2, 3, 3))
    shapes |= _layer("network.head", (experts, fires[-1][1]))
    shapes |= dict.fromkeys(("scale", "bias"), (1, channels, 1, 1))
    known = {name: values.shape for name, values in tensors.items()} == shapes
    if not known or channels > _MOST_CHANNELS or min(side) < _LEAST_SIDE:
        return None
    # By outputs last; the head is read by one thread for each of its outputs.
    packed = [tensors[name].transpose(2, 3, 1, 0) if name.endswith("weight") and len(shape) == 4 else tensors[name]
              for name, shape in shapes.items()]  # fmt: skip
    flat = np.concatenate([values.ravel() for values in packed]).astype(np.float32)
    return GaterWeights(flat, side, third) if np.isfinite(flat).all() else None


def weights_of_bundle(bundle: Bundle) -> GaterWeights | None:
    """Pack a bundle's gater; None where its file computes anything else than what `trt-moe train` exports.

    Raises:
        BundleError: see `Bundle.read`.
    """
    entry = bundle.manifest.gater
    try:
        graph = read_graph(bundle.read(entry))
    except ValueError:
        return None
    height, width, channels = bundle.input_shape
    side = (entry.graph_size[0], entry.graph_size[1])
    experts = bundle.outputs(entry)
    head_bias = _HEAD_BIAS in graph.floats
    tensors = graph.floats if head_bias else {**graph.floats, _HEAD_BIAS: np.zeros(experts, np.float32)}
    weights = weights_of(tensors, side, channels, experts)
    if weights is None or canonical(graph) != exported_gater(side, side != (height, width), weights.third, head_bias):
        return None
    return weights


def weights_of_module(module: Any, input_shape: tuple[int, int, int], experts: int) -> GaterWeights | None:
    """Pack an `ImageModel` whose network is a `SqueezeNetLight`, as they are now; None for any other module.

    Args:
        module: a gater, or anything else.
        input_shape: (height, width, channels) of the images.
        experts: that it scores.
    """
    from trt_moe.models import ImageModel, SqueezeNetLight, fused_gater

    # A class that was derived from them may do anything else.
    if type(module) is not ImageModel or type(module.network) is not SqueezeNetLight or module.temperature is not None:
        return None
    height, width, channels = input_shape
    fused, side = fused_gater(module), (module.graph_size[0], module.graph_size[1])
    tensors = {name: values.detach().float().cpu().numpy() for name, values in fused.state_dict().items()}
    weights = weights_of(tensors, side, channels, experts)
    if weights is None or module.resize != (side != (height, width)):
        return None
    usual = SqueezeNetLight(experts, channels, _THIRD_FROM if weights.third else _LEAST_SIDE).fused()
    # Layers without weights, by what they print: a pooling may be another one.
    return weights if repr(fused.network) == repr(usual) else None


class GaterSource:
    """These weights, for `capture_model`."""

    def __init__(self, weights: GaterWeights) -> None:
        """See the class."""
        self._weights = weights

    def bind(self, capture: Capture) -> None:
        """See `Source`.

        Raises:
            InputError: the kernels have no room for such images.
        """
        self._capture = capture
        weights = self._weights
        capture.hold_gater(weights.packed, side=weights.side, third=weights.third)

    def enqueue(self, bucket: int) -> None:
        """See `Source`."""
        self._capture.enqueue_gater(bucket)


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
