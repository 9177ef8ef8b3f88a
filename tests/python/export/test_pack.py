import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from support.tiny_bundle import write_tiny_bundle  # noqa: E402
from trt_moe.bundle import Bundle, Latency, LatencyTable  # noqa: E402
from trt_moe.cli import app  # noqa: E402
from trt_moe.errors import DataError, EngineBuildError, InputError, ModelOutputError  # noqa: E402
from trt_moe.export.pack import Source, pack  # noqa: E402
from trt_moe.export.reference import run_onnx  # noqa: E402
from trt_moe.export.wrap import Preprocessing, _scale, read_model, wrap  # noqa: E402
from trt_moe.model import Model  # noqa: E402
from trt_moe.router import Router  # noqa: E402

CLASSES = ["a", "b", "c", "d"]
SHAPE = (16, 16, 3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def foreign(
    path,
    outputs=4,
    shape=("N", 3, 16, 16),
    dtype=TensorProto.FLOAT,
    seed=0,
    softmax=False,
    work=0,
    opset=18,
    layout="nchw",
    io=("pixels", "scores"),
    nan=False,
    fixed=0,
):
    """A linear classifier of the channel means, as someone else may have exported it; returns its weights."""
    channels = shape[1] if layout == "nchw" else shape[3]
    rng = np.random.default_rng(seed)
    float_type = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    weight = rng.normal(size=(channels, outputs)).astype(float_type)
    if nan:
        weight[:] = np.nan
    axes = [2, 3] if layout == "nchw" else [1, 2]
    nodes, source = [], io[0]
    if dtype == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [source], ["cast"], to=TensorProto.FLOAT))
        source = "cast"
    weights = [numpy_helper.from_array(weight, "weight")]
    if opset >= 18:
        weights.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
        nodes.append(helper.make_node("ReduceMean", [source, "axes"], ["mean"], keepdims=0))
    else:
        nodes.append(helper.make_node("ReduceMean", [source], ["mean"], axes=axes, keepdims=0))
    source = "mean"
    if fixed:
        weights.append(numpy_helper.from_array(np.array([fixed, channels], np.int64), "one"))
        nodes.append(helper.make_node("Reshape", [source, "one"], ["reshaped"]))
        source = "reshaped"
    nodes.append(helper.make_node("MatMul", [source, "weight"], ["product"]))
    last = "product"
    for step in range(work):
        if step == 0:
            weights.append(numpy_helper.from_array(np.full((outputs, 8192), 0.01, float_type), "grow"))
            weights.append(numpy_helper.from_array(np.full((8192, outputs), 1e-7, float_type), "shrink"))
        nodes.append(helper.make_node("MatMul", [last, "grow"], [f"wide{step}"]))
        nodes.append(helper.make_node("MatMul", [f"wide{step}", "shrink"], [f"narrow{step}"]))
        nodes.append(helper.make_node("Add", ["product", f"narrow{step}"], [f"sum{step}"]))
        last = f"sum{step}"
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], ["soft"], axis=1))
        last = "soft"
    nodes.append(helper.make_node("Identity", [last], [io[1]]) if not softmax else nodes.pop())
    if softmax:
        nodes[-1].output[0] = io[1]
    result = dtype if dtype != TensorProto.UINT8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(io[0], dtype, shape)],
        [helper.make_tensor_value_info(io[1], result, [shape[0], outputs])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="me")
    onnx.save(model, path)
    return weight.astype(np.float64)


