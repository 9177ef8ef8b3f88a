"""Float16 inside: a float32 model of a bundle as a strongly typed float16 graph, as TensorRT takes it.

TensorRT 11 and TensorRT-RTX have no FP16 flag any more: the precision of every tensor is what the ONNX says.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper
from onnx.inliner import inline_local_functions

from trt_moe.errors import EngineBuildError, InputError

MAX_FLOAT16 = float(np.finfo(np.float16).max)

_INTEGERS = frozenset(
    {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT32}
)

_NUMBERS = {
    AttributeProto.FLOAT: np.float32,
    AttributeProto.FLOATS: np.float32,
    AttributeProto.INT: np.int64,
    AttributeProto.INTS: np.int64,
}


def to_half(model: onnx.ModelProto, keep_float32: Collection[str] = ()) -> onnx.ModelProto:
    """Convert weights and activations to float16; the uint8 input and the float32 logits stay.

    onnxruntime's converter does the work. What it leaves open is done here: values that pass between two
    neighbouring float32 nodes do not go through float16, no weight is clipped to float16's range, nodes are in
    topological order, and the result is type-checked. LayerNormalization keeps its statistics in float32
    (`stash_type`). A model with float16 weights was given its precisions by its author: it is only prepared.

    Args:
        model: images uint8 [N, H, W, C] to logits float32 [N, K]; it is not changed.
        keep_float32: nodes, by their name in `prepare(model)`, that compute in float32 with casts around them;
            those of `must_stay_float32` do so always.

    Raises:
        InputError: a name that no node has.
        EngineBuildError: the graph cannot be converted (the message names the node), or it has float16 weights
            and `keep_float32` is not empty.
    """
    # Its package puts a folder of scripts on sys.path when imported, so not before it is needed.
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = prepare(model)
    kept = {*keep_float32, *must_stay_float32(model)}
    _check_names(kept, model)
    if any(weight.data_type == TensorProto.FLOAT16 for weight in model.graph.initializer):
        if keep_float32:
            raise EngineBuildError(
                f"{', '.join(sorted(keep_float32)[:5])} cannot be put into float32: the model has float16 weights, so "
                "its own precisions stand; export it in float32"
            )
        return model
    result = OnnxModel(convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(kept)))
    result.topological_sort()
    _join_float32_neighbours(result.model.graph, {node.name for node in model.graph.node})
    try:
        onnx.checker.check_model(result.model, full_check=True)
    except Exception as error:
        raise EngineBuildError(f"the float16 graph is not valid ({_first_line(error)}); build it in fp32") from error
    converted: onnx.ModelProto = result.model
    return converted


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same model in the form that everything here works on, with the same results.

    Functions are inlined, constants are initializers, every node has a name of its own, the type of every tensor
    is known, and bytes are cast before they are transposed, since TensorRT shuffles no bytes.

    Raises:
        EngineBuildError: a node holds a graph of its own (If, Loop), or is of no standard operator.
    """
    model = inline_local_functions(model)
    graph, opset = model.graph, opset_version(model)
    for node in graph.node:
        if not is_standard(node, opset):
            raise EngineBuildError(
                f"node {node.name or '(no name)'}: {node.op_type} (domain {node.domain or 'ai.onnx'}) is no standard "
                f"operator of ONNX at opset {opset}; export the model without it"
            )
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise EngineBuildError(
                f"node {node.name or '(no name)'} ({node.op_type}) holds a graph of its own, which an engine cannot "
                "capture; export the model again with torch.onnx.export(..., dynamo=True), or simplify it (onnxslim)"
            )
    _lift_constants(graph)
    _name_nodes(graph)
    _cast_before_transpose(graph)
    # What exporters note contradicts the moved cast and weights that stay in float32; it is inferred anew.
    del graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise EngineBuildError(f"types and shapes do not fit together ({_first_line(error)})") from error


