"""A sweep as a picture: the Pareto plot, and the one gater against its rivals at equal cost."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_moe.sweep.compare import ONE, ORACLE, SEPARATE, Comparison, Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart by people of any colour vision (Okabe and Ito); markers and dashes differ as well.
_BLUE, _ORANGE, _PURPLE, _GREY = "#0072B2", "#D55E00", "#CC79A7", "#777777"
_MARKERS = "v^DPX"
_POINTS = 100  # accuracies are drawn in percent, differences in percentage points


class Picture:
    """Drawn once, written as PNG for people or as SVG for a web page, where every mark says what it is."""

    def __init__(self, comparison: Comparison, title: str) -> None:
        from matplotlib.figure import Figure  # no pyplot: it would look for a display

        self._notes: list[str] = []
        self.figure: Figure = Figure(figsize=(12, 6.4), dpi=150, layout="constrained")
        axes = self.figure.subplot_mosaic([["pareto", "weights"], ["pareto", "cascade"]], width_ratios=[1.5, 1])
        self._draw_pareto(axes["pareto"], comparison)
        self._draw_weights(axes["weights"], comparison)
        self._draw_cascade(axes["cascade"], comparison)
        self.figure.suptitle(title, fontsize=11)

    def png(self) -> bytes:
        """The picture as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def svg(self) -> str:
        """The picture as an <svg> element; text stays text, marks have a <title> that browsers show on hovering."""
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trt-moe"}):
            self.figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        text = buffer.getvalue()
        text = text[text.index("<svg") :]  # an element of a page has neither declaration nor doctype
        for index, note in enumerate(self._notes):
            group = f'<g id="{_group(index)}">'
            text = text.replace(group, f"{group}<title>{html.escape(note)}</title>")
        return text

    def _say(self, mark: Any, note: str) -> None:
        """Attach what a mark says on hovering."""
        mark.set_gid(_group(len(self._notes)))
        self._notes.append(note)

    def _draw_pareto(self, axes: Any, comparison: Comparison) -> None:
        self._draw_curves(axes, comparison)
        for row in comparison.weights:
            styles = (
                (ONE, "o", _BLUE, row.one, row.one_cost),
                (SEPARATE, "s", _ORANGE, row.separate, row.separate_cost),
            )
            for strategy, marker, colour, accuracy, cost in styles:
                (mark,) = axes.plot(
                    cost.mean, _POINTS * accuracy.mean, marker, color=colour, ms=7, mec="white", zorder=4
                )
                self._say(
                    mark,
                    f"{strategy}, latency weight {row.latency_weight:g}: {_spread_text(accuracy)} right "
                    f"at cost {cost.mean:.3f}",
                )
                axes.errorbar(
                    cost.mean,
                    _POINTS * accuracy.mean,
                    _bars(accuracy),
                    [[cost.mean - cost.low], [cost.high - cost.mean]],
                    color=colour,
                    lw=1,
                    capsize=2,
                    zorder=3,
                )
            axes.annotate(
                f"{row.latency_weight:g}",
                (row.one_cost.mean, _POINTS * row.one.mean),
                xytext=(5, -12),
                textcoords="offset points",
                fontsize=8,
                color=_BLUE,
            )
        self._draw_without_gater(axes, comparison)
        axes.set(xlabel="mean cost of an image, gater included; 1 = always the dearest expert")
        axes.set(ylabel="accuracy over all severities, %", xlim=(0, None))
        axes.set_title("Accuracy against cost", fontsize=10)
        axes.grid(alpha=0.3)
        # Below the axes, where it hides no data.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)

    def _draw_curves(self, axes: Any, comparison: Comparison) -> None:
        rows = comparison.frontier
        costs = [row.cost for row in rows]
        low, high = ([_POINTS * getattr(row.one, end) for row in rows] for end in ("low", "high"))
        axes.fill_between(costs, low, high, color=_BLUE, alpha=0.2, lw=0, label=f"{ONE}, spread of the seeds")
        axes.plot(costs, [_POINTS * row.one.mean for row in rows], "-", color=_BLUE, lw=2, label=ONE)
        cascade = comparison.cascade
        best = _POINTS * cascade.accuracy_at(cascade.costs)
        axes.plot(cascade.costs, best, "--", color=_PURPLE, lw=1.6, label="confidence cascade")
        axes.plot(costs, [_POINTS * row.random for row in rows], ":", color=_GREY, lw=1.6, label="random")
        axes.plot([], [], "o", color=_BLUE, ms=7, mec="white", label=f"{ONE} at a run-time weight")
        axes.plot([], [], "s", color=_ORANGE, ms=7, mec="white", label=f"{SEPARATE}, each trained for a weight")

    def _draw_without_gater(self, axes: Any, comparison: Comparison) -> None:
        fixed = [point for point in comparison.points if point.seed is None]
        for index, point in enumerate(fixed):
            marker = "*" if point.strategy == ORACLE else _MARKERS[index % len(_MARKERS)]
            (mark,) = axes.plot(
                point.cost, _POINTS * point.accuracy, marker, color="black", ms=8, ls="none", label=point.strategy
            )
            self._say(mark, f"{point.strategy}: {point.accuracy:.2%} right at cost {point.cost:.3f}")

    def _draw_weights(self, axes: Any, comparison: Comparison) -> None:
        rows = comparison.weights
        for position, row in enumerate(rows):
            axes.errorbar(position, _POINTS * row.difference.mean, _bars(row.difference), color=_ORANGE, capsize=3)
            (mark,) = axes.plot(position, _POINTS * row.difference.mean, "s", color=_ORANGE, ms=7, mec="white")
            self._say(mark, f"latency weight {row.latency_weight:g}: {_points_text(row.difference)}")
        axes.axhline(0, color="black", lw=0.8)
        axes.set(xticks=range(len(rows)), xticklabels=[f"{row.latency_weight:g}" for row in rows])
        axes.set(xlabel="latency weight", ylabel="points")
        axes.set_title(f"{ONE} minus {SEPARATE}, at equal cost", fontsize=10)
        axes.grid(axis="y", alpha=0.3)

    def _draw_cascade(self, axes: Any, comparison: Comparison) -> None:
        rows = comparison.frontier
        costs = [row.cost for row in rows]
        low, high = ([_POINTS * getattr(row.ahead, end) for row in rows] for end in ("low", "high"))
        axes.fill_between(costs, low, high, color=_PURPLE, alpha=0.3, lw=0)
        for row in rows:
            (mark,) = axes.plot(row.cost, _POINTS * row.ahead.mean, "o", color=_PURPLE, ms=4)
            self._say(mark, f"cost {row.cost:.3f}: {_points_text(row.ahead)}")
        axes.axhline(0, color="black", lw=0.8)
        axes.set(xlabel="mean cost of an image", ylabel="points")
        axes.set_title(f"{ONE} minus confidence cascade, at equal cost", fontsize=10)
        axes.grid(axis="y", alpha=0.3)


def _group(index: int) -> str:
    return f"mark-{index}"


def _bars(spread: Spread) -> Any:
    return _POINTS * np.array([[spread.mean - spread.low], [spread.high - spread.mean]])


def _spread_text(spread: Spread) -> str:
    return f"{spread.mean:.2%} ({spread.low:.2%} to {spread.high:.2%})"


def _points_text(spread: Spread) -> str:
    return f"{_POINTS * spread.mean:+.2f} points ({_POINTS * spread.low:+.2f} to {_POINTS * spread.high:+.2f})"
