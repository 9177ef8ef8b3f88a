import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper  # noqa: E402

from support.half_models import answers, classifier, image_model, images  # noqa: E402
from trt_moe.compile.gate import INT8_THRESHOLDS, Samples, check  # noqa: E402
from trt_moe.compile.half import attribute, producers, tensor_types, to_half  # noqa: E402
from trt_moe.compile.int8 import quantize  # noqa: E402
from trt_moe.errors import EngineBuildError, InputError  # noqa: E402


def unseen(count=48):
    pictures = images(count, seed=2)
    return Samples(pictures, np.zeros(count, int))


def weights_of(model):
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def test_products_read_int8_and_only_their_inputs_are_rounded():
    model = quantize(classifier(), images())
    made_by = producers(model.graph)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    assert len(products) == 2
    for node in products:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    assert [made_by[name].op_type for name in ("active", "logits")] == ["Relu", "MatMul"]
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.input[0] for node in quantized] == ["pixels", "mean"]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_scales_are_symmetric_and_per_channel():
    model = quantize(classifier(), images())
    values, made_by = weights_of(model), producers(model.graph)
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    pixels, kernel = (made_by[name] for name in convolution.input)
    kernel_values = weights_of(classifier())["kernel"]
    assert values[kernel.input[0]].dtype == np.int8 and attribute(kernel, "axis") == 0
    np.testing.assert_allclose(values[kernel.input[1]], np.abs(kernel_values).max(axis=(1, 2, 3)) / 127, rtol=1e-2)
    for node in (pixels, kernel):
        assert values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any()
    largest = images().max() / 255
    np.testing.assert_allclose(values[pixels.input[1]], largest / 127, rtol=1e-2)


def test_activations_may_have_zero_points():
    model = quantize(classifier(), images(), zero_points=True)
    values = weights_of(model)
    activations = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {values[node.input[2]].dtype.name for node in activations} == {"uint8"}
    # The whole range for values that are never below zero: half the step of a symmetric one.
    np.testing.assert_allclose(values["pixels_scale"], images().max() / 255 / 255, rtol=1e-2)
    kernel = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    assert values[producers(model.graph)[kernel].input[2]].dtype == np.int8
    symmetric = check(classifier(), quantize(classifier(), images()), unseen())
    assert check(classifier(), model, unseen()).mean_logit_error < symmetric.mean_logit_error


def test_it_passes_the_gate_on_images_it_did_not_see():
    model = classifier()
    report = check(model, quantize(model, images()), unseen())
    assert report.passed and report.thresholds == INT8_THRESHOLDS
    # It is coarser than float16: else nothing was quantized.
    assert report.mean_logit_error > 1e-3


def test_the_rest_can_be_float16():
    model = quantize(classifier(), images())
    converted = to_half(model)
    types = tensor_types(converted)
    assert types["features"] == types["mean"] == TensorProto.FLOAT16
    assert check(classifier(), converted, unseen()).passed


def test_calibrating_on_other_images_gives_other_ranges():
    # Dark images alone: bright ones are cut off, and the gate says so.
    model = classifier()
    dark = quantize(model, images() // 16)
    report = check(model, dark, unseen())
    assert not report.passed and report.largest_logit_error > 0.2


def test_excluded_nodes_stay_float32():
    model = quantize(classifier(), images(), exclude=["features"])
    assert [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"] == ["mean"]


def test_nothing_to_quantize_or_to_calibrate_on():
    plain = image_model(
        [("ReduceMean", ["pixels", "sides"], "mean", {"keepdims": 0}), ("Pad", ["mean", "pads"], "logits", {})],
        {"sides": np.array([2, 3]), "pads": np.array([0, 0, 0, 1])},
    )
    with pytest.raises(EngineBuildError, match="it has no Conv, Gemm, MatMul to quantize; build it"):
        quantize(plain, images())
    with pytest.raises(EngineBuildError, match=r"to quantize but those that .* float32 \(features, logits\); build it"):
        quantize(classifier(), images(), exclude=["features", "logits"])
    with pytest.raises(InputError, match="calibration needs images"):
        quantize(classifier(), images(0))


def test_the_given_model_is_not_changed():
    model = classifier()
    before = answers(model).tolist()
    quantize(model, images())
    assert answers(model).tolist() == before and "QuantizeLinear" not in {node.op_type for node in model.graph.node}