def images(count=6, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def wrapped(path, tmp_path, preprocessing=None, shape=SHAPE, order=None):
    result = wrap(read_model(path), shape, preprocessing or Preprocessing(), "model", order)
    onnx.checker.check_model(result.model, full_check=True)
    onnx.save(result.model, tmp_path / "wrapped.onnx")
    return result, lambda batch: run_onnx(tmp_path / "wrapped.onnx", batch)


def expected(batch, weight, mean=(0.0,), std=(1.0,), scale=1 / 255):
    values = (batch.astype(np.float64) * scale - np.array(mean)) / np.array(std)
    return values.mean(axis=(1, 2)) @ weight


@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_preprocessing_is_put_into_the_graph(tmp_path, opset):
    weight = foreign(tmp_path / "m.onnx", opset=opset)
    result, run = wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(mean=MEAN, std=STD))
    np.testing.assert_allclose(run(images()), expected(images(), weight, MEAN, STD), rtol=1e-4, atol=1e-5)
    assert result.graph_size == (16, 16)
    assert result.outputs == 4
    assert result.parameters == 12 + 6  # with the scale and offset of the wrapper


def test_channels_last_float16_bytes_and_bgr(tmp_path):
    weight = foreign(tmp_path / "m.onnx", shape=("N", 16, 16, 3), layout="nhwc")
    _, run = wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(mean=MEAN, std=STD))
    np.testing.assert_allclose(run(images()), expected(images(), weight, MEAN, STD), rtol=1e-4, atol=1e-5)
    weight = foreign(tmp_path / "m.onnx", dtype=TensorProto.FLOAT16)
    _, run = wrapped(tmp_path / "m.onnx", tmp_path)
    logits = run(images())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(images(), weight), atol=2e-2)
    weight = foreign(tmp_path / "m.onnx", dtype=TensorProto.UINT8)
    result, run = wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(mean=MEAN))
    np.testing.assert_allclose(run(images()), expected(images(), weight, scale=1), rtol=1e-4, atol=1e-3)
    assert "bytes already" in result.notes[0]
    weight = foreign(tmp_path / "m.onnx")
    _, run = wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(bgr=True))
    np.testing.assert_allclose(run(images()), expected(images()[..., ::-1], weight), rtol=1e-4, atol=1e-5)


def test_resize_and_grey(tmp_path):
    weight = foreign(tmp_path / "m.onnx")
    flat = np.full((2, 7, 9, 1), 100, np.uint8)
    result, run = wrapped(tmp_path / "m.onnx", tmp_path, shape=(7, 9, 1))
    grey = np.repeat(flat[:, :1, :1], 3, axis=3)
    np.testing.assert_allclose(run(flat), expected(grey, weight), rtol=1e-4, atol=1e-5)
    assert result.graph_size == (16, 16)
    assert any("resizes 7 x 9 images to 16 x 16" in note for note in result.notes)
    assert any("repeats the grey channel" in note for note in result.notes)


@pytest.mark.parametrize("given", range(5, 40, 3))
@pytest.mark.parametrize("size", [16, 23, 96])
def test_resize_never_ends_one_short(tmp_path, given, size):
    foreign(tmp_path / "m.onnx", shape=("N", 3, size, size))
    _, run = wrapped(tmp_path / "m.onnx", tmp_path, shape=(given, given, 3))
    assert run(images(2, (given, given, 3))).shape == (2, 4)


def test_every_scale_ends_at_its_size_and_not_one_past_it():
    sizes = np.arange(1, 301)
    for given in range(1, 301):
        scales = np.array([_scale(given, int(size)) for size in sizes], np.float32)
        np.testing.assert_array_equal(np.floor(np.float32(given) * scales), sizes)
        np.testing.assert_allclose(scales, sizes / given, rtol=3e-7)


@pytest.mark.parametrize("given", [(5, 4), (17, 23)])
def test_images_are_resized_as_torch_does(tmp_path, given):
    torch = pytest.importorskip("torch")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["scores"], axis=1)],
        "pixels as scores",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 8, 11])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3 * 8 * 11])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    _, run = wrapped(tmp_path / "m.onnx", tmp_path, shape=(*given, 3))
    batch = images(2, (*given, 3))
    values = torch.from_numpy(batch).permute(0, 3, 1, 2) / 255
    resized = torch.nn.functional.interpolate(values, size=(8, 11), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(run(batch), resized.flatten(1).numpy(), atol=1e-5)


def test_dynamic_size_takes_the_size_asked_for(tmp_path):
    foreign(tmp_path / "m.onnx", shape=("N", 3, "h", "w"))
    assert wrapped(tmp_path / "m.onnx", tmp_path)[0].graph_size == (16, 16)
    assert wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(size=(8, 12)))[0].graph_size == (8, 12)


