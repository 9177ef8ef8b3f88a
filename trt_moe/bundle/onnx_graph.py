"""The nodes and weights of a small ONNX file, read without the onnx package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.onnx_scan import FLOAT32, fields, messages, text

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTS = 1, 8
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9


@dataclass(frozen=True)
class Node:
    """One node: its operator, and those of its attributes that are lists of integers."""

    operator: str
    lists: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class OnnxGraph:
    """What a file computes: its nodes in order, and its float32 weights by name."""

    nodes: tuple[Node, ...]
    weights: dict[str, NDArray[np.float32]]


def read_graph(data: bytes) -> OnnxGraph:
    """Read a model; weights that are kept in another way than as raw bytes are left out.

    Raises:
        ValueError: it is no ONNX model, or cut short.
    """
    nodes: list[Node] = []
    weights: dict[str, NDArray[np.float32]] = {}
    for graph in messages(memoryview(data), _MODEL_GRAPH):
        nodes.extend(_node(node) for node in messages(graph, _GRAPH_NODE))
        for tensor in messages(graph, _GRAPH_INITIALIZER):
            values = _floats(tensor)
            if values is not None:
                weights[text(tensor, _TENSOR_NAME)] = values
    return OnnxGraph(tuple(nodes), weights)


def _node(data: memoryview) -> Node:
    lists = {text(attribute, _ATTRIBUTE_NAME): _integers(attribute, _ATTRIBUTE_INTS)
             for attribute in messages(data, _NODE_ATTRIBUTE)}  # fmt: skip
    return Node(text(data, _NODE_OPERATOR), lists)


def _floats(data: memoryview) -> NDArray[np.float32] | None:
    shape = _integers(data, _TENSOR_DIMS)
    dtype = [value for number, value in fields(data) if number == _TENSOR_DTYPE]
    raw = next(messages(data, _TENSOR_RAW), None)
    if dtype != [FLOAT32] or raw is None or len(raw) != 4 * math.prod(shape):
        return None
    return np.frombuffer(raw, "<f4").reshape(shape)


def _integers(data: memoryview, field: int) -> tuple[int, ...]:
    """A repeated int64, packed or not; negative ones are not expected here."""
    found: list[int] = []
    for number, value in fields(data):
        if number != field:
            continue
        if isinstance(value, int):
            found.append(value)
        else:
            found.extend(_packed(value))
    return tuple(found)


def _packed(data: memoryview) -> list[int]:
    found = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found
