"""All phases in a row: experts, ONNX files, measured costs, gater, bundle."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from trt_moe.bundle.manifest import ClassName, HeldOut, describe_errors
from trt_moe.bundle.writer import write_bytes
from trt_moe.data import Dataset, load_dataset
from trt_moe.data.datasets import BrokenImagesError, files_digest, has_splits, hold_out
from trt_moe.errors import DataError, InputError
from trt_moe.export.bundle_writer import (
    GATER,
    BundleSource,
    ModelSource,
    check_test_images,
    on_device,
    relative_costs,
    write_bundle,
)
from trt_moe.export.destination import check_destination
from trt_moe.export.measure import Timing, measure_latency, native_precision
from trt_moe.export.measure_gpu import gpu_for, measure_latency_on_gpu
from trt_moe.export.torch_export import export_onnx
from trt_moe.models import ImageModel, fused_gater
from trt_moe.training.calibration import temperatures
from trt_moe.training.checkpoint import checkpoint_hash
from trt_moe.training.config import ExpertConfig, TrainConfig
from trt_moe.training.data_identity import check_data
from trt_moe.training.experts import Shape, checkpoint_path, train_experts
from trt_moe.training.gater import TrainedGater, build_gater, gater_path, train_gaters
from trt_moe.training.joint import train_joint
from trt_moe.training.logits import Judged, judge_parts
from trt_moe.training.loop import Progress
from trt_moe.training.processes import check_batch, connect
from trt_moe.training.report import report
from trt_moe.training.run_files import read_json, writing
from trt_moe.training.splits import split

logger = logging.getLogger("trt_moe.training")


def train(
    config: TrainConfig,
    out: Path,
    progress: Progress | None = None,
    log: Callable[[str], None] = logger.info,
    force: bool = False,
    only_export: bool = False,
) -> Path:
    """Train what is not trained yet and write the bundle.

    Every phase keeps its result in `config.checkpoints / config.name`; a second call with the same config
    goes on where the first was stopped, and a call with changes trains only what the changes touch.

    Under `torchrun` all processes call this and share the experts and joint phases; the first one does the rest.

    Args:
        config: see `load_config`; `config.data` must be set.
        out: the bundle's folder; a bundle of this run there is replaced once the new one is complete.
        progress: called as progress(what, done, total).
        log: gets one line per event.
        force: replace a bundle of anybody.
        only_export: neither train nor measure; the run must be finished, see `check_finished`.

    Returns:
        `out`, absolute.

    Raises:
        InputError: no data set given, values that do not fit together, `out` cannot be replaced or written, or with
            `only_export` the run was made with other settings.
        DataError: data set, checkpoint or output folder cannot be used.
        DeviceError: latencies of a GPU are asked for, and there is none.
        ModelOutputError: training diverged, or the export changed a network's answers.
    """
    processes = connect()
    if not processes.is_main_process:
        progress, log = None, _silent
    check_destination(out, force, _used(config), config.name)
    training_data, test = load_splits(config, log)
    shape = _shape(training_data, test, config)
    # What the last phases need is checked now, as they come after hours.
    check_test_images(test, max(config.sample_images, config.golden_images))
    build_gater(config, shape)
    gpu_for(config.latency_device)
    _check_class_names(training_data)
    if config.joint is not None:
        check_batch(processes, "joint", config.joint.batch, config.joint.accumulate)
    folder = config.checkpoints / config.name
    check_data(folder, training_data, processes.is_main_process)
    parts = split(training_data, config.splits)
    models = train_experts(config, parts, shape, folder, progress, log)
    onnx = folder / "onnx"
    kept = [*config.experts, *config.baselines]
    # The others come when the first process is done, and read what it made.
    with processes.main_process_first():
        judged = judge_parts(config, kept, models, parts, folder, log)
        fitted = temperatures(kept, judged[0])
        log("temperatures: " + " ".join(f"{name} {value:.2f}" for name, value in fitted.items()))
        calibrated = {name: models[name].with_temperature(value) for name, value in fitted.items()}
        files = {
            e.name: _export(calibrated[e.name], onnx / f"{e.name}.onnx", checkpoint_path(folder, e.name), shape, log)
            for e in kept
        }
        timings, costs = _latencies(config, files, calibrated, shape, folder, log, only_export)
        config = config.model_copy(update={"experts": tuple(sorted(config.experts, key=lambda e: costs[e.name]))})
        columns, divisors = [kept.index(e) for e in config.experts], [fitted[e.name] for e in config.experts]
        training, validation = (part.of(columns).divided_by(divisors) for part in judged)
        weights = np.asarray([costs[e.name] for e in config.experts])
        gaters = train_gaters(config, shape, training, validation, weights, folder, progress, log, only_export)
    best = gaters[0]
    log(f"gater {best.method}, seed {best.seed} is the best by validation")
    gater, tuned = best.model, None
    if config.joint is not None:
        tuned = train_joint(
            config, config.joint, best, calibrated, parts.gater, validation, weights, folder, progress, log, only_export
        )
    if not processes.is_main_process:
        return out.absolute()
    _write_report(config, gaters, validation, weights, costs[GATER], folder)
    if tuned is not None:
        # With the temperatures from before it: the images that they could be fitted on have now been trained on.
        gater, calibrated = tuned.gater, {**calibrated, **tuned.experts}
        for name, model in tuned.experts.items():
            files[name] = _export(model, onnx / "joint" / f"{name}.onnx", tuned.file, shape, log)
    trained = tuned.file if tuned is not None else gater_path(folder, best.method, best.seed)
    files[GATER] = _export(fused_gater(gater), onnx / f"{GATER}.onnx", trained, shape, log)
    source = BundleSource(
        name=config.name,
        gater=_gater_source(gater, files[GATER], config),
        experts=[_source(entry, calibrated[entry.name], files[entry.name]) for entry in config.experts],
        baselines=[_source(entry, calibrated[entry.name], files[entry.name]) for entry in config.baselines],
        timings=timings,
        costs=costs,
        latency_weight=config.latency_weight,
        verify_below=config.verify_below,
        verify_by=config.verify_by,
        method=best.method,
        seed=config.seed,
        command=_command(config, out),
        blur_sigma=config.corruption.blur_sigma,
        noise_sigma=config.corruption.noise_sigma,
        reference_side=config.corruption.reference_side,
        test=test,
        held_out=_held_out(config, training_data, test),
        evaluation_images=config.evaluation_images,
        sample_images=config.sample_images,
        golden_images=config.golden_images,
    )
    return write_bundle(source, out, log)


def _used(config: TrainConfig) -> dict[str, Path]:
    """What a bundle must not take the place of."""
    used = {
        "the data set": config.data,
        "the run's checkpoints": config.checkpoints / config.name,
        "the configuration": config.source,
    }
    return {what: path for what, path in used.items() if path is not None}


def load_splits(config: TrainConfig, log: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """Read the training and the test split as the config says, and log what was left out.

    Raises:
        InputError: no data set given.
        DataError: it cannot be read.
    """
    if config.data is None:
        raise InputError("no data set: give --data DIR, or data: in the config")
    if _holds_out(config):
        training, test = hold_out(_load(config, "test"), config.held_out)
        log(
            f"held out {len(test)} of {len(test) + len(training)} images for the test; `trt-moe eval {config.data}` "
            "judges by these, too"
        )
    else:
        training, test = _load_both(config)
        if config.held_out > 0:
            log(f"held_out {config.held_out:g} is not used: {config.data} keeps test images apart already")
    for what, data in (("training", training), ("test", test)):
        if data.broken:
            log(f"left out {len(data.broken)} of the {what} images: {'; '.join(data.broken)}")
    return training, test


def _load_both(config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Both splits; what is broken in either is told at once."""
    splits: list[Dataset] = []
    errors: list[str] = []
    parts: tuple[Literal["train", "test"], ...] = ("train", "test")
    for part in parts:
        try:
            splits.append(_load(config, part))
        except BrokenImagesError as error:
            errors.append(str(error))
    if errors:
        raise BrokenImagesError("\n".join(errors))
    training, test = splits
    return training, test