def test_softmax_is_dropped_and_outputs_reordered(tmp_path):
    weight = foreign(tmp_path / "m.onnx", softmax=True)
    result, run = wrapped(tmp_path / "m.onnx", tmp_path, order=[3, 0, 1, 2])
    np.testing.assert_allclose(run(images()), expected(images(), weight)[:, [3, 0, 1, 2]], rtol=1e-4, atol=1e-5)
    assert any("Softmax" in note for note in result.notes)


def append(path, *nodes):
    """Put nodes after a model: (operator, attributes, further inputs)."""
    model = onnx.load(path)
    graph, name = model.graph, model.graph.output[0].name
    for index, (kind, attributes, *more) in enumerate(nodes):
        graph.node[-1].output[0] = f"before{index}"
        graph.node.append(helper.make_node(kind, [f"before{index}", *more], [name], **attributes))
    onnx.save(model, path)


@pytest.mark.parametrize(
    "nodes",
    [
        [("Identity", {})],
        [("Cast", {"to": TensorProto.FLOAT16}), ("Cast", {"to": TensorProto.FLOAT})],
        [("Flatten", {"axis": 1}), ("Identity", {})],
    ],
)
def test_a_softmax_before_what_keeps_its_values_is_dropped(tmp_path, nodes):
    weight = foreign(tmp_path / "m.onnx", softmax=True)
    append(tmp_path / "m.onnx", *nodes)
    result, run = wrapped(tmp_path / "m.onnx", tmp_path)
    np.testing.assert_allclose(run(images()), expected(images(), weight), rtol=2e-3, atol=2e-3)
    assert any("Softmax" in note for note in result.notes)
    assert "Softmax" not in {node.op_type for node in result.model.graph.node}


def branch(kind, tensor, shape):
    """A graph for an If that turns a tensor from outside into its one output."""
    output = helper.make_tensor_value_info(f"{kind} of it", TensorProto.FLOAT, shape)
    return helper.make_graph([helper.make_node(kind, [tensor], [output.name])], kind, [], [output])


def choice(tensor, output, shape):
    """An If that always gives the tensor itself."""
    branches = {"then_branch": branch("Identity", tensor, shape), "else_branch": branch("Neg", tensor, shape)}
    return helper.make_node("If", ["always"], [output], **branches)


@pytest.mark.parametrize(
    "reader",
    [helper.make_node("Neg", ["scores"], ["unused"]), choice("scores", "unused", ["N", 4])],
    ids=["node", "branch"],
)
def test_a_softmax_that_others_read_stays_for_them(tmp_path, reader):
    weight = foreign(tmp_path / "m.onnx", softmax=True)
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node.append(reader)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    onnx.save(model, tmp_path / "m.onnx")
    result, run = wrapped(tmp_path / "m.onnx", tmp_path)
    np.testing.assert_allclose(run(images()), expected(images(), weight), rtol=1e-4, atol=1e-5)
    assert "Softmax" in {node.op_type for node in result.model.graph.node}


