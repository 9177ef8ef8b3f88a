"""A study as tables for people."""

from __future__ import annotations

from typing import Any

from trt_moe.console import points, print_table, stdout
from trt_moe.study.study import COMPLEXITY, GATER


def print_study(data: dict[str, Any]) -> None:
    """Print what `study` returned: benefit by severity, what explains it, remarks."""
    cheapest, dearest = data["cheapest"], data["dearest"]
    out = stdout()
    out.print(
        f"{data['bundle']} on {data['device']}, experts in {data['precision']}; {data['dataset']}, "
        f"{data['images']:,} images"
    )
    columns = ["severity", "images", "mean benefit, nats", f"only {dearest} right %", f"only {cheapest} right %"]
    rows = [
        [
            severity,
            row["images"],
            f"{row['benefit']:.3f}",
            points(row["only_dearest_right"]),
            points(row["only_cheapest_right"]),
        ]
        for severity, row in data["severities"].items()
    ]
    print_table(f"what {dearest} gains over {cheapest}", columns, rows)
    explained = sorted(data["explained_by"].items(), key=lambda item: -float(item[1]["r2_curve"]["value"]))
    columns = ["explained by", "R2 linear", "R2 curve", "rank correlation", "gater's R2 ahead by"]
    rows = [
        [
            name,
            *(_interval(row[key]) for key in ("r2_linear", "r2_curve", "rank_correlation")),
            "-" if name == GATER else _interval(row["gater_ahead"]),
        ]
        for name, row in explained
    ]
    print_table("benefit of an image, explained before any expert runs (95 % intervals)", columns, rows)
    out.print(
        f"Benefit: cross-entropy of {cheapest} minus that of {dearest}, each at most {data['loss_clip']:g} nats. "
        f"Fitted on every second image, given for the {data['test_images']:,} others."
    )
    if COMPLEXITY not in data["explained_by"]:
        out.print(
            "Left out: complexity by ICNet. Give its weights with --icnet FILE.safetensors; they are those of "
            "IC9600, https://github.com/tinglyfeng/IC9600."
        )


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
