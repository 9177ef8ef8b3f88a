import numpy as np
import pytest

from support.made_answers import made_answers
from trt_moe.evaluation.answers import SecondLook
from trt_moe.evaluation.frontier import Costs, cascade_curve, frontier, thinned, within_of_dearest
from trt_moe.evaluation.metrics import confusion, expected_calibration_error, latency_summary
from trt_moe.evaluation.strategies import (
    Cascade,
    CueRule,
    best_blend,
    best_cascade,
    best_cue,
    best_cue_rule,
    cascade_threshold,
    oracle,
    oracle_gain,
    routed,
    shares,
    switch_weights,
)
from trt_moe.routing_rule import route

COSTS = np.array([0.1, 1.0])


def test_shares_are_of_all_experts():
    assert shares(np.array([0, 1, 1, 1]), 3).tolist() == [0.25, 0.75, 0.0]


def test_routed_takes_each_image_from_its_expert():
    taken = routed([np.array([1, 2, 3]), np.array([10, 20, 30])], np.array([0, 1, 1]))
    assert taken.tolist() == [1, 20, 30]


def test_switch_weights_span_all_shares():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3)).astype(np.float32)
    costs = np.array([0.1, 0.5, 1.0])
    weights = switch_weights(logits, costs)
    assert weights[0] == 0
    assert (np.diff(weights) > 0).all()
    assert shares(route(logits, costs, weights[-1]), 3)[0] == 1.0
    means = [shares(route(logits, costs, w), 3) @ costs for w in weights]
    assert (np.diff(means) <= 1e-12).all()


def test_switch_weights_with_equal_costs():
    assert switch_weights(np.zeros((4, 2), np.float32), np.array([1.0, 1.0])).tolist() == [0.0]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.5, [1, 0, 0]),
        (1.0, [1, 0, 0]),
        (1.5, [0.5, 0.5, 0]),
        (2.0, [0, 1, 0]),
        (6.0, [0, 0.5, 0.5]),
        (99.0, [0, 0, 1]),
    ],
)
def test_best_blend_is_the_upper_hull(budget, expected):
    blend = best_blend(np.array([1.0, 2.0, 10.0]), np.array([0.5, 0.8, 0.9]), budget)
    np.testing.assert_allclose(blend.weights, expected)


def test_best_blend_skips_an_expert_under_the_hull():
    blend = best_blend(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.9]), 2.0)
    np.testing.assert_allclose(blend.weights, [0.5, 0, 0.5])


def test_best_blend_never_pays_for_nothing():
    blend = best_blend(np.array([1.0, 2.0]), np.array([0.8, 0.7]), 5.0)
    np.testing.assert_allclose(blend.weights, [1, 0])


def test_cascade_hands_on_the_least_confident_share():
    confidence = np.array([0.9, 0.2, 0.6, 0.4])
    part = made_answers([1, 0, 1, 0], [0, 1, 1, 1], np.zeros(4), confidence)

    def handed_on(share):
        return Cascade("cheap", "dearest", cascade_threshold(part.confidence["cheap"], share)).passed_on(part).mean()

    cascade = Cascade("cheap", "dearest", cascade_threshold(part.confidence["cheap"], 0.5))
    assert cascade.passed_on(part).tolist() == [False, True, False, True]
    assert cascade.right(part).tolist() == [True, True, True, True]
    assert cascade.milliseconds(part, 1.0, 10.0) == 6.0
    assert [handed_on(share) for share in (0.0, -1.0, 0.5, 1.0, 7.0)] == [0, 0, 0.5, 1, 1]


def _with_a_robust_model():
    """Eight images: the cheap expert knows the first two, a robust model six of eight, the dear expert all."""
    confidence = np.linspace(0.9, 0.2, 8)
    part = made_answers([1, 1, 0, 0, 0, 0, 0, 0], np.ones(8), np.zeros(8), confidence, cue=np.arange(8.0))
    part.predicted["robust"] = np.where([1, 1, 1, 1, 1, 1, 0, 0], part.labels, part.labels + 1)
    part.confidence["robust"] = confidence.astype(np.float32)
    part.second["dearest"]["robust"] = part.second["dearest"]["cheap"]
    return part


def test_rivals_start_from_the_model_that_serves_them_best():
    part = _with_a_robust_model()
    start_ms = {"cheap": 1.0, "robust": 2.0}
    # 4.5 ms hand two of eight on after the robust model, and those are the two that it does not know.
    cascade = best_cascade(part, start_ms, 10.0, 4.5)
    assert (cascade.first, cascade.by) == ("robust", "dearest")
    assert cascade.right(part).all()
    name, rule = best_cue(part, start_ms, "dear", 10.0, 4.0)
    assert name == "robust"
    assert rule.right(part, name, "dear").all()
    # What is too slow by itself is no rival, unless all are.
    assert best_cascade(part, start_ms, 10.0, 1.5).first == "cheap"
    assert best_cascade(part, start_ms, 10.0, 0.5) == Cascade("cheap", "dearest", -np.inf)


