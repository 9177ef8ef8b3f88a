"""The figures of issue 5, out of what the parts found, beside their goals."""

from __future__ import annotations

from typing import Any

BATCH = "mixed batch of 8"
OURS, HOST, BARE = "our device-routed plan", "our host-routed plan", "bare gater + bare expert"
SPECULATING = "our host-routed plan, speculating"
_EASY_SHARES = (0.5, 0.9)
_PEERS = (
    ("latency", "torch eager, routed in Python", 3.0),
    ("compiled", "torch.compile, routed in Python", 1.5),
    ("latency", "tensorrt + pycuda loop", 1.5),
)

Row = tuple[str, str, str, str]
"""What, found, goal, and "yes", "no" or "-" where nothing was found or nothing was to be reached."""


def goals(results: dict[str, Any]) -> list[Row]:
    """One row a figure.

    Args:
        results: of the parts that ran, by name.
    """
    rows: list[Row] = []
    latency = results.get("latency")
    if latency:
        cases = latency["milliseconds"]
        experts = [name for name in cases if name != BATCH]
        dearest = cases[latency["dearest"]]
        routed = latency["plan"] == "device-routed"
        over_bare = max(_ratio(cases[name], OURS, BARE) for name in experts)
        what = "device-routed predict(1) over bare gater + bare expert, p50, worst expert"
        rows.append(_most(what, over_bare, 1.05) if routed else _absent(what, "<= 1.05", latency["plan_reason"]))
        for label, names in (("batch 1", experts), ("batch 8", [BATCH])):
            for key in ("p50_ms", "p99_ms"):
                found = min(_ratio(cases[name], HOST, OURS, key) for name in names)
                what = f"host-routed over device-routed, {label}, {key[:3]}, worst"
                rows.append(_least(what, found, 1.0) if routed else _absent(what, "> 1", latency["plan_reason"]))
        mean = sum(cases[name][OURS]["mean_ms"] for name in experts) / len(experts)
        rows.append(_most("mean of the mixture, each expert as often, over DeiT-S alone", mean / _alone(dearest), 0.6))
        rows.append(_most("gater over DeiT-S, p50", _ratio(dearest, "bare gater", "bare expert"), 0.10))
        rows.append(_most("host time of predict(1) outside of the core, us, p50", latency["python_us"]["p50_us"], 30.0))
        rows += _speculation(cases, experts)
    for part, peer, goal in _PEERS:
        cases = (results.get(part) or {}).get("milliseconds", {})
        for label, names in (("batch 1", [name for name in cases if name != BATCH]), ("batch 8", [BATCH])):
            ratios = [_ratio(cases[name], peer, OURS) for name in names if peer in cases.get(name, ())]
            what = f"{peer} over ours, {label}, p50, worst"
            rows.append(_least(what, min(ratios), goal) if ratios else _absent(what, f">= {goal:g}", "not measured"))
    idle = results.get("idle")
    if idle:
        for label in ("after idleness", "after idleness, with keep-alive"):
            largest = f"{idle[label]['max_ms']:.3f} ms is the largest of {idle[label]['calls']}"
            medians = f"p50 {idle[label]['p50_ms']:.3f} ms, busy {idle['busy']['p50_ms']:.3f} ms"
            rows.append((f"predict(1) {label}", f"{largest}; {medians}", "reported", "-"))
    return rows


def _speculation(cases: dict[str, Any], experts: list[str]) -> list[Row]:
    """Mean of predict(1) where so large a share of the images is easy, and the others go to each other expert alike."""
    easy, *others = experts
    rows: list[Row] = []
    for share in _EASY_SHARES:
        off, on = (
            share * cases[easy][plan]["mean_ms"]
            + (1 - share) * sum(cases[name][plan]["mean_ms"] for name in others) / len(others)
            for plan in (HOST, SPECULATING)
        )
        what = f"host-routed predict(1), {share:.0%} easy images, speculation on over off, mean"
        rows.append((what, f"{on / off:.3g} ({on:.3f} over {off:.3f} ms)", "reported", "-"))
    return rows


def _ratio(case: dict[str, Any], above: str, below: str, key: str = "p50_ms") -> float:
    return float(case[above][key] / case[below][key])


def _alone(dearest: dict[str, Any]) -> float:
    return float(dearest["bare expert"]["mean_ms"])


def _most(what: str, found: float, goal: float) -> Row:
    return what, f"{found:.3g}", f"<= {goal:g}", "yes" if found <= goal else "no"


def _least(what: str, found: float, goal: float) -> Row:
    return what, f"{found:.3g}", f">= {goal:g}", "yes" if found >= goal else "no"


def _absent(what: str, goal: str, why: str) -> Row:
    return what, why, goal, "-"
