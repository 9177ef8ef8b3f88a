"""Which nodes of a float16 graph spoil its answers: every value compared with that of the float32 model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from trt_moe.compile.gate_emulation import EXACT
from trt_moe.compile.gate_runtime import open_session
from trt_moe.compile.half import MAX_FLOAT16, producers, tensor_types

_BATCH = 4
_HEADROOM = 2
"""Values this many times below the end of float16 already count as leaving it: other images may go further."""
_TINY = 1e-30


@dataclass(frozen=True)
class Suspects:
    """Node names.

    Attributes:
        overflowing: nodes that read or make values near or beyond the end of float16, in graph order.
        by_error: all other nodes that round, those first that add most to the relative error of their inputs; each
            is followed by the nodes it reads from, since a difference of two values shows what these have lost.
    """

    overflowing: list[str]
    by_error: list[str]


def find(reference: onnx.ModelProto, emulated: onnx.ModelProto, images: NDArray[np.uint8]) -> Suspects:
    """Run both graphs and compare the values between nodes, which have the same names in both.

    Args:
        reference: a prepared float32 model.
        emulated: its float16 graph, as `gate_emulation.emulate` returns it.
        images: uint8 [N, H, W, C].
    """
    types = tensor_types(reference)
    made = {output for node in emulated.graph.node for output in node.output}
    names = [
        output
        for node in reference.graph.node
        for output in node.output
        if types.get(output) == TensorProto.FLOAT and output in made
    ]
    largest, errors = _measure(reference, emulated, names, images)
    made_by = producers(reference.graph)
    overflowing, growth = [], {}
    for node in reference.graph.node:
        before = max((errors[name] for name in node.input if name in errors), default=0.0)
        after = max((errors[name] for name in node.output if name in errors), default=0.0)
        if any(largest.get(name, 0.0) > MAX_FLOAT16 / _HEADROOM for name in (*node.input, *node.output)):
            overflowing.append(node.name)
        elif after > before and node.op_type not in EXACT:
            group = (node.name, *(made_by[name].name for name in node.input if name in errors))
            growth[group] = after - before
    ranked = sorted(growth, key=lambda group: -growth[group])
    return Suspects(overflowing, list(dict.fromkeys(name for group in ranked for name in group)))


def _measure(
    reference: onnx.ModelProto, emulated: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8]
) -> tuple[dict[str, float], dict[str, float]]:
    """Largest absolute reference value, and relative error |found - expected| / |expected| (2-norms), by tensor."""
    sessions = [open_session(_with_outputs(model, names)) for model in (reference, emulated)]
    port = reference.graph.input[0].name
    largest, wrong, total = (np.zeros(len(names)) for _ in range(3))
    for start in range(0, len(images), _BATCH):
        expected, found = (s.run(list(names), {port: images[start : start + _BATCH]}) for s in sessions)
        for index, (right, value) in enumerate(zip(expected, found, strict=True)):
            largest[index] = max(largest[index], np.abs(right).max(initial=0))
            with np.errstate(invalid="ignore", over="ignore"):
                wrong[index] += np.square(value - right, dtype=np.float64).sum()
            total[index] += np.square(right, dtype=np.float64).sum()
    relative = np.nan_to_num(np.sqrt(wrong / (total + _TINY)), nan=np.inf)
    return dict(zip(names, largest.tolist(), strict=True)), dict(zip(names, relative.tolist(), strict=True))


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {port.name for port in result.graph.output}
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return result
