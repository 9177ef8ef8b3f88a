"""The Open Inference Protocol, without a server."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.infer_requests import binary, body
from trt_moe.errors import InputError
from trt_moe.result import Result
from trt_moe.serving.protocol import describe_model, format_answer, parse_request


def parse(content, header):
    return parse_request(content, header, "mix")


NAMES = ["probabilities", "labels", "experts", "latency_ms", "gater_logits"]


RESULT = Result(
    probabilities=np.asarray([[0.25, 0.75], [0.5, 0.5]], np.float32),
    experts=np.asarray([1, 0]),
    latency_ms=np.asarray([1.5, 2.0], np.float32),
    gater_logits=np.asarray([[0, 1, 2], [3, 4, 5]], np.float32),
    class_names=["cat", "dog"],
    expert_names=["a", "b", "c"],
)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[[1], [2]], [[3], [4]]]]])
def test_images_as_numbers(data):
    request = parse(*body(data, id="7", parameters={"deadline_ms": 20}))
    assert request.images.dtype == np.uint8
    assert request.images.tolist() == [[[[1], [2]], [[3], [4]]]]
    assert (request.id, request.deadline_ms) == ("7", 20)
    assert request.outputs == tuple((name, False) for name in NAMES)


def test_images_as_bytes():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    request = parse(*binary(pixels, parameters={"binary_data_output": True}))
    assert np.array_equal(request.images, pixels)
    assert request.outputs == tuple((name, True) for name in NAMES)
    assert (request.id, request.deadline_ms) == (None, None)


def test_some_outputs_some_of_them_as_bytes():
    outputs = [{"name": "labels"}, {"name": "probabilities", "parameters": {"binary_data": False}}]
    request = parse(*body([1, 2, 3, 4], outputs=outputs, parameters={"binary_data_output": True}))
    assert request.outputs == (("labels", True), ("probabilities", False))
    content, headers = format_answer(request, "mix", RESULT)
    size = int(headers["Inference-Header-Content-Length"])
    assert json.loads(content[:size]) == {
        "model_name": "mix",
        "outputs": [
            {"name": "labels", "datatype": "INT64", "shape": [2], "parameters": {"binary_data_size": 16}},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
        ],
    }
    assert content[size:] == np.asarray([1, 0], "<i8").tobytes()
    assert headers["Content-Type"] == "application/octet-stream"


def test_all_outputs_as_numbers():
    content, headers = format_answer(parse(*body([1, 2, 3, 4], id="x")), "mix", RESULT)
    answer = json.loads(content)
    assert headers == {"Content-Type": "application/json"}
    assert answer["id"] == "x"
    values = {each["name"]: (each["datatype"], each["shape"], each["data"]) for each in answer["outputs"]}
    assert values == {
        "probabilities": ("FP32", [2, 2], [0.25, 0.75, 0.5, 0.5]),
        "labels": ("INT64", [2], [1, 0]),
        "experts": ("INT64", [2], [1, 0]),
        "latency_ms": ("FP32", [2], [1.5, 2.0]),
        "gater_logits": ("FP32", [2, 3], [0, 1, 2, 3, 4, 5]),
    }


def test_what_is_described_is_what_is_answered():
    described = describe_model("mix", (28, 28, 1), classes=2, experts=3)
    assert described["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}]
    content, _ = format_answer(parse(*body([1, 2, 3, 4])), "mix", RESULT)
    for told, given_ in zip(described["outputs"], json.loads(content)["outputs"], strict=True):
        assert (told["name"], told["datatype"]) == (given_["name"], given_["datatype"])
        assert told["shape"] == [-1, *given_["shape"][1:]]


@pytest.mark.parametrize(
    ("request_body", "header", "message"),
    [
        (b"", None, "EOF"),
        (b"[" * 100_000, None, "recursion"),
        (b"[]", None, "Input should be an object"),
        (b"\xff{}", None, "the request is not what was expected"),
        (b"{}", None, "inputs: Field required"),
        (b"{}", "3", "Inference-Header-Content-Length is 3, and the whole body has 2 bytes"),
        (b"{}", "-1", "expected the number of bytes of JSON"),
        (b"{}", "1" * 12, "expected the number of bytes of JSON"),
        (b"{}", "\N{SUPERSCRIPT TWO}", "expected the number of bytes of JSON"),
        (*body([1, 2, 3, 4], inputs=[]), "inputs: List should have at least 1 item"),
        (*body([1, 2, 3, 4], tensor={"name": "x"}), "inputs.0.name: Input should be 'images' (found 'x')"),
        (*body([1, 2, 3, 4], tensor={"datatype": "FP32"}), "inputs.0.datatype: Input should be 'UINT8'"),
        (*body([1, 2, 3, 4], shape=(2, 2)), "inputs.0.shape: List should have at least 4 items"),
        (
            *body([1, 2, 3, 4], shape=(-1, 2, 2, -1)),
            "inputs.0.shape.3: Input should be greater than or equal to 1",
        ),
        (*body([], shape=(0, 2, 2, 1)), "inputs.0.shape.0: Input should be greater than or equal to 1 (found 0)"),
        (*body([1], shape=(10**3000,) * 4), "inputs.0.shape.0: Input should be less than or equal to 2147483648"),
        (*body([1, 2, 3, 4], model_name="other"), "model_name is 'other'; expected 'mix'"),
        (
            *body([1, 2, 3, 4], outputs=[{"name": "labels"}] * 2),
            "outputs are labels, labels; expected each once",
        ),
        (*body([1, 2, 3, 4], outputs=[{"name": "labels"}] * 6), "outputs: List should have at most 5 items"),
        (
            *body([1, 2, 3, 4], **{f"key-{i}": 0 for i in range(101)}),
            "not what was expected: 101 mistakes",
        ),
        (*body([1] * (1 << 20)), "bytes of JSON; expected at most 2,097,152: send the images' values as bytes"),
        (*body([1, 2, 3, 4], parameters={"timeout": 9}), "parameters.timeout: Extra inputs are not permitted"),
        (*body([1, 2, 3, 4], outputs=[{"name": "logits"}]), "outputs.0.name: Input should be 'probabilities'"),
        (*body(), "images needs its values in `data`, or their bytes after the JSON"),
        (*body([1, 2, 3]), "data is not 4 whole numbers from 0 to 255, flat or in rows"),
        (*body([[1, 2], [3]]), "data is not 4 whole numbers"),
        (*body([1, 2, 3, 0.5]), "data is not 4 whole numbers"),
        (*body([True, False, True, False]), "data is not 4 whole numbers"),
        (*body([1, 2, 3, 256]), "data holds values from 1 to 256; expected 0 to 255"),
        (*body([1, 2, 3, -1]), "data holds values from -1 to 3"),
        (*body([1, 2, 3, 10**30]), "data holds values from 1 to 1000000000000000000000000000000; expected 0 to 255"),
        (*body([[1, 2], 3, 4]), "data is not 4 whole numbers"),
        (*body([[[[[1], [2], [3], [4]]]]]), "data is not 4 whole numbers"),
        (*body(["a", "b", "c", "d"]), "data is not 4 whole numbers"),
        (*body([1, 2, 3, 4], tail=b"12"), "2 bytes follow the JSON, and images has its values in `data`"),
        (*body([1, 2, 3, 4], tensor={"parameters": {"binary_data_size": 4}}), "images needs its values in `data`, or"),
        (*body(tail=b"12", tensor={"parameters": {"binary_data_size": 4}}), "binary_data_size is 4, and 2 bytes"),
        (*body(tail=b"12", tensor={"parameters": {"binary_data_size": 2}}), "[1, 2, 2, 1], which is 4 bytes, and"),
        (*body(tail=b"12", tensor={"parameters": {"binary_data_size": -2}}), "greater than or equal to 0"),
    ],
)
def test_what_is_no_request_is_refused(request_body, header, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse(request_body, header)


shapes = st.tuples(*(st.integers(1, 3) for _ in range(4)))


@given(
    shapes.flatmap(
        lambda shape: st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
            lambda pixels: np.frombuffer(pixels, np.uint8).reshape(shape)
        )
    ),
    st.booleans(),
)
def test_any_images_come_through(pixels, as_bytes):
    request = binary(pixels) if as_bytes else body(pixels.ravel().tolist(), pixels.shape)
    assert np.array_equal(parse(*request).images, pixels)


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(str))
def test_any_bytes_are_refused_as_input(content, header):
    with pytest.raises(InputError):
        parse(content, header)
