"""The figures of issue 5, out of what the parts found, beside their goals."""

from __future__ import annotations

from typing import Any

BATCH, LARGE = "mixed batch of 8", "mixed batch of 32"
OURS, HOST, BARE = "our device-routed plan", "our host-routed plan", "bare gater + bare expert"
ALONE = "DeiT-S alone"
SPECULATING = "our device-routed plan, speculating"
NOT_MEASURED = "not measured"
_EASY_SHARES = (0.5, 0.9)
_PEERS = (
    ("latency", "torch eager, routed in Python", 3.0),
    ("compiled", "torch.compile, routed in Python", 1.5),
    ("latency", "tensorrt + pycuda loop", 1.5),
)

Row = tuple[str, str, str, str]
"""What, found, goal, and "yes", "no" or "-" where nothing was found or nothing was to be reached."""


def goals(results: dict[str, Any]) -> list[Row]:
    """One row a figure, also of what was not measured.

    Args:
        results: of the parts, by name; a part that did not end well may have found less.
    """
    latency = results.get("latency") or {}
    cases = latency.get("milliseconds", {})
    dearest = cases.get(latency.get("dearest"))
    # It is measured last of the experts. Without it there is no figure over all of them.
    experts = [name for name in cases if name not in (BATCH, LARGE)] if dearest else []
    rows = _plans(latency, cases, experts)
    what = "mean of the mixture, each expert as often, over DeiT-S alone"
    if dearest:
        mean = sum(cases[name][OURS]["mean_ms"] for name in experts) / len(experts)
        rows.append(_most(what, mean / dearest["bare expert"]["mean_ms"], 0.6))
    else:
        rows.append(_absent(what, "<= 0.6"))
    ratio = f"{_ratio(cases[LARGE], OURS, ALONE):.3g}" if LARGE in cases else NOT_MEASURED
    rows.append(("the same of a batch of 32, half of it to the cheapest, p50", ratio, "reported", "-"))
    what = "gater over DeiT-S, p50"
    rows.append(_most(what, _ratio(dearest, "bare gater", "bare expert"), 0.1) if dearest else _absent(what, "<= 0.1"))
    what = "host time of predict(1), us, p50"
    routed = latency.get("plan") == "device-routed"
    rows.append(_most(what, latency["host_us"]["p50_us"], 30.0) if routed else _absent(what, "<= 30", _why(latency)))
    for part, peer, goal in _PEERS:
        cases_of_part = (results.get(part) or {}).get("milliseconds", {})
        singles = [name for name in cases_of_part if name not in (BATCH, LARGE)]
        for label, names in (("batch 1", singles), ("batch 8", [BATCH])):
            ratios = [_ratio(cases_of_part[name], peer, OURS) for name in names if peer in cases_of_part.get(name, ())]
            what = f"{peer} over ours, {label}, p50, worst"
            rows.append(_least(what, min(ratios), goal) if ratios else _absent(what, f">= {goal:g}"))
    return [*rows, *_idleness(results.get("idle")), *_speculation(cases, experts)]


def _plans(latency: dict[str, Any], cases: dict[str, Any], experts: list[str]) -> list[Row]:
    """The device-routed plan over its parts, and against the host-routed one."""
    routed = latency.get("plan") == "device-routed"
    what = "device-routed predict(1) over bare gater + bare expert, p50, worst expert"
    if routed and experts:
        rows = [_most(what, max(_ratio(cases[name], OURS, BARE) for name in experts), 1.05)]
    else:
        rows = [_absent(what, "<= 1.05", _why(latency))]
    for label, names in (("batch 1", experts), ("batch 8", [BATCH] if BATCH in cases else [])):
        for key in ("p50_ms", "p99_ms"):
            what = f"host-routed over device-routed, {label}, {key[:3]}, worst"
            if routed and names:
                rows.append(_least(what, min(_ratio(cases[name], HOST, OURS, key) for name in names), 1.0))
            else:
                rows.append(_absent(what, ">= 1", _why(latency)))
    return rows


def _why(latency: dict[str, Any]) -> str:
    """Why there is no figure of the device-routed plan."""
    return NOT_MEASURED if latency.get("plan") in (None, "device-routed") else str(latency["plan_reason"])


def _idleness(idle: dict[str, Any] | None) -> list[Row]:
    rows: list[Row] = []
    for label in ("after idleness", "after idleness, with keep-alive"):
        found = NOT_MEASURED
        if idle and label in idle:
            largest = f"{idle[label]['max_ms']:.3f} ms is the largest of {idle[label]['calls']}"
            found = f"{largest}; p50 {idle[label]['p50_ms']:.3f} ms, busy {idle['busy']['p50_ms']:.3f} ms"
            found += f"; engines: {idle['engines']}"  # maybe others than latency has
        rows.append((f"predict(1) {label}", found, "reported", "-"))
    return rows


def _speculation(cases: dict[str, Any], experts: list[str]) -> list[Row]:
    """Mean of predict(1) where so large a share of the images is easy, and the others go to each other expert alike.

    Args:
        experts: cheapest first; empty where not all were measured.
    """
    rows: list[Row] = []
    for share in _EASY_SHARES:
        found = NOT_MEASURED
        if experts:
            easy, *others = experts
            off, on = (
                share * cases[easy][plan]["mean_ms"]
                + (1 - share) * sum(cases[name][plan]["mean_ms"] for name in others) / len(others)
                for plan in (OURS, SPECULATING)
            )
            found = f"{on / off:.3g} ({on:.3f} over {off:.3f} ms)"
        what = f"predict(1), {share:.0%} easy images, speculation on over off, mean"
        rows.append((what, found, "reported", "-"))
    return rows


def _ratio(case: dict[str, Any], above: str, below: str, key: str = "p50_ms") -> float:
    return float(case[above][key] / case[below][key])


def _most(what: str, found: float, goal: float) -> Row:
    return what, f"{found:.4g}", f"<= {goal:g}", "yes" if found <= goal else "no"


def _least(what: str, found: float, goal: float) -> Row:
    return what, f"{found:.4g}", f">= {goal:g}", "yes" if found >= goal else "no"


def _absent(what: str, goal: str, why: str = NOT_MEASURED) -> Row:
    return what, why, goal, "-"
