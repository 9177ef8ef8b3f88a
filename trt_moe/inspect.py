"""`trt-moe inspect`: what a bundle is made of, as tables."""

from __future__ import annotations

from typing import Any

from trt_moe.bundle import Bundle, ModelEntry
from trt_moe.bundle.samples import find_samples
from trt_moe.console import clean, milliseconds, points, print_table, stdout

_MIB = 1 << 20


def describe(bundle: Bundle) -> dict[str, Any]:
    """The manifest with the bundle's path and the size of each file in bytes, ready for JSON."""
    files = {entry.name: bundle.file(entry).stat().st_size for entry in [*bundle.models(), *bundle.baselines]}
    return {"path": str(bundle.path), "bytes": files, **bundle.manifest.model_dump(mode="json")}


def print_bundle(bundle: Bundle) -> None:
    """Print a bundle as tables: models, accuracies, latencies, provenance."""
    manifest = bundle.manifest
    height, width, channels = bundle.input_shape
    out = stdout()
    shown = ", ".join(bundle.class_names[:12]) + (", ..." if len(bundle.class_names) > 12 else "")
    out.print(f"{bundle.name}  ({clean(bundle.path)}, schema {manifest.schema_version})", style="bold")
    out.print(f"input           uint8 {height} x {width} x {channels} (height, width, channels)")
    out.print(f"classes         {len(bundle.class_names)}: {shown}")
    out.print(f"latency weight  {bundle.latency_weight:g}")
    verified = f"{bundle.verify_below:g}, by {bundle.verify_by}" if bundle.verify_below else "never"
    out.print(f"verify below    {verified}")
    if manifest.samples is not None:
        there = len(find_samples(bundle.path, manifest.samples, bundle.class_names))
        lacking = "" if there == manifest.samples.images else f", where {there} are"
        out.print(f"samples         {manifest.samples.images} images in {manifest.samples.folder}/{lacking}")
    if manifest.golden is not None:
        tolerance = ", ".join(f"{precision} {value:g}" for precision, value in manifest.golden.tolerance.items())
        out.print(f"golden          {manifest.golden.file} (tolerance {tolerance})")
    out.print()
    _print_models(bundle)
    _print_evaluation(bundle)
    _print_latency(bundle)
    _print_training(bundle)


def _print_models(bundle: Bundle) -> None:
    roles = {bundle.gater.name: "gater", **{entry.name: "baseline" for entry in bundle.baselines}}
    rows = [
        (
            entry.name,
            roles.get(entry.name, "expert"),
            f"{entry.relative_cost:.3f}",
            f"{entry.parameters:,}",
            f"{bundle.file(entry).stat().st_size / _MIB:.2f}",
            f"{entry.graph_size[0]} x {entry.graph_size[1]}",
            _severities(entry),
            entry.architecture,
        )
        for entry in [*bundle.models(), *bundle.baselines]
    ]
    columns = [
        "model",
        "role",
        "relative cost",
        "parameters",
        "MiB",
        "graph size",
        "severities",
        "architecture",
    ]
    print_table("models (cheapest expert first)", columns, rows)


def _severities(entry: ModelEntry) -> str:
    if entry.trained_on is None:
        return "-"
    used = sorted(int(severity) for severity, weight in entry.trained_on.items() if weight > 0)
    if used and used == list(range(used[0], used[-1] + 1)) and len(used) > 1:
        return f"{used[0]} to {used[-1]}"
    return " ".join(map(str, used)) or "-"


def _print_evaluation(bundle: Bundle) -> None:
    evaluation = bundle.manifest.evaluation
    if evaluation is None:
        return
    experts = [entry.name for entry in bundle.experts]
    baselines = [entry.name for entry in bundle.baselines]
    rows = []
    for severity in sorted(evaluation.severities):
        row = evaluation.severities[severity]
        rows.append(
            [
                severity,
                points(row.mixture),
                *(_optional(row.experts, name) for name in experts),
                *(_optional(row.baselines, name) for name in baselines),
                *(_optional(row.share, name) for name in experts),
            ]
        )
    columns = ["severity", "mixture", *experts, *baselines, *(f"share {name}" for name in experts)]
    print_table(
        f"accuracy and shares on {evaluation.dataset} in %, {evaluation.images:,} images a severity", columns, rows
    )


def _optional(values: dict[str, float], name: str) -> str:
    return points(values[name]) if name in values else "-"


def _print_latency(bundle: Bundle) -> None:
    for table in bundle.manifest.latency:
        rows = [
            (name, *(milliseconds(value) for value in (row.mean_ms, row.p50_ms, row.p90_ms, row.p99_ms)))
            for name, row in table.models.items()
        ]
        where = f"{table.device}, {table.backend} {table.precision}, {table.threads} thread{'s' * (table.threads != 1)}"
        print_table(f"latency of one image on {where}", ["model", "mean ms", "p50 ms", "p90 ms", "p99 ms"], rows)


def _print_training(bundle: Bundle) -> None:
    training = bundle.manifest.training
    if training is None:
        return
    packages = ", ".join(f"{name} {version}" for name, version in training.packages.items())
    corruption = training.corruption
    rows = [
        ("data set", training.dataset),
        ("method", f"{training.method}, latency weight {training.latency_weight:g}, seed {training.seed}"),
        (
            "blur sigma",
            " ".join(f"{value:g}" for value in corruption.blur_sigma) + f" px at {corruption.reference_side} px",
        ),
        ("noise sigma", " ".join(f"{value:g}" for value in corruption.noise_sigma) + " of full range"),
        ("commit", training.commit),
        ("command", training.command),
        ("packages", packages),
    ]
    print_table("training", ["what", "value"], rows)
