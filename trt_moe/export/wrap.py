"""Foreign ONNX classifiers as models of a bundle: uint8 NHWC `images` in, float32 `logits` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from trt_moe.errors import InputError

MIN_OPSET = 11
"""Oldest operator set whose Resize has what the wrapper needs."""
MAX_IR_VERSION = 10
"""Newest file format written: runtimes lag behind the onnx package."""

_PREFIX = "model/"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_KEEPING_VALUES = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its pixels: (value * scale - mean) / std, channel by channel.

    Attributes:
        scale: factor on 0..255 bytes; 1/255 for models that were trained on 0..1.
        mean: one value, or one per channel.
        std: one value, or one per channel.
        size: (height, width) of the network's input where the graph leaves it open; None: the bundle's.
        layout: of the graph's input; "auto" tells it from the shape.
        bgr: the network takes blue first.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    bgr: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant.

        Raises:
            InputError: not finite, a standard deviation of 0 or less, or a mean that no byte can have.
        """
        values = [self.scale, *self.mean, *self.std]
        if not np.isfinite(values).all() or self.scale <= 0 or min(self.std) <= 0:
            raise InputError(
                f"preprocessing has scale {self.scale}, mean {self.mean}, std {self.std}; expected finite "
                "numbers, scale and std above 0"
            )
        most = 255 * self.scale
        if min(self.mean) < 0 or max(self.mean) > most * (1 + 1e-6):
            in_bytes = min(self.mean) >= 0 and most < 255
            raise InputError(
                f"preprocessing has mean {self.mean}, but bytes become 0 to {most:g} by scale {self.scale:.6g}"
                + ("; for a mean and std in bytes pass --scale 1" if in_bytes else "")
            )

    def formula(self) -> str:
        """What becomes of a byte, such as "(byte / 255 - [0.5]) / [0.25]"."""
        scale = f"byte / {1 / self.scale:.6g}" if self.scale < 1 else f"byte * {self.scale:.6g}"
        mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (self.mean, self.std))
        return f"({scale} - [{mean}]) / [{std}]"


@dataclass(frozen=True)
class Wrapped:
    """A model in the bundle's form.

    Attributes:
        model: the graph.
        graph_size: (height, width) that the network sees.
        outputs: number of logits.
        batch: number of images that the file says it takes; None: any.
        parameters: number of float values in its weights.
        notes: what was changed, for people.
    """

    model: onnx.ModelProto
    graph_size: tuple[int, int]
    outputs: int
    batch: int | None
    parameters: int
    notes: tuple[str, ...]


def read_model(file: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, weights in neighbouring files included.

    Raises:
        InputError: missing, not ONNX, invalid, or of an operator set that is too old.
    """
    try:
        model = onnx.load(file)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file ({error})") from None
    except Exception as error:
        # The protobuf and onnx packages raise many types for damaged files.
        raise InputError(f"{file}: not a valid ONNX model ({str(error).splitlines()[0][:300]})") from error
    opset = _opset(model)
    if opset < MIN_OPSET:
        raise InputError(f"{file}: uses operator set {opset}; export it again with {MIN_OPSET} or newer (20 is good)")
    return model


def wrap(
    model: onnx.ModelProto,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    what: str,
    order: Sequence[int] | None = None,
) -> Wrapped:
    """Put the preprocessing into the graph and give it a bundle's input and output.

    Args:
        model: classifier with one image input (float or uint8, NCHW or NHWC) and one [N, K] output.
        shape: (height, width, channels) of the bundle's images.
        preprocessing: ignored for what the graph does already (uint8 inputs take no scaling).
        what: start of the messages.
        order: permutation of the outputs.

    Raises:
        InputError: more inputs or outputs, other ranks, or channels that cannot be fitted.
    """
    model = compose.add_prefix(model, _PREFIX)
    graph = model.graph
    source, target = _ports(graph, what)
    batch = _dims(source)[0]
    layout = _layout(source, preprocessing, shape[2], what)
    notes: list[str] = []
    builder = _Builder(graph)
    graph_size, tensor = _preprocess(builder, "images", source, layout, shape, preprocessing, what, notes)
    builder.feed(source.name, tensor)
    outputs = _postprocess(builder, target, order, what, notes)
    result = builder.finish(model, shape, outputs)
    parameters = sum(
        int(np.prod(weight.dims)) for weight in graph.initializer if weight.data_type in (*_FLOATS, TensorProto.DOUBLE)
    )
    return Wrapped(result, graph_size, outputs, batch, parameters, tuple(notes))


class _Builder:
    """Collects nodes before and after those of the model."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.before: list[onnx.NodeProto] = []
        self.after: list[onnx.NodeProto] = []
        self._count = 0

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        self._count += 1
        name = f"wrap/constant{self._count}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def add(self, nodes: list[onnx.NodeProto], kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        self._count += 1
        name = f"wrap/{kind}{self._count}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def feed(self, name: str, tensor: str) -> None:
        for node in self.graph.node:
            _rename_inputs(node, name, tensor)

    def finish(self, model: onnx.ModelProto, shape: tuple[int, int, int], outputs: int) -> onnx.ModelProto:
        nodes = [*self.before, *self.graph.node, *self.after]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        # Shapes noted for a fixed batch would be wrong for a dynamic one.
        del self.graph.value_info[:]
        del self.graph.input[:]
        del self.graph.output[:]
        self.graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *shape]))
        self.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs]))
        # From version 4 on weights need not be listed among the inputs.
        model.ir_version = max(4, min(model.ir_version, MAX_IR_VERSION))
        return model