def _holds_out(config: TrainConfig) -> bool:
    return config.data is not None and config.held_out > 0 and not has_splits(config.data)


def _held_out(config: TrainConfig, training: Dataset, test: Dataset) -> HeldOut | None:
    if not _holds_out(config):
        return None
    assert config.data is not None
    return HeldOut(share=config.held_out, images=len(training) + len(test), sha256=files_digest(config.data))


def _load(config: TrainConfig, part: Literal["train", "test"]) -> Dataset:
    assert config.data is not None
    return load_dataset(config.data, part, config.image_shape, config.skip_broken)


def _silent(_: str) -> None:
    """Log nothing: only the first process talks."""


def _check_class_names(data: Dataset) -> None:
    """Refuse classes that a bundle could not have.

    Raises:
        InputError: names the class.
    """
    try:
        TypeAdapter(list[ClassName]).validate_python(list(data.class_names))
    except ValidationError as error:
        raise InputError(f"{data.name}: class {describe_errors(error)}; rename its folder") from None


def _shape(training: Dataset, test: Dataset, config: TrainConfig) -> Shape:
    height, width, channels = training.images.shape[1:]
    if len(training.class_names) < 2:
        raise DataError(
            f"{training.name} has one class only, {training.class_names[0]}; a classifier needs at least two: "
            "--data takes the folder that holds the class folders, or seg_train and seg_test"
        )
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


def _pooled(timings: dict[str, Timing], config: TrainConfig) -> dict[str, Timing]:
    """Give networks of one shape all their timings together: what they differ by is noise, and must not route."""
    alike: dict[str, list[str]] = {GATER: [GATER]}
    for entry in (*config.experts, *config.baselines):
        form = json.dumps([entry.model, entry.image_size, entry.options], sort_keys=True)
        alike.setdefault(form, []).append(entry.name)
    return {
        name: Timing(np.concatenate([timings[other].milliseconds for other in names]))
        for names in alike.values()
        for name in names
    }


