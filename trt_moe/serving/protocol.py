"""Requests and answers of the Open Inference Protocol (V2 of KServe's and Triton's) with its binary tensors.

Source: https://github.com/kserve/open-inference-protocol, and for the binary tensors Triton's extension of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_moe.bundle.manifest import describe_errors
from trt_moe.errors import InputError
from trt_moe.result import Result

INPUT = "images"
HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: bytes of JSON, after which the tensors' own bytes follow."""

MAX_JSON = 2 << 20
"""Bytes of JSON that are read; while it is parsed Python does nothing else."""

_MOST_AXES = 4
_MOST_ERRORS = 100

_OutputName = Literal["probabilities", "labels", "experts", "latency_ms", "gater_logits"]

# Each output's datatype, and its shape after the number of images; a name stands for how many of these there are.
_OUTPUTS: dict[_OutputName, tuple[str, tuple[str, ...]]] = {
    "probabilities": ("FP32", ("classes",)),
    "labels": ("INT64", ()),
    "experts": ("INT64", ()),
    "latency_ms": ("FP32", ()),
    "gater_logits": ("FP32", ("experts",)),
}


class _Strict(BaseModel):
    # What is not known is refused: a parameter that is silently left out would change what is answered.
    model_config = ConfigDict(extra="forbid", strict=True)


class _InputParameters(_Strict):
    binary_data_size: int | None = Field(default=None, ge=0)


class _Input(_Strict):
    name: Literal["images"]
    datatype: Literal["UINT8"]
    shape: list[Annotated[int, Field(ge=1, le=1 << 31)]] = Field(min_length=_MOST_AXES, max_length=_MOST_AXES)
    data: list[Any] | None = None
    parameters: _InputParameters = _InputParameters()


class _OutputParameters(_Strict):
    binary_data: bool | None = None


class _Output(_Strict):
    name: _OutputName
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(_Strict):
    binary_data_output: bool = False
    deadline_ms: float | None = None


class _Request(_Strict):
    id: str | None = None
    model_name: str | None = None
    model_version: str | None = None
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] | None = Field(default=None, max_length=len(get_args(_OutputName)))
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a client asks.

    Attributes:
        id: comes back with the answer.
        images: uint8 [N, H, W, C], of any sizes.
        outputs: name, and whether its values come as bytes, of each output that is wanted.
        deadline_ms: as in `Router.predict`, not checked yet.
    """

    id: str | None
    images: NDArray[np.uint8]
    outputs: tuple[tuple[_OutputName, bool], ...]
    deadline_ms: float | None


def parse_request(body: bytes, header_length: str | None, model: str) -> InferRequest:
    """Read a request.

    Args:
        body: of the HTTP request.
        header_length: the value of its header `HEADER_LENGTH`, where it has one.
        model: which it may name.

    Raises:
        InputError: it is not one that this server takes; what was expected is said.
    """
    size = _json_size(body, header_length)
    if size > MAX_JSON:
        raise InputError(
            f"the request has {size:,} bytes of JSON; expected at most {MAX_JSON:,}: send the images' values as bytes, "
            "by the extension for binary tensors"
        )
    try:
        request = _Request.model_validate_json(body[:size])
    except ValidationError as error:
        count = error.error_count()
        told = describe_errors(error) if count <= _MOST_ERRORS else f"{count:,} mistakes"
        raise InputError(f"the request is not what was expected: {told}") from None
    if request.model_name not in (None, model):
        raise InputError(f"model_name is {str(request.model_name)[:64]!r}; expected {model!r}")
    wanted = request.outputs if request.outputs else [_Output(name=name) for name in _OUTPUTS]
    as_bytes = request.parameters.binary_data_output
    outputs = tuple(
        (each.name, as_bytes if each.parameters.binary_data is None else each.parameters.binary_data) for each in wanted
    )
    if len({name for name, _ in outputs}) < len(outputs):
        raise InputError(f"outputs are {', '.join(name for name, _ in outputs)}; expected each once")
    images = _images(request.inputs[0], memoryview(body)[size:])
    return InferRequest(request.id, images, outputs, request.parameters.deadline_ms)


def format_answer(request: InferRequest, model: str, result: Result) -> tuple[bytes, dict[str, str]]:
    """The body of the HTTP answer, and its headers."""
    described: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name, as_bytes in request.outputs:
        values: NDArray[Any] = getattr(result, name)
        output: dict[str, Any] = {"name": name, "datatype": _OUTPUTS[name][0], "shape": list(values.shape)}
        if as_bytes:
            tensors.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            output["data"] = values.ravel().tolist()
        described.append(output)
    answer = {"model_name": model, "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer, allow_nan=False).encode()
    if not tensors:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *tensors]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def describe_model(name: str, shape: tuple[int, int, int], classes: int, experts: int) -> dict[str, Any]:
    """The protocol's metadata of a model that takes images of `shape`; -1 stands for any number of them."""
    sizes: Mapping[str, int] = {"classes": classes, "experts": experts}
    return {
        "name": name,
        "versions": [],
        "platform": "trt_moe",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *shape]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, *(sizes[axis] for axis in axes)]}
            for output, (datatype, axes) in _OUTPUTS.items()
        ],
    }


def _json_size(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    # isdecimal alone takes digits of other scripts, and int() any number of them.
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 12):
        raise InputError(f"{HEADER_LENGTH} is {header_length[:40]!r}; expected the number of bytes of JSON")
    size = int(header_length)
    if size > len(body):
        raise InputError(f"{HEADER_LENGTH} is {size}, and the whole body has {len(body)} bytes")
    return size


def _images(tensor: _Input, tail: memoryview) -> NDArray[np.uint8]:
    size = tensor.parameters.binary_data_size
    expected = prod(tensor.shape)
    if (size is None) == (tensor.data is None):
        raise InputError(f"{INPUT} needs its values in `data`, or their bytes after the JSON with `binary_data_size`")
    if size is None:
        if len(tail):
            raise InputError(f"{len(tail)} bytes follow the JSON, and {INPUT} has its values in `data`")
        return _of_numbers(tensor.data, expected).reshape(tensor.shape)
    if size != len(tail):
        raise InputError(f"binary_data_size is {size}, and {len(tail)} bytes follow the JSON")
    if size != expected:
        raise InputError(f"shape is {tensor.shape}, which is {expected} bytes, and binary_data_size is {size}")
    return np.frombuffer(tail, np.uint8).reshape(tensor.shape)


def _of_numbers(data: Any, expected: int) -> NDArray[np.uint8]:
    values, refused = list(data), False
    # NumPy would make room for the longest of all strings in each place.
    for _ in range(_MOST_AXES - 1):
        if not values or type(values[0]) is not list:
            break
        refused = any(type(row) is not list for row in values) or len({len(row) for row in values}) > 1
        if refused:
            break
        values = list(chain.from_iterable(values))
    if refused or len(values) != expected or any(type(value) is not int for value in values):
        raise InputError(f"data is not {expected:,} whole numbers from 0 to 255, flat or in rows of one length")
    try:
        return np.frombuffer(bytes(values), np.uint8)
    except ValueError:
        raise InputError(f"data holds values from {min(values)} to {max(values)}; expected 0 to 255") from None
