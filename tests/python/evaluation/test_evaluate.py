import json
from dataclasses import replace

import numpy as np
import pytest

from support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.data import Dataset, corrupt, load_dataset
from trt_moe.demo import run_demo
from trt_moe.errors import BundleError, DataError, InputError, ModelOutputError
from trt_moe.evaluation import TestSet, evaluate, latency, make_test_sets
from trt_moe.evaluation.answers import collect
from trt_moe.evaluation.cues import log_laplacian_variance
from trt_moe.evaluation.metrics import expected_calibration_error
from trt_moe.evaluation.picture import draw
from trt_moe.evaluation.tables import print_confusion, print_report
from trt_moe.router import Router

WEIGHT = 6.0


def probabilities(logits):
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bundle(
        tmp_path_factory.mktemp("b"), experts=3, classes=4, channels=3, latency_weight=WEIGHT, samples_per_class=2
    )


@pytest.fixture(scope="module")
def sets(tiny):
    rng = np.random.default_rng(1)
    made = []
    for severity in (0, 3):
        images = tiny.random(60, seed=severity)
        labels = tiny.labels(images)
        wrong = rng.random(60) < 0.3
        made.append(TestSet(severity, images, np.where(wrong, (labels + 1) % 4, labels)))
    return made


@pytest.fixture(scope="module")
def report(tiny, sets):
    seen = []
    with Router(tiny.path, precision="fp32", threads=1) as router:
        result = evaluate(router, sets, "made", 10, lambda *args: seen.append(args))
        assert router.latency_weight == WEIGHT
    assert seen
    assert all(done <= total for _, done, total in seen)
    return result


def test_accuracies_and_shares_are_those_of_the_router(tiny, sets, report):
    with Router(tiny.path, precision="fp32", threads=1) as router:
        for test_set in sets:
            result = router.predict(test_set.images)
            row = report.data["severities"][str(test_set.severity)]
            assert row["accuracy"] == pytest.approx((result.labels == test_set.labels).mean())
            share = np.bincount(result.experts, minlength=3) / 60
            assert list(row["share"].values()) == pytest.approx(share.tolist())
            np.testing.assert_array_equal(result.experts, tiny.routes(test_set.images, WEIGHT))


def test_a_router_that_verifies_is_evaluated_as_such(tiny, sets):
    with Router(tiny.path, precision="fp32", threads=1, verify_below=1.0) as router:
        data = evaluate(router, sets, "made", 10).data
        assert router.verify_below == 1.0
    assert (data["verify_below"], data["disagreements"]) == (1.0, 0)
    for test_set in sets:
        row = data["severities"][str(test_set.severity)]
        assert list(row["share"].values()) == [0, 0, 1]
        assert row["passed_on"] == pytest.approx((tiny.routes(test_set.images, WEIGHT) != 2).mean())


def test_second_looks_in_the_mirror_are_evaluated_as_such(tiny, sets, capsys):
    with Router(tiny.path, precision="fp32", threads=1, verify_below=1.0, verify_by="mirror") as router:
        data = evaluate(router, sets, "made", 10).data
        answered = {s.severity: router.predict(s.images) for s in sets}
        by_mirror = collect(router, sets[0].images, sets[0].labels, 0, lambda *_: None)
        without = collect(router, sets[0].images, sets[0].labels, 0, lambda *_: None, second_looks=False)
        own, mirrored = (
            probabilities(router.model("expert-0").logits(images))
            for images in (sets[0].images, sets[0].images[:, :, ::-1])
        )
    assert (data["verify_by"], data["disagreements"]) == ("mirror", 0)
    for test_set in sets:
        row, result = data["severities"][str(test_set.severity)], answered[test_set.severity]
        assert row["accuracy"] == pytest.approx((result.labels == test_set.labels).mean())
        assert list(row["share"].values()) == pytest.approx((np.bincount(result.experts, minlength=3) / 60).tolist())
        assert row["passed_on"] > 0
    both = by_mirror.second["mirror"]["expert-0"]
    np.testing.assert_allclose(both.confidence, ((own + mirrored) / 2).max(axis=1), atol=1e-6)
    assert (np.abs(both.confidence - own.max(axis=1)) > 1e-3).any()
    print_report(data)
    text = capsys.readouterr().out
    assert "verified by mirror below 1;" in text
    assert "seen twice %" in text
    assert by_mirror.second.keys() == {"dearest", "mirror"}
    assert without.second.keys() == {"dearest"}