def _export(model: ImageModel, file: Path, checkpoint: Path, shape: Shape, log: Callable[[str], None]) -> Path:
    """Write the ONNX file, unless it was made from this checkpoint, with this temperature, before."""
    made_of = [checkpoint_hash(checkpoint), None if model.temperature is None else model.temperature.item()]
    mark = file.with_suffix(".json")
    if not (file.is_file() and read_json(mark) == made_of):
        # A copy, as exporting changes the memory format, and with it the last bits of what comes after.
        with writing(file):
            error = export_onnx(copy.deepcopy(model).cpu(), file, _input_shape(shape))
            mark.write_text(json.dumps(made_of), encoding="utf-8")
        log(f"{file.stem}: exported, {file.stat().st_size / 1e6:.1f} MB, error {error:.1e}")
    return file


def _latencies(
    config: TrainConfig,
    files: dict[str, Path],
    models: dict[str, ImageModel],
    shape: Shape,
    folder: Path,
    log: Callable[[str], None],
    only_load: bool,
) -> tuple[dict[str, dict[str, Timing]], dict[str, float]]:
    """Return what was measured (nothing, where the config gives latencies) and the relative costs."""
    experts = [e.name for e in config.experts]
    if config.latencies_ms is not None:
        given = {name: Timing(np.asarray([value])) for name, value in config.latencies_ms.items()}
        return {}, relative_costs(given, experts)
    timings = _measure(config, files, models, folder / "onnx" / "gater-untrained.onnx", shape, folder, log, only_load)
    return timings, relative_costs(next(iter(timings.values())), experts)


def _measure(
    config: TrainConfig,
    files: dict[str, Path],
    models: dict[str, ImageModel],
    untrained: Path,
    shape: Shape,
    folder: Path,
    log: Callable[[str], None],
    only_load: bool,
) -> dict[str, dict[str, Timing]]:
    """Time all models, or read the timings back where they were taken for these networks.

    What the costs are made of comes first: the GPU's where the config asks for it, else those in the CPU's native
    precision, which is what routers use unless told otherwise.

    The gater's latency is measured before it is trained: weights do not change it.
    """
    gpu = gpu_for(config.latency_device)
    on_gpu = None if gpu is None else on_device("fp16", str(gpu.info["name"]))
    precisions = list(dict.fromkeys([native_precision(), "fp32"]))
    kept_under = precisions if on_gpu is None else [on_gpu, *precisions]
    identity = [
        kept_under,
        [config.expert_hash(entry) for entry in (*config.experts, *config.baselines)],
        ["fused", config.gater.width],
    ]
    stored = read_json(folder / "latency.json")
    if isinstance(stored, dict) and stored.get("identity") == identity:
        return {
            precision: {name: Timing(np.asarray(values)) for name, values in rows.items()}
            for precision, rows in stored["milliseconds"].items()
        }
    if only_load:
        raise InputError(
            f"{folder / 'latency.json'} holds no latencies of these models in {', '.join(kept_under)}, and gaters "
            "learn with the costs that come of them; nothing was changed. Take the settings of the run and a machine "
            "like its own, or measure and train again with `trt-moe train`"
        )
    gater = build_gater(config, shape)
    with writing(untrained):
        export_onnx(fused_gater(gater), untrained, _input_shape(shape))
    everything = {GATER: untrained, **files}
    timings = {
        precision: measure_latency(everything, precision=precision, always_fp32=(GATER,)) for precision in precisions
    }
    if gpu is not None and on_gpu is not None:
        measured = measure_latency_on_gpu(gpu, gater, len(config.experts), models, _input_shape(shape), shape.classes)
        timings = {on_gpu: measured, **timings}
    # Rounded as they are stored: costs read back must equal these to the last bit, or the gaters train again.
    timings = {
        precision: {name: Timing(timing.milliseconds.round(5)) for name, timing in _pooled(table, config).items()}
        for precision, table in timings.items()
    }
    for precision, table in timings.items():
        for name, timing in table.items():
            figures = " ".join(f"{key} {value:.3f}" for key, value in timing.summary().items())
            log(f"latency in {precision}, {name}: {figures}")
    rows = {p: {name: t.milliseconds.tolist() for name, t in row.items()} for p, row in timings.items()}
    with writing(folder / "latency.json"):
        write_bytes(folder / "latency.json", json.dumps({"identity": identity, "milliseconds": rows}).encode())
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
    with writing(folder / "gaters.md"):
        write_bytes(folder / "gaters.md", text.encode())


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


def _gater_source(gater: ImageModel, file: Path, config: TrainConfig) -> ModelSource:
    return ModelSource(
        name=GATER,
        onnx=file,
        parameters=_parameters(gater),
        architecture=f"SqueezeNetLight(width={config.gater.width})",
        graph_size=gater.graph_size,
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
