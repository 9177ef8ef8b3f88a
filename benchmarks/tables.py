"""Percentiles and Markdown tables; imports nothing of trt-moe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    values = np.asarray(milliseconds)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"mean_ms": float(values.mean()), "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


def speed_cells(row: Mapping[str, float]) -> list[str]:
    """Images a second and percentiles."""
    return [f"{row['images_per_s']:.0f}", *(f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms"))]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
