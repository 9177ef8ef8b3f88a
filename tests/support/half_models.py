"""Small image classifiers by hand, for what conversions to float16 and int8 must and must not change.

    model = image_model([("Conv", ["pixels", "weight"], "features", {"pads": [1, 1, 1, 1]}), ...], {"weight": array})

is a model of a bundle: `images` uint8 [N, 8, 8, 3] are cast to float32, transposed and divided by 255 into
`pixels` float32 [N, 3, 8, 8]; the given nodes follow, each (operator, inputs, output, attributes) and named after its
output; the last output is `logits` float32 [N, K].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trt_moe.compile.gate_runtime import logits

SIDE = 8
CLASSES = 4
Node = tuple[str, list[str], str, dict[str, Any]]


def image_model(nodes: Sequence[Node], weights: Mapping[str, NDArray[Any]], opset: int = 20) -> onnx.ModelProto:
    head: list[Node] = [
        ("Cast", ["images"], "bytes", {"to": TensorProto.FLOAT}),
        ("Transpose", ["bytes"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Div", ["planes", "full"], "pixels", {}),
    ]
    return raw_model([*head, *nodes], {"full": np.float32(255), **weights}, opset)


def raw_model(nodes: Sequence[Node], weights: Mapping[str, NDArray[Any]], opset: int = 20) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], output, **attributes) for kind, inputs, output, attributes in nodes],
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def classifier(scale: float = 1.0) -> onnx.ModelProto:
    """Convolution, ReLU, mean, product; answers the brightest colour, or 3.

    The convolution's results are `scale` times larger than they need be, the product's weights as much smaller.
    With a scale of 1e5 the values between the two overflow float16, while all weights and logits stay in range.
    """
    rng = np.random.default_rng(0)
    kernel = rng.uniform(-0.1, 0.1, (6, 3, 3, 3))
    head = rng.normal(size=(6, CLASSES)) * 0.1
    for channel in range(6):
        kernel[channel, channel % 3] += 0.3
        head[channel] += [2 * (channel % 3 == 0), 2 * (channel % 3 == 1), 2 * (channel % 3 == 2), 0.8]
    nodes: list[Node] = [
        ("Conv", ["pixels", "kernel"], "features", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["features"], "active", {}),
        ("ReduceMean", ["active", "sides"], "mean", {"keepdims": 0}),
        ("MatMul", ["mean", "head"], "logits", {}),
    ]
    weights = {
        "kernel": (kernel * scale).astype(np.float32),
        "sides": np.array([2, 3], np.int64),
        "head": (head / scale).astype(np.float32),
    }
    return image_model(nodes, weights)


def one_loud_channel() -> onnx.ModelProto:
    """Five convolutions; the third reads a channel a thousand times louder than the others, which all matter."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = []
    weights: dict[str, NDArray[Any]] = {"sides": np.array([2, 3]), "loud": np.ones((1, 3, 1, 1), np.float32)}
    weights["loud"][0, 0] = 1e3
    last = "pixels"
    for index in range(5):
        if index in (2, 3):
            nodes.append(("Mul" if index == 2 else "Div", [last, "loud"], f"scaled{index}", {}))
            last = f"scaled{index}"
        kernel = (np.eye(3) + 0.1 * rng.random((3, 3))) if index != 2 else np.eye(3)
        weights[f"kernel{index}"] = kernel.reshape(3, 3, 1, 1).astype(np.float32)
        nodes.append(("Conv", [last, f"kernel{index}"], f"features{index}", {}))
        last = f"features{index}"
    nodes += [("ReduceMean", [last, "sides"], "mean", {"keepdims": 0}), ("MatMul", ["mean", "head"], "logits", {})]
    weights["head"] = 3 * np.eye(3, CLASSES, dtype=np.float32)
    return image_model(nodes, weights)


def images(count: int = 24, seed: int = 1) -> NDArray[np.uint8]:
    """Noise of different brightness and colour, uint8 [count, 8, 8, 3]."""
    rng = np.random.default_rng(seed)
    level = rng.integers(40, 256, (count, 1, 1, 3))
    return (rng.random((count, SIDE, SIDE, 3)) * level).astype(np.uint8)


def answers(model: onnx.ModelProto, count: int = 24) -> NDArray[np.float32]:
    return logits(model, images(count))
