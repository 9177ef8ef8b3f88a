import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from support.half_models import CLASSES, answers, classifier, image_model, images, one_loud_channel  # noqa: E402
from support.tiny_bundle import edit_manifest, write_tiny_bundle  # noqa: E402
from trt_moe.bundle import Bundle  # noqa: E402
from trt_moe.compile import gate  # noqa: E402
from trt_moe.compile.gate import Samples, Thresholds, check, compare, rescue  # noqa: E402
from trt_moe.compile.gate_emulation import emulate  # noqa: E402
from trt_moe.compile.half import float32_layers, must_stay_float32, prepare, to_half  # noqa: E402
from trt_moe.compile.int8 import quantize  # noqa: E402
from trt_moe.errors import BundleError, EngineBuildError, ModelOutputError  # noqa: E402


def samples(count=24):
    pictures = images(count)
    return Samples(pictures, np.arange(count) % 6, answers(classifier(), count).argmax(axis=1))


def logits(*rows):
    return np.array(rows, np.float32)


def four(labels=(0, 0, 1, 1), severities=(0, 0, 5, 5), bias=None):
    return Samples(images(4), np.array(severities), None if labels is None else np.array(labels), bias)


EXPECTED = logits([2, 0], [4, 0], [0, 1], [0, 3])


def test_equal_logits_pass():
    report = compare(EXPECTED, EXPECTED, four(), "engine")
    assert report.passed and report.method == "engine" and report.failures == [] and report.images == 4
    assert (report.top1_agreement, report.largest_logit_error, report.mean_logit_error) == (1, 0, 0)
    assert report.accuracy_difference == {"0": 0, "5": 0}


def test_one_image_that_is_far_off_fails():
    found = EXPECTED.copy()
    found[0] += 0.08 * np.abs(EXPECTED).max()
    report = compare(EXPECTED, found, four(), "emulated", Thresholds(logit_error=0.05))
    assert report.failures == ["the largest logit error is 0.08, at most 0.05 is allowed"]
    assert report.mean_logit_error == pytest.approx(0.02)


def test_figures_by_hand():
    found = logits([2, 0], [4, 0.4], [1.2, 1], [0, 3])
    report = compare(EXPECTED, found, four(), "emulated", Thresholds(top1_agreement=0, logit_error=1, accuracy_drop=1))
    assert report.passed
    assert report.top1_agreement == 0.75
    assert report.largest_logit_error == pytest.approx(1.2 / 4)
    assert report.mean_logit_error == pytest.approx((0.4 / 4 + 1.2 / 4) / 4)
    assert report.accuracy_difference == {"0": 0, "5": -0.5}


def test_every_threshold_is_named_where_it_is_missed():
    found = logits([0, 2], [0, 4], [1, 0], [3, 0])
    report = compare(EXPECTED, found, four(), "emulated", Thresholds(top1_agreement=0.5, logit_error=0.1))
    assert not report.passed
    assert report.failures == [
        "0.00% of the answers agree, 50.00% must",
        "the largest logit error is 1, at most 0.1 is allowed",
        "accuracy at severity 0 falls by 100.0 points, at most 2.0 are allowed",
        "accuracy at severity 5 falls by 100.0 points, at most 2.0 are allowed",
    ]


def test_one_image_alone_does_not_decide():
    found = logits([2, 2.1], [4, 0], [0, 1], [0, 3])
    assert compare(EXPECTED, found, four(), "engine", Thresholds(logit_error=1)).passed
    strict = Thresholds(logit_error=1, top1_agreement=1)
    assert compare(EXPECTED, found, four(), "engine", strict).failures == ["75.00% of the answers agree, 100.00% must"]


