import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from support.half_models import CLASSES, answers, classifier, image_model, images  # noqa: E402
from support.tensorrt_operators import READ_BY_TENSORRT_10_1  # noqa: E402
from trt_moe.bundle import Bundle  # noqa: E402
from trt_moe.compile.flavour import Flavour  # noqa: E402
from trt_moe.compile.gate_emulation import emulate  # noqa: E402
from trt_moe.compile.half import float32_layers, opset_version, prepare, to_half  # noqa: E402
from trt_moe.compile.int8 import quantize  # noqa: E402
from trt_moe.compile.opset import lower  # noqa: E402
from trt_moe.compile.prepare import prepare as prepare_model  # noqa: E402
from trt_moe.errors import EngineBuildError, InputError  # noqa: E402


def activated(operator, **attributes):
    """Means of the pixels through one activation, with the axes as an input, as torch exports them."""
    nodes = [
        ("ReduceMean", ["pixels", "sides"], "mean", {"keepdims": 0, "noop_with_empty_axes": 0}),
        ("Sub", ["mean", "middle"], "centred", {}),
        (operator, ["centred"], "active", attributes),
        ("MatMul", ["active", "head"], "logits", {}),
    ]
    rng = np.random.default_rng(0)
    weights = {"sides": np.array([2, 3], np.int64), "middle": np.float32(0.4)}
    return image_model(nodes, {**weights, "head": rng.normal(size=(3, CLASSES)).astype(np.float32)})


@pytest.mark.parametrize(
    ("operator", "attributes"), [("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("Mish", {}), ("Relu", {})]
)
def test_newer_operators_are_replaced_by_their_definition(operator, attributes):
    model = activated(operator, **attributes)
    lowered = lower(model, 17)
    assert opset_version(lowered) == 17 and opset_version(model) == 20
    assert {"Gelu", "Mish", "CastLike"}.isdisjoint(node.op_type for node in lowered.graph.node)
    onnx.checker.check_model(lowered, full_check=True)
    np.testing.assert_allclose(answers(lowered), answers(model), atol=1e-6)


def test_axes_become_an_attribute_again():
    mean = next(node for node in lower(activated("Relu")).graph.node if node.op_type == "ReduceMean")
    assert len(mean.input) == 1
    assert {found.name: onnx.helper.get_attribute_value(found) for found in mean.attribute} == {
        "axes": [2, 3],
        "keepdims": 0,
    }


def test_float16_graphs_stay_float16():
    model = to_half(activated("Gelu"))
    lowered = lower(model)
    assert float32_layers(prepare(lowered)) == []
    np.testing.assert_allclose(answers(emulate(lowered)), answers(model), atol=2e-3)


def test_lowering_and_float16_can_be_done_in_either_order():
    model = activated("Gelu")
    np.testing.assert_allclose(answers(emulate(to_half(lower(model)))), answers(model), atol=2e-3)


def test_an_old_model_is_returned_as_it_is():
    model = lower(classifier(), 18)
    assert lower(model, 19) is model


def test_an_operator_without_equivalent_is_named():
    nodes = [
        ("StringConcat", ["text", "text"], "twice", {}),
        ("ReduceMean", ["pixels", "sides"], "mean", {"keepdims": 0}),
        ("MatMul", ["mean", "head"], "logits", {}),
    ]
    head = np.ones((3, CLASSES), np.float32)
    model = image_model(nodes, {"sides": np.array([2, 3]), "head": head, "text": np.array(["a"], object)})
    with pytest.raises(EngineBuildError, match="node twice: StringConcat came after opset 17"):
        lower(model)


def test_the_shipped_models_have_operators_of_an_old_parser_only():
    bundle = Bundle.load("fashion-mnist")
    for entry in bundle.models():
        lowered = lower(to_half(onnx.load(bundle.file(entry))))
        assert {node.op_type for node in lowered.graph.node} <= READ_BY_TENSORRT_10_1


def test_opsets_without_layer_normalization_are_refused():
    with pytest.raises(InputError, match="opset 16; the oldest is 17"):
        lower(classifier(), 16)


def test_int8_needs_a_parser_that_reads_float16_scales(spec):
    bundle = Bundle.load("fashion-mnist")
    old = Flavour("tensorrt", object(), "10.3.0")
    int8 = spec.model_copy(update={"precision": "int8"})
    with pytest.raises(EngineBuildError, match=r"squeezenet in int8: TensorRT 10\.3\.0 reads ONNX opset 17.*10\.13"):
        prepare_model(bundle, bundle.entry("squeezenet"), int8, old)
    # The very reason: what int8 makes cannot be expressed there.
    with pytest.raises(EngineBuildError, match=r"cannot be expressed in opset 17.*float16"):
        lower(to_half(quantize(classifier(), images())))
