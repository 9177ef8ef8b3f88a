"""Ideas against the plain recipe, on images whose figures can be counted by hand."""

import numpy as np
import pytest

from support.made_answers import sure

pytest.importorskip("torch")  # trt_moe.training imports it

from trt_moe.sweep.claims import Routed
from trt_moe.sweep.compare import Outcomes, Spread, compare
from trt_moe.sweep.ideas import Idea, calibrated, distilled, one_training, regret, specialised, verifying
from trt_moe.training.logits import Judged
from trt_moe.training.splits import Corrupted

COSTS = np.array([0.2, 1.0])


def judged(logits, labels, severities=None):
    labels = np.asarray(labels)
    levels = np.zeros(len(labels), int) if severities is None else np.asarray(severities)
    return Judged(Corrupted(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, levels), np.asarray(logits, np.float32))


def outcomes(of, names=("light", "heavy"), costs=COSTS):
    second = {"dearest": of.right_with(of.logits[:, -1:])}
    return Outcomes(names, costs, 0.05, of.images.severities, of.right, second, of.losses, of.confidence)


def test_one_training_compares_at_equal_cost_over_the_weights():
    of = judged([[sure(True, 2), sure(True, 2)], [sure(False, 2), sure(True, 2)]] * 4, [0] * 8)
    knowing = np.stack([np.zeros(8), np.tile([0.0, 2.0], 4)], axis=1)
    wrong = np.stack([np.zeros(8), np.tile([2.0, 0.0], 4)], axis=1)
    idea = one_training("benefit", compare(outcomes(of), {0: knowing}, {0.5: {0: wrong}, 1.0: {0: knowing}}))
    # At both weights half of the images go on: 8 right of 8 for the one, 4 and 8 for the others.
    assert (idea.after, idea.before) == (Spread.of([1.0]), Spread.of([0.75]))
    assert idea.gain == Spread.of([0.25])
    assert idea.verdict == "won"


def test_gaters_of_two_methods_are_compared_over_all_costs_seed_by_seed():
    of = judged([[sure(True, 2), sure(True, 2)], [sure(False, 2), sure(True, 2)]] * 4, [0] * 8)
    knowing = np.stack([np.zeros(8), np.tile([0.0, 2.0], 4)], axis=1)
    wrong = np.stack([np.zeros(8), np.tile([2.0, 0.0], 4)], axis=1)
    idea = regret(Routed(outcomes(of), {3: knowing, 5: wrong}), {5: knowing, 3: knowing})
    assert idea.before.low == idea.before.high == idea.after.high
    assert (idea.gain.high, idea.verdict) == (0.0, "no clear difference")
    assert idea.gain.low < -0.1
    assert regret(Routed(outcomes(of), {3: knowing, 5: wrong}), {5: wrong, 3: knowing}).gain == Spread.of([0.0])


def test_specialised_experts_are_compared_by_one_gater():
    # The soft expert knows the first half, the robust one three quarters, the dear one everything.
    knows = np.array([[i < 8, i % 4 != 0, True] for i in range(16)])
    of = judged([[sure(right, 2) for right in row] for row in knows], [0] * 16)
    pool = Routed(outcomes(of, ("soft", "robust", "dear"), np.array([0.2, 0.2, 1.0])), {0: np.where(knows, 0.0, -9.0)})
    idea = specialised(pool, ["robust", "dear"], ["soft", "robust", "dear"])
    assert idea.gain.mean > 0
    assert specialised(pool, ["robust", "dear"], ["robust", "dear"]).gain.mean == 0
    # Never more than one expert: accuracy does not depend on the cost.
    alone = specialised(pool, ["soft"], ["robust"])
    assert alone.before.mean == pytest.approx(0.5)
    assert alone.after.mean == pytest.approx(0.75)


def test_mixtures_are_compared_over_the_costs_of_all_experts():
    knows = np.array([[i < 8, i % 4 != 0, True] for i in range(16)])
    of = judged([[sure(right, 2) for right in row] for row in knows], [0] * 16)
    scores = {0: np.where(knows, 0.0, -9.0)}
    pool = Routed(outcomes(of, ("soft", "robust", "dear"), np.array([0.2, 0.5, 1.0])), scores)
    area = specialised(pool, ["robust", "dear"], ["robust", "dear"]).before.mean
    # 0.75 up to 0.55, then up to 1 at 0.55 + 0.25 * 0.5.
    assert area == pytest.approx((0.35 * 0.75 + 0.125 * 0.875 + 0.325) / 0.8, abs=0.005)


def test_verifying_finds_what_the_gater_cannot_see():
    # The light expert is unsure of what it does not know; the gater has no idea.
    rows = [[sure(True, 5), sure(True, 5)]] * 8 + [[sure(False, 1), sure(True, 5)]] * 8
    of = judged(rows, [0] * 16, [0] * 8 + [5] * 8)
    blind = {0: np.zeros((16, 2), np.float32)}
    alone, cascade = verifying(Routed(outcomes(of), blind), 0.7, 0.8)
    assert alone.after.mean == pytest.approx(1.0)
    # Half of the images passed on: 0.2 + 0.5 + 0.05; a gater without a clue does as well as a coin.
    share = (0.8 - 0.25) / (1.05 - 0.25)
    assert alone.before.mean == pytest.approx(0.5 + 0.5 * share)
    # The cascade pays no gater.
    assert cascade.before.mean == pytest.approx(1.0)
    assert cascade.gain.mean == pytest.approx(0.0)
    assert (alone.verdict, cascade.verdict) == ("won", "no clear difference")


def test_a_cost_that_the_gater_alone_exceeds_is_not_compared():
    of = judged([[sure(True, 5), sure(True, 5)]] * 8, [0] * 8)
    every = Routed(outcomes(of), {0: np.zeros((8, 2)), 1: np.stack([np.zeros(8), np.full(8, 9.0)], axis=1)})
    assert verifying(every, 0.7, 0.8) == ()  # the second gater sends all to the dear one, at 1.05
    assert len(verifying(every, 0.7, 1.1)) == 2


def test_calibration_is_counted_as_a_gain():
    of = judged([[sure(i % 4 != 0, 4.0), sure(True, 9.0)] for i in range(40)], [0] * 40)
    every = Routed(outcomes(of), {0: np.zeros((40, 2))})
    idea = calibrated(every, of, [4 / np.log(3), 1.0])
    assert idea.before.mean == pytest.approx(1 / (1 + np.exp(-4)) - 0.75, abs=1e-6)
    assert idea.after.mean == pytest.approx(0, abs=1e-6)
    assert idea.gain.mean == pytest.approx(idea.before.mean - idea.after.mean)
    assert idea.verdict == "won"
    assert calibrated(every, of, [0.5, 1.0]).verdict == "lost"
    dear = Routed(outcomes(of), {0: np.stack([np.zeros(40), np.full(40, 9.0)], axis=1)})
    assert calibrated(dear, of, [9.0, 3.0]).after.mean == pytest.approx(1 - 1 / (1 + np.exp(-3)), abs=1e-6)


def test_a_verdict_needs_all_seeds():
    def verdict(low, high):
        zero = Spread.of([0.0])
        return Idea("a", "b", "c", zero, zero, Spread((low + high) / 2, low, high)).verdict

    assert [verdict(0.1, 0.2), verdict(-0.2, -0.1), verdict(-0.1, 0.2)] == ["won", "lost", "no clear difference"]
    assert distilled("light", [0.5], [0.4]).verdict == "lost"