def test_branches_see_the_preprocessed_pixels(tmp_path):
    weight = foreign(tmp_path / "m.onnx", io=("chosen", "scores"))
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input[0].name = "pixels"
    model.graph.node.insert(0, choice("pixels", "chosen", ["N", 3, 16, 16]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    onnx.save(model, tmp_path / "m.onnx")
    _, run = wrapped(tmp_path / "m.onnx", tmp_path, Preprocessing(mean=MEAN, std=STD))
    np.testing.assert_allclose(run(images()), expected(images(), weight, MEAN, STD), rtol=1e-4, atol=1e-5)


def test_names_that_clash_with_the_bundles(tmp_path):
    weight = foreign(tmp_path / "m.onnx", io=("logits", "images"))
    _, run = wrapped(tmp_path / "m.onnx", tmp_path)
    np.testing.assert_allclose(run(images()), expected(images(), weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "preprocessing", "message"),
    [
        ({"shape": ("N", 5, 16, 16)}, {}, "the bundle's images have 3 channels"),
        ({"shape": ("N", 3, 16, 3)}, {}, "say which with layout"),
        ({"shape": ("N", 3, 16, 16)}, {"size": (8, 8)}, "its graph takes 16 x 16"),
        ({}, {"mean": (0.1, 0.2)}, "mean has 2 values"),
        ({"dtype": TensorProto.DOUBLE}, {}, "expected float32, float16 or uint8"),
    ],
)
def test_models_that_do_not_fit(tmp_path, options, preprocessing, message):
    if options.get("dtype") == TensorProto.DOUBLE:
        foreign(tmp_path / "m.onnx")
        model = onnx.load(tmp_path / "m.onnx")
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    else:
        foreign(tmp_path / "m.onnx", **options)
        model = onnx.load(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message):
        wrap(model, SHAPE, Preprocessing(**preprocessing), "model")


@pytest.mark.parametrize("values", [{"std": (0.0,)}, {"scale": 0.0}, {"mean": (float("nan"),)}])
def test_impossible_preprocessing(values):
    with pytest.raises(InputError, match="expected finite"):
        Preprocessing(**values)


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ({"mean": (123.675, 116.28, 103.53)}, "1 by scale 0.00392157"),
        ({"mean": (-0.1,)}, "1 by scale"),
        ({"mean": (256.0,), "scale": 1.0}, "255 by scale 1"),
    ],
)
def test_a_mean_that_no_byte_can_have(values, most):
    with pytest.raises(InputError, match=rf"bytes become 0 to {most}") as caught:
        Preprocessing(**values)
    assert ("pass --scale 1" in str(caught.value)) == (values["mean"][0] > 100 and "scale" not in values)
    Preprocessing(mean=(0.0, 1.0), std=(1.0,))
    Preprocessing(mean=(123.675,), std=(58.395,), scale=1.0)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_model(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    with pytest.raises(InputError, match="not a valid ONNX model"):
        read_model(tmp_path / "junk.onnx")


@pytest.fixture
def models(tmp_path):
    """A gater that lists the slow expert first, and two experts."""
    foreign(tmp_path / "gate.onnx", outputs=2, seed=1, shape=("N", 3, 8, 8))
    foreign(tmp_path / "slow.onnx", seed=2, work=20)
    foreign(tmp_path / "quick.onnx", seed=3)
    return tmp_path


def sources(folder):
    return {
        "gater": Source("gater", folder / "gate.onnx"),
        "experts": [Source("slow", folder / "slow.onnx"), Source("quick", folder / "quick.onnx", architecture="tiny")],
        "class_names": CLASSES,
        "input_shape": SHAPE,
        "iterations": 60,
        "threads": 1,
    }


def test_pack_makes_a_bundle_that_routes(models, tmp_path):
    packed = pack(tmp_path / "out", **sources(models))
    bundle = packed.bundle
    assert [entry.name for entry in bundle.experts] == ["quick", "slow"]
    assert bundle.experts[-1].relative_cost == 1.0
    assert bundle.experts[0].relative_cost < 1.0
    assert bundle.experts[0].architecture == "tiny"
    assert bundle.gater.architecture == "gate.onnx (me)"
    assert bundle.gater.graph_size == [8, 8]
    assert {table.precision for table in bundle.manifest.latency} >= {"fp32"}
    assert len(bundle.golden()["images"]) == 12
    batch = images(20, seed=5)
    # The gater scored (slow, quick); the bundle's order is by cost.
    scores = run_onnx(bundle.file(bundle.gater), batch)
    _, run = wrapped(models / "gate.onnx", tmp_path)
    np.testing.assert_allclose(scores, run(batch)[:, ::-1], rtol=1e-6)
    with Router(bundle, precision="fp32", threads=1) as router:
        result = router.predict(batch)
    np.testing.assert_array_equal(result.experts, scores.argmax(axis=1))
    assert not list(tmp_path.glob(".*.part"))


def test_pack_with_samples_and_baseline(models, tmp_path):
    tiny = write_tiny_bundle(tmp_path / "tiny", classes=4, channels=3, size=(10, 10))
    arguments = {**sources(models), "class_names": [f"class-{i}" for i in range(4)]}
    packed = pack(
        tmp_path / "out",
        **arguments,
        baselines=[Source("base", models / "quick.onnx")],
        samples=tiny.path / "samples",
        max_samples=10,
    )
    pixels, _, severities = packed.bundle.samples()
    assert pixels.shape == (10, *SHAPE)
    assert set(severities.tolist()) == {0, 1, 2, 3, 4, 5}
    assert [entry.name for entry in packed.bundle.baselines] == ["base"]
    with pytest.raises(InputError, match="classes that the experts do not"):
        pack(tmp_path / "other", **sources(models), samples=tiny.path / "samples")
    broken = tiny.path / "samples" / "0" / "class-0" / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match="leave them out with --skip-broken"):
        pack(tmp_path / "other", **arguments, samples=tiny.path / "samples")
    without = pack(tmp_path / "other", **arguments, samples=tiny.path / "samples", skip_broken=True)
    assert [str(broken) in left_out for left_out in without.left_out] == [True]
    assert packed.left_out == ()


