"""Older operator sets of ONNX, for parsers that cannot read the newest."""

from __future__ import annotations

import onnx
from onnx import version_converter
from onnx.inliner import inline_selected_functions

from trt_moe.compile.half import attribute, is_standard, opset_version
from trt_moe.errors import EngineBuildError, InputError

OLDEST_OPSET = 17
"""The first with LayerNormalization; below, its statistics would become float16 nodes."""


def lower(model: onnx.ModelProto, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """Return the same model in an older operator set, with the same results.

    Operators that are too new (Gelu, Mish, GroupNormalization) are replaced by the definition that ONNX gives for
    them, the others go through ONNX's version converter. A model that is old enough is returned as it is.

    Args:
        model: float32, or as `half.to_half` returns it; it is not changed.
        opset: at least `OLDEST_OPSET`.

    Raises:
        InputError: `opset` is too old.
        EngineBuildError: an operator has no equivalent; the message names the node.
    """
    if opset < OLDEST_OPSET:
        raise InputError(f"models cannot be lowered to opset {opset}; the oldest is {OLDEST_OPSET}")
    if opset_version(model) <= opset:
        return model
    too_new = {node.op_type for node in model.graph.node if not is_standard(node, opset)}
    if too_new:
        # CastLike is part of those definitions, and some parsers do not know it.
        functions = [("", name) for name in (*too_new, "CastLike")]
        model = inline_selected_functions(model, functions, inline_schema_functions=True)
    for node in model.graph.node:
        if not is_standard(node, opset):
            raise EngineBuildError(
                f"node {node.name}: {node.op_type} came after opset {opset} and has no equivalent there; use a "
                f"TensorRT that reads opset {opset_version(model)}"
            )
    try:
        lowered = version_converter.convert_version(model, opset)
        _drop_default_attributes(lowered)
        onnx.checker.check_model(lowered, full_check=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise EngineBuildError(f"the model cannot be expressed in opset {opset} ({reason})") from error
    return lowered


def _drop_default_attributes(model: onnx.ModelProto) -> None:
    # The version converter leaves an attribute of opset 18 that opset 17 does not know; 0 is its default.
    for node in model.graph.node:
        if node.op_type.startswith("Reduce") and attribute(node, "noop_with_empty_axes") == 0:
            kept = [found for found in node.attribute if found.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
