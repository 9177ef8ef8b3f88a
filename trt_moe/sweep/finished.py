"""A finished training run, opened: its experts, their logits and costs, and gaters for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.manifest import VerifyBy
from trt_moe.console import ProgressCallback
from trt_moe.data import Dataset
from trt_moe.errors import DataError, InputError
from trt_moe.export.bundle_writer import GATER, relative_costs
from trt_moe.export.measure import Timing
from trt_moe.models import ImageModel
from trt_moe.sweep.compare import Outcomes
from trt_moe.training.calibration import temperatures
from trt_moe.training.config import ExpertConfig, Method, TrainConfig
from trt_moe.training.data_identity import check_data
from trt_moe.training.experts import Shape, train_experts
from trt_moe.training.gater import TrainedGater, gater_path, train_gaters
from trt_moe.training.logits import GATER_PART, VALIDATION_PART, Judged, judge, judge_parts
from trt_moe.training.pipeline import load_splits
from trt_moe.training.splits import Corrupted, split
from trt_moe.training_run import check_finished

Log = Callable[[str], None]


@dataclass(frozen=True)
class FinishedRun:
    """What a finished training run left.

    Attributes:
        config: experts in the order of their costs, cheapest first.
        folder: its checkpoints and logits.
        gater_folder: checkpoints of gaters for these experts.
        shape: of the images.
        models: every classifier by name, with logits as they are.
        temperatures: of every expert and baseline by name.
        training: what gaters learn from, calibrated.
        validation: what they are compared on, calibrated.
        test: images that nothing was chosen by, clean.
        relative_costs: of gater, experts and baselines by name.
    """

    config: TrainConfig
    folder: Path
    gater_folder: Path
    shape: Shape
    models: Mapping[str, ImageModel]
    temperatures: Mapping[str, float]
    training: Judged
    validation: Judged
    test: Dataset
    relative_costs: Mapping[str, float]

    @property
    def costs(self) -> NDArray[np.float64]:
        """Relative costs of the experts, float64 [K]."""
        return np.asarray([self.relative_costs[expert.name] for expert in self.config.experts])

    def judged(self, what: str, images: Corrupted, classifiers: Sequence[ExpertConfig], log: Log) -> Judged:
        """The images with the classifiers' calibrated logits on them; see `judge`.

        The logits of what the run neither exported nor routes to, a teacher's, are as they are.
        """
        logits = judge(self.config, classifiers, self.models, what, images, self.folder, log)
        return logits.divided_by([self.temperatures.get(entry.name, 1.0) for entry in classifiers])

    def outcomes(self, what: str, images: Corrupted, log: Log, second_looks: bool = True) -> Outcomes:
        """What the experts do with images; see `judge` for `what`. Second looks by mirror run every expert again."""
        judged = self.judged(what, images, self.config.experts, log)
        second: dict[VerifyBy, NDArray[np.bool_]] = {"dearest": judged.right_with(judged.logits[:, -1:])}
        if second_looks and self.config.verify_by == "mirror":
            second["mirror"] = judged.right_with(self.mirrored(what, images, self.config.experts, log).logits)
        return Outcomes(
            experts=tuple(expert.name for expert in self.config.experts),
            costs=self.costs,
            gater_cost=self.relative_costs[GATER],
            severities=judged.images.severities,
            right=judged.right,
            second=second,
            losses=judged.losses,
            confidence=judged.confidence,
            verify_by=self.config.verify_by,
        )

    def mirrored(self, what: str, images: Corrupted, classifiers: Sequence[ExpertConfig], log: Log) -> Judged:
        """The same of the mirrored images."""
        return self.judged(f"{what}-mirrored", images.mirrored(), classifiers, log)

    def gaters(
        self, method: Method, weight: float, seeds: Sequence[int], progress: ProgressCallback | None, log: Log
    ) -> dict[int, TrainedGater]:
        """Gaters by seed; trains what is not trained yet, and replaces none of the run's own."""
        log(f"{method} gaters, latency weight {weight:g}")
        return {seed: self._gater(method, weight, seed, progress, log) for seed in seeds}

    def _gater(
        self, method: Method, weight: float, seed: int, progress: ProgressCallback | None, log: Log
    ) -> TrainedGater:
        gater = self.config.gater.model_copy(update={"methods": (method,), "seeds": (seed,)})
        config = self.config.model_copy(update={"gater": gater, "latency_weight": weight})
        learn = partial(train_gaters, config, self.shape, self.training, self.validation, self.costs)
        apart = self.gater_folder / "sweep" / f"latency-weight-{weight}"
        folder = self.gater_folder if weight == self.config.latency_weight else apart
        if folder != apart and gater_path(folder, method, seed).exists():
            # The run's own, unless its configuration or its costs have changed since: it is not replaced.
            with suppress(InputError):
                return learn(folder, progress, log, only_load=True)[0]
            folder = apart
        return learn(folder, progress, log)[0]

    def only(self, names: Sequence[str], log: Log) -> FinishedRun:
        """The same run with some of its experts, the dearest among them; it needs gaters of its own.

        Raises:
            InputError: unknown names, fewer than two, or the dearest expert is missing.
        """
        known = [expert.name for expert in self.config.experts]
        if len(set(names)) < 2 or not set(names) <= set(known) or known[-1] not in names:
            raise InputError(
                f"experts are {', '.join(names)}; expected two or more of {', '.join(known)}, one of them {known[-1]}"
            )
        experts = tuple(expert for expert in self.config.experts if expert.name in names)
        run = self._of(experts, "only-" + "-".join(expert.name for expert in experts), log)
        # The others have been trained all the same: experts may have learned from them, and they may be better.
        others = tuple(expert for expert in self.config.experts if expert.name not in names)
        return replace(run, config=run.config.model_copy(update={"teachers": (*run.config.teachers, *others)}))

    def with_expert(self, entry: ExpertConfig, log: Log) -> FinishedRun:
        """The same run with a baseline as one more expert; it needs gaters of its own."""
        experts = tuple(sorted((entry, *self.config.experts), key=lambda e: self.relative_costs[e.name]))
        return self._of(experts, f"with-{entry.name}", log)

    def _of(self, experts: tuple[ExpertConfig, ...], gater_folder: str, log: Log) -> FinishedRun:
        config = self.config.model_copy(update={"experts": experts})
        training, validation = (
            self.judged(what, judged.images, experts, log)
            for what, judged in ((GATER_PART, self.training), (VALIDATION_PART, self.validation))
        )
        folder = self.gater_folder / gater_folder
        return replace(self, config=config, gater_folder=folder, training=training, validation=validation)


