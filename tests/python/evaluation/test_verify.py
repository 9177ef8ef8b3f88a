import dataclasses
import itertools

import numpy as np
import pytest

from support.made_answers import made_answers
from trt_moe.evaluation.answers import SecondLook, join
from trt_moe.evaluation.frontier import Costs
from trt_moe.evaluation.verify import Verifier, VerifyRule, decide

COSTS = Costs(gater_ms=0.5, expert_ms=np.array([1.0, 10.0]), overhead_ms=0.5)
VERIFIER = Verifier(("cheap", "dear"), np.array([0.1, 1.0]), COSTS)


def test_unsure_images_of_the_cheap_expert_pay_for_both():
    # Routed at weight 1: the last image to the dear expert, which is never verified.
    answers = made_answers([0, 0, 1, 1], [1, 0, 0, 0], gain=[0, 0, 0, 5], confidence=[0.3, 0.8, 0.3, 0.1])
    done = VERIFIER.apply(answers, VerifyRule(1.0, 0.5))
    assert done.passed_on.tolist() == [True, False, True, False]
    assert done.right.tolist() == [True, False, False, False]
    assert done.milliseconds.tolist() == [12, 2, 12, 11]


def test_decisions_name_the_expert_that_is_asked_last():
    answers = made_answers([0, 0, 1, 1], [1, 0, 0, 0], gain=[0, 0, 0, 5], confidence=[0.3, 0.8, 0.3, 0.1])
    decision = decide(answers, ("cheap", "dear"), np.array([0.1, 1.0]), VerifyRule(1.0, 0.5))
    assert decision.first.tolist() == [0, 0, 0, 1]
    assert decision.passed_on.tolist() == [True, False, True, False]
    assert decision.last.tolist() == [1, 0, 1, 1]
    by_mirror = dataclasses.replace(answers, verify_by="mirror")
    decision = decide(by_mirror, ("cheap", "dear"), np.array([0.1, 1.0]), VerifyRule(1.0, 0.5))
    assert decision.passed_on.tolist() == [True, False, True, False]
    assert decision.last.tolist() == [0, 0, 0, 1]


def test_a_look_in_the_mirror_costs_what_the_first_one_did():
    answers = made_answers([0, 0, 1, 1], [1, 0, 0, 0], gain=[0, 0, 0, 5], confidence=[0.3, 0.8, 0.4, 0.1])
    seen_again = {"cheap": SecondLook(np.array([0, 1, 0, 0]), np.full(4, 0.9, np.float32))}
    answers = dataclasses.replace(answers, verify_by="mirror", second={**answers.second, "mirror": seen_again})
    answers.second["mirror"]["dear"] = answers.second["dearest"]["dear"]
    verifier = Verifier(("cheap", "dear"), np.array([0.1, 1.0]), COSTS)
    done = verifier.apply(answers, VerifyRule(1.0, 0.5))
    assert done.right.tolist() == [True, False, True, False]
    assert done.milliseconds.tolist() == [3, 2, 3, 11]
    assert done.passed_on.tolist() == [True, False, True, False]
    # 2 ms with no look at the dear expert, and a millisecond more for the two of four that are the least sure.
    rule = verifier.pick(answers, 2.5, 1.0)
    assert rule.threshold == pytest.approx(0.4)
    assert verifier.apply(answers, rule).milliseconds.mean() == 2.5
    for point in verifier.frontier(answers):
        again = verifier.apply(answers, point.rule)
        assert (again.right.mean(), again.milliseconds.mean()) == pytest.approx((point.accuracy, point.mean_ms))


def test_where_both_are_asked_both_count():
    answers = made_answers([0, 1], [0, 0], gain=[0, 0], confidence=[0.4, 0.4])
    cheap, dear = np.array([[0.3, 0.3, 0.4], [0.6, 0.2, 0.2]]), np.array([[0.4, 0.5, 0.1], [0.3, 0.7, 0.0]])
    together = SecondLook.of(cheap, dear)
    assert together.predicted.tolist() == [1, 0]
    assert together.confidence.tolist() == pytest.approx([0.4, 0.45])
    answers.verified["cheap"] = together
    # The second image: the cheap expert knows it, the dear one does not, and together they do.
    assert VERIFIER.apply(answers, VerifyRule(1.0, 0.5)).right.tolist() == [False, True]
    assert VERIFIER.apply(answers, VerifyRule(-9.0, 0.5)).right.tolist() == [False, False]
    assert [point.accuracy for point in VERIFIER.frontier(answers)] == [0.5]


