import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from support.half_models import CLASSES, answers, classifier, image_model, raw_model  # noqa: E402
from trt_moe.compile import half  # noqa: E402
from trt_moe.compile.gate_emulation import emulate  # noqa: E402
from trt_moe.errors import EngineBuildError, InputError  # noqa: E402

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
SIDES = {"sides": np.array([2, 3], np.int64)}
HEAD = {"head": np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)}
MEAN = [("ReduceMean", ["pixels", "sides"], "mean", {"keepdims": 0}), ("MatMul", ["mean", "head"], "logits", {})]


def assert_close(found, expected):
    assert np.abs(found - expected).max() < 2e-3 * max(1, np.abs(expected).max())


def kinds(model):
    return [node.op_type for node in model.graph.node]


def test_weights_and_values_are_float16_inside_and_the_ports_stay():
    model = half.to_half(classifier())
    types = half.tensor_types(model)
    assert types["kernel"] == types["head"] == types["features"] == types["mean"] == HALF
    assert types["images"] == TensorProto.UINT8 and types["logits"] == FLOAT
    assert half.float32_layers(model) == []
    assert_close(answers(emulate(model)), answers(classifier()))


def test_the_given_model_is_not_changed():
    model = classifier()
    before = model.SerializeToString()
    half.to_half(model)
    assert model.SerializeToString() == before


