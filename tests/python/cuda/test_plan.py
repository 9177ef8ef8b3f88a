"""The pure functions behind the device-routed plan: properties that hold for any sizes and any logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.errors import InputError

BUCKETS = [1, 2, 4, 20]
# Few values, so that ties and values that are not finite are common.
LOGITS = st.sampled_from([0.0, 1.0, -2.0, 3.5, float("inf"), float("-inf"), float("nan")])
Batch = tuple[NDArray[np.float32], list[float]]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    images, experts = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    rows = st.lists(st.lists(LOGITS, min_size=experts, max_size=experts), min_size=images, max_size=images)
    costs = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=experts, max_size=experts)
    return np.array(draw(rows), np.float32), draw(costs)


@given(batch=batches(), weight=st.sampled_from([0.0, 0.5, 2.0, 1000.0]))
def test_the_route_kernels_twin_is_the_hosts_plan(batch: Batch, weight: float) -> None:
    logits, costs = batch
    routes, counts, rows, buckets = _core.route_reference(logits, costs, weight, 20, [BUCKETS] * len(costs))
    assert routes == _core.plan_routes(logits, costs, weight).tolist()
    for expert, count in enumerate(counts):
        mine = [image for image, route in enumerate(routes) if route == expert]
        assert rows[expert * 20 : expert * 20 + count] == mine
        holding = [index for index, size in enumerate(BUCKETS) if size >= count > 0]
        assert buckets[expert] == (holding[0] if holding else len(BUCKETS))


def test_the_route_kernels_twin_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(InputError, match="at most 1 image"):
        _core.route_reference(np.zeros((2, 2), np.float32), [0, 1], 0.0, 1, [[1], [1]])


@given(
    buckets=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    conditionals=st.sampled_from(["switch", "if"]),
    alone=st.booleans(),
    speculate=st.booleans(),
)
def test_every_expert_has_each_of_its_buckets_behind_the_route(
    buckets: list[int], conditionals: str, alone: bool, speculate: bool
) -> None:
    if alone:
        buckets = [1] * len(buckets)
    nodes = _core.graph_topology(buckets, 1 if alone else 8, conditionals, speculate)
    first = 1 if speculate and alone and len(buckets) > 1 else 0
    over_experts = alone and conditionals == "switch"
    route = "route_image" if over_experts else "route"

    def waits_for(node: int) -> set[int]:
        after, parent = nodes[node][1], nodes[node][2]
        assert all(before < node and nodes[before][2:4] == nodes[node][2:4] for before in after)
        before = set(after) | ({parent} if parent >= 0 else set())
        return before.union(*(waits_for(other) for other in before))

    def kinds(node: int) -> list[str]:
        return [nodes[other][0] for other in sorted(waits_for(node))]

    for index, (kind, _, parent, body, expert, bucket) in enumerate(nodes):
        if kind == "scatter" and expert < first:
            assert kinds(index) == ["copy_in", "gater", route, "copy_image", "expert"]
        elif kind == "scatter":
            gather = [] if over_experts else ["gather"]
            assert kinds(index) == ["copy_in", "gater", route, conditionals, *gather, "expert"]
            assert nodes[parent][0] == conditionals and nodes[parent][4] == (-1 if over_experts else expert)
            assert body == (expert - first if over_experts else bucket if conditionals == "switch" else 0)
    bodies = [(node[4], node[5]) for node in nodes if node[0] == "scatter"]
    assert bodies == [(expert, bucket) for expert, count in enumerate(buckets) for bucket in range(count)]
    switches = 1 if alone else len(buckets)
    conditional_nodes = switches if conditionals == "switch" else sum(buckets) - first
    beside = ["copy_image", "expert", "scatter"][: 3 * first]
    outside = [node[0] for node in nodes if node[2] < 0]
    assert outside == ["copy_in", "gater", route, *beside, *[conditionals] * conditional_nodes]


def test_a_graph_needs_experts_buckets_and_conditional_nodes() -> None:
    for buckets, conditionals in (([], "if"), ([1, 0], "switch"), ([1], "none")):
        with pytest.raises(InputError):
            _core.graph_topology(buckets, 1, conditionals)


@given(largest=st.integers(1, 64), image_bytes=st.integers(1, 10_000), outputs=st.integers(1, 1000))
def test_the_parts_of_an_arena_are_aligned_and_apart(largest: int, image_bytes: int, outputs: int) -> None:
    images, logits, end = _core.arena_plan(largest, image_bytes, outputs)
    assert images % 256 == logits % 256 == end % 256 == 0
    assert images >= 512 + 4 * outputs  # count, weight, and a cost an expert where the model is a gater
    assert logits - images >= largest * image_bytes
    assert end - logits >= 4 * largest * outputs