def _ports(graph: onnx.GraphProto, what: str) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    weights = {weight.name for weight in graph.initializer}
    inputs = [port for port in graph.input if port.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        names = ", ".join(port.name.removeprefix(_PREFIX) for port in [*inputs, *graph.output])
        raise InputError(
            f"{what}: has {len(inputs)} inputs and {len(graph.output)} outputs ({names}); expected one image "
            "input and one output of logits"
        )
    if len(_dims(inputs[0])) != 4:
        raise InputError(f"{what}: input {_show(inputs[0])}; expected 4 dimensions, [N, C, H, W] or [N, H, W, C]")
    return inputs[0], graph.output[0]


def _layout(source: onnx.ValueInfoProto, preprocessing: Preprocessing, channels: int, what: str) -> str:
    if preprocessing.layout != "auto":
        return preprocessing.layout
    dims = _dims(source)
    allowed = {channels, 3} if channels == 1 else {channels}
    first, last = dims[1] in allowed, dims[3] in allowed
    if not (first or last):
        found = f"{what}: input {_show(source)}; the bundle's images have {channels} channels"
        raise InputError(found if None not in (dims[1], dims[3]) else f"{found}; say layout nchw or nhwc")
    if first == last:
        raise InputError(
            f"{what}: input {_show(source)} may be [N, C, H, W] or [N, H, W, C] for {channels} channels; say "
            "which with layout nchw or nhwc"
        )
    return "nchw" if first else "nhwc"


def _preprocess(
    builder: _Builder,
    tensor: str,
    source: onnx.ValueInfoProto,
    layout: str,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    what: str,
    notes: list[str],
) -> tuple[tuple[int, int], str]:
    dims = _dims(source)
    dtype = source.type.tensor_type.elem_type
    if dtype not in (*_FLOATS, TensorProto.UINT8):
        raise InputError(f"{what}: input {_show(source)}; expected float32, float16 or uint8")
    channels, height, width = (dims[1], dims[2], dims[3]) if layout == "nchw" else (dims[3], dims[1], dims[2])
    size = _graph_size((height, width), preprocessing, shape, what)
    is_bytes = dtype == TensorProto.UINT8
    resized = size != shape[:2]
    if is_bytes:
        notes.append("takes bytes already: scale, mean and std are not applied")
        if layout == "nhwc" and not resized and channels in (shape[2], None):
            return size, tensor
    # Cast before the transpose: TensorRT shuffles no bytes.
    tensor = builder.add(builder.before, "Cast", [tensor], to=TensorProto.FLOAT)
    tensor = builder.add(builder.before, "Transpose", [tensor], perm=[0, 3, 1, 2])
    tensor, channels = _fit_channels(builder, tensor, channels, shape[2], preprocessing, what, notes)
    if resized:
        tensor = _resize(builder, tensor, shape[:2], size)
        notes.append(f"resizes {shape[0]} x {shape[1]} images to {size[0]} x {size[1]} (bilinear)")
    if not is_bytes:
        tensor = _normalise(builder, tensor, channels, preprocessing, what)
        notes.append(f"is given {preprocessing.formula()}")
    if layout == "nhwc":
        tensor = builder.add(builder.before, "Transpose", [tensor], perm=[0, 2, 3, 1])
    if dtype != TensorProto.FLOAT:
        tensor = builder.add(builder.before, "Cast", [tensor], to=dtype)
    return size, tensor


def _graph_size(
    found: tuple[int | None, int | None], preprocessing: Preprocessing, shape: tuple[int, int, int], what: str
) -> tuple[int, int]:
    wanted = preprocessing.size
    for side, static in enumerate(found):
        if wanted is not None and static is not None and static != wanted[side]:
            raise InputError(f"{what}: its graph takes {found[0]} x {found[1]}, the size asked for is {wanted}")
    default = wanted or shape[:2]
    return (found[0] or default[0], found[1] or default[1])


def _fit_channels(
    builder: _Builder,
    tensor: str,
    found: int | None,
    given: int,
    preprocessing: Preprocessing,
    what: str,
    notes: list[str],
) -> tuple[str, int]:
    channels = given if found is None else found
    if channels != given:
        if given != 1:
            raise InputError(f"{what}: takes {channels} channels, the bundle's images have {given}")
        tensor = builder.add(builder.before, "Concat", [tensor] * channels, axis=1)
        notes.append(f"repeats the grey channel {channels} times")
    if preprocessing.bgr:
        order = builder.constant(np.arange(channels - 1, -1, -1, dtype=np.int64))
        tensor = builder.add(builder.before, "Gather", [tensor, order], axis=1)
        notes.append("turns RGB into BGR")
    return tensor, channels


def _resize(builder: _Builder, tensor: str, given: Sequence[int], size: tuple[int, int]) -> str:
    factors = np.array([1, 1, _scale(given[0], size[0]), _scale(given[1], size[1])], np.float32)
    return builder.add(
        builder.before,
        "Resize",
        [tensor, builder.constant(np.empty(0, np.float32)), builder.constant(factors)],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )


def _normalise(builder: _Builder, tensor: str, channels: int, preprocessing: Preprocessing, what: str) -> str:
    values = []
    for name, given in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(given) not in (1, channels):
            raise InputError(f"{what}: {name} has {len(given)} values; expected 1 or {channels}, one per channel")
        values.append(np.broadcast_to(np.asarray(given, np.float64), (channels,)))
    mean, std = values
    factor = (preprocessing.scale / std).astype(np.float32).reshape(1, channels, 1, 1)
    offset = (-mean / std).astype(np.float32).reshape(1, channels, 1, 1)
    tensor = builder.add(builder.before, "Mul", [tensor, builder.constant(factor)])
    return builder.add(builder.before, "Add", [tensor, builder.constant(offset)])


def _postprocess(
    builder: _Builder, target: onnx.ValueInfoProto, order: Sequence[int] | None, what: str, notes: list[str]
) -> int:
    graph = builder.graph
    dims = _dims(target)
    if len(dims) != 2 or dims[1] is None:
        raise InputError(f"{what}: output {_show(target)}; expected [N, K] logits with K fixed")
    tensor, dtype = target.name, target.type.tensor_type.elem_type
    if dtype not in (*_FLOATS, TensorProto.DOUBLE):
        raise InputError(f"{what}: output {_show(target)}; expected float logits")
    after, softmax = _last_softmax(graph, tensor)
    if softmax is not None:
        # Routing and latency weights compare logits; the softmax of a router's result comes later.
        if after is None:
            tensor = softmax.input[0]
        else:
            after.input[0] = softmax.input[0]
        if not any(_reads(node, softmax.output[0]) for node in graph.node):
            graph.node.remove(softmax)
        notes.append("its last Softmax is dropped: a bundle holds logits")
    if order is not None and list(order) != list(range(dims[1])):
        indices = builder.constant(np.asarray(order, np.int64))
        tensor = builder.add(builder.after, "Gather", [tensor, indices], axis=1)
        notes.append("its outputs are put in the order of the experts' costs")
    if dtype == TensorProto.FLOAT:
        builder.after.append(helper.make_node("Identity", [tensor], ["logits"], name="wrap/logits"))
    else:
        builder.after.append(helper.make_node("Cast", [tensor], ["logits"], name="wrap/logits", to=TensorProto.FLOAT))
    return int(dims[1])


def _last_softmax(graph: onnx.GraphProto, tensor: str) -> tuple[onnx.NodeProto | None, onnx.NodeProto | None]:
    """The Softmax whose values the tensor has, and the node after it, if there is one."""
    made_by = {name: node for node in graph.node for name in node.output}
    after, node = None, made_by.get(tensor)
    while node is not None and node.op_type in _KEEPING_VALUES:
        after, node = node, made_by.get(node.input[0])
    return (after, node) if node is not None and node.op_type == "Softmax" else (None, None)


def _reads(node: onnx.NodeProto, name: str) -> bool:
    return name in node.input or any(_reads(inner, name) for graph in _subgraphs(node) for inner in graph.node)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [
        graph
        for attribute in node.attribute
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    ]


def _rename_inputs(node: onnx.NodeProto, old: str, new: str) -> None:
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new
    for graph in _subgraphs(node):
        for inner in graph.node:
            _rename_inputs(inner, old, new)


def _scale(given: int, size: int) -> float:
    # Runtimes compute floor(given * scale) in float32, which must not end one short of `size`.
    scale = np.float32(size / given)
    while np.floor(np.float32(given) * scale) < size:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _dims(port: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.dim_value > 0 else None for dim in port.type.tensor_type.shape.dim]


def _show(port: onnx.ValueInfoProto) -> str:
    dims = ", ".join(str(dim) if dim is not None else "?" for dim in _dims(port))
    dtype = TensorProto.DataType.Name(port.type.tensor_type.elem_type).lower()
    return f"{port.name.removeprefix(_PREFIX)} {dtype} [{dims}]"
