"""Claims on ten images whose figures can be counted by hand."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")  # trt_moe.training imports it

from trt_moe.sweep.claims import (
    Rivals,
    Routed,
    Rule,
    Single,
    both_free,
    claims,
    lowest_cost,
    most_accurate,
    strongest_cascade,
    upper,
)
from trt_moe.sweep.compare import Outcomes, Spread, compare
from trt_moe.training.routing import Frontier

COSTS = np.array([0.2, 1.0])
THRESHOLD = 0.7 * 0.8  # nats that the dearest must gain at latency weight 0.7
# Five clean images that both know, five harsh ones that the dear one knows (two of them only a little better).
RIGHT = np.array([[True, True]] * 5 + [[False, True]] * 3 + [[False, False]] * 2)
LOSSES = np.array([[0.1, 0.1]] * 5 + [[3.0, 0.5]] * 3 + [[3.0, 2.9]] * 2, np.float32)
SEVERITIES = np.array([0] * 5 + [5] * 5)
GAINS = np.array([0.0, 0.0, 0.0, 0.0, 0.9, 2.5, 2.5, 0.1, 0.1, 0.1])
GOOD = np.stack([np.zeros(10), GAINS], axis=1)
BLIND = np.zeros((10, 2))
PAPER = Rule(0.7)
CUES = {"entropy": Spread.of([0.1]), "edges": Spread.of([0.2])}
LEARNED = {"regret": Spread(0.3, 0.21, 0.4), "benefit": Spread(0.5, 0.4, 0.6)}


def outcomes(names=("light", "heavy"), costs=COSTS, right=RIGHT, losses=LOSSES):
    confidence = np.repeat(np.linspace(0.9, 0.1, len(right)), len(names)).reshape(len(right), -1).astype(np.float32)
    together = np.repeat(right[:, -1:], len(names), axis=1)  # the dearest is always the surer one
    return Outcomes(names, costs, 0.05, SEVERITIES[: len(right)], right, {"dearest": together}, losses, confidence)


def rivals(of, robust=None):
    cascade = Frontier(np.array([0.2, 0.3]), np.array([0.5, 0.55])) if robust else None
    return Rivals(robust, cascade, Single("heavy", 0.8, 1.0), of.cascade(), ("light", "robust"))


def judge(scores, robust=None, cues=CUES, blurred=None, noisy=None, of=None, used=PAPER):
    """The claims by the first word that tells them apart."""
    of = of or outcomes()
    every = Routed(of, scores)
    comparison = compare(of, scores, {0.7: scores, 0.1: scores})
    rows = claims(every, blurred or every, noisy or every, comparison, rivals(of, robust), cues, LEARNED, used)
    words = {
        "clean": "clean images",
        "harsh": "severity-5",
        "best": "best mixture minus",
        "equal": "mixture: mean cost at equal",
        "near": "mixture: mean cost within",
        "robust": "mixture minus robust" if robust else "mixture against the robust",
        "oracle": "share of the oracle",
        "blur": "blur",
        "noise": "noise",
        "cascade": "mixture minus confidence",
        "any cascade": "minus the best confidence cascade",
        "any single": "the most accurate classifier trained",
        "one": "one gater",
        "collapse": "collapse",
        "regret": "R2 of the learned gater (regret)",
        "benefit": "R2 of the learned gater (benefit)",
        "entropy": "R2 of entropy",
        "verified": "verifies: mean cost at equal",
        "robust cascade": "minus a confidence cascade from robust",
        "used clean": f"clean images on the cheapest expert (light), {used}",
        "used harsh": f"severity-5 images on the dearest expert (heavy), {used}",
        "used blur": f"reach the dearest expert, {used}",
    }
    return {key: next((row for row in rows if word in row.name), None) for key, word in words.items()}


def test_where_images_go_is_counted_for_each_seed():
    rows = judge({0: GOOD, 1: BLIND})
    # At weight 0.7 a gain above 0.56 nats goes on: one clean image and two harsh ones of five, or none.
    assert rows["clean"].value == Spread(0.9, 0.8, 1.0)
    assert rows["clean"].met is False
    assert rows["harsh"].value == Spread(0.2, 0.0, 0.4)
    assert rows["harsh"].met is False
    assert judge({1: BLIND})["clean"].met is True
    everything = judge({0: GOOD + 9 * COSTS})
    assert everything["harsh"].value.mean == 1.0
    assert everything["harsh"].met is True


def test_the_rule_of_the_bundle_is_judged_beside_the_papers():
    # Confidences fall from 0.9 to 0.1: below 0.6 are image 4 and the five harsh ones.
    rows = judge({0: BLIND}, used=Rule(0.5, 0.6))
    assert (rows["clean"].value.mean, rows["harsh"].value.mean) == (1.0, 0.0)
    assert (rows["used clean"].value.mean, rows["used harsh"].value.mean) == (0.8, 1.0)
    assert (rows["blur"].value.mean, rows["used blur"].value.mean) == (0.0, 1.0)
    assert "latency weight 0.5, verify below 0.6" in rows["used clean"].name


def test_experts_of_nearly_equal_cost_are_the_cheapest_together():
    costs = np.array([0.2, 0.21, 1.0])
    three = outcomes(("a", "b", "c"), costs, RIGHT[:, [0, 0, 1]], LOSSES[:, [0, 0, 1]])
    scores = {0: np.stack([np.zeros(10), np.where(np.arange(10) < 3, 1.0, 0.0), GAINS], axis=1)}
    row = judge(scores, of=three)["clean"]
    assert row.value.mean == 0.8
    assert "a or b" in row.name
    apart = outcomes(("a", "b", "c"), np.array([0.2, 0.23, 1.0]), RIGHT[:, [0, 0, 1]], LOSSES[:, [0, 0, 1]])
    assert judge(scores, of=apart)["clean"].value.mean == pytest.approx(0.2)


def test_against_the_dearest_and_the_robust_light():
    # Ascending benefit: the mixture answers 5 right without the dearest, 7 where images 5 and 6 go on, 8 with all.
    perfect = np.stack([np.zeros(10), np.where(RIGHT[:, 0], -1.0, np.linspace(4, 3, 10))], axis=1)
    rows = judge({0: perfect}, Single("robust", 0.6, 0.3))
    # Three images go on: 0.2 + 3 * 0.08 + 0.05, and 8 of 10 are right, as with the dearest alone.
    assert rows["best"].value.mean == pytest.approx(0.0)
    assert rows["best"].met is False
    assert "costs of the points 0.490" in rows["best"].remark
    assert rows["equal"].value.mean == pytest.approx(0.49)
    assert rows["equal"].met is True
    assert rows["near"].value.mean == pytest.approx(0.49)
    assert rows["near"].met is None
    # 1.5 times 0.3 pays for two images: 7 of 10.
    assert rows["robust"].value.mean == pytest.approx(0.7 - 0.6)
    assert rows["robust"].met is True
    assert rows["oracle"].value is None, "the oracle gains nothing here"


def test_a_mixture_that_beats_the_dearest_captures_a_part_of_the_oracles_gain():
    right = np.array([[True, False]] * 2 + [[True, True]] * 4 + [[False, True]] * 4)
    knowing = {0: np.where(right, 0.0, -5.0)}
    half = {0: np.stack([np.zeros(10), np.array([-1.0, 3, 0, 0, 0, 0, 2, 2, 2, 2])], axis=1)}
    for scores, gain, captured in ((knowing, 0.2, 1.0), (half, 0.1, 0.5)):
        rows = judge(scores, of=outcomes(right=right))
        assert rows["best"].value.mean == pytest.approx(gain)
        assert rows["best"].met is True
        assert rows["oracle"].value.mean == pytest.approx(captured)


def test_a_mixture_that_verifies_is_judged_by_its_threshold():
    of = outcomes()
    # The blind gater sends all to the light expert, whose confidence falls from image to image: the five last ones
    # are passed on before any clean one, and 0.2 + 0.05 + 0.5 is what that costs.
    row = judge({0: BLIND})["verified"]
    assert of.right[5:8, 1].all()
    assert row.value.mean == pytest.approx(0.75)
    assert row.met is False
    # Two images go to the dearest at once and are not passed on again: both cost 1 then, three more 1.2.
    assert judge({0: np.stack([np.zeros(10), np.where(np.isin(np.arange(10), (5, 6)), 2.5, 0.0)], axis=1)})[
        "verified"
    ].value.mean == pytest.approx(0.2 + 2 * 0.08 + 3 * 0.1 + 0.05)


def test_second_looks_in_the_mirror_cost_the_first_ones_and_stay_there():
    of = dataclasses.replace(outcomes(), verify_by="mirror", second={"mirror": RIGHT[:, [1, 1]], **outcomes().second})
    row = judge({0: BLIND}, of=of)["verified"]
    assert row.value.mean == pytest.approx(0.2 + 0.05 + 0.5 * 0.2)
    assert row.met is True
    assert Rule(0.7, 0.6).asked_last(of, BLIND).any()
    by_mirror = Rule(0.7, 0.6, "mirror")
    assert not by_mirror.asked_last(of, BLIND).any()
    clean = judge({0: BLIND}, of=of, used=by_mirror)["used clean"]
    assert "verify by mirror below 0.6" in clean.name
    assert (clean.value.mean, clean.remark) == (1.0, "20.0% of them are seen twice there")


def test_the_robust_light_may_look_twice_as_well():
    robust = Single("robust", 0.5, 0.2)
    row = judge({0: BLIND}, robust=robust)["robust cascade"]
    # 1.5 times its cost is 0.3, where its cascade has 0.55; the mixture has 0.5 for 0.25, and more from 0.35 on.
    assert row.value.mean == pytest.approx(0.5 - 0.55)
    assert row.met is None
    assert row.remark == "the cascade 55.00% at 0.300"
    assert judge({0: GOOD})["robust cascade"] is None


def test_without_a_robust_light_the_row_says_so():
    row = judge({0: GOOD})["robust"]
    assert (row.value, row.met, row.remark) == (None, None, "no such classifier was trained")


def test_what_no_point_reaches_is_missed():
    row = judge({0: BLIND}, Single("robust", 0.6, 0.1))["robust"]
    assert (row.value, row.met) == (None, False)
    assert "not reached by 1 of 1 gaters" in row.remark


def test_one_corruption_alone_counts_the_images_that_deserve_the_dearest():
    of = outcomes()
    seen = Routed(of, {0: GOOD, 1: BLIND})
    blur = judge({0: GOOD}, blurred=seen)["blur"]
    # Three images gain more than the threshold; two of them go on with the first gater, none with the other.
    assert blur.value == Spread(pytest.approx(1 / 3), 0.0, pytest.approx(2 / 3))
    assert blur.met is False
    assert blur.remark.startswith("30.0% of the images deserve it")
    noise = judge({0: GOOD}, noisy=Routed(of, {0: GOOD}))["noise"]
    assert (noise.value.mean, noise.met) == (pytest.approx(2 / 3), True)
    assert LOSSES[5, 0] - LOSSES[5, 1] > THRESHOLD > LOSSES[8, 0] - LOSSES[8, 1]


def test_the_rows_of_the_comparison():
    rows = judge({0: GOOD, 1: BLIND})
    assert rows["one"].value == Spread(0.0, 0.0, 0.0)
    assert rows["one"].met is True
    # At either weight the blind gater sends all images to one expert, once as the one and once as the separate one.
    assert rows["collapse"].value.mean == 4
    assert rows["collapse"].met is False
    assert rows["collapse"].remark.startswith("of 8; one gater, weight 0.1: seeds (1,)")
    assert judge({0: GOOD})["collapse"].met is True
    # With no image sent on there is nothing between them: ahead is ahead at every point.
    assert rows["cascade"].value.mean == 0
    assert rows["cascade"].met is False


def test_the_furthest_difference_is_reported_whatever_its_sign():
    of = outcomes()
    worse = {0: np.stack([np.zeros(10), np.where(RIGHT[:, 0], 2.0, -2.0)], axis=1)}
    every = Routed(of, {0: GOOD})
    better = compare(of, {0: GOOD}, {0.7: worse, 0.1: {0: GOOD}})
    rows = claims(every, every, every, better, rivals(of), CUES, LEARNED, PAPER)
    row = next(row for row in rows if row.name.startswith("one gater"))
    # Five images go on in either case: the one gater's bring three right answers, the other's none.
    assert row.value.mean == pytest.approx(0.3)
    assert row.met is False
    assert row.remark.startswith("at latency weight 0.7")


def test_the_learned_gater_must_be_clearly_first_with_its_worst_seed():
    rows = judge({0: GOOD})
    assert (rows["benefit"].value.mean, rows["benefit"].met) == (0.5, True)
    assert "the best cue is edges; the worst seed is +0.200 ahead" in rows["benefit"].remark
    assert (rows["regret"].value.mean, rows["regret"].met) == (0.3, False)
    close = {**CUES, "edges": Spread.of([0.39])}
    assert judge({0: GOOD}, cues=close)["benefit"].met is False
    assert judge({0: GOOD})["entropy"].value.mean == 0.1


def test_with_both_settings_free_all_mixtures_are_tried():
    of = outcomes()
    free = both_free(of, GOOD)
    # Three images answered at once, or the two most doubtful ones verified: the better of both at every cost.
    assert (np.diff(free.costs) > 0).all() and (np.diff(free.accuracies) > 0).all()
    assert free.costs[0] == pytest.approx(0.25)
    assert free.accuracies.tolist() == pytest.approx([0.5, 0.7, 0.8])
    # Images 5 and 6 have the largest gains: at once they cost 0.08 each, 0.1 where they are verified.
    assert free.costs[1] == pytest.approx(0.25 + 2 * 0.08)
    rows = judge({0: GOOD})
    assert rows["any single"].value.mean == pytest.approx(0.0)
    assert rows["any single"].remark.startswith("heavy 80.00%; costs of the points ")
    # The cascade from the light expert passes on by falling confidence, the five harsh images first.
    assert rows["any cascade"].met is None
    assert "from light or robust," in rows["any cascade"].name
    assert "at 25 points" not in rows["any cascade"].remark
    assert rows["any cascade"].value.mean <= 0 < float(rows["any cascade"].remark.split("average ")[1].split()[0])


def test_the_strongest_cascade_may_start_anywhere():
    right, dearest = np.array([True, True, False, False]), np.array([True, True, True, False])
    sure = np.array([0.9, 0.8, 0.1, 0.2])
    found = strongest_cascade(
        [(sure, right, dearest, 0.2, "dearest"), (sure, np.zeros(4, bool), dearest, 0.1, "dearest")]
    )
    # From the worse start nothing is right alone; its first image passed on is worth less than the other start.
    assert found.costs.tolist() == pytest.approx([0.1, 0.2, 0.45])
    assert found.accuracies.tolist() == pytest.approx([0.0, 0.5, 0.75])
    # By mirror the second look costs 0.2 for each of the images, and from the worse start 0.1.
    by_mirror = strongest_cascade(
        [(sure, right, dearest, 0.2, "mirror"), (sure, np.zeros(4, bool), dearest, 0.1, "mirror")]
    )
    assert by_mirror.costs.tolist() == pytest.approx([0.1, 0.125, 0.175, 0.2])
    assert by_mirror.accuracies.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_the_upper_frontier_drops_what_is_beaten():
    one = Frontier(np.array([0.1, 0.3, 0.5]), np.array([0.2, 0.4, 0.9]))
    two = Frontier(np.array([0.1, 0.2, 0.6]), np.array([0.3, 0.4, 0.8]))
    both = upper([one, two])
    assert both.costs.tolist() == [0.1, 0.2, 0.5]
    assert both.accuracies.tolist() == [0.3, 0.4, 0.9]


def test_points_of_a_frontier():
    frontier = Frontier(np.array([0.2, 0.5, 0.7, 0.9]), np.array([0.6, 0.8, 0.7, 0.9]))
    assert most_accurate(frontier, 0.7) == (0.8, 0.5)
    assert most_accurate(frontier, 2.0) == (0.9, 0.9)
    assert np.isnan(most_accurate(frontier, 0.1)).all()
    assert lowest_cost(frontier, 0.8) == 0.5
    assert np.isnan(lowest_cost(frontier, 0.95))


def on_these_points(monkeypatch, *points):
    """The claims of a mixture with these points (cost, accuracy), a dearest expert of 0.8, a robust light of 0.7."""
    monkeypatch.setattr("trt_moe.sweep.claims.gated", lambda *_: Frontier(*np.array(points).T))
    return judge({0: GOOD}, Single("robust", 0.7, 0.4))


def test_the_best_mixture_may_cost_seven_tenths_of_the_dearest(monkeypatch):
    row = on_these_points(monkeypatch, (0.5, 0.6), (0.7, 0.804), (0.701, 0.9))["best"]
    assert (row.value.mean, row.met) == (pytest.approx(0.004), False)
    assert on_these_points(monkeypatch, (0.5, 0.6), (0.7, 0.806))["best"].met is True


def test_equal_accuracy_allows_three_tenths_of_a_point_and_near_half_a_point(monkeypatch):
    rows = on_these_points(monkeypatch, (0.3, 0.7949), (0.4, 0.7951), (0.5, 0.7969), (0.6, 0.7971), (0.8, 0.8))
    assert (rows["equal"].value.mean, rows["equal"].met) == (0.6, True)
    assert rows["near"].value.mean == 0.4
    assert on_these_points(monkeypatch, (0.5, 0.7), (0.601, 0.8))["equal"].met is False


def test_the_robust_light_is_to_be_beaten_by_a_point_at_one_and_a_half_times_its_cost(monkeypatch):
    row = on_these_points(monkeypatch, (0.5, 0.6), (0.599, 0.709), (0.601, 0.9))["robust"]
    assert (row.value.mean, row.met) == (pytest.approx(0.009), False)
    assert on_these_points(monkeypatch, (0.599, 0.711), (0.601, 0.9))["robust"].met is True


def test_who_deserves_the_dearest_is_up_to_the_rules_own_weight():
    gains = np.array([0.0] * 5 + [2.5, 2.5, 0.0, 0.1, 0.1])
    rows = judge({0: np.stack([np.zeros(10), gains], axis=1)}, used=Rule(0.1))
    # A tenth of the weight makes the two images worth it that the dearest is only a little better on.
    assert rows["blur"].value.mean == pytest.approx(2 / 3)
    assert rows["used blur"].value.mean == pytest.approx(4 / 5)
    assert rows["used blur"].remark.startswith("50.0% of the images deserve it")


def test_a_gater_trained_for_a_weight_may_be_the_better_one():
    of = outcomes()
    worse = {0: np.stack([np.zeros(10), np.where(RIGHT[:, 0], 2.0, -2.0)], axis=1)}
    every = Routed(of, worse)
    rows = claims(
        every, every, every, compare(of, worse, {0.7: {0: GOOD}, 0.1: worse}), rivals(of), CUES, LEARNED, PAPER
    )
    row = next(row for row in rows if row.name.startswith("one gater"))
    assert (row.value.mean, row.met) == (pytest.approx(-0.2), False)
    assert row.remark.startswith("at latency weight 0.7")
