"""A page about the trained gaters: which is best, and what it gains over simpler routing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trt_moe.routing_rule import route
from trt_moe.training.experts import predict
from trt_moe.training.gater import TrainedGater
from trt_moe.training.logits import Judged
from trt_moe.training.routing import (
    cascade_frontier,
    frontier_score,
    gater_frontier,
    oracle,
    random_frontier,
    tabulate,
)

_COSTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def report(
    gaters: Sequence[TrainedGater],
    judged: Judged,
    names: Sequence[str],
    costs: NDArray[np.float64],
    gater_cost: float,
    latency_weight: float,
) -> str:
    """Return Markdown; `gaters` best first, `judged` the images to report on, `costs` of the experts [K].

    Costs are relative to the dearest expert and include the gater's where there is one.
    """
    right, severities = judged.right, judged.images.severities
    lines = [f"# Gaters on {len(severities)} images, latency weight {latency_weight:g}", ""]
    lines += [f"Relative costs: {_costs(names, costs)}, gater {gater_cost:.3f}.", ""]
    lines += ["| gater | seed | frontier | R2 | share of the dearest at severity 0..5 | accuracy | cost |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    every_scores = [predict(g.model, judged.images.images) for g in gaters]
    for gater, scores in zip(gaters, every_scores, strict=True):
        routes = route(scores, costs, latency_weight)
        table = tabulate(routes, right, costs, severities)
        shares = " ".join(f"{share:.1%}" for share in table.share[:, -1])
        accuracy = right[np.arange(len(routes)), routes].mean()
        cost = costs[routes].mean() + gater_cost
        lines.append(
            f"| {gater.method} | {gater.seed} | {gater.frontier:.4f} | {gater.r2:.3f} | {shares} | "
            f"{accuracy:.4f} | {cost:.3f} |"
        )
    both_right = judged.right_with(judged.logits[:, -1:])[:, 0]
    frontiers = {
        "gater (best)": gater_frontier(every_scores[0], right, costs, gater_cost),
        "confidence cascade": cascade_frontier(judged.confidence[:, 0], right[:, 0], both_right, costs[0]),
        "random": random_frontier(right, costs),
    }
    # From where all are there to be had.
    shared = np.array([max(frontier.costs[0] for frontier in frontiers.values()), costs[-1]])
    lines += ["", "## Accuracy at equal mean cost", ""]
    lines += ["| routing | " + " | ".join(f"{c:.1f}" for c in _COSTS) + " | frontier |"]
    lines += ["| --- |" + " --- |" * (len(_COSTS) + 1)]
    for name, frontier in frontiers.items():
        reached = [cost >= frontier.costs[0] for cost in _COSTS]
        accuracies = frontier.accuracy_at(np.asarray(_COSTS))
        cells = " | ".join(f"{a:.4f}" if there else "-" for a, there in zip(accuracies, reached, strict=True))
        lines.append(f"| {name} | {cells} | {frontier_score(frontier, shared):.4f} |")
    best_cost, best_accuracy = oracle(right, costs)
    lines += ["", "## Without a choice, and with the best one", ""]
    lines += ["| routing | accuracy | cost |", "| --- | --- | --- |"]
    for k, name in enumerate(names):
        lines.append(f"| always {name} | {right[:, k].mean():.4f} | {costs[k]:.3f} |")
    lines += [f"| oracle | {best_accuracy:.4f} | {best_cost:.3f} |", ""]
    return "\n".join(lines)


def _costs(names: Sequence[str], costs: NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {cost:.3f}" for name, cost in zip(names, costs, strict=True))
