"""What `trt-moe build` and `trt-moe cache` print for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trt_moe.blob_cache import LIMIT, Blob
from trt_moe.compile.build import BuildReport, Step
from trt_moe.compile.build import Progress as BuildProgress
from trt_moe.compile.cache import Entry
from trt_moe.compile.flavour import title
from trt_moe.console import clean, note, percent, print_table, stderr, stdout

_MIB = 1 << 20
_METHODS = {"emulated": "emulated", "engine": "of the engine"}


@contextmanager
def build_progress(show: bool) -> Iterator[BuildProgress]:
    """A bar on stderr for each model with its bucket and the time left; where stderr is no terminal, lines."""
    console = stderr()
    if not show:
        yield lambda step: None
        return
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Left(ProgressColumn):
        """Counts down by itself: a conversion tells nothing until it is done."""

        def render(self, task: Any) -> Text:
            end = task.fields["end"]
            return Text("" if end is None else f"about {max(0.0, end - time.monotonic()):.0f} s left")

    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), Left(), console=console, transient=True
    ) as bars:
        tasks: dict[str, Any] = {}

        def update(step: Step) -> None:
            if step.model not in tasks:
                for finished in tasks.values():
                    bars.remove_task(finished)
                tasks.clear()
                tasks[step.model] = bars.add_task("", total=1.0, end=None)
            end = None if step.seconds_left is None else time.monotonic() + step.seconds_left
            bars.update(tasks[step.model], description=clean(_doing(step)), completed=step.fraction, end=end)

        yield update


def _lines() -> BuildProgress:
    """One line for each thing done, for logs."""
    last = ""

    def update(step: Step) -> None:
        nonlocal last
        if (doing := _doing(step)) != last:
            last = doing
            note(doing if step.seconds_left is None else f"{doing}, about {step.seconds_left:.0f} s left")

    return update


def _doing(step: Step) -> str:
    return f"{step.model}: {'conversion and accuracy' if step.bucket is None else f'batch size {step.bucket}'}"


def print_build(report: BuildReport) -> None:
    """Print every engine, and how it passed the accuracy gate."""
    rows = [_engine_row(each.engine.sidecar, each.built) for each in report.engines]
    columns = ["model", "precision", "device", "MiB", "seconds", "answers agree", "largest logit error", "note"]
    print_table(f"engines of {report.bundle.path} by {report.flavour}", columns, rows)
    count = sum(each.built for each in report.engines)
    stdout().print(
        f"{count} built, {len(report.engines) - count} from the cache, {report.seconds:.1f} s; "
        f"{clean(report.engines[0].engine.path.parent)}"
    )


def _engine_row(sidecar: Any, built: bool) -> tuple[Any, ...]:
    report = sidecar.engine_report or sidecar.gate_report or {}
    agreement, error = report.get("top1_agreement"), report.get("largest_logit_error")
    notes = [] if built else ["cached"]
    if sidecar.gate_report and sidecar.gate_report["float32_layers"]:
        notes.append(f"float32: {', '.join(sidecar.gate_report['float32_layers'])}")
    if report:
        notes.append(f"accuracy {_METHODS[report['method']]}")
    return (
        sidecar.spec.model,
        sidecar.spec.precision,
        sidecar.spec.device,
        f"{sidecar.engine_bytes / _MIB:.2f}",
        f"{sidecar.prepare_seconds + sidecar.build_seconds:.1f}",
        "-" if agreement is None else percent(agreement),
        "-" if error is None else f"{error:.2g}",
        "; ".join(notes) or "-",
    )


def cache_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Entries of the cache, ready for JSON."""
    return [
        {
            "path": str(entry.path),
            "bytes": entry.bytes,
            "last_used": entry.last_used,
            "problem": entry.problem,
            "sidecar": None if entry.sidecar is None else entry.sidecar.model_dump(mode="json"),
        }
        for entry in entries
    ]


def print_cache(folder: Any, entries: Sequence[Entry], limit: int, checked: bool) -> None:
    """Print the entries of the cache, the most recently used first.

    Args:
        folder: of the cache.
        entries: what it holds.
        limit: most bytes that it may hold.
        checked: the engines were read.
    """
    rows = []
    for entry in reversed(entries):
        spec = entry.sidecar.spec if entry.sidecar else None
        rows.append(
            (
                spec.model if spec else entry.path.name,
                spec.precision if spec else "-",
                title(spec.flavour, spec.flavour_version) if spec else "-",
                spec.device if spec else "-",
                ",".join(map(str, spec.buckets)) if spec else "-",
                f"{entry.bytes / _MIB:.2f}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
                entry.problem or ("ok" if checked else "not checked"),
            )
        )
    columns = ["model", "precision", "built by", "device", "buckets", "MiB", "last used", "state"]
    print_table(f"TensorRT engines in {folder}", columns, rows)
    total = sum(entry.bytes for entry in entries)
    stdout().print(f"{len(entries)} engines, {total / _MIB:.1f} MiB of at most {limit / _MIB:,.0f}")
    if damaged := sum(entry.problem is not None for entry in entries):
        stdout().print(f"{damaged} cannot be used; the next `trt-moe build` makes them anew")


def print_blobs(kept: Sequence[Blob]) -> None:
    """Print in a line what OpenVINO keeps compiled."""
    total = sum(blob.bytes for blob in kept)
    stdout().print(
        f"For the CPU: {len(kept)} models compiled by OpenVINO, {total / _MIB:.1f} MiB of at most {LIMIT / _MIB:,.0f}"
    )