def test_existing_folders(models, tmp_path):
    out = tmp_path / "out"
    pack(out, **sources(models))
    before = (out / "bundle.json").read_bytes()
    with pytest.raises(InputError, match="is a bundle already"):
        pack(out, **sources(models))
    broken = {**sources(models), "class_names": ["x", "y"]}
    with pytest.raises(InputError, match="gives 4 logits, there are 2 class names"):
        pack(out, **broken, overwrite=True)
    assert (out / "bundle.json").read_bytes() == before
    pack(out, **sources(models), overwrite=True, name="renamed")
    assert Bundle.load(out).name == "renamed"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("precious")
    with pytest.raises(InputError, match="not a bundle, so it is not replaced"):
        pack(tmp_path / "home", **sources(models), overwrite=True)
    assert (tmp_path / "home" / "letter.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"experts": []}, InputError, "at least 2"),
        ({"class_names": ["a", "b", "c", "a"]}, InputError, "'a' appears twice"),
        ({"name": "../up"}, InputError, "name"),
        ({"verify_below": 1.5}, InputError, "verify_below"),
        ({"verify_by": "cheapest"}, InputError, "verify_by"),
    ],
)
def test_wrong_arguments(models, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        pack(tmp_path / "out", **{**sources(models), **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../../evil", "Upper", "images", "", "a/b"])
def test_wrong_model_names_write_nothing(models, tmp_path, name):
    arguments = sources(models)
    arguments["experts"][0] = Source(name, models / "slow.onnx")
    with pytest.raises(InputError, match="model name"):
        pack(tmp_path / "deep" / "out", **arguments)
    assert not (tmp_path / "deep").exists()


def test_twice_the_same_name(models, tmp_path):
    arguments = sources(models)
    arguments["experts"].append(arguments["experts"][0])
    with pytest.raises(InputError, match="slow appears more than once"):
        pack(tmp_path / "out", **arguments)


@pytest.mark.parametrize(
    ("says", "fixed", "message"),
    [
        (1, 1, r"slow \(.*\): works for single images only; export it again with a dynamic batch"),
        (4, 4, r"slow \(.*\): works for batches of 4 images only; export it again with a dynamic batch"),
        (
            "N",
            1,
            r"slow \(.*\): says that it takes any number of images, but in a batch of 3 .*a Reshape to \[1, \.\.\.\]",
        ),
    ],
)
def test_fixed_batches_are_refused(models, tmp_path, says, fixed, message):
    foreign(models / "slow.onnx", shape=(says, 3, 16, 16), fixed=fixed)
    with pytest.raises(EngineBuildError, match=message):
        pack(tmp_path / "out", **sources(models))
    assert not (tmp_path / "out").exists()


def test_a_batch_size_that_the_graph_does_not_need_is_no_obstacle(models, tmp_path):
    foreign(models / "slow.onnx", shape=(4, 3, 16, 16), seed=2, work=20)
    pack(tmp_path / "out", **sources(models))


def test_a_gater_that_is_no_cheaper_than_the_dearest_expert_is_told(models, tmp_path):
    def notes(name):
        return " ".join(pack(tmp_path / name, **sources(models)).notes["gater"])

    assert "dearest" not in notes("cheap")
    foreign(models / "gate.onnx", outputs=2, work=400)  # by far, as a busy machine may hold up any of them
    assert "times the dearest expert: routing can save no time, take a smaller gater" in notes("dear")


def test_the_gater_is_timed_in_fp32_and_all_on_the_threads_asked_for(models, tmp_path, monkeypatch):
    load, loaded = Model.load, []

    def spy(bundle, name, *, precision, threads):
        loaded.append((name, precision, threads))
        return load(bundle, name, precision=precision, threads=threads)

    monkeypatch.setattr(Model, "load", spy)
    arguments = [
        "pack", str(tmp_path / "out"), "--gater", str(models / "gate.onnx"), "--expert", str(models / "quick.onnx"),
        "--expert", str(models / "slow.onnx"), "--classes", ",".join(CLASSES), "--input", "16x16x3",
        "--iterations", "40", "--threads", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (gater,) = {name for name, _, _ in loaded} - {"quick", "slow"}
    timed = [
        (gater, "fp32", 1), ("quick", "auto", 1), ("slow", "auto", 1),
        (gater, "fp32", 1), ("quick", "fp32", 1), ("slow", "fp32", 1),
    ]  # fmt: skip
    assert loaded[:6] == timed
    assert sorted(loaded[6:]) == [("quick", "auto", 1), ("slow", "auto", 1)]


@pytest.mark.parametrize("automatic", ["bf16", "fp32"])
def test_costs_are_those_of_the_precision_that_is_routed_by_default(models, tmp_path, monkeypatch, automatic):
    means = {"auto": {"gater": 0.1, "quick": 1.0, "slow": 4.0}, "fp32": {"gater": 0.1, "quick": 5.0, "slow": 2.0}}

    def time_models(bundle, precision, iterations, threads, progress):
        row = {name: Latency(mean_ms=ms, p50_ms=ms, p90_ms=ms, p99_ms=ms) for name, ms in means[precision].items()}
        computed = automatic if precision == "auto" else precision
        table = LatencyTable(device="none", backend="openvino", precision=computed, threads=1, models=row)
        return table, means[precision]

    monkeypatch.setitem(pack.__globals__, "time_models", time_models)
    packed = pack(tmp_path / "out", **sources(models))
    assert [(entry.name, entry.relative_cost) for entry in packed.bundle.experts] == [("quick", 0.25), ("slow", 1.0)]
    assert packed.mean_ms == means["auto"]
    tables = packed.bundle.manifest.latency
    assert [table.precision for table in tables] == list(dict.fromkeys([automatic, "fp32"]))
    assert tables[0].models["slow"].mean_ms == 4.0


@pytest.mark.parametrize(("error", "told"), [(1.0, True), (0.004, False)])
def test_experts_whose_logits_are_far_off_are_told(models, tmp_path, monkeypatch, error, told):
    monkeypatch.setitem(pack.__globals__, "relative_error", lambda *_: error)
    notes = pack(tmp_path / "out", **sources(models)).notes
    found = {name: any("route it with precision fp32" in note for note in notes[name]) for name in notes}
    assert found == {"gater": False, "slow": told, "quick": told}


def test_probabilities_are_no_logits(models, tmp_path):
    foreign(models / "slow.onnx", softmax=True)
    append(models / "slow.onnx", ("Add", {}, "before0"), ("Mul", {}, "half"))
    model = onnx.load(models / "slow.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    onnx.save(model, models / "slow.onnx")
    with pytest.raises(ModelOutputError, match=r"slow\.onnx\): gives probabilities .* Export the network again"):
        pack(tmp_path / "out", **sources(models))
    foreign(models / "slow.onnx")
    append(models / "slow.onnx", ("Sigmoid", {}))
    assert "from 0 to 1 only" in " ".join(pack(tmp_path / "sigmoid", **sources(models)).notes["slow"])


def test_nan_is_refused(models, tmp_path):
    foreign(models / "slow.onnx", nan=True)
    with pytest.raises(ModelOutputError, match="not finite"):
        pack(tmp_path / "out", **sources(models))
    assert not (tmp_path / "out").exists()


def test_pack_on_the_command_line(models, tmp_path):
    (models / "few").write_text("cat\n")
    arguments = [
        "pack", str(tmp_path / "out"), "--gater", str(models / "gate.onnx"),
        "--expert", f"slow={models / 'slow.onnx'}", "--expert", str(models / "quick.onnx"),
        "--classes", ",".join(CLASSES), "--input", "16x16x3", "--iterations", "40",
        "--mean", "0.4,0.5,0.6", "--std", "0.2,0.3,0.4", "--set", "quick.mean=0", "--set", "quick.std=1",
        "-w", "0.5", "--verify-below", "0.9", "--verify-by", "mirror",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["relative_cost"]["slow"] == 1.0
    assert Path(data["bundle"]) == tmp_path / "out"
    bundle = Bundle.load(tmp_path / "out")
    assert (bundle.latency_weight, bundle.verify_below, bundle.verify_by) == (0.5, 0.9, "mirror")
    result = CliRunner().invoke(app, [*arguments, "--force"])
    assert result.exit_code == 0, result.output
    for shown in ("relative cost", "(byte / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]", "(byte / 255 - [0]) / [1]"):
        assert shown in " ".join(result.stdout.split())
    for extra, message in (
        (["--set", "nobody.mean=0"], "no model is called"),
        (["--set", "quick.colour=red"], "expected scale, mean"),
        (["--mean", "x"], "expected numbers"),
        (["--mean", "0.4,0.5"], "mean has 2 values; expected 1 or 3"),
        (["--std", "1,1,1,1"], "std has 4 values; expected 1 or 3"),
        (["--scale", "1,2,3"], "scale is '1,2,3'; expected one number such as 1/255"),
        (["--set", "quick.scale=1,2"], "scale is '1,2'; expected one number"),
        (["--classes", "nosuch.names"], "--classes is 'nosuch.names', no file, so it is 1 class name; expected two"),
        (["--classes", str(models / "few")], "a file with 1 class name; expected two"),
        (["--input", "16x16"], "expected 3 whole numbers"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--force", *extra])
        assert result.exit_code == 2
        assert message in result.stderr


def test_packing_without_onnx_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("pack", "trial", "wrap"):
        monkeypatch.delitem(sys.modules, f"trt_moe.export.{name}", raising=False)
    result = CliRunner().invoke(
        app,
        ["pack", "o", "--gater", "g", "--expert", "e", "--classes", "a,b", "--input", "8x8x1"],
    )
    assert result.exit_code == 1
    assert "pip install '.[train]'" in result.stderr
