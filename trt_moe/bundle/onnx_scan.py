"""What an ONNX file declares, read without the onnx package: inputs, outputs, and whether it is one file.

Only lengths and tags are walked, weights are skipped, so that a runtime without `onnx` can refuse a model
whose tensors lie in other files (anywhere on the disk, and not covered by the sha256) or whose inputs and
outputs are not a bundle's.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trt_moe.errors import BundleError

UINT8 = 2
FLOAT32 = 1
# Names of TensorProto.DataType, for messages.
DTYPES = {
    0: "undefined", 1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip

Dim = int | str | None
"""A size, the name of a dynamic dimension, or None where nothing is said."""

# message -> field number -> message of that field, for all that can hold a tensor (onnx.proto3).
_NESTED: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14
_MAX_DEPTH = 64
_MAX_FIELDS = 1_000_000
"""A network of some thousand nodes has some ten thousand; each takes microseconds, and memory."""

_Field = tuple[int, int | memoryview]


@dataclass(frozen=True)
class Port:
    """One input or output: its name, dtype (TensorProto.DataType) and shape (None: not declared)."""

    name: str
    dtype: int
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        """Readable form such as `images uint8 [N, 28, 28, 1]`."""
        shape = "of any shape" if self.shape is None else "[" + ", ".join(str(d or "?") for d in self.shape) + "]"
        return f"{ascii(self.name)[1:-1]:.60} {DTYPES.get(self.dtype, f'type {self.dtype}')} {shape}"


@dataclass(frozen=True)
class ModelIO:
    """Inputs (without those that are initializers) and outputs of a model, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def scan_file(path: Path, what: str) -> ModelIO:
    """Scan an ONNX file; `what` starts the messages.

    Raises:
        BundleError: not an ONNX model, cut short, or with tensors outside the file.
    """
    if path.stat().st_size == 0:
        raise BundleError(f"{what}: is empty; copy the bundle again")
    with path.open("rb") as stream:
        # Not closed here: an exception's traceback may still hold views of it. It goes with the last of them.
        return scan(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), what)


def scan(data: memoryview, what: str) -> ModelIO:
    """Scan the bytes of an ONNX model; see `scan_file`."""
    try:
        _refuse_external(data, what)
        return _read_io(data)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{what}: not an ONNX model, or cut short ({error})") from None


def check_io(io: ModelIO, shape: tuple[int, int, int], outputs: int, what: str) -> None:
    """Raise BundleError unless a model takes and gives what the models of a bundle must.

    Args:
        io: what the model declares.
        shape: (height, width, channels) of the bundle.
        outputs: number of logits.
        what: start of the message.
    """
    expected = f"expected one input images uint8 [N, {', '.join(map(str, shape))}]"
    if len(io.inputs) != 1:
        raise BundleError(f"{what}: has {len(io.inputs)} inputs; {expected}")
    port = io.inputs[0]
    dims = port.shape or (None,)
    if port.name != "images" or port.dtype != UINT8 or dims[1:] != shape or isinstance(dims[0], int):
        raise BundleError(f"{what}: takes {port}; {expected} (N dynamic); `trt-moe pack` wraps other models")
    expected = f"expected one output logits float32 [N, {outputs}]"
    if len(io.outputs) != 1:
        raise BundleError(f"{what}: has {len(io.outputs)} outputs; {expected}")
    port = io.outputs[0]
    # Exporters leave output shapes out or name them, so only a plain contradiction is one.
    dims = (None, outputs) if port.shape is None else port.shape
    fits = len(dims) == 2 and (dims[1] == outputs or not isinstance(dims[1], int))
    if port.name != "logits" or port.dtype != FLOAT32 or not fits:
        raise BundleError(f"{what}: gives {port}; {expected}")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number; returns it and where the next byte lies.

    Raises:
        ValueError: it runs over the end, or over 64 bits.
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number runs over the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: memoryview) -> Iterator[_Field]:
    """Yield field numbers with their values (bytes of length-delimited ones, unread, as views)."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag >> 32:
            raise ValueError("a field number that protobuf does not have")
        number, wire = tag >> 3, tag & 7
        value: int | memoryview
        if wire == _VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError(f"a field of {length:,} bytes runs over the end")
        yield number, data[at : at + length]
        at += length


def _refuse_external(data: memoryview, what: str) -> None:
    stack: list[tuple[str, memoryview, int]] = [("Model", data, 0)]
    left = _MAX_FIELDS
    while stack:
        message, content, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("graphs nested too deep")
        nested = _NESTED.get(message, {})
        for number, value in fields(content):
            left -= 1
            if left < 0:
                raise BundleError(f"{what}: has more than {_MAX_FIELDS:,} fields, the most that are read")
            if message == "Tensor":
                if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
                    raise BundleError(
                        f"{what}: keeps its weights in other files; "
                        "export it as one file (onnx.save with save_as_external_data=False)"
                    )
            elif number in nested and isinstance(value, memoryview):
                stack.append((nested[number], value, depth + 1))


def _read_io(data: memoryview) -> ModelIO:
    inputs: list[Port] = []
    outputs: list[Port] = []
    initializers: set[str] = set()
    graphs = 0
    for number, graph in fields(data):
        if number != _MODEL_GRAPH or not isinstance(graph, memoryview):
            continue
        graphs += 1
        for field, value in fields(graph):
            if not isinstance(value, memoryview):
                continue
            if field == _GRAPH_INPUT:
                inputs.append(_port(value))
            elif field == _GRAPH_OUTPUT:
                outputs.append(_port(value))
            elif field == _GRAPH_INITIALIZER:
                initializers.add(text(value, _TENSOR_NAME))
    if graphs == 0:
        raise ValueError("no graph inside")
    return ModelIO(tuple(port for port in inputs if port.name not in initializers), tuple(outputs))


def _port(data: memoryview) -> Port:
    dtype, shape = 0, None
    for type_field in messages(data, 2):
        for tensor_type in messages(type_field, 1):
            for number, value in fields(tensor_type):
                if number == 1 and isinstance(value, int):
                    dtype = value
                elif number == 2 and isinstance(value, memoryview):
                    shape = tuple(_dim(dim) for dim in messages(value, 1))
    return Port(text(data, 1), dtype, shape)


def _dim(data: memoryview) -> Dim:
    result: Dim = None
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            result = value
        elif number == 2 and isinstance(value, memoryview):
            result = bytes(value).decode("utf-8")
    return result


def messages(data: memoryview, field: int) -> Iterator[memoryview]:
    """Yield the length-delimited values of one field, unread."""
    for number, value in fields(data):
        if number == field and isinstance(value, memoryview):
            yield value


def text(data: memoryview, field: int) -> str:
    """Return the first value of a field that holds text; empty where it is not there."""
    return next((bytes(value).decode("utf-8") for value in messages(data, field)), "")
