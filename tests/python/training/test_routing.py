"""Routing tables and the strategies beside the gater, with literals."""

import numpy as np
import pytest

from trt_moe.training.routing import (
    Frontier,
    cascade_frontier,
    collapse_warning,
    explained_variance,
    frontier_score,
    gater_frontier,
    oracle,
    random_frontier,
    routing_lines,
    tabulate,
    verify_frontier,
)

COSTS = np.array([0.2, 1.0])
NAMES = ["light", "heavy"]


def test_a_table_has_a_row_per_severity():
    right = np.array([[True, False], [False, True], [False, True], [False, False]])
    table = tabulate(np.array([0, 1, 0, 1]), right, COSTS, np.array([0, 0, 5, 5]))
    assert table.severities.tolist() == [0, 5]
    assert table.share.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert table.accuracy.tolist() == [1.0, 0.0]
    assert table.cost == pytest.approx([0.6, 0.6])
    assert table.lines(NAMES)[1].startswith("severity 5: light  50.0% heavy  50.0%  accuracy 0.0000")


def test_the_frontier_of_a_perfect_gater_holds_the_oracle():
    right = np.array([[True, True]] * 6 + [[False, True]] * 4)
    scores = np.where(right, 0.0, -3.0)
    frontier = gater_frontier(scores, right, COSTS, gater_cost=0.05)
    assert frontier.costs[0] == pytest.approx(0.25)
    assert frontier.costs[-1] == pytest.approx(1.05)
    assert float(frontier.accuracy_at(0.6 * 0.2 + 0.4 * 1.0 + 0.05)) == pytest.approx(1.0)
    assert oracle(right, COSTS) == (pytest.approx(0.52), 1.0)


def test_random_routing_is_the_line_between_the_experts():
    right = np.array([[True, True], [False, True]])
    assert float(random_frontier(right, COSTS).accuracy_at(0.6)) == pytest.approx(0.75)


def test_an_expert_that_a_mix_of_others_beats_is_in_no_random_routing():
    right = np.repeat([[0.80, 0.81, 0.90]], 100, axis=0) > (np.arange(100)[:, None] + 0.5) / 100
    frontier = random_frontier(right, np.array([0.3, 0.6, 1.0]))
    assert frontier.costs.tolist() == [0.3, 1.0]
    assert float(frontier.accuracy_at(0.6)) == pytest.approx(0.8 + 0.1 * 3 / 7)
    assert random_frontier(right[:, [0, 2]], np.array([0.3, 1.0])).costs.tolist() == [0.3, 1.0]


def test_no_threshold_parts_images_that_are_equally_sure():
    right, right_verified = np.array([True, False, True, False]), np.array([True] * 4)
    frontier = cascade_frontier(np.array([0.5, 1.0, 1.0, 0.5], np.float32), right, right_verified, 0.2)
    assert frontier.costs == pytest.approx([0.2, 0.7])
    assert frontier.accuracies == pytest.approx([0.5, 0.75])


def test_a_cascade_pays_for_the_cheap_expert_always():
    right, right_verified = np.array([False, True, True, True]), np.array([True, True, False, True])
    frontier = cascade_frontier(np.array([0.3, 0.9, 0.8, 0.95]), right, right_verified, 0.2)
    assert frontier.costs == pytest.approx([0.2, 0.45, 0.7, 0.95, 1.2])
    assert frontier.accuracies == pytest.approx([0.75, 1.0, 0.75, 0.75, 0.75])


def test_verifying_passes_on_what_the_routed_expert_is_unsure_of():
    right = np.array([[True, False, True], [False, True, True], [True, True, True], [False, True, True]])
    confidences = np.array([[0.9, 0.1, 0.5], [0.1, 0.8, 0.5], [0.5, 0.5, 0.5], [0.4, 0.1, 0.5]])
    costs = np.array([0.2, 0.3, 1.0])
    # Both together err where the first expert alone is right in image 1, and in image 0 with the second expert.
    verified = np.array([[True, False, True], [True, False, True], [True, True, True], [True, False, True]])
    routes = np.array([0, 1, 2, 0])
    frontier = verify_frontier(routes, confidences, right, verified, costs, 0.1, "dearest")
    # Image 2 is with the dearest expert already; image 3 is passed on first, which helps, then image 1.
    assert frontier.costs == pytest.approx([0.525, 0.775, 1.025, 1.275])
    assert frontier.accuracies == pytest.approx([0.75, 1.0, 0.75, 0.75])
    # By mirror each pays its own cost once more: 0.2 for image 3, 0.3 for image 1, 0.2 for image 0.
    frontier = verify_frontier(routes, confidences, right, verified, costs, 0.1, "mirror")
    assert frontier.costs == pytest.approx([0.525, 0.575, 0.65, 0.7])
    assert frontier.accuracies == pytest.approx([0.75, 1.0, 0.75, 0.75])