def test_logits_that_are_not_finite_fail_and_agree_with_nothing():
    found = logits([np.nan, 0], [np.inf, 0], [0, 1], [0, 3])
    report = compare(EXPECTED, found, four(), "emulated")
    assert report.failures == ["2 of 4 images overflow: their logits are not finite"]
    assert (report.overflowed, report.top1_agreement, report.largest_logit_error) == (2, 0.5, 0)
    assert report.accuracy_difference == {"0": -1, "5": 0}
    nothing = compare(EXPECTED, np.full_like(EXPECTED, np.nan), four(), "emulated")
    assert nothing.largest_logit_error is None
    assert gate.GateReport.model_validate_json(nothing.model_dump_json()) == nothing


def test_a_broken_reference_is_no_reference():
    with pytest.raises(ModelOutputError, match="the float32 model gives logits that are not finite"):
        compare(logits([np.nan, 0]), logits([0, 0]), Samples(images(1), np.zeros(1, int)), "emulated")


def test_a_gater_is_judged_by_its_routes():
    # Logits prefer expert 0 by little; with the costs all images go to expert 1, in both.
    expected, found = logits([0.1, 0], [0.2, 0]), logits([-0.1, 0], [0.2, 0])
    bias = np.array([-1, 0], np.float32)
    without = Samples(images(2), np.zeros(2, int))
    assert compare(expected, found, without, "engine").top1_agreement == 0.5
    with_costs = Samples(images(2), np.zeros(2, int), bias=bias)
    report = compare(expected, found, with_costs, "engine")
    assert report.top1_agreement == 1 and report.accuracy_difference == {}


def test_samples_of_a_bundle(tmp_path):
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "tiny", latency_weight=0.5).path)
    expert, gater = Samples.of(bundle, bundle.experts[0]), Samples.of(bundle, bundle.gater)
    pictures, labels, severities = bundle.samples()
    np.testing.assert_array_equal(expert.images, pictures)
    np.testing.assert_array_equal(expert.labels, labels)
    np.testing.assert_array_equal(expert.severities, severities)
    assert expert.bias is None and gater.labels is None
    np.testing.assert_allclose(gater.bias, [-0.25, -0.5])
    first, second = expert.halves()
    assert set(first.severities) == set(second.severities) == set(range(6))
    np.testing.assert_array_equal(np.sort(np.r_[first.labels, second.labels]), np.sort(labels))
    assert len(first.images) == len(first.severities) == len(first.labels)


def test_clean_samples_are_corrupted_for_calibration(tmp_path):
    path = write_tiny_bundle(tmp_path / "tiny").path
    noise = [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    edit_manifest(path, lambda data: data["training"]["corruption"].update(noise_sigma=noise))
    bundle = Bundle.load(path)
    given = Samples.of(bundle, bundle.experts[0])
    np.testing.assert_array_equal(given.of_all_severities(bundle), given.images)
    clean = Samples(images(12)[..., :1], np.zeros(12, int))
    mixed = clean.of_all_severities(bundle)
    same = [(mixed[index] == clean.images[index]).all() for index in range(12)]
    assert same == [True, *[False] * 5] * 2


def test_a_bundle_without_samples_is_judged_on_its_golden_images(tmp_path):
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "golden", samples_per_class=0).path)
    taken = Samples.of(bundle, bundle.experts[0])
    np.testing.assert_array_equal(taken.images, bundle.golden()["images"])
    assert taken.labels is None
    with pytest.raises(BundleError, match="no golden file"):
        bare = Bundle.load(write_tiny_bundle(tmp_path / "bare", samples_per_class=0, golden=0).path)
        Samples.of(bare, bare.gater)


def test_a_sound_model_passes_in_float16():
    model = classifier()
    report = check(model, to_half(model), samples())
    assert report.passed and report.method == "emulated" and report.overflowed == 0
    assert 0 < report.mean_logit_error < report.largest_logit_error < 2e-3


def test_an_overflow_in_the_middle_is_seen():
    model = classifier(1e5)
    assert must_stay_float32(prepare(model)) == {}
    report = check(model, to_half(model), samples())
    assert report.failures == ["24 of 24 images overflow: their logits are not finite"]


