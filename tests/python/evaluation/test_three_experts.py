"""How evaluations of more than two experts look."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console

from trt_moe import console
from trt_moe.evaluation import tables
from trt_moe.evaluation.evaluate import CASCADE, IMAGE_CUE, ORACLE, RANDOM, VERIFY
from trt_moe.evaluation.picture import _draw_severities

EXPERTS = ["squeezenet", "squeezenet-robust", "resnet"]


def test_picture_shows_every_expert_in_one_colour():
    row = {
        "share": dict.fromkeys(EXPERTS, 1 / 3),
        "experts": dict.fromkeys(EXPERTS, 0.5),
        "baselines": {},
        "accuracy": 0.8,
    }
    data = {"severities": {"0": row, "5": row}, "experts": EXPERTS, "baselines": [], "corruption": "both"}
    axes = Figure().subplots()
    _draw_severities(axes, data)
    lines = {line.get_label(): to_hex(line.get_color()) for line in axes.get_lines()}
    bars = {str(bar.get_label()): to_hex(bar.patches[0].get_facecolor()) for bar in axes.containers}
    assert [lines[f"always {name}"] for name in EXPERTS] == [bars[f"share to {name}"] for name in EXPERTS]
    assert len({lines[f"always {name}"] for name in EXPERTS}) == len(EXPERTS)


def test_strategies_keep_every_number_at_80_columns(monkeypatch: pytest.MonkeyPatch):
    file = io.StringIO()
    monkeypatch.setattr(console, "stdout", lambda: Console(file=file, width=80, markup=False, force_terminal=False))
    latencies = {"mean_ms": 1.234, "p50_ms": 2.345, "p99_ms": 3.456}
    overall: dict[str, Any] = {name: {"accuracy": 0.876, **latencies} for name in ["mixture", *EXPERTS, "robust-light"]}
    overall |= {name: {"accuracy": 0.765, "mean_ms": 1.234} for name in (RANDOM, IMAGE_CUE, CASCADE, VERIFY, ORACLE)}
    for rival in (IMAGE_CUE, CASCADE):
        overall[rival] |= {"cheaper": EXPERTS[0], "verify_by": "mirror"}
    tables.print_strategies(
        json.loads(json.dumps({"overall": overall, "experts": EXPERTS, "baselines": ["robust-light"]}))
    )
    text = file.getvalue()
    assert text.count("3.456") == 5
    assert text.count("100.0") == len(overall)
    assert max(map(len, text.splitlines())) <= 80