@pytest.mark.parametrize(
    ("costs", "middle"),
    [
        # The two cheap experts cost nearly the same: what moves images from the dear one is at other weights.
        ([0.2, 0.2001, 1.0], 5.0),
        # Nobody is for the middle one: images go from the dear expert straight to the cheap one.
        ([0.2, 0.6, 1.0], -9.0),
    ],
)
def test_the_frontier_of_many_experts_finds_every_switch(costs, middle):
    scores = np.stack([np.zeros(100), np.full(100, middle), 5.0 + np.linspace(0.1, 1, 100)], axis=1)
    frontier = gater_frontier(scores, np.ones((100, 3), bool), np.array(costs), gater_cost=0.0)
    steps = np.diff(frontier.costs[frontier.costs > 0.2])
    assert steps.max() < 2 * 0.8 / 100


def test_the_score_of_a_flat_frontier_is_its_accuracy():
    right = np.array([[True, True], [False, False]])
    assert frontier_score(random_frontier(right, COSTS), COSTS) == pytest.approx(0.5)


def test_the_score_is_a_mean_between_the_cheapest_and_the_dearest_expert():
    frontier = Frontier(np.array([0.2, 0.6, 0.8, 1.0]), np.array([0.5, 0.9, 0.1, 0.2]))
    # Up to 0.9 over half of the costs; what is worse and dearer is never taken.
    assert frontier_score(frontier, COSTS) == pytest.approx((0.7 + 0.9) / 2, abs=0.01)


def test_explained_variance_is_one_for_the_benefit_in_any_unit_and_zero_for_a_constant():
    losses = np.array([[3.0, 1.0], [0.5, 0.5], [9.0, 2.0]])
    clipped = np.minimum(losses, 6.0)
    assert explained_variance(-clipped, losses, 6.0) == pytest.approx(1.0)
    assert explained_variance(7 - 3 * clipped, losses, 6.0) == pytest.approx(1.0)
    assert explained_variance(np.array([[0.0, 2.0]] * 3), losses, 6.0) == 0.0
    # The dearest of three against the cheapest.
    middle = np.array([[0.0], [7.0], [-7.0]])
    three = np.concatenate([clipped[:, :1], middle, clipped[:, 1:]], axis=1)
    assert explained_variance(-three, three, 6.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("losses", "routes", "message"),
    [
        ([[0.1, 0.1]] * 4, [0] * 4, "to light. Cause: no other expert .*lower latency_weight"),
        # A gain of 0.5 is not worth 0.7 * 0.8, and one image of a hundred does not count.
        ([[0.6, 0.1]] * 99 + [[3.0, 0.1]], [0] * 98 + [1] * 2, r"98.0% .* no other expert .*\(0.56 nats .*on 99.0%"),
        ([[5.0, 0.1]] * 4, [1] * 4, "to heavy. Cause: it is worth its latency.*raise latency_weight"),
        ([[5.0, 0.1]] * 2 + [[0.1, 0.1]] * 2, [0] * 4, "Cause: the gater.*50.0%"),
    ],
)
def test_a_collapse_is_reported_with_its_cause(losses, routes, message):
    warning = collapse_warning(np.array(routes), np.array(losses), COSTS, 0.7, NAMES)
    assert warning is not None
    assert __import__("re").search(message, warning)


def test_routing_that_uses_both_experts_is_no_collapse():
    assert collapse_warning(np.array([0, 1]), np.ones((2, 2)), COSTS, 0.7, NAMES) is None
    assert collapse_warning(np.arange(100) // 97, np.ones((100, 2)), COSTS, 0.7, NAMES) is None


def test_a_log_says_how_often_the_routed_experts_are_right_and_what_they_cost():
    right = np.array([[True, False], [True, True], [False, False], [True, True]])
    line, *under = routing_lines(np.array([0, 0, 0, 1]), right, COSTS, np.array([0, 0, 1, 1]), NAMES)
    assert line == "validation accuracy 0.7500 cost 0.400"
    assert [text[:11] for text in under] == ["severity 0:", "severity 1:"]
