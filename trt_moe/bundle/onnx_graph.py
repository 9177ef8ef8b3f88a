"""The nodes and weights of a small ONNX file, read without the onnx package."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.onnx_scan import FLOAT32, fields, messages, text, varint

INT64 = 7
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_NAME, _FLOAT, _INTEGER, _STRING, _INTEGERS, _TYPE = 1, 2, 3, 4, 8, 20
_FLOAT_TYPE, _INTEGER_TYPE, _STRING_TYPE, _INTEGERS_TYPE = 1, 2, 3, 7
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_MOST_INTEGERS, _LARGEST_SIDE = 8, 1 << 31
"""Of a list and of a dimension, as far as anything here has use for them."""

Value = float | int | str | tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node, with those of its attributes that are numbers, text or lists of integers; None for any other."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Value | None]
    domain: str = ""


@dataclass(frozen=True)
class OnnxGraph:
    """What a file computes: its nodes in order, and its float32 and int64 constants by name."""

    nodes: tuple[Node, ...]
    floats: dict[str, NDArray[np.float32]]
    integers: dict[str, NDArray[np.int64]]


def read_graph(data: bytes) -> OnnxGraph:
    """Read a model; constants of other types, or kept in another way than as raw bytes, are left out.

    Raises:
        ValueError: it is no ONNX model, cut short, or of sizes that no small one has.
    """
    nodes: list[Node] = []
    floats: dict[str, NDArray[np.float32]] = {}
    integers: dict[str, NDArray[np.int64]] = {}
    for graph in messages(memoryview(data), _MODEL_GRAPH):
        nodes.extend(_node(node) for node in messages(graph, _GRAPH_NODE))
        for tensor in messages(graph, _GRAPH_INITIALIZER):
            raw, shape, name = _raw(tensor), _shape(tensor), text(tensor, _TENSOR_NAME)
            dtype, count = _integer(tensor, _TENSOR_DTYPE), math.prod(shape)
            if dtype == FLOAT32 and len(raw) == 4 * count:
                floats[name] = np.frombuffer(raw, "<f4").reshape(shape)
            elif dtype == INT64 and len(raw) == 8 * count:
                integers[name] = np.frombuffer(raw, "<i8").reshape(shape)
    return OnnxGraph(tuple(nodes), floats, integers)


def _node(data: memoryview) -> Node:
    return Node(
        text(data, _NODE_OPERATOR),
        tuple(_texts(data, _NODE_INPUT)),
        tuple(_texts(data, _NODE_OUTPUT)),
        {text(attribute, _NAME): _value(attribute) for attribute in messages(data, _NODE_ATTRIBUTE)},
        text(data, _NODE_DOMAIN),
    )


def _value(data: memoryview) -> Value | None:
    kind = _integer(data, _TYPE)
    if kind == _INTEGER_TYPE:
        return _integer(data, _INTEGER)
    if kind == _STRING_TYPE:
        return text(data, _STRING)
    if kind == _INTEGERS_TYPE:
        return _integers(data, _INTEGERS)
    if kind == _FLOAT_TYPE:
        raw = next(messages(data, _FLOAT), memoryview(bytes(4)))
        return float(struct.unpack("<f", raw)[0])
    return None


def _shape(data: memoryview) -> tuple[int, ...]:
    shape = _integers(data, _TENSOR_DIMS)
    if any(side > _LARGEST_SIDE for side in shape):
        raise ValueError(f"a tensor of shape {shape}")
    return shape


def _raw(data: memoryview) -> memoryview:
    return next(messages(data, _TENSOR_RAW), memoryview(b""))


def _texts(data: memoryview, field: int) -> list[str]:
    return [bytes(value).decode("utf-8") for value in messages(data, field)]


def _integer(data: memoryview, field: int) -> int:
    return next((value for number, value in fields(data) if number == field and isinstance(value, int)), 0)


def _integers(data: memoryview, field: int) -> tuple[int, ...]:
    """A repeated int64, packed or not."""
    found: list[int] = []
    for number, value in fields(data):
        if number == field:
            found.extend([value] if isinstance(value, int) else _packed(value))
        if len(found) > _MOST_INTEGERS:
            raise ValueError(f"a list of more than {_MOST_INTEGERS} integers")
    return tuple(found)


def _packed(data: memoryview) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) <= _MOST_INTEGERS:
        value, at = varint(data, at)
        found.append(value)
    return found