def must_stay_float32(model: onnx.ModelProto) -> dict[str, str]:
    """Name the nodes of a prepared model that float16 cannot hold, each with the reason, for people."""
    reasons = {}
    too_large = {
        weight.name: largest
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.FLOAT and (largest := _largest_finite(weight)) > MAX_FLOAT16
    }
    for node in model.graph.node:
        for name in node.input:
            if name in too_large:
                reasons[node.name] = f"its weight {name} reaches {too_large[name]:.3g}, float16 ends at {MAX_FLOAT16:g}"
    # What becomes an integer is a size or an index; float16 counts to 2048 only.
    types, made_by = tensor_types(model), producers(model.graph)
    pending = [node for node in model.graph.node if node.op_type == "Cast" and attribute(node, "to") in _INTEGERS]
    while pending:
        node = pending.pop()
        floats = [name for name in node.input if types.get(name) == TensorProto.FLOAT]
        if floats and node.name not in reasons:
            reasons[node.name] = "its result becomes an integer"
            pending += [made_by[name] for name in floats if name in made_by]
    return reasons


def float32_layers(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that stayed in float32 in a graph that `to_half` returned; casts do not count."""
    types = tensor_types(model)
    if TensorProto.FLOAT16 not in types.values():
        return []
    return [
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and any(types[name] == TensorProto.FLOAT for name in node.output if name)
    ]


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type (TensorProto.DataType) of every tensor of a prepared model, weights included."""
    graph = model.graph
    ports = [*graph.value_info, *graph.input, *graph.output]
    types = {port.name: port.type.tensor_type.elem_type for port in ports}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def producers(graph: onnx.GraphProto) -> dict[str, NodeProto]:
    """The node that makes each tensor."""
    return {output: node for node in graph.node for output in node.output if output}


def attribute(node: NodeProto, name: str) -> Any:
    """An attribute's value; None where the node does not have it."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), None)


def is_standard(node: NodeProto, opset: int) -> bool:
    """Whether the standard operator set has the node's operator at this version."""
    return node.domain in ("", "ai.onnx") and defs.has(node.op_type, opset)


def opset_version(model: onnx.ModelProto) -> int:
    """Version of the standard operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _lift_constants(graph: onnx.GraphProto) -> None:
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        found = node.attribute[0]
        value = helper.get_attribute_value(found)
        if found.type in _NUMBERS:
            value = numpy_helper.from_array(np.array(value, _NUMBERS[found.type]))
        elif found.type != AttributeProto.TENSOR:
            continue
        graph.initializer.append(value)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _name_nodes(graph: onnx.GraphProto) -> None:
    used: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.name or node.op_type}_{index}"
        used.add(node.name)


def _cast_before_transpose(graph: onnx.GraphProto) -> None:
    images = graph.input[0]
    if images.type.tensor_type.elem_type != TensorProto.UINT8:
        return
    for transpose in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] == images.name]:
        readers = [node for node in graph.node if transpose.output[0] in node.input]
        if {(node.op_type, attribute(node, "to")) for node in readers} != {("Cast", TensorProto.FLOAT)}:
            continue
        cast = helper.make_node(
            "Cast", [images.name], [f"{images.name}/float"], f"{transpose.name}/cast", to=TensorProto.FLOAT
        )
        transpose.input[0] = cast.output[0]
        for reader in readers:
            _rewire(graph, reader.output[0], transpose.output[0])
            graph.node.remove(reader)
        graph.node.insert(list(graph.node).index(transpose), cast)


def _join_float32_neighbours(graph: onnx.GraphProto, own_nodes: Collection[str]) -> None:
    """Let float32 nodes read their float32 neighbours directly, not through float16, which would overflow."""
    made_by = producers(graph)
    inserted = {node.name: node for node in graph.node if node.op_type == "Cast" and node.name not in own_nodes}
    for node in inserted.values():
        source = made_by.get(node.input[0])
        if source is not None and source.name in inserted and attribute(node, "to") == TensorProto.FLOAT:
            node.input[0] = source.input[0]
            if node.output[0] != graph.output[0].name:
                _rewire(graph, node.output[0], source.input[0])
    read = {name for node in graph.node for name in node.input} | {graph.output[0].name}
    for node in inserted.values():
        if node.output[0] not in read:
            graph.node.remove(node)


def _rewire(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _largest_finite(weight: TensorProto) -> float:
    values = numpy_helper.to_array(weight)
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def _check_names(names: Collection[str], model: onnx.ModelProto) -> None:
    known = [node.name for node in model.graph.node]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:5])}, ..."
            raise InputError(f"no node of the model is called {name!r}, so it cannot stay in float32; {hint}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
