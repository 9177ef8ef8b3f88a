"""Data to bundle on tiny data: the result loads, and the second run trains nothing."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
pytest.importorskip("timm")
pytest.importorskip("onnxscript")

from support.made_answers import sure  # noqa: E402
from trt_moe.bundle import Bundle  # noqa: E402
from trt_moe.data import EVALUATION_SEED, corrupt, load_dataset  # noqa: E402
from trt_moe.data.datasets import files_digest  # noqa: E402
from trt_moe.errors import DataError, DeviceError, InputError, ModelOutputError  # noqa: E402
from trt_moe.export.measure import Timing, load_onnx  # noqa: E402
from trt_moe.export.reference import run_onnx  # noqa: E402
from trt_moe.export.torch_export import export_onnx  # noqa: E402
from trt_moe.logit_error import relative_error  # noqa: E402
from trt_moe.models import ImageModel  # noqa: E402
from trt_moe.routing_rule import route  # noqa: E402
from trt_moe.softmax import softmax  # noqa: E402
from trt_moe.sweep.finished import open_run  # noqa: E402
from trt_moe.training import TrainConfig, pipeline, splits  # noqa: E402
from trt_moe.training.experts import Shape, build, predict  # noqa: E402
from trt_moe.training.gater import TrainedGater, build_gater  # noqa: E402
from trt_moe.training.joint import Tuned  # noqa: E402
from trt_moe.training.logits import Judged  # noqa: E402
from trt_moe.training.losses import check_costs  # noqa: E402
from trt_moe.training.pipeline import _pooled, train  # noqa: E402


@pytest.fixture(scope="module")
def quiet():
    return lambda _: None


def test_train_writes_a_bundle_that_loads_and_answers(finished, data_folder):
    bundle = Bundle.load(finished / "bundle")
    manifest = bundle.manifest
    assert {e.name for e in manifest.experts} == {"light", "heavy"}
    assert [b.name for b in manifest.baselines] == ["robust-light"]
    assert manifest.experts[-1].relative_cost == 1.0
    assert manifest.experts[0].relative_cost <= 1.0
    assert manifest.training is not None
    assert manifest.training.command.startswith("trt-moe train")

    golden = bundle.golden()
    for entry in manifest.all_models():
        assert relative_error(load_onnx(bundle.file(entry))(golden["images"]), golden[entry.name]) < 1e-3

    images, labels, severities = bundle.samples()
    assert images.shape == (60, 16, 16, 1)
    test = load_dataset(data_folder, "test")
    for index, label in enumerate(labels[:10]):  # ten classes in turn: sample i of severity 0 is test image i
        assert label == index
    for severity in range(6):
        expected = corrupt(test.images[:10], severity, EVALUATION_SEED, np.arange(10))
        np.testing.assert_array_equal(images[severities == severity], expected)

    assert manifest.evaluation is not None
    row = manifest.evaluation.severities["0"]
    clean = load_onnx(bundle.file(bundle.entry("light")))(test.images).argmax(1) == test.labels
    assert row.experts["light"] == pytest.approx(clean.mean(), abs=1e-5)
    assert sum(row.share.values()) == pytest.approx(1.0)
    assert "| benefit | 0 |" in (finished / "runs" / "tiny" / "gaters.md").read_text()


def test_a_second_run_trains_and_exports_nothing(finished, finished_config, data_folder, tmp_path, monkeypatch):
    def export(*_):
        raise AssertionError("exported again")

    monkeypatch.setattr(pipeline, "export_onnx", export)
    config = TrainConfig.model_validate(finished_config)
    steps, lines = [], []
    again = train(config, tmp_path / "again", lambda name, *_: steps.append(name), lines.append)
    assert steps == []
    manifest = Bundle.load(again).manifest
    for entry in manifest.all_models():
        assert (again / entry.file).read_bytes() == (finished / "bundle" / entry.file).read_bytes()

    run = open_run(config, None, lines.append)
    gaters = run.gaters(manifest.training.method, config.latency_weight, config.gater.seeds, None, lines.append)
    images = load_dataset(data_folder, "test").images
    found = load_onnx(again / "gater.onnx")(images)
    assert min(relative_error(found, predict(gater.model, images)) for gater in gaters.values()) < 1e-4
    operators = {node.op_type for node in onnx.load(again / "gater.onnx").graph.node}
    assert "Conv" in operators and not operators & {"BatchNormalization", "Concat"}


def test_second_looks_are_part_of_the_evaluation(finished_config, data_folder, tmp_path, quiet):
    test = load_dataset(data_folder, "test")
    # No expert is ever surer than that: the dearest is asked too for all, and nothing is trained for it.
    steps = []
    verifying = TrainConfig.model_validate({**finished_config, "verify_below": 1.0})
    verified = Bundle.load(train(verifying, tmp_path / "verified", lambda name, *_: steps.append(name), quiet))
    assert steps == []
    assert verified.verify_below == 1.0
    assert verified.manifest.evaluation is not None
    for row in verified.manifest.evaluation.severities.values():
        assert row.share[verified.experts[-1].name] == 1.0
    logits = {entry.name: load_onnx(verified.file(entry))(test.images) for entry in verified.models()}
    cheap, dearest = (softmax(logits[entry.name]) for entry in verified.experts)
    costs = np.array([entry.relative_cost for entry in verified.experts])
    first = route(logits["gater"], costs, verified.latency_weight)
    answers = np.where(first[:, None] == 0, cheap + dearest, dearest).argmax(1)
    expected = (answers == test.labels).mean()
    assert verified.manifest.evaluation.severities["0"].mixture == pytest.approx(expected, abs=1e-5)

    by_mirror = TrainConfig.model_validate({**finished_config, "verify_below": 1.0, "verify_by": "mirror"})
    mirrored = Bundle.load(train(by_mirror, tmp_path / "mirrored", lambda name, *_: steps.append(name), quiet))
    assert (steps, mirrored.verify_by) == ([], "mirror")
    cheapest = mirrored.experts[0]
    second = load_onnx(mirrored.file(cheapest))(np.ascontiguousarray(test.images[:, :, ::-1]))
    answers = np.where(first[:, None] == 0, cheap + softmax(second), dearest).argmax(1)
    assert mirrored.manifest.evaluation is not None
    row = mirrored.manifest.evaluation.severities["0"]
    assert row.mixture == pytest.approx((answers == test.labels).mean(), abs=1e-5)
    assert row.share[cheapest.name] == pytest.approx((first == 0).mean())


def test_fewer_images_than_there_are_stand_for_all_of_them(finished_config, data_folder, tmp_path, quiet):
    test = load_dataset(data_folder, "test")
    few = TrainConfig.model_validate({**finished_config, "evaluation_images": 20})
    bundle = Bundle.load(train(few, tmp_path / "few", log=quiet))
    chosen = [0, 3, 6, 9, 12, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 47, 50, 53, 56, 59]
    evaluation = bundle.manifest.evaluation
    assert evaluation is not None and evaluation.images == 20
    for entry in bundle.experts:
        right = load_onnx(bundle.file(entry))(test.images[chosen]).argmax(1) == test.labels[chosen]
        assert evaluation.severities["0"].experts[entry.name] == pytest.approx(right.mean())


def test_a_bundle_holds_calibrated_experts(finished, finished_config, data_folder, tmp_path, quiet):
    config = TrainConfig.model_validate(finished_config)
    bundle = Bundle.load(finished / "bundle")
    run = open_run(config, None, quiet)
    assert run.temperatures.keys() == {"light", "heavy", "robust-light"}
    assert set(run.temperatures.values()) != {1.0}
    images = load_dataset(data_folder, "test").images
    for name, temperature in run.temperatures.items():
        expected = predict(run.models[name], images) / np.float32(temperature)
        assert relative_error(load_onnx(bundle.file(bundle.entry(name)))(images), expected) < 1e-3

    kept = load_file(run.folder / "logits-validation-light.safetensors")["logits"]
    column = [entry.name for entry in run.config.experts].index("light")
    np.testing.assert_allclose(run.validation.logits[:, column], kept / run.temperatures["light"], rtol=1e-6)

    # Made with another temperature: exported again.
    file, mark = (run.folder / "onnx" / f"light.{end}" for end in ("onnx", "json"))
    good = file.read_bytes(), mark.read_text()
    mark.write_text(json.dumps([json.loads(good[1])[0], 9.0]))
    file.write_bytes(b"of another temperature")
    train(config, tmp_path / "bundle", log=quiet)
    assert (file.read_bytes(), mark.read_text()) == good


def test_an_export_never_trains(finished_config, tmp_path, quiet):
    finished_config["gater"]["methods"] = ["benefit"]
    finished_config["joint"] = {"epochs": 1, "batch": 20}

    def run(only_export=True, gater=(), **changes):
        config = TrainConfig.model_validate(
            {**finished_config, **changes, "gater": {**finished_config["gater"], **dict(gater)}}
        )
        steps = []
        out = train(config, tmp_path / "b", lambda name, *_: steps.append(name), quiet, only_export=only_export)
        return steps, Bundle.load(out)

    def files():
        return {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}

    run(only_export=False, latency_weight=0.2)
    before = files()
    for changes, message in (
        (
            {"gater": {"learning_rate": 0.1}},
            r"gater-benefit-0\.safetensors was made with another latency_weight, gater",
        ),
        ({"gater": {"width": 8}}, r"latency\.json holds no latencies of these models in .*nothing was changed"),
        ({"latency_weight": 0.9}, r"joint\.safetensors was made with another latency_weight"),
    ):
        with pytest.raises(InputError, match=message):
            run(**{"latency_weight": 0.2, **changes})
        assert files() == before
    assert run(latency_weight=0.2)[0] == []
    del finished_config["joint"]
    steps, bundle = run(latency_weight=0.9)
    assert (steps, bundle.latency_weight) == ([], 0.9), "the gater serves every weight"


def test_every_phase_gets_what_the_ones_before_it_made(raw_config, data_folder, tmp_path, quiet, monkeypatch):
    raw_config |= {
        "joint": {"batch": 20}, "seed": 3, "latency_weight": 0.3, "sample_images": 20,
        "latencies_ms": {"gater": 0.1, "light": 4.0, "heavy": 1.0, "robust-light": 4.0},
        "corruption": {"blur_sigma": [0.1] * 6, "noise_sigma": [0.2] * 6, "reference_side": 20},
    }  # fmt: skip
    config = TrainConfig.model_validate(raw_config)
    shape = Shape(16, 16, 1, 10)
    models = {entry.name: build(config, entry, shape).eval() for entry in config.classifiers()}
    gaters = [TrainedGater("regret", seed, build_gater(config, shape, seed), 0.5, 0.5) for seed in (1, 0)]
    others = {name: build(config, config.classifier(name), shape) for name in ("heavy", "light")}
    tuned = Tuned(build_gater(config, shape, 2), others, tmp_path / "joint")
    seen, exported = {}, {}

    def judged(right_of_four):
        # Each expert of its own margin; nobody has seen these images.
        rows = [[sure(i % 4 < right_of_four, margin) for margin in (1.0, 2.0, 3.0)] for i in range(40)]
        clean = splits.Corrupted(np.zeros((40, 16, 16, 1), np.uint8), np.zeros(40, np.int64), np.zeros(40, np.int64))
        return Judged(clean, np.array(rows, np.float32))

    def train_gaters(config, shape, training, validation, costs, *_):
        seen["gaters"] = (training.logits[0, :, 0].tolist(), validation.logits[0, :, 0].tolist(), costs.tolist())
        return gaters

    def train_joint(config, settings, best, models, part, validation, costs, *_):
        seen["joint"] = (best, {name: model.temperature.item() for name, model in models.items()}, part)
        return tuned

    def export(model, file, *_):
        exported[file] = model
        return file

    monkeypatch.setattr(pipeline, "train_experts", lambda *_: models)
    monkeypatch.setattr(pipeline, "judge_parts", lambda *_: (judged(3), judged(2)))
    monkeypatch.setattr(pipeline, "train_gaters", train_gaters)
    monkeypatch.setattr(pipeline, "train_joint", train_joint)
    monkeypatch.setattr(pipeline, "_export", export)
    monkeypatch.setattr(pipeline, "_write_report", lambda *_: None)
    monkeypatch.setattr(pipeline, "fused_gater", lambda gater: gater)
    monkeypatch.setattr(pipeline, "write_bundle", lambda source, *_: source)
    source = train(config, tmp_path / "bundle", log=quiet)

    # Three of four are right where gaters learn, so margin / temperature = ln 3; heavy is the cheaper one here.
    light, heavy, _ = temperatures = [margin / np.log(3) for margin in (1.0, 2.0, 3.0)]
    training, validation, costs = seen["gaters"]
    assert training == validation == pytest.approx([2.0 / heavy, 1.0 / light], rel=0.03)
    assert costs == [0.25, 1.0]
    best, calibrated, part = seen["joint"]
    assert best is gaters[0]
    assert calibrated == pytest.approx(
        dict(zip(("light", "heavy", "robust-light"), temperatures, strict=True)), rel=0.03
    )
    parts = splits.split(load_dataset(data_folder, "train"), config.splits)
    assert part.indices.tolist() == parts.gater.indices.tolist()

    assert exported[source.gater.onnx] is tuned.gater
    assert [(entry.name, entry.trained_on) for entry in source.experts] == [
        ("heavy", (1,) * 6), ("light", (1, 1, 0, 0, 0, 0))
    ]  # fmt: skip
    assert [exported[entry.onnx] for entry in source.experts] == [tuned.experts["heavy"], tuned.experts["light"]]
    [robust] = source.baselines
    assert exported[robust.onnx].temperature.item() == pytest.approx(temperatures[2], rel=0.03)
    assert (source.method, source.seed, source.latency_weight) == ("regret", 3, 0.3)
    assert (source.blur_sigma, source.noise_sigma, source.reference_side) == ((0.1,) * 6, (0.2,) * 6, 20)
    assert (source.sample_images, source.golden_images) == (20, 6)


def test_splits_must_agree(raw_config, tmp_path, quiet):
    for part, name in (("train", "sea"), ("train", "street"), ("test", "sea"), ("test", "wood")):
        (tmp_path / "d" / part / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / "d" / part / name / "1.png")
    with pytest.raises((InputError, DataError), match="wood"):
        train(TrainConfig.model_validate({**raw_config, "data": tmp_path / "d"}), tmp_path / "b", log=quiet)


def test_broken_images_are_left_out_only_when_asked_and_told(raw_config, tmp_path):
    for part in ("train", "test"):
        for name in ("sea", "wood"):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            Image.new("L", (16, 16)).save(tmp_path / "d" / part / name / "1.png")
    (tmp_path / "d" / "train" / "sea" / "2.png").write_bytes(b"no")
    (tmp_path / "d" / "test" / "sea" / "3.png").write_bytes(b"no")
    config, lines = TrainConfig.model_validate({**raw_config, "data": tmp_path / "d"}), []
    with pytest.raises(DataError, match=r"(?s)2\.png.*3\.png"):
        pipeline.load_splits(config, lines.append)
    training, test = pipeline.load_splits(config.model_copy(update={"skip_broken": True}), lines.append)
    assert (len(training), len(test)) == (2, 2)
    assert [line.split(": ")[0] for line in lines] == [
        f"left out 1 of the {what} images" for what in ("training", "test")
    ]


def test_networks_of_one_shape_share_their_timings(raw_config):
    config = TrainConfig.model_validate(raw_config)
    timed = {"gater": 0.1, "light": 1.0, "heavy": 4.0, "robust-light": 3.0}
    pooled = _pooled({name: Timing(np.full(2, ms)) for name, ms in timed.items()}, config)
    means = {name: timing.milliseconds.mean() for name, timing in pooled.items()}
    assert means == pytest.approx({"gater": 0.1, "light": 2.0, "heavy": 4.0, "robust-light": 2.0})


def test_without_data_the_message_says_what_to_type(raw_config, tmp_path, quiet):
    with pytest.raises(InputError, match="--data"):
        train(TrainConfig.model_validate({**raw_config, "data": None}), tmp_path / "b", log=quiet)


def test_one_class_is_refused(raw_config, tmp_path, quiet):
    for part in ("train", "test"):
        (tmp_path / "data" / part / "sea").mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / "data" / part / "sea" / "1.png")
    with pytest.raises(DataError, match="one class only, sea; a classifier needs at least two"):
        train(TrainConfig.model_validate({**raw_config, "data": tmp_path / "data"}), tmp_path / "b", log=quiet)


def test_a_class_that_no_bundle_could_have_is_refused_before_the_first_phase(raw_config, tmp_path, quiet):
    for split in ("train", "test"):
        for name in ("cat ", "dog"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(220):
                Image.new("L", (16, 16)).save(tmp_path / "d" / split / name / f"{number}.png")
    steps = []
    with pytest.raises(InputError, match=r"d: class .*no outer blanks.*\(found 'cat '\); rename its folder"):
        train(TrainConfig.model_validate({**raw_config, "data": tmp_path / "d"}), tmp_path / "b", steps.append, quiet)
    assert steps == []


def test_the_normalisation_must_have_the_images_channels(raw_config, tmp_path, quiet):
    raw = {**raw_config, "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(InputError, match="1 channels, mean and std 3"):
        train(TrainConfig.model_validate(raw), tmp_path / "b", log=quiet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_images": 61}, "has 60 test images, the bundle ships 61; lower sample_images"),
        ({"golden_images": 61}, "ships 61; lower sample_images or golden_images"),
        ({"gater": {"width": 7}}, "an even width"),
        ({"joint": {"accumulate": 3}}, "joint: batch 64 cannot be divided"),
    ],
)
def test_what_the_last_phases_cannot_do_is_refused_before_the_first(raw_config, tmp_path, quiet, changes, message):
    steps = []
    with pytest.raises((DataError, InputError), match=message):
        train(
            TrainConfig.model_validate({**raw_config, **changes}),
            tmp_path / "b",
            lambda *step: steps.append(step),
            quiet,
        )
    assert steps == []


def test_a_folder_that_is_no_bundle_of_this_run_is_refused_before_the_first_phase(
    raw_config, data_folder, tmp_path, quiet
):
    for place in ("letters", "other"):
        (tmp_path / place).mkdir()
    (tmp_path / "letters" / "one.txt").touch()
    (tmp_path / "other" / "bundle.json").write_text("{}")
    for out, message in (
        (tmp_path / "letters", "is not a bundle"),
        (tmp_path / "other", "not of a training run called 'tiny'; replace it with --force"),
        (data_folder, "is or holds the data set"),
        (tmp_path / "runs", "is or holds the run's checkpoints"),
        (tmp_path / "runs" / "tiny", "is or holds the run's checkpoints"),
        (tmp_path / "letters" / "one.txt" / "bundle", r"cannot be written \(Not a directory\)"),
    ):
        with pytest.raises(InputError, match=message):
            train(TrainConfig.model_validate(raw_config), out, log=quiet)
    assert not (tmp_path / "runs").exists()


def test_an_old_bundle_survives_a_run_that_fails(finished_config, tmp_path, quiet, monkeypatch):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text("old")

    def fail(*_):
        raise DataError("no samples")

    monkeypatch.setattr("trt_moe.export.bundle_writer._choose", fail)
    with pytest.raises(DataError, match="no samples"):
        train(TrainConfig.model_validate(finished_config), out, log=quiet, force=True)
    assert (out / "bundle.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class _Batch(torch.nn.Module):
    """Answers differently in ONNX, as the batch size is burnt in as a constant."""

    def forward(self, x):
        return x.flatten(1)[:, :3] + (1.0 if torch.compiler.is_exporting() else 0.0)


def test_an_export_that_changes_the_answers_is_refused(tmp_path):
    model = ImageModel(_Batch(), (4, 4), (4, 4), [0.0], [1.0])
    with pytest.raises(ModelOutputError, match="differs from PyTorch by"):
        export_onnx(model, tmp_path / "m.onnx", (4, 4, 1))


def test_an_exported_model_takes_any_batch_of_bytes(tmp_path):
    class _Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))

    model = ImageModel(_Mean(), (4, 6), (8, 8), [0.5, 0.5], [0.5, 0.5])
    assert export_onnx(model, tmp_path / "m.onnx", (4, 6, 2)) < 1e-5
    for trace in (b"site-packages", b"stack_trace"):
        assert trace not in (tmp_path / "m.onnx").read_bytes()
    for count in (1, 5):
        logits = run_onnx(tmp_path / "m.onnx", np.full((count, 4, 6, 2), 255, np.uint8))
        np.testing.assert_allclose(logits, np.ones((count, 2)), rtol=1e-5)


def test_costs_come_in_the_number_of_experts():
    with pytest.raises(InputError, match="expected one per expert"):
        check_costs(torch.ones(3), 2, 0.7)


def test_costs_are_those_of_the_gpu_where_the_config_says_so(finished_config, tmp_path, quiet, monkeypatch):
    def timings(milliseconds):
        return {name: Timing(np.full(3, value)) for name, value in milliseconds.items()}

    on_cpu = {"gater": 0.1, "light": 1.0, "heavy": 4.0, "robust-light": 1.0}
    on_gpu = {"gater": 0.5, "light": 2.0, "heavy": 1.0, "robust-light": 2.0}
    asked = []

    def measure(device, gater, experts, classifiers, input_shape, classes):
        asked.append((gater.network.head.out_features, experts, sorted(classifiers), input_shape, classes))
        return timings(on_gpu)

    monkeypatch.setattr(
        pipeline, "gpu_for", lambda wanted: SimpleNamespace(info={"name": "Some GPU"}) if wanted == "auto" else None
    )
    monkeypatch.setattr(pipeline, "measure_latency_on_gpu", measure)
    monkeypatch.setattr(pipeline, "measure_latency", lambda files, **_: timings(on_cpu))
    config = TrainConfig.model_validate({**finished_config, "latency_device": "auto"})
    manifest = Bundle.load(train(config, tmp_path / "bundle", log=quiet)).manifest
    assert [(entry.name, entry.relative_cost) for entry in manifest.experts] == [("heavy", 0.5), ("light", 1.0)]
    assert manifest.gater.relative_cost == 0.25
    first, *others = manifest.latency
    assert (first.device, first.backend, first.precision, first.threads) == ("Some GPU", "cuda", "fp16", 1)
    assert first.models["heavy"].mean_ms == 1.0
    assert {table.backend for table in others} == {"openvino"}
    assert asked == [(2, 2, ["heavy", "light", "robust-light"], (16, 16, 1), 10)]
    train(config, tmp_path / "bundle", log=quiet)
    assert len(asked) == 1, "read back"
    manifest = Bundle.load(
        train(config.model_copy(update={"latency_device": "cpu"}), tmp_path / "bundle", log=quiet)
    ).manifest
    assert [entry.name for entry in manifest.experts] == ["light", "heavy"]
    assert {table.backend for table in manifest.latency} == {"openvino"}


def test_a_folder_without_splits_is_divided_where_the_config_says_so(raw_config, tmp_path, data_folder):
    whole = load_dataset(data_folder, "train")
    for index, (image, label) in enumerate(zip(whole.images, whole.labels, strict=True)):
        file = tmp_path / "data" / f"class-{label}" / f"{index:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    config = TrainConfig.model_validate({**raw_config, "data": tmp_path / "data", "held_out": 0.25})
    lines = []
    training, test = pipeline.load_splits(config, lines.append)
    assert (len(training), len(test)) == (180, 60)
    assert lines[0].startswith("held out 60 of 240 images for the test")
    held_out = pipeline._held_out(config, training, test)
    assert held_out is not None and (held_out.share, held_out.images) == (0.25, 240)
    assert held_out.sha256 == files_digest(tmp_path / "data")
    training, test = pipeline.load_splits(config.model_copy(update={"data": data_folder}), lines.append)
    assert (len(training), len(test)) == (240, 60), "a folder with splits keeps them"
    assert lines[1:] == [f"held_out 0.25 is not used: {data_folder} keeps test images apart already"]


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_trained(raw_config, tmp_path, monkeypatch):
    def missing():
        raise DeviceError("no NVIDIA driver was found")

    monkeypatch.setattr("trt_moe.export.measure_gpu.open_device", missing)
    lines = []
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        train(
            TrainConfig.model_validate({**raw_config, "latency_device": "cuda"}), tmp_path / "bundle", log=lines.append
        )
    assert not lines
