"""`trt-moe train` and `trt-moe export`: a configuration file to a bundle, by `trt_moe.training`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_moe.console import ProgressCallback
from trt_moe.errors import DataError, InputError, MissingDependencyError

if TYPE_CHECKING:
    from trt_moe.training.config import TrainConfig


def run_training(
    config_file: Path,
    data: Path | None,
    out: Path | None,
    checkpoints: Path | None,
    only_export: bool,
    progress: ProgressCallback,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Train what is not trained yet and write the bundle.

    Args:
        config_file: YAML configuration.
        data: folder of the data set, instead of the configuration's.
        out: the bundle's folder; None: engines/<name of the configuration>.
        checkpoints: folder of runs, instead of the configuration's.
        only_export: refuse where something is not trained yet.
        progress: called as progress(what, done, total).
        log: gets one line per event.

    Returns:
        {"bundle": path, "name": name}.

    Raises:
        MissingDependencyError: torch, timm or another package of the extra `train` is not installed.
        InputError: the configuration is wrong, or with `only_export` the run is not finished.
    """
    try:
        from trt_moe.training.config import load_config
        from trt_moe.training.pipeline import train
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs packages that are not installed ({error}); in the checkout: pip install '.[train]'"
        ) from error
    config = load_config(config_file)
    changes = {"data": data, "checkpoints": checkpoints}
    config = config.model_copy(update={key: value for key, value in changes.items() if value is not None})
    if only_export:
        _check_finished(config)
    target = out or Path("engines") / config.name
    return {"bundle": str(train(config, target, progress, log)), "name": config.name}


def _check_finished(config: TrainConfig) -> None:
    from trt_moe.training.experts import checkpoint_path

    folder = config.checkpoints / config.name
    names = [entry.name for entry in config.classifiers()]
    names += [f"gater-{method}-{seed}" for method in config.gater.methods for seed in config.gater.seeds]
    missing = [name for name in names if not checkpoint_path(folder, name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no checkpoint of {', '.join(missing)}; finish the run with `trt-moe train` first, "
            "or say where it is with --checkpoints"
        )
    stale = [
        entry.name
        for entry in config.classifiers()
        if _config_hash(checkpoint_path(folder, entry.name)) != config.expert_hash(entry)
    ]
    if stale:
        raise InputError(
            f"{folder}: {', '.join(stale)} were trained with other settings than {config.source}; "
            "train them again with `trt-moe train`"
        )


def _config_hash(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            metadata = stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(f"checkpoint {file} is damaged ({error}); delete it to train again") from error
    found = metadata.get("config")
    return None if found is None else str(found)
