"""All phases in a row: experts, ONNX files, measured costs, gater, bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from trt_moe.data import Dataset, load_dataset
from trt_moe.errors import InputError
from trt_moe.export.bundle_writer import GATER, BundleSource, ModelSource, relative_costs, write_bundle
from trt_moe.export.measure import Timing, measure_latency, native_precision
from trt_moe.export.torch_export import export_onnx
from trt_moe.models import ImageModel
from trt_moe.training.checkpoint import checkpoint_hash
from trt_moe.training.config import ExpertConfig, TrainConfig
from trt_moe.training.experts import Progress, Shape, checkpoint_path, train_experts
from trt_moe.training.gater import TrainedGater, train_gaters
from trt_moe.training.logits import Judged, judge_parts
from trt_moe.training.report import report
from trt_moe.training.splits import split

logger = logging.getLogger("trt_moe.training")


def train(
    config: TrainConfig,
    out: Path,
    progress: Progress | None = None,
    log: Callable[[str], None] = logger.info,
) -> Path:
    """Train what is not trained yet and write the bundle.

    Every phase keeps its result in `config.checkpoints / config.name`; a second call with the same config
    goes on where the first was stopped, and a call with changes trains only what the changes touch.

    Args:
        config: see `load_config`; `config.data` must be set.
        out: the bundle's folder; replaced once the new bundle is complete.
        progress: called as progress(what, done, total).
        log: gets one line per event.

    Returns:
        `out`, absolute.

    Raises:
        InputError: no data set given, or values that do not fit together.
        DataError: data set, checkpoint or output folder cannot be used.
        ModelOutputError: training diverged, or the export changed a network's answers.
    """
    if config.data is None:
        raise InputError("no data set: give --data DIR, or data: in the config")
    training_data, test = load_dataset(config.data, "train"), load_dataset(config.data, "test")
    shape = _shape(training_data, test, config)
    folder = config.checkpoints / config.name
    parts = split(training_data, config.splits)
    models = train_experts(config, parts, shape, folder, progress, log)
    kept = [*config.experts, *config.baselines]
    files = {entry.name: _export(config, entry, models[entry.name], shape, folder, log) for entry in kept}
    untrained = folder / "onnx" / "gater-untrained.onnx"
    timings = _measure(config, files, untrained, shape, folder, log)
    costs = relative_costs(next(iter(timings.values())), [e.name for e in config.experts])
    config = config.model_copy(update={"experts": tuple(sorted(config.experts, key=lambda e: costs[e.name]))})
    training, validation = judge_parts(config, models, parts, folder, log)
    weights = np.asarray([costs[e.name] for e in config.experts])
    gaters = train_gaters(config, shape, training, validation, weights, folder, progress, log)
    _write_report(config, gaters, validation, weights, costs[GATER], folder)
    best = gaters[0]
    log(f"gater {best.method}, seed {best.seed} is the best by validation")
    files[GATER] = folder / "onnx" / "gater.onnx"
    export_onnx(best.model, files[GATER], _input_shape(shape))
    source = BundleSource(
        name=config.name,
        gater=_gater_source(best, files[GATER], config),
        experts=[_source(entry, models[entry.name], files[entry.name]) for entry in config.experts],
        baselines=[_source(entry, models[entry.name], files[entry.name]) for entry in config.baselines],
        timings=timings,
        latency_weight=config.latency_weight,
        method=best.method,
        seed=config.seed,
        command=_command(config, out),
        blur_sigma=config.corruption.blur_sigma,
        noise_sigma=config.corruption.noise_sigma,
        reference_side=config.corruption.reference_side,
        test=test,
        evaluation_images=config.evaluation_images,
        sample_images=config.sample_images,
        golden_images=config.golden_images,
    )
    return write_bundle(source, out, log)


def _shape(training: Dataset, test: Dataset, config: TrainConfig) -> Shape:
    height, width, channels = training.images.shape[1:]
    if test.images.shape[1:] != training.images.shape[1:] or test.class_names != training.class_names:
        raise InputError(
            f"training images are {training.images.shape[1:]} with classes {list(training.class_names)}, "
            f"test images {test.images.shape[1:]} with {list(test.class_names)}; both splits must agree"
        )
    if len(config.mean) != channels:
        raise InputError(f"the images have {channels} channels, mean and std {len(config.mean)}")
    return Shape(height, width, channels, len(training.class_names))


def _input_shape(shape: Shape) -> tuple[int, int, int]:
    return shape.height, shape.width, shape.channels


def _export(
    config: TrainConfig,
    entry: ExpertConfig,
    model: ImageModel,
    shape: Shape,
    folder: Path,
    log: Callable[[str], None],
) -> Path:
    """Write the ONNX file, unless it was made from these weights before."""
    file = folder / "onnx" / f"{entry.name}.onnx"
    made_of = checkpoint_hash(checkpoint_path(folder, entry.name))
    mark = file.with_suffix(".json")
    if not (file.is_file() and _read_json(mark) == made_of):
        error = export_onnx(model, file, _input_shape(shape))
        mark.write_text(json.dumps(made_of), encoding="utf-8")
        log(f"{entry.name}: exported, {file.stat().st_size / 1e6:.1f} MB, error {error:.1e}")
    return file


def _measure(
    config: TrainConfig,
    files: dict[str, Path],
    untrained: Path,
    shape: Shape,
    folder: Path,
    log: Callable[[str], None],
) -> dict[str, dict[str, Timing]]:
    """Time all models, or read the timings back where they were taken for these networks.

    The CPU's native precision comes first: it is what routers use unless told otherwise, so costs are its.

    The gater's latency is measured before it is trained: weights do not change it.
    """
    from trt_moe.training.gater import build_gater

    precisions = list(dict.fromkeys([native_precision(), "fp32"]))
    identity = [
        precisions,
        [config.expert_hash(entry) for entry in (*config.experts, *config.baselines)],
        config.gater.width,
    ]
    stored = _read_json(folder / "latency.json")
    if isinstance(stored, dict) and stored.get("identity") == identity:
        return {
            precision: {name: Timing(np.asarray(values)) for name, values in rows.items()}
            for precision, rows in stored["milliseconds"].items()
        }
    export_onnx(build_gater(config, shape), untrained, _input_shape(shape))
    everything = {GATER: untrained, **files}
    timings = {
        precision: measure_latency(everything, _input_shape(shape), precision=precision, always_fp32=(GATER,))
        for precision in precisions
    }
    # Rounded as they are stored: costs read back must equal these to the last bit, or the gaters train again.
    timings = {
        precision: {name: Timing(timing.milliseconds.round(5)) for name, timing in table.items()}
        for precision, table in timings.items()
    }
    for precision, table in timings.items():
        for name, timing in table.items():
            figures = " ".join(f"{key} {value:.3f}" for key, value in timing.summary().items())
            log(f"latency in {precision}, {name}: {figures}")
    rows = {p: {name: t.milliseconds.tolist() for name, t in row.items()} for p, row in timings.items()}
    text = json.dumps({"identity": identity, "milliseconds": rows})
    (folder / "latency.json").write_text(text, encoding="utf-8")
    return timings


def _write_report(
    config: TrainConfig,
    gaters: list[TrainedGater],
    validation: Judged,
    costs: np.ndarray[tuple[int], np.dtype[np.float64]],
    gater_cost: float,
    folder: Path,
) -> None:
    names = [e.name for e in config.experts]
    text = report(gaters, validation, names, costs, gater_cost, config.latency_weight)
    (folder / "gaters.md").write_text(text, encoding="utf-8")


def _source(entry: ExpertConfig, model: ImageModel, file: Path) -> ModelSource:
    options = {"img_size": entry.image_size, **entry.options}
    if entry.model.startswith("squeezenet"):
        del options["img_size"]
    arguments = ", ".join(f"{key}={value}" for key, value in options.items())
    return ModelSource(
        name=entry.name,
        onnx=file,
        parameters=_parameters(model),
        architecture=f"{entry.model}({arguments})",
        graph_size=model.graph_size,
        trained_on=entry.severities,
    )


def _gater_source(gater: TrainedGater, file: Path, config: TrainConfig) -> ModelSource:
    return ModelSource(
        name=GATER,
        onnx=file,
        parameters=_parameters(gater.model),
        architecture=f"SqueezeNetLight(width={config.gater.width})",
        graph_size=gater.model.graph_size,
        trained_on=(1.0,) * len(config.corruption.blur_sigma),
    )


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _command(config: TrainConfig, out: Path) -> str:
    name = config.source.as_posix() if config.source is not None else "CONFIG"
    # Absolute paths are of one machine; what people need is which config of the repository.
    name = f"configs/{Path(name).name}" if Path(name).is_absolute() else name
    target = f"engines/{out.name}" if out.is_absolute() else out.as_posix()
    return f"trt-moe train {name} --data DIR --out {target}"


def _read_json(file: Path) -> object:
    try:
        value: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value
