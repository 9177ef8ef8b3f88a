"""Float16 arithmetic on a CPU that has none: every float16 result of a graph rounded to float16."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_moe.compile.half import tensor_types

EXACT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that pass values on as they are, or pick some of them: there is nothing to round."""


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn a float16 graph into a float32 graph that gives what float16 results would give.

    Every node computes in float32 and its result is cast to float16 and back, so that values beyond 65504 become
    infinite and small ones lose their digits. The casts must be in the graph: ONNX Runtime itself runs float16
    nodes in float32 on the CPU and drops the roundings between them, even with optimisations off, so that it sees
    no overflow at all.

    What this shows: the range and precision of float16 weights and of everything that passes between nodes. What
    it does not: the order of sums, sums inside one node that a device accumulates in float16, and results that a
    device rounds less often because it fuses nodes.

    Args:
        model: as `half.to_half` returns it; float32 nodes in it stay exact.

    Returns:
        A graph with the same inputs, outputs and tensor names, all float32 where they were float16.
    """
    # A lowered graph does not say the types of what was put into it.
    types = tensor_types(onnx.shape_inference.infer_shapes(model))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            weight.CopyFrom(_as_float32(weight))
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            elif attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_as_float32(attribute.t))
        nodes.append(node)
        if node.op_type in EXACT:
            continue
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT16:
                node.output[index] = f"{name}/exact"
                for source, target, dtype in (("exact", "/half", TensorProto.FLOAT16), ("half", "", TensorProto.FLOAT)):
                    nodes.append(
                        helper.make_node("Cast", [f"{name}/{source}"], [name + target], f"{name}/to{dtype}", to=dtype)
                    )
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _as_float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
