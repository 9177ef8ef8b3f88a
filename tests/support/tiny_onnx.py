"""The ONNX models of a tiny bundle; `tiny_bundle` says how they work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.support.tiny_bundle import linear_weights

ONNX_VERSION = onnx.__version__


def write_model(
    root: Path,
    name: str,
    shape: tuple[int, int, int],
    outputs: int,
    scale: float,
    left: bool,
    nan: bool = False,
    work: int = 0,
) -> None:
    weight, bias = linear_weights(outputs, scale)
    if nan:
        bias = np.full_like(bias, np.nan)
    constants = {
        "scale": np.array(1 / 255, np.float32),
        "weight": weight[None],
        "bias": bias,
        "axes": np.array([1, 2, 3], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
    ]
    source = "scaled"
    if left:
        constants |= {
            "start": np.array([0], np.int64),
            "end": np.array([shape[1] // 2], np.int64),
            "columns": np.array([2], np.int64),
        }
        nodes.append(helper.make_node("Slice", [source, "start", "end", "columns"], ["left"]))
        source = "left"
    nodes += [
        helper.make_node("ReduceMean", [source, "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["product"]),
    ]
    result = "product"
    if work:
        result = _add_work(nodes, constants, work, outputs)
    nodes.append(helper.make_node("Add", [result, "bias"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, root / f"{name}.onnx")


def _add_work(nodes: list[Any], constants: dict[str, NDArray[Any]], work: int, outputs: int) -> str:
    # A chain of products whose result is scaled to far below the last bit of the logits.
    side = 128
    rng = np.random.default_rng(0)
    constants["spread"] = np.ones((1, side), np.float32)
    constants["mix"] = (rng.standard_normal((side, side)) / side**0.5).astype(np.float32)
    constants["gather"] = np.full((side, outputs), 1e-20, np.float32)
    nodes.append(helper.make_node("MatMul", ["column", "spread"], ["work0"]))
    for step in range(work):
        nodes.append(helper.make_node("MatMul", [f"work{step}", "mix"], [f"mixed{step}"]))
        nodes.append(helper.make_node("Tanh", [f"mixed{step}"], [f"work{step + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"work{work}", "gather"], ["nothing"]))
    nodes.append(helper.make_node("Add", ["product", "nothing"], ["with_work"]))
    return "with_work"
