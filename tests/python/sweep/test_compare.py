"""Comparisons of gaters, with literals and properties."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("torch")  # trt_moe.training imports it

from trt_moe.routing_rule import route
from trt_moe.sweep.compare import FRONTIER_POINTS, ONE, ORACLE, SEPARATE, Outcomes, Spread, compare, weight_at_cost

COSTS = np.array([0.25, 1.0])
# Image 0 is easy, 1 and 2 need the dear expert, 3 is hopeless; severities 0, 0, 5, 5.
RIGHT = np.array([[True, True], [False, True], [False, True], [False, False]])
LOSSES = np.where(RIGHT, 0.1, 3.0).astype(np.float32)
GAINS = np.array([0.0, 2.9, 2.8, 0.1])
PERFECT = np.stack([np.zeros(4), GAINS], axis=1)
BLIND = np.array([[0.0, -9.0]] * 4)


@pytest.fixture
def outcomes():
    confidence = np.array([[0.9, 0.5], [0.3, 0.5], [0.8, 0.5], [0.2, 0.5]], np.float32)
    return Outcomes(
        ("light", "heavy"),
        COSTS,
        0.05,
        np.array([0, 0, 5, 5]),
        RIGHT,
        {"dearest": RIGHT[:, [1, 1]]},
        LOSSES,
        confidence,
    )


def test_a_gater_is_judged_at_every_latency_weight(outcomes):
    comparison = compare(outcomes, {7: PERFECT}, {0.5: {7: PERFECT}, 4.0: {7: PERFECT}})
    some, none = comparison.of(ONE)
    assert (some.latency_weight, some.seed, some.accuracy) == (0.5, 7, 0.75)
    assert some.cost == pytest.approx((2 * 0.25 + 2 * 1.0) / 4 + 0.05)
    assert some.share.tolist() == [0.5, 0.5]
    assert some.table.severities.tolist() == [0, 5]
    assert some.table.share.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert some.table.accuracy.tolist() == [1.0, 0.5]
    assert some.table.cost == pytest.approx([0.675, 0.675])
    assert (none.latency_weight, none.accuracy, none.share.tolist()) == (4.0, 0.25, [1.0, 0.0])


def test_without_a_gater_nothing_is_paid_for_it(outcomes):
    comparison = compare(outcomes, {0: PERFECT}, {0.5: {0: PERFECT}})
    light, heavy, oracle = (comparison.of(name)[0] for name in ("always light", "always heavy", ORACLE))
    assert (light.accuracy, light.cost) == (0.25, 0.25)
    assert (heavy.accuracy, heavy.cost) == (0.75, 1.0)
    assert (oracle.accuracy, oracle.cost) == (0.75, 0.625)


def test_a_collapse_is_counted_and_named(outcomes):
    comparison = compare(outcomes, {3: PERFECT, 4: PERFECT}, {0.5: {3: PERFECT, 4: BLIND}})
    assert [point.collapse for point in comparison.of(ONE)] == [None, None]
    good, bad = comparison.of(SEPARATE)
    assert good.collapse is None
    assert bad.collapse.startswith("routing collapsed: 100.0% of the images go to light. Cause: the gater")
    (row,) = comparison.weights
    assert (row.one_collapsed, row.separate_collapsed) == ((), (4,))


def test_seeds_are_summarised_by_mean_and_extremes(outcomes):
    comparison = compare(outcomes, {3: PERFECT, 4: PERFECT}, {0.5: {3: PERFECT, 4: BLIND}})
    (row,) = comparison.weights
    assert row.one == Spread(0.75, 0.75, 0.75)
    assert row.separate == Spread(0.5, 0.25, 0.75)
    assert row.separate_cost.low == pytest.approx(0.3)
    assert row.separate_cost.high == pytest.approx(0.675)


def test_at_equal_cost_the_one_gater_sends_as_many_images_on(outcomes):
    # At its weight of 0.5 the separate gater sends on images 1 and 3: one right answer fewer at the same share.
    worse = np.array([[0.0, 0.0], [0.0, 2.0], [0.0, 0.3], [0.0, 2.0]])
    comparison = compare(outcomes, {0: PERFECT + 5 * COSTS}, {0.5: {0: worse}})
    (pair,) = comparison.pairs
    assert (pair.one, pair.separate) == (0.75, 0.5)
    assert pair.cost == pytest.approx(0.625 + 0.05)
    assert route(PERFECT + 5 * COSTS, COSTS, pair.run_time_weight).tolist() == [0, 1, 1, 0]
    assert comparison.of(ONE)[0].share.tolist() == [0.0, 1.0]  # its own rule at 0.5 would have sent on all
    assert comparison.weights[0].difference == Spread(0.25, 0.25, 0.25)


def test_every_weight_has_a_row_of_its_own_in_rising_order(outcomes):
    comparison = compare(outcomes, {0: PERFECT}, {4.0: {0: PERFECT}, 0.5: {0: PERFECT}})
    assert [(row.latency_weight, row.one.mean, row.separate.mean) for row in comparison.weights] == [
        (0.5, 0.75, 0.75),
        (4.0, 0.25, 0.25),
    ]


def test_the_frontier_compares_at_equal_cost(outcomes):
    frontier = compare(outcomes, {0: PERFECT}, {0.5: {0: PERFECT}}).frontier
    assert len(frontier) == FRONTIER_POINTS
    assert (frontier[0].cost, frontier[-1].cost) == (pytest.approx(0.3), pytest.approx(1.05))
    assert (frontier[0].one.mean, frontier[-1].one.mean) == (0.25, 0.75)
    half = min(frontier, key=lambda row: abs(row.cost - 0.675))
    assert half.one == Spread(0.75, 0.75, 0.75)
    # The cascade hands on images by rising confidence 3, 1, 2, 0 and pays 0.25 + share * 1.0.
    assert half.cost == pytest.approx(0.675)
    assert half.cascade == pytest.approx(0.25 + 0.25 * (0.675 - 0.5) / 0.25)
    assert half.ahead.mean == pytest.approx(0.75 - half.cascade)
    assert half.random == pytest.approx(0.25 + 0.5 * (0.675 - 0.25) / 0.75)


def test_the_frontier_counts_what_each_seed_really_spends(outcomes):
    # All scores are tied: one seed can only send on all or nothing.
    frontier = compare(outcomes, {0: np.zeros((4, 2))}, {0.5: {0: PERFECT}}).frontier
    assert {round(row.cost, 6) for row in frontier} == {0.3, 1.05}
    assert frontier[-1].ahead.mean == pytest.approx(0.75 - 0.75)


def test_a_seed_is_ahead_of_the_cascade_at_its_own_cost(outcomes):
    # Halfway the tied scores reach 0.3 or 1.05, where they are as good as the cascade, the others 0.675.
    scores = {0: np.zeros((4, 2)), 1: PERFECT}
    row = compare(outcomes, scores, {0.5: scores}).frontier[FRONTIER_POINTS // 2]
    assert row.ahead == Spread(pytest.approx(0.1625), pytest.approx(0.0), pytest.approx(0.325))


def test_the_json_form_is_plain(outcomes):
    by_severity = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    comparison = compare(outcomes, {0: by_severity}, {0.5: {0: BLIND}})
    data = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert data["images"] == 4
    assert data["relative_cost"] == {"light": 0.25, "heavy": 1.0, "gater": 0.05}
    assert data["weights"][0]["separate_collapsed"] == [0]
    assert data["points"][0]["share"] == {"light": 0.5, "heavy": 0.5}
    assert [row["share"]["heavy"] for row in data["points"][0]["severities"].values()] == [0.0, 1.0]
    assert data["points"][1]["collapse"].startswith("routing collapsed")
    assert len(data["frontier"]) == FRONTIER_POINTS
    assert data["equal_cost"][0]["separate"] == 0.25


# Eighths add and compare without rounding.
eighths = st.integers(-40, 40).map(lambda n: n / 8)
scores_of = st.tuples(st.integers(1, 12), st.integers(2, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=eighths)
)


@settings(deadline=None)
@given(scores_of, st.floats(0, 1), st.data())
def test_no_latency_weight_comes_nearer_to_a_cost(scores, wanted, data):
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=scores.shape[1], max_size=scores.shape[1]))
    costs = 0.25 + np.cumsum(gaps)
    found = abs(costs[route(scores, costs, weight_at_cost(scores, costs, wanted))].mean() - wanted)
    switches = {
        float(gain / (costs[b] - costs[a]))
        for a in range(len(costs))
        for b in range(len(costs))
        if costs[b] > costs[a]
        for gain in scores[:, b] - scores[:, a]
    }
    ordered = sorted(switches) or [0.0]
    between = [(a + b) / 2 for a, b in pairwise(ordered)]
    for weight in [ordered[0] - 1, *ordered, *between, ordered[-1] + 1]:
        assert found <= abs(costs[route(scores, costs, weight)].mean() - wanted) + 1e-12


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float64, (8, 2), elements=eighths), eighths, st.sampled_from([0.0, 0.5, 1.0]))
def test_gaters_that_differ_by_a_latency_weight_are_equal_at_equal_cost(scores, shift, weight):
    right = np.arange(16).reshape(8, 2) % 3 == 0
    losses = np.where(right, 0.1, 3.0).astype(np.float32)
    outcomes = Outcomes(
        ("a", "b"),
        COSTS,
        0.0,
        np.zeros(8, int),
        right,
        {"dearest": right},
        losses,
        np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2),
    )
    (pair,) = compare(outcomes, {0: scores}, {weight: {0: scores + shift * COSTS}}).pairs
    assert pair.one == pair.separate