def test_both_answer_means_the_model_and_the_dearest_expert(tiny, sets):
    images, labels = sets[0].images, sets[0].labels
    with Router(tiny.path, precision="fp32", threads=1) as router:
        answers = collect(router, images, labels, 0, lambda *_: None)
        own, dearest = (probabilities(router.model(name).logits(images)) for name in ("expert-0", "expert-2"))
    both = answers.verified["expert-0"]
    np.testing.assert_allclose(both.confidence, ((own + dearest) / 2).max(axis=1), atol=1e-6)
    assert (np.abs(both.confidence - dearest.max(axis=1)) > 1e-3).any()
    assert (np.abs(both.confidence - own.max(axis=1)) > 1e-3).any()
    np.testing.assert_allclose(answers.verified["expert-2"].confidence, dearest.max(axis=1), atol=1e-6)
    assert both.take(np.arange(60) < 7).predicted.tolist() == both.predicted[:7].tolist()


def test_report_is_complete(report):
    data = json.loads(json.dumps(report.data, allow_nan=False))
    assert data["images"] == 120
    assert data["latency_images"] == 20
    assert data["disagreements"] == 0
    assert list(data["severities"]) == ["0", "3"]
    assert set(data["overall"]) == {
        "mixture", "expert-0", "expert-1", "expert-2", "robust-light", "random", "image_cue", "cascade",
        "baseline_cascade", "gate_then_verify", "oracle",
    }  # fmt: skip
    for row in data["overall"].values():
        assert 0 <= row["accuracy"] <= 1
        assert row["mean_ms"] > 0
    assert sum(pair["images"] for pair in data["confusion"]) == 120
    right = sum(pair["images"] for pair in data["confusion"] if pair["truth"] == pair["answer"])
    assert right == pytest.approx(120 * data["overall"]["mixture"]["accuracy"])
    assert data["near_dearest"]["measured_ms"] > 0
    assert data["frontier"][0]["latency_weight"] == 0
    assert {"latency_weight", "verify_below", "accuracy", "mean_ms"} == set(data["verified_frontier"][0])
    assert data["oracle_gain"] is None
    # All tiny experts give the same answers, so every strategy is as accurate as any.
    accuracies = {row["accuracy"] for row in data["overall"].values()}
    assert max(accuracies) - min(accuracies) < 1e-9


def test_severities_add_up_to_the_strategies_over_all(report):
    rows, overall = report.data["severities"].values(), report.data["overall"]
    for name in ("image_cue", "cascade", "baseline_cascade", "gate_then_verify"):
        assert np.mean([row[name] for row in rows]) == pytest.approx(overall[name]["accuracy"])
    for name, share in (("image_cue", "share_of_dearest"), ("gate_then_verify", "passed_on")):
        assert np.mean([row[f"{name}_share"] for row in rows]) == pytest.approx(overall[name][share])


@pytest.mark.parametrize(
    ("of_dearest", "said"), [(0.8, "at 80.0 % of its mean"), (1.4, "No setting within half a point")]
)
def test_a_setting_near_the_dearest_expert_is_named_only_where_it_saves_time(report, capsys, of_dearest, said):
    near = {**report.data["near_dearest"], "of_dearest": of_dearest}
    print_report({**report.data, "near_dearest": near})
    text = " ".join(capsys.readouterr().out.split())
    assert said in text and ("Within half a point of" in text) == (of_dearest < 1)


def test_the_confusion_table_has_every_pair(capsys):
    pairs = [{"truth": "cat", "answer": "cat", "images": 7}, {"truth": "dog", "answer": "cat", "images": 5}]
    print_confusion({"classes": ["cat", "dog"], "confusion": pairs})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", "7", "0"] in rows and ["dog", "5", "0"] in rows
    print_confusion({"classes": ["cat", "dog", *map(str, range(1000))], "confusion": pairs})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", "cat", "7"] in rows and ["dog", "cat", "5"] in rows and len(rows) < 10


