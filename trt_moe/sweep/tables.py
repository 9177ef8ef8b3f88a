"""A sweep as tables for people, as remarks, and as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trt_moe.sweep.compare import ONE, SEPARATE, Comparison, Spread


@dataclass(frozen=True)
class Table:
    """Title, header and cells as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(comparison: Comparison) -> list[Table]:
    """Everything a reader of a sweep wants to see, the answer to its question first."""
    return [_weights(comparison), _frontier(comparison), _shares(comparison), _without_gater(comparison)]


def remarks(comparison: Comparison) -> list[str]:
    """One sentence for each question that a sweep answers, and one for each collapse."""
    frontier = comparison.frontier
    worst = min(comparison.weights, key=lambda row: row.difference.mean)
    ahead = [row.cost for row in frontier if row.ahead.mean > 0]
    least = min(frontier, key=lambda row: row.ahead.mean)
    between = f" (from {ahead[0]:.3f} to {ahead[-1]:.3f})" if ahead else ""
    lines = [
        f"At equal cost {ONE} minus {SEPARATE} is at worst {_points(worst.difference.mean)} points, "
        f"at latency weight {worst.latency_weight:g}.",
        f"{ONE.capitalize()} is ahead of the confidence cascade at {len(ahead)} of {len(frontier)} costs{between}; "
        f"the smallest difference is {_points(least.ahead.mean)} points, at cost {least.cost:.3f}.",
    ]
    for strategy in (ONE, SEPARATE):
        routed = comparison.of(strategy)
        collapsed = [point for point in routed if point.collapse]
        lines.append(f"Collapsed, {strategy}: {len(collapsed)} of {len(routed)}.")
        lines += [f"  latency weight {p.latency_weight:g}, seed {p.seed}: {p.collapse}" for p in collapsed]
    return lines


def to_csv(comparison: Comparison) -> str:
    """One row for each strategy, latency weight, seed and severity ("all" for all images)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ["strategy", "latency_weight", "seed", "severity", "accuracy", "cost"]
    writer.writerow([*columns, *(f"share_{name}" for name in comparison.outcomes.experts)])
    for point in comparison.to_json()["points"]:
        head = [point["strategy"], point["latency_weight"], point["seed"]]
        for severity, row in (("all", point), *point["severities"].items()):
            writer.writerow([*head, severity, row["accuracy"], row["cost"], *row["share"].values()])
    return out.getvalue()


def _weights(comparison: Comparison) -> Table:
    rows = [
        (
            f"{row.latency_weight:g}",
            _accuracy(row.one),
            _cost(row.one_cost),
            _accuracy(row.separate),
            _cost(row.separate_cost),
            _difference(row.difference),
            _seeds(row.one_collapsed),
            _seeds(row.separate_collapsed),
        )
        for row in comparison.weights
    ]
    columns = ["latency weight"]
    columns += [f"{strategy}, {what}" for strategy in (ONE, SEPARATE) for what in ("accuracy %", "cost")]
    columns += ["difference at equal cost, points"]
    columns += [f"collapsed seeds, {strategy}" for strategy in (ONE, SEPARATE)]
    return Table(
        f"{ONE} at run-time weights, {SEPARATE} trained for them: mean (least to most) over seeds", columns, rows
    )


def _frontier(comparison: Comparison) -> Table:
    rows = [
        (f"{row.cost:.3f}", _accuracy(row.one), _percent(row.cascade), _percent(row.random), _difference(row.ahead))
        for row in comparison.frontier
    ]
    columns = ["cost", f"{ONE} %", "confidence cascade %", "random %", f"{ONE} minus cascade, points"]
    return Table("accuracy at equal mean cost, the gater's included", columns, rows)


def _shares(comparison: Comparison) -> Table:
    rows = []
    for row in comparison.weights:
        for strategy in (ONE, SEPARATE):
            found = comparison.of(strategy, row.latency_weight)
            share = np.mean([point.table.share for point in found], axis=0)
            for index, name in enumerate(comparison.outcomes.experts):
                cells = (f"{100 * value:.1f}" for value in share[:, index])
                rows.append((f"{row.latency_weight:g}", strategy, name, *cells))
    severities = comparison.points[0].table.severities
    columns = ["latency weight", "routing", "expert", *(f"severity {severity}" for severity in severities)]
    return Table("share of each expert at each severity, %, mean over seeds", columns, rows)


def _without_gater(comparison: Comparison) -> Table:
    found = [point for point in comparison.points if point.seed is None]
    rows = [(point.strategy, _percent(point.accuracy), f"{point.cost:.3f}") for point in found]
    return Table("without a gater", ["routing", "accuracy %", "cost"], rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _accuracy(spread: Spread) -> str:
    return f"{_percent(spread.mean)} ({_percent(spread.low)} to {_percent(spread.high)})"


def _cost(spread: Spread) -> str:
    return f"{spread.mean:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def _difference(spread: Spread) -> str:
    return f"{_points(spread.mean)} ({_points(spread.low)} to {_points(spread.high)})"


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none"
