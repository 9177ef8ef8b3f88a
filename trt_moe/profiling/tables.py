"""A profile as tables for people."""

from __future__ import annotations

from typing import Any

from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import milliseconds, percent, points, print_table, routing_rule, stdout
from trt_moe.profiling.measure import ordered_latency

_KEYS = ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
_HEADS = ("mean ms", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms")


def print_profile(data: dict[str, Any], images: str) -> None:
    """Print what `profile` returned; `images` says what was routed."""
    out = stdout()
    shares = ", ".join(f"{name} {percent(share)}" for name, share in data["share"].items())
    out.print(
        f"{data['bundle']} on {data['device']}, experts in {data['precision']}, "
        f"{routing_rule(data['latency_weight'], data['verify_below'], data['verify_by'])}; {images}; routed to {shares}"
    )
    rows = [
        [name, *(milliseconds(row[key]) for key in _KEYS), f"{row['images_per_s']:,.0f}"]
        for name, row in ((name, data["latency"][name]) for name in ordered_latency(data))
    ]
    print_table(f"one image at a time ({data['iterations']:,} images)", ["model", *_HEADS, "images/s"], rows)
    rows = [
        [stage, f"{row['count']:,}", *(milliseconds(row[key]) for key in _KEYS)]
        for stage, row in data["stages"].items()
    ]
    print_table("stages of the mixture", ["stage", "images", *_HEADS], rows)
    if data["clients"]:
        rows = [
            [row["clients"], f"{row['images_per_s']:,.0f}", *(milliseconds(row[key]) for key in _KEYS)]
            for row in data["clients"]
        ]
        print_table("client threads sending single images", ["clients", "images/s", *_HEADS], rows)
    if data["rates"]:
        due = data["deadline_ms"]
        title = "single images at random times" + ("" if due is None else f", each due in {due:g} ms")
        in_time = [] if due is None else ["in time %"]
        heads = ["images/s", *in_time, "refused %", *_HEADS, "client late ms", *(f"{name} %" for name in data["share"])]
        print_table(title, heads, [_rate_row(row, list(data["share"])) for row in data["rates"]])
        out.print(
            "from when an image was to come, even if the client was late (its p99 in a column), to its answer; in time "
            "and refused: of all images, latencies and experts: of those answered"
        )
    out.print(
        f"{MIXTURE}: wall time of router.predict with one image, all overhead included. Models: bare "
        "inference by the C++ clock, in turn with the mixture. Stages: gate (gater), queue (waiting for an "
        "expert), gather and scatter (copies), expert, total; quantiles of stages are good to 3.2 %."
    )


def _rate_row(row: dict[str, Any], experts: list[str]) -> list[str]:
    return [
        f"{row['rate']:,}",
        *([points(row["in_time"])] if "in_time" in row else []),
        points(row["refused"]),
        *(milliseconds(row[key]) if key in row else "-" for key in _KEYS),
        milliseconds(row["client_late_p99_ms"]),
        *(points(row["share"][name]) if "share" in row else "-" for name in experts),
    ]
