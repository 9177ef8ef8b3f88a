"""The gater on the core's own kernels: three launches for what takes an engine one for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle import Bundle
from trt_moe.bundle.onnx_graph import Node, OnnxGraph, read_graph
from trt_moe.cuda.capture import Capture

_WIDTH = 16
_LISTS = {
    "stem": {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)},
    "squeeze": {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)},
    "expand": {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)},
    "pool": {"strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1), "kernel_shape": (2, 2)},
}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GaterWeights:
    """A `SqueezeNetLight` of the usual width, without batch norms, as the kernels read it.

    Attributes:
        packed: float32 [n]: scale, bias, each layer's weights [row, column, input, output] and bias, the head's.
        side: rows and columns that images are resized to.
        third: whether it has a third Fire block.
    """

    packed: Floats
    side: tuple[int, int]
    third: bool


def weights_of(tensors: Mapping[str, Floats], side: tuple[int, int]) -> GaterWeights | None:
    """Pack what `fused_gater` leaves of a gater; None where it is another network, or not finite.

    Args:
        tensors: by name, as in its state or its ONNX file.
        side: rows and columns that it sees.
    """
    scale = tensors.get("scale")
    if scale is None or scale.ndim != 4 or not 1 <= scale.size <= 4:
        return None
    third = "network.features.6.0.weight" in tensors
    fires = [(_WIDTH, _WIDTH), (_WIDTH, 2 * _WIDTH), (2 * _WIDTH, 4 * _WIDTH)][: 3 if third else 2]
    shapes = {"scale": scale.shape, "bias": scale.shape}
    shapes |= _layer("network.features.0", (_WIDTH, scale.size, 3, 3))
    for index, (inputs, outputs) in enumerate(fires):
        shapes |= _layer(f"network.features.{2 + 2 * index}.0", (inputs // 2, inputs, 1, 1))
        shapes |= _layer(f"network.features.{2 + 2 * index}.2", (outputs, inputs // 2, 3, 3))
    experts = len(tensors.get("network.head.bias", ()))
    shapes |= _layer("network.head", (experts, fires[-1][1]))
    if {name: values.shape for name, values in tensors.items()} != shapes:
        return None
    # By outputs last; the head is read by one thread for each of its outputs.
    packed = [tensors[name].transpose(2, 3, 1, 0) if name.endswith("weight") and len(shape) == 4 else tensors[name]
              for name, shape in shapes.items()]  # fmt: skip
    flat = np.concatenate([values.ravel() for values in packed]).astype(np.float32)
    return GaterWeights(flat, side, third) if np.isfinite(flat).all() else None


def weights_of_bundle(bundle: Bundle) -> GaterWeights | None:
    """Pack a bundle's gater; None where its file holds another network than `trt-moe train` exports.

    Raises:
        BundleError: see `Bundle.read`.
    """
    entry = bundle.manifest.gater
    try:
        graph = read_graph(bundle.read(entry))
    except ValueError:
        return None
    rows, columns = entry.graph_size
    weights = weights_of(graph.weights, (rows, columns))
    resized = (rows, columns) != bundle.input_shape[:2]
    return weights if weights is not None and _is_wired(graph, resized, weights.third) else None


def weights_of_module(module: Any) -> GaterWeights | None:
    """Pack an `ImageModel` whose network is a `SqueezeNetLight`; None for any other module."""
    from trt_moe.models import ImageModel, SqueezeNetLight, fused_gater

    if not isinstance(module, ImageModel) or not isinstance(module.network, SqueezeNetLight):
        return None
    if module.temperature is not None:
        return None
    tensors = {name: values.detach().float().cpu().numpy() for name, values in fused_gater(module).state_dict().items()}
    rows, columns = module.graph_size
    return weights_of(tensors, (rows, columns))


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


def _is_wired(graph: OnnxGraph, resized: bool, third: bool) -> bool:
    """Whether the nodes are those of the export, in their order: one chain, so that no more need be known."""
    expected = [("Cast", ""), ("Transpose", ""), ("Mul", ""), ("Add", ""), *[("Resize", "")] * resized]
    fire = [("Conv", "squeeze"), ("Relu", ""), ("Conv", "expand"), ("Relu", "")]
    expected += [("Conv", "stem"), ("Relu", ""), *fire, ("MaxPool", "pool"), *fire]
    expected += [("MaxPool", "pool"), *fire] if third else []
    expected += [("ReduceMean", ""), ("Gemm", "")]
    return len(graph.nodes) == len(expected) and all(
        node.operator == operator and _has(node, _LISTS.get(kind, {}))
        for node, (operator, kind) in zip(graph.nodes, expected, strict=True)
    )


def _has(node: Node, lists: Mapping[str, tuple[int, ...]]) -> bool:
    return all(node.lists.get(name) == values for name, values in lists.items())
