"""The verb that compares gaters over latency weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trt_moe.cli import options
from trt_moe.cli.app import app
from trt_moe.errors import InputError


@app.command()
def sweep(
    config: options.Config,
    out: Annotated[Path, typer.Option("--out", help="Folder for sweep.csv, sweep.json, pareto.png and pareto.html.")],
    data: options.Data = None,
    checkpoints: options.Checkpoints = None,
    skip_broken: options.SkipBroken = False,
    latency_weights: Annotated[
        str, typer.Option("--latency-weights", help="Numbers of at least 0.")
    ] = "0.1,0.2,0.4,0.7,1.0",
    seeds: Annotated[str, typer.Option("--seeds", help="Of the gaters: whole numbers.")] = "0,1,2",
    as_json: options.Json = False,
) -> None:
    """Compare one gater at run-time latency weights with gaters trained for each.

    Uses the experts, logits and latencies of a finished training run, and loads gaters that it has trained before.
    """
    from trt_moe.console import clean, note, print_json, print_table, progress, stdout
    from trt_moe.training_run import open_config

    weights, chosen_seeds = options.numbers(latency_weights, "--latency-weights"), _seeds(seeds)
    opened = open_config(config, data, checkpoints, skip_broken)
    from trt_moe.sweep.run import sweep as run_sweep
    from trt_moe.sweep.tables import remarks, tables

    with progress(not as_json) as callback:
        comparison = run_sweep(opened, weights, chosen_seeds, out, callback, note)
    if as_json:
        print_json({"out": out, "name": opened.name, **comparison.to_json()})
        return
    for table in tables(comparison):
        print_table(table.title, table.columns, table.rows)
    for remark in remarks(comparison):
        stdout().print(clean(remark))
    typer.echo(f"written to {out}: sweep.csv, sweep.json, pareto.png, pareto.html")


def _seeds(text: str) -> tuple[int, ...]:
    found = options.whole_numbers(text)
    if found is None:
        raise InputError(f"--seeds is {text!r}; expected whole numbers such as 0,1,2")
    return found
