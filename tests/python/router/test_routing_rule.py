"""The router's rule in numpy, beside the core's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.routing_rule import route, unsure


def test_a_tie_goes_to_the_cheaper_expert() -> None:
    scores, costs = np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.5]], np.float32), np.array([0.1, 1.0])
    assert route(scores, costs, 0.0).tolist() == [0, 1, 1]
    assert route(scores, costs, 1.0).tolist() == [0, 1, 0]
    assert route(scores, costs, 10.0).tolist() == [0, 0, 0]
    assert route(np.array([[0.0, 0.5], [0.0, 0.6]]), np.array([0.0, 1.0]), 0.5).tolist() == [0, 1]


@given(
    scores=arrays(np.float32, (20, 3), elements=st.floats(-9, 9, width=32)),
    near=arrays(np.int8, (20, 3), elements=st.integers(-2, 2)),
    costs=arrays(np.float64, 3, elements=st.floats(0.01, 1)),
    weight=st.floats(0, 9),
)
def test_routes_are_the_cores_also_where_scores_all_but_tie(
    scores: NDArray[np.float32], near: NDArray[np.int8], costs: NDArray[np.float64], weight: float
) -> None:
    # All experts of the second half are worth the same, but for the last bits.
    scores[10:] = scores[10:, :1] + (weight * costs).astype(np.float32)
    scores[10:] += near[10:] * np.spacing(scores[10:])
    assert route(scores, costs, weight).tolist() == _core.plan_routes(scores, costs, weight).tolist()


def test_images_go_on_where_the_routed_expert_is_unsure_and_not_the_dearest() -> None:
    confidence = np.array([[0.9, 0.1, 0.5], [0.1, 0.8, 0.5], [0.5, 0.5, 0.1], [0.4, 0.1, 0.5]])
    routes = np.array([0, 0, 2, 1])
    assert unsure(routes, confidence, 0.5).tolist() == [False, True, False, True]
    assert not unsure(routes, confidence, 0.0).any()