def test_tables_show_every_strategy(report, capsys):
    print_report(report.data)
    text = capsys.readouterr().out
    for words in (
        # Which of two equally good experts comes first is up to their timings.
        "Laplacian variance picks expert-",
        "confidence cascade from expert-",
        "confidence cascade from robust-light, same latency",
        "gate, then verify, same latency",
        "verified",
    ):
        assert words in text
    assert "oracle's gain" not in text  # it gains nothing here
    print_report({**report.data, "oracle_gain": -0.25})
    assert (
        "captures -25.0 % at this latency weight (the best single expert is more accurate)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("share", "told"), [(1.05, False), (1.3, True), (0.7, True)])
def test_timed_images_that_are_unlike_all_are_told(report, capsys, share, told):
    overall = report.data["overall"]
    mixture = {**overall["mixture"], "modelled_ms": 2.0 * share, "mean_ms": 2.0}
    print_report({**report.data, "overall": {**overall, "mixture": mixture}})
    text = " ".join(capsys.readouterr().out.split())
    assert f"The same latency is {2.0 * share:.3f} ms, the mixture's over all images" in text
    assert ("do not stand for them: time more (--latency-images)" in text) == told


@pytest.mark.parametrize(("overhead", "words"), [(0.25, "0.250 ms"), (-0.8, "too little to tell")])
def test_overhead_that_is_lost_in_noise_is_no_number(report, capsys, overhead, words):
    overall = report.data["overall"]
    print_report({**report.data, "overall": {**overall, "mixture": {**overall["mixture"], "overhead_ms": overhead}}})
    assert f"all overhead ({words})" in capsys.readouterr().out


def test_answers_hold_losses_and_the_image_cue(tiny, sets):
    with Router(tiny.path, precision="fp32", threads=1) as router:
        answers = collect(router, sets[0].images, sets[0].labels, 0, lambda what, done, total: None)
    scores = tiny.expert_logits(2, sets[0].images).astype(np.float64)
    truth = scores[np.arange(60), sets[0].labels]
    np.testing.assert_allclose(answers.loss["expert-2"], np.log(np.exp(scores).sum(1)) - truth, atol=1e-3)
    np.testing.assert_array_equal(answers.image_cue, log_laplacian_variance(sets[0].images))
    some = answers.take(np.arange(60) % 3 == 0)
    assert len(some) == 20
    np.testing.assert_array_equal(some.loss["expert-2"], answers.loss["expert-2"][::3])


def test_picture(report, tmp_path):
    draw(report, tmp_path / "picture.png")
    from PIL import Image

    with Image.open(tmp_path / "picture.png") as image:
        image.load()
        assert image.width > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_broken_model_is_an_error(tmp_path, sets):
    tiny = write_tiny_bundle(tmp_path, experts=3, classes=4, channels=3, nan=("expert-1",), golden=0)
    with (
        Router(tiny.path, check=False, threads=1, warmup=False) as router,
        pytest.raises(ModelOutputError, match="expert-1"),
    ):
        evaluate(router, sets, "made", 2)


def dataset(tiny, names=("class-2", "class-0"), severities=None):
    images = tiny.random(20)
    labels = np.arange(20) % 2
    return Dataset(images, labels, names, "made", severities)


def test_sets_map_classes_by_name_and_corrupt_as_training_did(tiny):
    bundle = Bundle.load(tiny.path)
    made = make_test_sets(dataset(tiny), bundle, (0, 2))
    assert [one.severity for one in made] == [0, 2]
    assert made[0].labels[:4].tolist() == [2, 0, 2, 0]
    # The tiny bundle says that it was trained on no corruption at all.
    np.testing.assert_array_equal(made[1].images, made[0].images)


def test_images_are_corrupted_the_same_whatever_their_number(tmp_path):
    from support.tiny_bundle import edit_manifest

    tiny = write_tiny_bundle(tmp_path, classes=4, channels=3)
    edit_manifest(tiny.path, lambda data: data.update(training=None))
    bundle = Bundle.load(tiny.path)
    data = dataset(tiny)
    some = make_test_sets(data, bundle, (4,), images=3)[0]
    assert len(some.labels) == 3
    np.testing.assert_array_equal(some.images, corrupt(data.images, 4)[[0, 10, 19]])
    only_noise = make_test_sets(data, bundle, (4,), kind="noise", images=3)[0]
    assert (only_noise.images != some.images).any()


def test_own_severities_are_kept(tiny):
    severities = np.repeat([1, 5], 10)
    made = make_test_sets(dataset(tiny, severities=severities), Bundle.load(tiny.path), (0, 1, 5))
    assert [(one.severity, len(one.labels)) for one in made] == [(1, 10), (5, 10)]
    with pytest.raises(DataError, match="no images of severity 2, 3"):
        make_test_sets(dataset(tiny, severities=severities), Bundle.load(tiny.path), (2, 3))
    with pytest.raises(InputError, match="severities already, which cannot be made noise alone"):
        make_test_sets(dataset(tiny, severities=severities), Bundle.load(tiny.path), kind="noise")


def test_a_picture_is_one_at_all_severities(tiny):
    bundle, missing = Bundle.load(tiny.path), dataset(tiny, severities=np.repeat([1, 5], [11, 9]))
    # The second picture has no image at severity 5, where all later ones come a place earlier.
    numbers = np.array([*range(11), 0, *range(2, 10)])
    made = make_test_sets(replace(missing, pictures=10 * numbers), bundle)
    assert [one.picture.tolist() for one in made] == [list(range(11)), [0, *range(2, 10)]]
    assert [one.kind for one in made] == ["own", "own"]
    assert [one.picture.tolist() for one in make_test_sets(dataset(tiny), bundle, (0, 2), images=3)] == [[0, 1, 2]] * 2


def test_samples_folder_is_a_data_set(tiny):
    bundle = Bundle.load(tiny.path)
    data = load_dataset(tiny.path / "samples", shape=bundle.input_shape)
    made = make_test_sets(data, bundle)
    images, labels, _ = bundle.samples()
    np.testing.assert_array_equal(np.concatenate([one.images for one in made]), images)
    np.testing.assert_array_equal(np.concatenate([one.labels for one in made]), labels)


def test_foreign_data_is_refused(tiny):
    bundle = Bundle.load(tiny.path)
    with pytest.raises(DataError, match="classes that tiny does not know: cat"):
        make_test_sets(dataset(tiny, names=("cat", "class-0")), bundle)
    small = Dataset(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64), ("class-0",), "small")
    with pytest.raises(DataError, match=r"images of \(4, 4, 3\)"):
        make_test_sets(small, bundle)


