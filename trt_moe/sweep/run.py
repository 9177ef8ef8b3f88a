"""A sweep on the frozen experts of a finished training run: gaters, comparison, files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.writer import write_bytes
from trt_moe.console import ProgressCallback
from trt_moe.errors import DataError, InputError
from trt_moe.export.bundle_writer import GATER, relative_costs
from trt_moe.export.measure import Timing
from trt_moe.sweep.compare import Comparison, Outcomes, compare
from trt_moe.sweep.page import page
from trt_moe.sweep.picture import Picture
from trt_moe.sweep.tables import remarks, tables, to_csv
from trt_moe.training.config import Method, TrainConfig
from trt_moe.training.experts import Shape, predict, train_experts
from trt_moe.training.gater import train_gaters
from trt_moe.training.logits import Judged, judge_parts
from trt_moe.training.pipeline import load_splits
from trt_moe.training.splits import split
from trt_moe.training_run import check_finished

Log = Callable[[str], None]


@dataclass(frozen=True)
class _Run:
    """What a finished training run left.

    Attributes:
        config: experts in the order of their costs, cheapest first.
        folder: its checkpoints.
        shape: of the images.
        training: what gaters learn from.
        validation: what they are compared on.
        costs: float64 [K].
        gater_cost: in the same unit.
    """

    config: TrainConfig
    folder: Path
    shape: Shape
    training: Judged
    validation: Judged
    costs: NDArray[np.float64]
    gater_cost: float


def sweep(
    config: TrainConfig,
    latency_weights: Sequence[float],
    seeds: Sequence[int],
    out: Path,
    progress: ProgressCallback | None = None,
    log: Log = print,
) -> Comparison:
    """Compare one gater with a run-time latency weight against gaters trained for each weight.

    The one gater regresses the experts' losses (method benefit), so it knows no latency weight until routing;
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
    _make_folder(out)
    run = _open(config, progress, log)
    one = _scores(run, "benefit", config.latency_weight, seeds, progress, log)
    separate = {weight: _scores(run, "gumbel", weight, seeds, progress, log) for weight in sorted(latency_weights)}
    comparison = compare(_outcomes(run), one, separate)
    _write(comparison, config.name, out)
    return comparison


def _check(what: str, values: Sequence[float]) -> None:
    if not values or len(set(values)) < len(values) or not all(0 <= value < math.inf for value in values):
        raise InputError(f"{what} are {list(values)}; expected one or more, each at least 0 and given once")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder ({error.strerror}); give another one with --out") from error


def _open(config: TrainConfig, progress: ProgressCallback | None, log: Log) -> _Run:
    check_finished(config)
    data, _ = load_splits(config, log)
    height, width, channels = data.images.shape[1:]
    shape = Shape(height, width, channels, len(data.class_names))
    folder = config.checkpoints / config.name
    costs = _relative_costs(config, folder)
    config = config.model_copy(update={"experts": tuple(sorted(config.experts, key=lambda e: costs[e.name]))})
    parts = split(data, config.splits)
    models = train_experts(config, parts, shape, folder, progress, log)
    training, validation = judge_parts(config, models, parts, folder, log)
    weights = np.asarray([costs[e.name] for e in config.experts])
    return _Run(config, folder, shape, training, validation, weights, costs[GATER])


def _relative_costs(config: TrainConfig, folder: Path) -> dict[str, float]:
    """Costs as the run had them: a sweep measures nothing, so it can be repeated on any machine."""
    if config.latencies_ms is None:
        milliseconds = _measured(config, folder / "latency.json")
    else:
        milliseconds = {name: [value] for name, value in config.latencies_ms.items()}
    timings = {name: Timing(np.asarray(values)) for name, values in milliseconds.items()}
    return relative_costs(timings, [expert.name for expert in config.experts])


def _measured(config: TrainConfig, file: Path) -> dict[str, list[float]]:
    """Milliseconds of the run's models in the precision that costs are taken from, which comes first."""
    names = [GATER, *(expert.name for expert in config.experts)]
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        hashes, table = stored["identity"][1], next(iter(stored["milliseconds"].values()))
        milliseconds = {name: [float(value) for value in table[name]] for name in names}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise DataError(
            f"{file} does not hold the latencies of a run ({error!r}); run `trt-moe train` first"
        ) from error
    if hashes != [config.expert_hash(entry) for entry in (*config.experts, *config.baselines)]:
        raise DataError(f"{file} holds latencies of other models; bring the run up to date with `trt-moe train`")
    return milliseconds


def _scores(
    run: _Run, method: Method, weight: float, seeds: Sequence[int], progress: ProgressCallback | None, log: Log
) -> dict[int, NDArray[np.float32]]:
    """Scores of the gaters on the validation images by seed; trains what is not trained yet."""
    log(f"{method} gaters, latency weight {weight:g}")
    gater = run.config.gater.model_copy(update={"methods": (method,), "seeds": tuple(seeds)})
    config = run.config.model_copy(update={"gater": gater, "latency_weight": weight})
    # The run has gaters of its own latency weight; others must not take their place.
    own = weight == run.config.latency_weight
    folder = run.folder if own else run.folder / "sweep" / f"latency-weight-{weight}"
    trained = train_gaters(config, run.shape, run.training, run.validation, run.costs, folder, progress, log)
    by_seed = {gater.seed: predict(gater.model, run.validation.images.images) for gater in trained}
    return {seed: by_seed[seed] for seed in seeds}


def _outcomes(run: _Run) -> Outcomes:
    validation = run.validation
    return Outcomes(
        experts=tuple(expert.name for expert in run.config.experts),
        costs=run.costs,
        gater_cost=run.gater_cost,
        severities=validation.images.severities,
        right=validation.right,
        losses=validation.losses,
        confidence=validation.confidence,
    )


def _write(comparison: Comparison, name: str, out: Path) -> None:
    data = {"name": name, **comparison.to_json()}
    seeds = len({pair.seed for pair in comparison.pairs})
    title = f"{name}: {data['images']:,} validation images, {seeds} gater seeds"
    picture = Picture(comparison, title)
    document = page(title, picture.svg(), remarks(comparison), tables(comparison))
    write_bytes(out / "sweep.csv", to_csv(comparison).encode())
    write_bytes(out / "sweep.json", json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")
    write_bytes(out / "pareto.png", picture.png())
    write_bytes(out / "pareto.html", document.encode())