def test_a_cascade_may_look_in_the_mirror_where_the_router_does():
    part = _with_a_robust_model()
    looks = part.second["dearest"]
    part.second["mirror"] = {**looks, "cheap": SecondLook(part.labels, looks["cheap"].confidence)}
    cascade = best_cascade(part, {"cheap": 1.0, "robust": 2.0}, 10.0, 1.75)
    # In the mirror the cheap expert knows all, and 1.75 ms are enough for six images.
    assert (cascade.first, cascade.by) == ("cheap", "mirror")
    assert cascade.right(part).all()
    assert cascade.milliseconds(part, 1.0, 10.0) == 1.75


def test_oracle_takes_the_cheapest_that_is_right():
    part = made_answers([1, 0, 0], [1, 1, 0], np.zeros(3))
    assert oracle(part, ["cheap", "dear"]).tolist() == [0, 1, 0]


def test_frontier_goes_from_slow_to_fast_and_finds_the_near_point():
    # The dear expert is right everywhere, the cheap one on the first half; the gater knows it.
    half = np.arange(100) < 50
    part = made_answers(half, np.ones(100), np.where(half, -1.0, 1.0) + np.linspace(0, 0.1, 100))
    costs = Costs(gater_ms=0.1, expert_ms=np.array([1.0, 10.0]), overhead_ms=0.05)
    points = frontier(part, ["cheap", "dear"], COSTS, costs)
    assert points[0].latency_weight == 0
    assert points[0].mean_ms == pytest.approx(0.15 + 5.5)
    assert points[0].accuracy == 1.0
    assert points[-1].mean_ms == pytest.approx(1.15)
    assert points[-1].accuracy == 0.5
    near = within_of_dearest(points, 1.0, 0.05)
    assert near is not None
    assert near.accuracy >= 0.95
    assert near.mean_ms == min(point.mean_ms for point in points if point.accuracy >= 0.95)
    assert within_of_dearest(points, 2.0, 0.05) is None
    few = thinned(points, 5)
    assert len(few) <= 5
    assert few[0] == points[0]
    assert few[0].to_json(["cheap", "dear"])["share"] == {"cheap": 0.5, "dear": 0.5}
    curve = cascade_curve(part, "cheap", "dearest", 1.0, 10.0)
    assert curve[0] == (pytest.approx(1.0), pytest.approx(0.5))
    assert curve[-1] == (pytest.approx(11.0), pytest.approx(1.0))


def test_calibration_error():
    right = np.array([True, False] * 50)
    assert expected_calibration_error(np.full(100, 0.5, np.float32), right) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(100, 1.0, np.float32), right) == pytest.approx(0.5)
    assert expected_calibration_error(np.ones(4, np.float32), np.ones(4, bool)) == 0


def test_confusion_is_truth_answer_and_count_of_what_occurs():
    found = confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), ["cat", "dog", "emu"])
    expected = [("cat", "cat", 1), ("cat", "dog", 1), ("dog", "dog", 1), ("emu", "cat", 2)]
    assert found == [{"truth": truth, "answer": answer, "images": images} for truth, answer, images in expected]


def test_latency_summary():
    summary = latency_summary(np.arange(1.0, 101.0))
    assert summary["mean_ms"] == 50.5
    assert summary["p50_ms"] == 50.5
    assert summary["measured"] == 100


@pytest.mark.parametrize("sign", [1, -1])
def test_the_image_cue_finds_its_direction_and_keeps_its_share(sign):
    # Wherever sign * cue is low the cheap expert errs.
    cue = sign * np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    part = made_answers([0, 0, 1, 1, 1, 1, 1, 1], np.array([1, 1, 0, 0, 0, 0, 0, 0]), np.zeros(8), cue=cue)
    rule = best_cue_rule(part, "cheap", "dear", 0.25)
    assert rule.sign == sign
    assert rule.to_dearest(part).tolist() == [True, True] + [False] * 6
    assert rule.right(part, "cheap", "dear").all()
    assert not best_cue_rule(part, "cheap", "dear", 0.0).to_dearest(part).any()
    assert best_cue_rule(part, "cheap", "dear", 1.0).to_dearest(part).all()
    # One threshold: another part has the share that its own cues give it.
    assert CueRule(1, 4.5).to_dearest(made_answers([1], [1], [0], cue=[4.4])).tolist() == [True]


def test_share_of_the_oracles_gain():
    assert oracle_gain(0.85, 0.8, 0.9) == pytest.approx(0.5)
    assert oracle_gain(0.9, 0.8, 0.9) == pytest.approx(1)
    assert oracle_gain(0.75, 0.8, 0.9) == pytest.approx(-0.5)
    assert oracle_gain(0.8, 0.8, 0.8) is None
