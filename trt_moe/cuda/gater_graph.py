"""The graph that `trt-moe train` exports a gater to, node by node, to tell it from any other."""

from __future__ import annotations

from typing import Any

from trt_moe.bundle.onnx_graph import OnnxGraph

Step = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Operator, inputs and attributes. An input is "images", the index of the node that makes it, the name of a float
tensor, the values of an integer one, or None where it is left out."""

_PLAIN = {"auto_pad": "NOTSET", "dilations": (1, 1)}
_RESIZE = {
    "antialias": 0,
    "coordinate_transformation_mode": "half_pixel",
    "cubic_coeff_a": -0.75,
    "exclude_outside": 0,
    "extrapolation_value": 0.0,
    "keep_aspect_ratio_policy": "stretch",
    "mode": "linear",
    "nearest_mode": "floor",
}


def canonical(graph: OnnxGraph) -> list[Step] | None:
    """What a graph computes, whatever its values are called; None where it has what no exported gater has."""
    made: dict[str, Any] = {"": None, "images": "images"} | {name: name for name in graph.floats}
    made |= {name: tuple(values.tolist()) for name, values in graph.integers.items() if values.ndim == 1}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.domain or len(node.outputs) != 1 or any(name not in made for name in node.inputs):
            return None
        steps.append((node.operator, tuple(made[name] for name in node.inputs), node.attributes))
        made[node.outputs[0]] = len(steps) - 1
    return steps if graph.nodes and graph.nodes[-1].outputs == ("logits",) else None


def exported_gater(side: tuple[int, int], resized: bool, third: bool, head_bias: bool = True) -> list[Step]:
    """The steps of a gater with its batch norms folded.

    Args:
        side: rows and columns that it sees.
        resized: whether images have others.
        third: whether it has a third Fire block.
        head_bias: whether its head has one; the export leaves out a bias of zeros.
    """
    steps: list[Step] = [("Cast", ("images",), {"to": 1})]

    def then(operator: str, *inputs: Any, **attributes: Any) -> None:
        steps.append((operator, (len(steps) - 1, *inputs), attributes))

    def convolve(name: str, kernel: int, stride: int) -> None:
        shape = {"kernel_shape": (kernel, kernel), "pads": (kernel // 2,) * 4, "strides": (stride, stride)}
        then("Conv", f"network.{name}.weight", f"network.{name}.bias", group=1, **shape, **_PLAIN)
        then("Relu")

    def fire(index: int) -> None:
        convolve(f"features.{index}.0", 1, 1)
        convolve(f"features.{index}.2", 3, 1)

    def pool() -> None:
        then("MaxPool", ceil_mode=0, kernel_shape=(2, 2), pads=(0,) * 4, storage_order=0, strides=(2, 2), **_PLAIN)

    then("Transpose", perm=(0, 3, 1, 2))
    then("Mul", "scale")
    then("Add", "bias")
    if resized:
        normalised = len(steps) - 1
        then("Shape", start=0, end=2)
        then("Concat", side, axis=0)
        steps.append(("Resize", (normalised, None, None, len(steps) - 1), _RESIZE))
    convolve("features.0", 3, 2)
    fire(2)
    pool()
    fire(4)
    if third:
        pool()
        fire(6)
    then("ReduceMean", (2, 3), keepdims=0, noop_with_empty_axes=0)
    head = ("network.head.weight", "network.head.bias") if head_bias else ("network.head.weight",)
    then("Gemm", *head, alpha=1.0, beta=1.0, transA=0, transB=1)
    return steps