def test_demo_json_has_exactly_the_promised_keys(tiny):
    demo = run_demo(tiny.path, threads=1)
    data = json.loads(json.dumps(demo.data, allow_nan=False))
    assert list(data) == ["device", "experts", "severities", "mixture", "cheapest", "dearest", "images"]
    assert list(data["severities"]) == ["0", "1", "2", "3", "4", "5"]
    for row in data["severities"].values():
        assert {"share", "accuracy", "mean_ms"} <= set(row)
        assert sum(row["share"].values()) == pytest.approx(1)
    for strategy in ("mixture", "cheapest", "dearest"):
        assert set(data[strategy]) == {"accuracy", "mean_ms", "p99_ms"}
    assert data["images"] == 48
    assert demo.report.data["latency_images"] == 48


def test_demo_without_samples(tmp_path):
    tiny = write_tiny_bundle(tmp_path / "b", samples_per_class=0)
    with pytest.raises(BundleError, match="has no samples"):
        run_demo(tiny.path)


def made_up(monkeypatch, tiny, spoilt=()):
    """Latencies of 1 ms for the gater and 2, 5 and 10 for the experts, and half a one lost between."""

    def measure(router, images, models, progress, what="latencies"):
        first, result = tiny.routes(images, WEIGHT), router.predict(images)
        experts = np.array([2.0, 5.0, 10.0])
        again = (first != 2) & (router.verify_below > 0)
        times = {"gater": 1.0, "expert-0": 2.0, "expert-1": 5.0, "expert-2": 10.0, "robust-light": 3.0}
        milliseconds = {name: np.full(len(images), times[name]) for name in models}
        milliseconds["mixture"] = 1.0 + experts[first] + again * experts[result.experts] + 0.5
        if "near dearest" in what:
            milliseconds = {"mixture": np.full(len(images), 8.0), "expert-2": np.full(len(images), 20.0)}
        labels = result.labels.copy()
        for index in spoilt:
            labels[index] = (labels[index] + 1) % 4
        return latency.Latencies(milliseconds, result.experts, labels)

    monkeypatch.setattr(latency, "measure", measure)


