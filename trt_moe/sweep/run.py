"""A sweep on the frozen experts of a finished training run: gaters, comparison, files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.writer import write_bytes
from trt_moe.console import ProgressCallback
from trt_moe.errors import InputError
from trt_moe.export.destination import check_writable
from trt_moe.sweep.compare import Comparison, compare
from trt_moe.sweep.finished import Log, open_run
from trt_moe.sweep.page import page
from trt_moe.sweep.picture import Picture
from trt_moe.sweep.tables import remarks, tables, to_csv
from trt_moe.training.config import Method, TrainConfig
from trt_moe.training.experts import predict
from trt_moe.training.logits import VALIDATION_PART


def sweep(
    config: TrainConfig,
    latency_weights: Sequence[float],
    seeds: Sequence[int],
    out: Path,
    progress: ProgressCallback | None = None,
    log: Log = print,
) -> Comparison:
    """Compare one gater with a run-time latency weight against gaters trained for each weight.

    The one gater is trained by a method that knows no latency weight until routing, regret or benefit;
    the separate ones minimise expected loss plus latency (method gumbel) at one weight each. Experts, their
    logits and their costs are the run's. Gaters that are trained already are loaded: those of the run itself,
    and those of an earlier or interrupted sweep.

    Args:
        config: of the finished run; `config.data` must be set.
        latency_weights: at least one, each >= 0 and once.
        seeds: of the gaters; at least one, each >= 0 and once.
        out: folder for sweep.csv, sweep.json, pareto.png and pareto.html.
        progress: called as progress(what, done, total).
        log: gets one line per event.

    Raises:
        InputError: weights, seeds or configuration cannot be used, or the run is not finished.
        DataError: data, checkpoints or measured latencies cannot be used.
        ModelOutputError: a loss is not finite.
    """
    _check("latency weights", latency_weights)
    _check("seeds", seeds)
    check_writable(out, out)
    run = open_run(config, progress, log)

    def scores(method: Method, weight: float) -> dict[int, NDArray[np.float32]]:
        trained = run.gaters(method, weight, seeds, progress, log)
        return {seed: predict(gater.model, run.validation.images.images) for seed, gater in trained.items()}

    one = scores(config.gater.for_every_weight, config.latency_weight)
    separate = {weight: scores("gumbel", weight) for weight in sorted(latency_weights)}
    outcomes = run.outcomes(VALIDATION_PART, run.validation.images, log, second_looks=False)
    comparison = compare(outcomes, one, separate)
    _write(comparison, config.name, out)
    return comparison


def _check(what: str, values: Sequence[float]) -> None:
    if not values or len(set(values)) < len(values) or not all(0 <= value < math.inf for value in values):
        raise InputError(f"{what} are {list(values)}; expected one or more, each at least 0 and given once")


def _write(comparison: Comparison, name: str, out: Path) -> None:
    data = {"name": name, **comparison.to_json()}
    seeds = len({pair.seed for pair in comparison.pairs})
    title = f"{name}: {data['images']:,} validation images, {seeds} gater seeds"
    picture = Picture(comparison, title)
    out.mkdir(parents=True, exist_ok=True)
    document = page(title, picture.svg(), remarks(comparison), tables(comparison))
    write_bytes(out / "sweep.csv", to_csv(comparison).encode())
    write_bytes(out / "sweep.json", json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")
    write_bytes(out / "pareto.png", picture.png())
    write_bytes(out / "pareto.html", document.encode())
