"""A study as a picture: every cue against the benefit, and how much each explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trt_moe.output import save_picture
from trt_moe.study.fit import Floats
from trt_moe.study.study import GATER, Study

_POINTS = 1500
_MEANS = 20
_LINEAR, _CURVE = "#E69F00", "#0072B2"  # Okabe and Ito: told apart by people of any colour vision


def draw(study: Study, file: Path) -> None:
    """Write a picture, in the format that the file's suffix names.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # no pyplot: it would look for a display

    data = study.data
    columns = -(-len(study.cues) // 2)
    widths = [3.2 * columns, 5.0]
    figure = Figure(figsize=(sum(widths), 7), dpi=150, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=widths)
    left, right = halves
    cells = left.subplots(2, columns, sharey=True).ravel()
    for axes in cells[len(study.cues) :]:
        axes.set_axis_off()
    for axes, (name, cue) in zip(cells, study.cues.items(), strict=False):
        points = _draw_cue(axes, name, cue, study)
    left.supylabel("benefit, nats", fontsize=9)
    levels = np.unique(study.severities)
    bar = left.colorbar(points, ax=cells, location="bottom", ticks=levels, aspect=60, shrink=0.5)
    bar.set_label("severity (dots); mean benefit over the cue (line)", fontsize=9)
    _draw_explained(right.subplots(), data)
    figure.suptitle(
        f"What {data['dearest']} gains over {data['cheapest']} in {data['bundle']}: "
        f"{data['test_images']:,} held-out images",
        fontsize=10,
    )
    save_picture(figure, file)


def _draw_cue(axes: Any, name: str, cue: Floats, study: Study) -> Any:
    # In random order, or the last severity would hide the others.
    shown = np.random.default_rng(0).permutation(len(cue))[:_POINTS]
    points = axes.scatter(
        cue[shown], study.benefit[shown], s=5, c=study.severities[shown], cmap="viridis_r", alpha=0.6, lw=0
    )
    parts = np.array_split(np.argsort(cue), _MEANS)
    axes.plot(
        [cue[part].mean() for part in parts], [study.benefit[part].mean() for part in parts], color="black", lw=1.4
    )
    axes.axhline(0, color="#777777", lw=0.6)
    axes.set_title(name, fontsize=9, fontweight="bold" if name == GATER else "normal")
    axes.tick_params(labelsize=8)
    return points


def _draw_explained(axes: Any, data: dict[str, Any]) -> None:
    rows = sorted(data["explained_by"].items(), key=lambda item: float(item[1]["r2_curve"]["value"]))
    positions = np.arange(len(rows))
    for key, shift, colour, label in (("r2_curve", 0.2, _CURVE, "curve"), ("r2_linear", -0.2, _LINEAR, "line")):
        value, low, high = (np.array([row[key][part] for _, row in rows]) for part in ("value", "low", "high"))
        error = np.maximum([value - low, high - value], 0)
        axes.barh(positions + shift, value, 0.36, xerr=error, color=colour, label=label, capsize=2)
    axes.set(yticks=positions, yticklabels=[name for name, _ in rows], xlabel="R\N{SUPERSCRIPT TWO} on held-out images")
    axes.axvline(0, color="#777777", lw=0.6)
    axes.set_title("Benefit explained, with 95 % intervals", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