def open_run(config: TrainConfig, progress: ProgressCallback | None, log: Log) -> FinishedRun:
    """Load what a run made; nothing but logits is computed, and those are kept.

    Raises:
        InputError: the configuration cannot be used, or the run is not finished.
        DataError: data, checkpoints or measured latencies cannot be used.
    """
    check_finished(config)
    data, test = load_splits(config, log)
    height, width, channels = data.images.shape[1:]
    shape = Shape(height, width, channels, len(data.class_names))
    folder = config.checkpoints / config.name
    check_data(folder, data, write=False)
    costs = _relative_costs(config, folder)
    config = config.model_copy(update={"experts": tuple(sorted(config.experts, key=lambda e: costs[e.name]))})
    parts = split(data, config.splits)
    models = train_experts(config, parts, shape, folder, progress, log)
    kept = [*config.experts, *config.baselines]
    judged = judge_parts(config, kept, models, parts, folder, log)
    fitted = temperatures(kept, judged[0])
    columns, divisors = range(len(config.experts)), [fitted[entry.name] for entry in config.experts]
    training, validation = (part.of(columns).divided_by(divisors) for part in judged)
    return FinishedRun(config, folder, folder, shape, models, fitted, training, validation, test, costs)


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
    names = [GATER, *(entry.name for entry in (*config.experts, *config.baselines))]
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