def test_bytes_become_float16_before_they_are_transposed():
    nodes = [
        ("Transpose", ["images"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Cast", ["planes"], "floats", {"to": FLOAT}),
        ("Div", ["floats", "full"], "pixels", {}),
        *MEAN,
    ]
    model = onnx.shape_inference.infer_shapes(raw_model(nodes, {"full": np.float32(255), **SIDES, **HEAD}))
    converted = half.to_half(model)
    assert kinds(converted)[:2] == ["Cast", "Transpose"]
    assert half.tensor_types(converted)["planes"] == HALF
    assert_close(answers(emulate(converted)), answers(model))


def test_named_nodes_stay_float32_and_pass_their_values_on_directly():
    model = classifier(1e5)
    converted = half.to_half(model, ["features", "active", "mean", "logits"])
    assert half.float32_layers(converted) == ["features", "active", "mean", "logits"]
    # One cast in and the one to the logits: between them nothing passes through float16, where 1e5 would overflow.
    assert kinds(converted) == ["Cast", "Transpose", "Div", "Cast", "Conv", "Relu", "ReduceMean", "MatMul", "Cast"]
    assert_close(answers(emulate(converted)), answers(model))


def test_a_name_that_no_node_has():
    with pytest.raises(InputError, match=r"'feature'.* did you mean features"):
        half.to_half(classifier(), ["feature"])


def test_weights_beyond_float16_stay_float32():
    nodes = [("Mul", ["pixels", "large"], "scaled", {}), ("Div", ["scaled", "large"], "back", {})]
    mean = [("ReduceMean", ["back", "sides"], "mean", {"keepdims": 0}), *MEAN[1:]]
    model = image_model([*nodes, *mean], {"large": np.float32(1e6), **SIDES, **HEAD})
    assert half.must_stay_float32(half.prepare(model)) == {
        "scaled": "its weight large reaches 1e+06, float16 ends at 65504",
        "back": "its weight large reaches 1e+06, float16 ends at 65504",
    }
    converted = half.to_half(model)
    assert half.float32_layers(converted) == ["scaled", "back"]
    assert_close(answers(emulate(converted)), answers(model))


def test_infinite_weights_are_kept_as_they_are():
    nodes = [("Min", ["pixels", "no_limit"], "limited", {})]
    mean = [("ReduceMean", ["limited", "sides"], "mean", {"keepdims": 0}), *MEAN[1:]]
    model = image_model([*nodes, *mean], {"no_limit": np.float32(np.inf), **SIDES, **HEAD})
    assert half.must_stay_float32(half.prepare(model)) == {}
    assert_close(answers(emulate(half.to_half(model))), answers(model))


def test_what_becomes_an_index_stays_float32():
    # 4097 is 4096 in float16.
    nodes = [
        *MEAN[:1],
        ("Add", ["count", "one"], "position", {}),
        ("Cast", ["position"], "index", {"to": TensorProto.INT64}),
        ("Gather", ["table", "index"], "offset", {"axis": 0}),
        ("MatMul", ["mean", "head"], "product", {}),
        ("Add", ["product", "offset"], "logits", {}),
    ]
    table = np.zeros((4098, 1), np.float32)
    table[4097] = 7
    extra = {"count": np.array([4096], np.float32), "one": np.float32(1), "table": table}
    model = image_model(nodes, {**extra, **SIDES, **HEAD})
    converted = half.to_half(model)
    assert half.float32_layers(converted) == ["position"]
    assert_close(answers(emulate(converted)), answers(model))


def test_resize_keeps_its_scales_and_normalization_its_statistics():
    nodes = [
        ("Resize", ["pixels", "", "factors"], "small", {"mode": "linear"}),
        ("Flatten", ["small"], "flat", {}),
        ("LayerNormalization", ["flat", "gain", "shift"], "normal", {}),
        ("MatMul", ["normal", "flat_head"], "logits", {}),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "factors": np.array([1, 1, 0.5, 0.5], np.float32),
        "gain": np.ones(48, np.float32),
        "shift": np.zeros(48, np.float32),
        "flat_head": rng.normal(size=(48, CLASSES)).astype(np.float32),
    }
    model = image_model(nodes, weights)
    converted = half.to_half(model)
    types = half.tensor_types(converted)
    assert types["factors"] == FLOAT and types["small"] == types["gain"] == types["normal"] == HALF
    normalization = next(node for node in converted.graph.node if node.op_type == "LayerNormalization")
    assert half.attribute(normalization, "stash_type") in (None, FLOAT)
    assert_close(answers(emulate(converted)), answers(model))


def test_constants_functions_and_nodes_without_a_name():
    model = image_model(MEAN, {**SIDES, **HEAD})
    nodes = [
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["ones"], value_floats=[1.0] * CLASSES),
        helper.make_node("Twice", ["raw"], ["doubled"], domain="own"),
        helper.make_node("Mul", ["doubled", "half"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "ones"], ["logits"]),
    ]
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(nodes)
    twice = helper.make_node("Add", ["x", "x"], ["y"])
    opset = model.opset_import[0]
    model.functions.append(helper.make_function("own", "Twice", ["x"], ["y"], [twice], [opset]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    prepared = half.prepare(model)
    names = [node.name for node in prepared.graph.node]
    assert "Constant" not in kinds(prepared) and "Twice" not in kinds(prepared)
    assert all(names) and len(set(names)) == len(names)
    assert answers(prepared).tolist() == answers(image_model(MEAN, {**SIDES, **HEAD})).tolist()
    assert half.prepare(prepared) == prepared
    assert_close(answers(emulate(half.to_half(model))), answers(prepared))


def test_an_author_who_chose_float16_is_not_overruled():
    nodes = [
        *MEAN[:1],
        ("Cast", ["mean"], "short", {"to": HALF}),
        ("MatMul", ["short", "head"], "product", {}),
        ("Cast", ["product"], "logits", {"to": FLOAT}),
    ]
    model = image_model(nodes, {**SIDES, "head": HEAD["head"].astype(np.float16)})
    converted = half.to_half(model)
    types = half.tensor_types(converted)
    assert types["mean"] == FLOAT and types["product"] == HALF
    with pytest.raises(EngineBuildError, match="product cannot be put into float32: the model has float16 weights"):
        half.to_half(model, ["product"])


def test_a_graph_inside_a_node_is_refused():
    branch = helper.make_graph([], "same", [], [helper.make_tensor_value_info("mean", FLOAT, None)])
    model = image_model(MEAN, {**SIDES, **HEAD, "yes": np.bool_(True)})
    choice = helper.make_node("If", ["yes"], ["chosen"], "choice", then_branch=branch, else_branch=branch)
    model.graph.node.insert(4, choice)
    model.graph.node[-1].input[0] = "chosen"
    with pytest.raises(EngineBuildError, match=r"node choice \(If\) holds a graph"):
        half.to_half(model)


def test_an_operator_that_onnx_does_not_define_is_named():
    model = image_model(MEAN, {**SIDES, **HEAD})
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("Sharpen", ["raw"], ["logits"], "sharpen", domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(EngineBuildError, match=r"node sharpen: Sharpen \(domain com.example\)"):
        half.to_half(model)


def test_weights_keep_their_values():
    model = classifier()
    converted = {weight.name: numpy_helper.to_array(weight) for weight in half.to_half(model).graph.initializer}
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight)
        if value.dtype == np.float32:
            np.testing.assert_array_equal(converted[weight.name], value.astype(np.float16))
