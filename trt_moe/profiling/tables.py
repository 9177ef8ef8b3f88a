"""A profile as tables for people."""

from __future__ import annotations

from typing import Any

from trt_moe.bundle.manifest import MIXTURE
from trt_moe.console import milliseconds, percent, print_table, routing_rule, stdout
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
    out.print(
        f"{MIXTURE}: wall time of router.predict with one image, all overhead included. Models: bare "
        "inference by the C++ clock, in turn with the mixture. Stages: gate (gater), queue (waiting for an "
        "expert), gather and scatter (copies), expert, total; quantiles of stages are good to 3.2 %."
    )