def test_emulation_rounds_every_result_to_float16():
    # 1 + 2048 is 2048 in float16, so that the small part is lost; ten additions lose it ten times.
    nodes = [("ReduceMean", ["pixels", "sides"], "sum0", {"keepdims": 0})]
    nodes += [("Add", [f"sum{i}", "large"], f"sum{i + 1}", {}) for i in range(10)]
    nodes += [("MatMul", ["sum10", "head"], "logits", {})]
    weights = {"sides": np.array([2, 3]), "large": np.float32(2048), "head": np.eye(3, CLASSES, dtype=np.float32)}
    found = answers(emulate(to_half(image_model(nodes, weights))), 4)
    np.testing.assert_array_equal(found[:, :3], 20480)


def test_overflowing_layers_are_kept_in_float32():
    model = classifier(1e5)
    rescued, report = rescue(model, samples())
    # The convolution makes the large values, the product reads them; nothing else has to stay.
    assert report.float32_layers == float32_layers(rescued) == ["features", "active", "mean", "logits"]
    assert report.passed and report.largest_logit_error < 2e-3
    np.testing.assert_allclose(answers(emulate(rescued)), answers(model), atol=2e-2)


def cancelling(offset=5000.0):
    """Values in range, but their digits are lost between an addition and the subtraction that undoes it."""
    nodes = [
        ("Conv", ["pixels", "kernel"], "features", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["features"], "active", {}),
        ("ReduceMean", ["active", "sides"], "mean", {"keepdims": 0}),
        ("Add", ["mean", "offset"], "shifted", {}),
        ("Sub", ["shifted", "offset"], "back", {}),
        ("MatMul", ["back", "head"], "product", {}),
        ("Tanh", ["product"], "soft", {}),
        ("Mul", ["soft", "gain"], "louder", {}),
        ("Add", ["louder", "shift"], "logits", {}),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "sides": np.array([2, 3], np.int64),
        "offset": np.float32(offset),
        "head": rng.normal(size=(6, CLASSES)).astype(np.float32),
        "gain": np.float32(3),
        "shift": np.zeros(CLASSES, np.float32),
    }
    return image_model(nodes, weights)


def test_layers_that_lose_precision_are_kept_in_float32():
    model = cancelling()
    unlabelled = Samples(images(), np.zeros(24, int))
    assert not check(model, to_half(model), unlabelled).passed
    _, report = rescue(model, unlabelled)
    assert report.passed and report.overflowed == 0
    assert {"shifted", "back"} <= set(report.float32_layers)
    assert "features" not in report.float32_layers


def test_layers_that_int8_spoils_are_kept_in_float32():
    def convert(model, kept=()):
        return to_half(quantize(model, images(), kept), kept)

    model, unlabelled = one_loud_channel(), Samples(images(), np.zeros(24, int))
    missed = check(model, convert(prepare(model)), unlabelled)
    assert not missed.passed and missed.thresholds == gate.INT8_THRESHOLDS
    # Colours of random images nearly tie, which is not what this is about.
    rescued, report = rescue(model, unlabelled, Thresholds(top1_agreement=0.8), convert)
    assert report.passed
    assert "features2" in report.float32_layers and "features4" not in report.float32_layers
    assert report.float32_layers == float32_layers(rescued)
    quantized = [node.input[0] for node in rescued.graph.node if node.op_type == "QuantizeLinear"]
    assert "features3" in quantized and "scaled2" not in quantized


def test_what_cannot_be_rescued_is_refused_with_the_worst_layers():
    with pytest.raises(
        EngineBuildError, match=r"logit error is .* at most 1e-07 is allowed\. .*lose most: \w+, .*fp32"
    ):
        rescue(cancelling(), Samples(images(), np.zeros(24, int)), Thresholds(logit_error=1e-7))
