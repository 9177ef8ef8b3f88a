"""An evaluation as a picture: shares and accuracy by severity, and the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import routing_rule
from trt_moe.evaluation.evaluate import CASCADE, ORACLE, Report
from trt_moe.evaluation.strategies import best_blend
from trt_moe.evaluation.tables import cascade_name, corruption
from trt_moe.output import save_picture

# Told apart by people of any colour vision (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#777777",
)
_BETWEEN = ("#56B4E9", "#F0E442", _PURPLE, _ORANGE)


def draw(report: Report, file: Path) -> None:
    """Write a picture, in the format that the file's suffix names.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    data = report.data
    figure = Figure(figsize=(12, 5.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_severities(left, data)
    _draw_frontier(right, report)
    figure.suptitle(
        f"{data['bundle']} on {data['device']} ({data['precision']}): {data['images']:,} images, "
        f"{routing_rule(data['latency_weight'], data['verify_below'], data['verify_by'])}",
        fontsize=10,
    )
    save_picture(figure, file)


def _draw_severities(axes: Any, data: dict[str, Any]) -> None:
    severities = list(data["severities"])
    rows = list(data["severities"].values())
    positions = np.arange(len(severities))
    bottom = np.zeros(len(severities))
    for index, name in enumerate(data["experts"]):
        height = np.array([100 * row["share"][name] for row in rows])
        colour, _ = _look(index, len(data["experts"]))
        axes.bar(positions, height, 0.75, bottom, color=colour, alpha=0.35, label=f"share to {name}")
        bottom += height
    lines = [(MIXTURE, [row["accuracy"] for row in rows], _BLUE, "o-", 2.2)]
    for index, name in enumerate(data["experts"]):
        colour, marker = _look(index, len(data["experts"]))
        lines.append((f"always {name}", [row["experts"][name] for row in rows], colour, f"{marker}--", 1.2))
    for name in data["baselines"]:
        lines.append((f"always {name}", [row["baselines"][name] for row in rows], _GREY, "s:", 1.2))
    for label, values, colour, style, width in lines:
        axes.plot(positions, 100 * np.array(values), style, color=colour, lw=width, ms=5, label=label)
    axes.set(xticks=positions, xticklabels=severities, ylim=(0, 100), xlabel=f"severity of {corruption(data)}")
    axes.set(ylabel="accuracy (lines), share of images (bars), %", title="Routing and accuracy")
    axes.grid(axis="y", alpha=0.3)
    _legend(axes)


def _draw_frontier(axes: Any, report: Report) -> None:
    data, overall = report.data, report.data["overall"]
    curve = np.array([(point.mean_ms, 100 * point.accuracy) for point in report.points])
    axes.plot(curve[:, 0], curve[:, 1], "-", color=_BLUE, lw=2.2, label="mixture, latency weight swept")
    rules = np.array([(point.mean_ms, 100 * point.accuracy) for point in report.rules])
    axes.plot(rules[:, 0], rules[:, 1], "-", color=_ORANGE, lw=1.8, label="mixture, unsure experts verified")
    shipped = overall[MIXTURE]
    axes.plot(
        shipped["modelled_ms"],
        100 * shipped["accuracy"],
        "o",
        color=_BLUE,
        ms=9,
        label="as set",
    )
    cascade = np.array(report.cascade)
    cascade_from = f"confidence {cascade_name(overall[CASCADE])}"
    axes.plot(cascade[:, 0], 100 * cascade[:, 1], "--", color=_PURPLE, lw=1.4, label=cascade_from)
    ends = [(overall[name]["mean_ms"], 100 * overall[name]["accuracy"]) for name in data["experts"]]
    latency_ms, accuracies = (np.array(values) for values in zip(*ends, strict=True))
    budgets = np.linspace(latency_ms.min(), latency_ms.max(), 41)
    blends = np.array([best_blend(latency_ms, accuracies, float(budget)).weights for budget in budgets])
    axes.plot(blends @ latency_ms, blends @ accuracies, ":", color=_GREY, lw=1.4, label="random")
    for index, name in enumerate(data["experts"]):
        colour, marker = _look(index, len(ends))
        axes.plot(*ends[index], marker, color=colour, ms=9, label=f"always {name}")
    for name in data["baselines"]:
        row = overall[name]
        axes.plot(row["mean_ms"], 100 * row["accuracy"], "s", color=_GREY, ms=7, label=f"always {name}")
    row = overall[ORACLE]
    axes.plot(row["mean_ms"], 100 * row["accuracy"], "*", color="black", ms=10, label="oracle")
    axes.set(xlabel="mean latency of one image, ms", ylabel="accuracy over all severities, %")
    axes.set(title="Accuracy against latency", xlim=(0, None))
    axes.grid(alpha=0.3)
    _legend(axes)


def _look(index: int, experts: int) -> tuple[str, str]:
    # An expert's colour and marker, the same in bars, lines and points of both plots.
    if index == 0:
        return _GREEN, "v"
    if index == experts - 1:
        return _RED, "^"
    return _BETWEEN[(index - 1) % len(_BETWEEN)], "D"


def _legend(axes: Any) -> None:
    # Below the axes, where it hides no data.
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
