"""`trt-moe train` and `trt-moe export`: a configuration file to a bundle, by `trt_moe.training`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.console import ProgressCallback
from trt_moe.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from trt_moe.training.config import TrainConfig


def run_training(
    config_file: Path,
    data: Path | None,
    out: Path | None,
    checkpoints: Path | None,
    only_export: bool,
    skip_broken: bool,
    force: bool,
    progress: ProgressCallback,
    log: Callable[[str], None],
) -> dict[str, Any] | None:
    """Train what is not trained yet and write the bundle.

    Args:
        config_file: YAML configuration.
        data: folder of the data set, instead of the configuration's.
        out: the bundle's folder; None: engines/<name of the configuration>.
        checkpoints: folder of runs, instead of the configuration's.
        only_export: refuse where something is not trained yet.
        skip_broken: leave out images that cannot be used, whatever the configuration says.
        force: replace a bundle at `out` that another run made.
        progress: called as progress(what, done, total).
        log: gets one line per event.

    Returns:
        {"bundle": path, "name": name}; None in all processes but the first of those that torchrun started.

    Raises:
        MissingDependencyError: torch, timm or another package of the extra `train` is not installed.
        InputError: the configuration is wrong, or with `only_export` the run is not finished.
    """
    config = open_config(config_file, data, checkpoints, skip_broken)
    from trt_moe.training.pipeline import train
    from trt_moe.training.processes import connect

    if only_export:
        check_finished(config)
    processes = connect()
    bundle = train(config, out or Path("engines") / config.name, progress, log, force, only_export)
    processes.end_training()
    return {"bundle": str(bundle), "name": config.name} if processes.is_main_process else None


def open_config(config_file: Path, data: Path | None, checkpoints: Path | None, skip_broken: bool) -> TrainConfig:
    """Read a training configuration, with what is given on the command line instead of its own values.

    Raises:
        MissingDependencyError: torch, timm or another package of the extra `train` is not installed.
        InputError: the configuration is wrong.
    """
    try:
        from trt_moe.training.config import load_config
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs packages that are not installed ({error}); in the checkout: pip install '.[train]'"
        ) from error
    config = load_config(config_file)
    changes = {"data": data, "checkpoints": checkpoints, "skip_broken": skip_broken or None}
    return config.model_copy(update={key: value for key, value in changes.items() if value is not None})


def check_finished(config: TrainConfig) -> None:
    """Refuse a run that has no checkpoint of something, or one of other settings.

    Raises:
        InputError: names what is missing or stale.
        DataError: a checkpoint is damaged.
    """
    from trt_moe.training.checkpoint import config_hash_of
    from trt_moe.training.experts import checkpoint_path

    folder = config.checkpoints / config.name
    names = [entry.name for entry in config.classifiers()]
    names += [f"gater-{method}-{seed}" for method in config.gater.methods for seed in config.gater.seeds]
    names += ["joint"] if config.joint is not None else []
    missing = [name for name in names if not checkpoint_path(folder, name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no checkpoint of {', '.join(missing)}; finish the run with `trt-moe train` first, "
            "or say where it is with --checkpoints"
        )
    stale = [
        entry.name
        for entry in config.classifiers()
        if config_hash_of(checkpoint_path(folder, entry.name)) != config.expert_hash(entry)
    ]
    if stale:
        raise InputError(
            f"{folder}: {', '.join(stale)} were trained with other settings than {config.source}; "
            "train them again with `trt-moe train`"
        )