def scene(count, seed=0, honest=True):
    """The dear expert is always right; the cheap one where it is sure, or (not honest) where it is unsure."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(count)
    right = confidence > 0.5 if honest else confidence < 0.5
    return made_answers(right, np.ones(count), gain=rng.normal(size=count), confidence=confidence)


def test_the_best_rule_verifies_where_confidence_tells_more_than_the_gater():
    answers = scene(400)
    rule = VERIFIER.pick(answers, budget_ms=2 + 0.55 * 10, latency_weight=0.5)
    done = VERIFIER.apply(answers, rule)
    assert done.right.mean() > 0.98
    assert done.passed_on.mean() > 0.3
    assert done.milliseconds.mean() <= 7.5


def test_the_best_rule_does_not_verify_where_that_only_harms():
    # The dear expert errs where the cheap one is unsure but right.
    answers = made_answers(np.ones(100), np.zeros(100), gain=np.full(100, -1.0), confidence=np.linspace(0, 1, 100))
    assert VERIFIER.pick(answers, budget_ms=9.0, latency_weight=0.5) == VerifyRule(0.5, -np.inf)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0.1, 0.7, 2.0])
def test_a_picked_rule_is_no_worse_and_no_slower_than_the_mixture(seed, weight):
    answers = scene(300, seed)
    mixture = VERIFIER.apply(answers, VerifyRule(weight, -np.inf))
    assert not mixture.passed_on.any()
    budget = float(mixture.milliseconds.mean())
    done = VERIFIER.apply(answers, VERIFIER.pick(answers, budget, weight))
    assert done.milliseconds.mean() <= budget + 10 / len(answers)  # one image more by rounding
    assert done.right.mean() >= mixture.right.mean()


def test_each_half_is_judged_by_the_rule_of_the_other():
    # Confidence tells the truth at even positions and the opposite at odd ones.
    even, odd = scene(100, 1), scene(100, 2, honest=False)
    order = np.argsort(np.concatenate([np.arange(0, 200, 2), np.arange(1, 200, 2)]))
    part = join([even, odd]).take(order)
    second_half = np.arange(200) % 2 == 1
    done = VERIFIER.cross_check([part, part], [second_half, second_half], 7.0, 0.5)
    assert len(done) == 2
    for result in done:
        for rows, fitted in ((slice(0, None, 2), odd), (slice(1, None, 2), even)):
            # Both severities vote, so the rule is picked on two copies.
            rule = VERIFIER.pick(join([fitted, fitted]), 7.0, 0.5)
            expected = VERIFIER.apply(part, rule)
            np.testing.assert_array_equal(result.right[rows], expected.right[rows])
            np.testing.assert_array_equal(result.milliseconds[rows], expected.milliseconds[rows])


def test_one_image_falls_back_to_the_mixture():
    (done,) = VERIFIER.cross_check([scene(1)], [np.array([False])], 7.0, 0.5)
    assert done.passed_on.tolist() == [False]


@pytest.mark.parametrize("seed", range(4))
def test_the_frontier_is_what_its_rules_do_and_no_rule_beats_another(seed):
    answers = scene(500, seed)
    points = VERIFIER.frontier(answers)
    assert len(points) > 3
    for point in points:
        done = VERIFIER.apply(answers, point.rule)
        assert done.right.mean() == pytest.approx(point.accuracy)
        assert done.milliseconds.mean() == pytest.approx(point.mean_ms)
    assert all(a.mean_ms < b.mean_ms and a.accuracy < b.accuracy for a, b in itertools.pairwise(points))


def test_the_frontier_reaches_the_dearest_at_the_cost_of_the_unsure_half():
    # Half of the images are unsure and wrong; confidence tells which, the gater knows nothing.
    points = VERIFIER.frontier(scene(2000, 9))
    cheapest_perfect = min(point.mean_ms for point in points if point.accuracy >= 0.995)
    assert cheapest_perfect == pytest.approx(2 + 0.5 * 10, rel=0.05)