@pytest.mark.parametrize(
    "verify", [{}, {"verify_below": 1.0}, {"verify_below": 1.0, "verify_by": "mirror"}], ids=["once", "twice", "mirror"]
)
def test_overhead_is_what_gater_and_all_looks_leave_of_the_mixtures_time(tiny, sets, monkeypatch, verify):
    made_up(monkeypatch, tiny)
    with Router(tiny.path, precision="fp32", threads=1, **verify) as router:
        mixture = evaluate(router, sets, "made", 30).data["overall"]["mixture"]
    assert mixture["gater_ms"] == 1.0
    assert mixture["overhead_ms"] == pytest.approx(0.5)


def test_near_the_dearest_both_are_measured_again(tiny, sets, monkeypatch):
    made_up(monkeypatch, tiny)
    with Router(tiny.path, precision="fp32", threads=1) as router:
        near = evaluate(router, sets, "made", 10).data["near_dearest"]
    assert (near["measured_ms"], near["measured_dearest_ms"], near["of_dearest"]) == (8.0, 20.0, 0.4)


def test_labels_that_the_router_gives_alone_must_be_those_of_the_batch(tiny, sets, monkeypatch):
    made_up(monkeypatch, tiny, spoilt=(1, 4, 7))
    with Router(tiny.path, precision="fp32", threads=1) as router:
        assert evaluate(router, sets, "made", 10).data["disagreements"] == 2 * 3


def test_the_oracles_gain_is_over_the_most_accurate_expert(tiny, sets, monkeypatch):
    def answers(*arguments):
        found, place = collect(*arguments), np.arange(60)
        right = {"expert-0": place < 10, "expert-1": place < 50, "expert-2": place >= 30}
        predicted = {name: np.where(row, found.labels, (found.labels + 1) % 4) for name, row in right.items()}
        return replace(found, predicted={**found.predicted, **predicted})

    monkeypatch.setitem(evaluate.__globals__, "collect", answers)
    made_up(monkeypatch, tiny)
    with Router(tiny.path, precision="fp32", threads=1) as router:
        data = evaluate(router, sets, "made", 10).data
    overall = data["overall"]
    assert [round(60 * overall[f"expert-{index}"]["accuracy"]) for index in range(3)] == [10, 50, 30]
    assert overall["oracle"]["accuracy"] == 1.0
    assert data["oracle_gain"] == pytest.approx((60 * overall["mixture"]["accuracy"] - 50) / 10)


def test_calibration_is_that_of_the_answers_after_the_second_look(tiny, sets):
    with Router(tiny.path, precision="fp32", threads=1, verify_below=1.0) as router:
        data = evaluate(router, sets, "made", 10).data
        for test_set in sets:
            result = router.predict(test_set.images)
            likely = result.probabilities.max(axis=1)
            error = expected_calibration_error(likely, result.labels == test_set.labels)
            assert data["severities"][str(test_set.severity)]["ece"] == pytest.approx(error, abs=1e-5)


def test_contestants_take_turns_in_an_order_of_chance(tiny):
    images = tiny.random(12)
    asked = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def time(self, image, iterations, warmup):
            asked.append(self.name)
            return np.ones(1)

    with Router(tiny.path, threads=1) as router:
        predict = router.predict
        router.predict = lambda batch: asked.append("mixture") or predict(batch)
        router.model = Spy
        latency.measure(router, images, ["gater", "expert-0", "expert-1"], lambda *_: None)
    timed = np.array(asked).reshape(24, 4)[12:]
    assert {tuple(sorted(turn)) for turn in timed.tolist()} == {("expert-0", "expert-1", "gater", "mixture")}
    assert all(len(set(place)) > 1 for place in timed.T.tolist())
    assert len({tuple(turn) for turn in timed.tolist()}) > 5
