"""Checkpoints as safetensors files: written atomically, tied to the hash of the config that made them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trt_moe.bundle.writer import write_bytes
from trt_moe.errors import DataError

_MODEL = "model."
_OPTIMIZER = "optimizer."


def save_checkpoint(
    path: Path, model: nn.Module, config_hash: str, epoch: int, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write the weights, and the optimizer's state where given; the old file survives a failure.

    Args:
        path: the file; its folder is made.
        model: its state dict is stored.
        config_hash: a later run with another hash will not use the file.
        epoch: epochs done.
        optimizer: with it the run can go on; without it the file is a finished result.

    Raises:
        DataError: the file cannot be written (disk full, no permission).
    """
    tensors = {_MODEL + name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"{_OPTIMIZER}{names[id(parameter)]}.{key}"] = torch.as_tensor(value).contiguous()
    # Tensors that share storage would be refused by safetensors.
    data = save({name: value.clone() for name, value in tensors.items()}, {"config": config_hash, "epoch": str(epoch)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    except OSError as error:
        raise DataError(
            f"cannot write checkpoint {path}: {error}; the previous one is kept. Free some space, or give another "
            "folder (--checkpoints)"
        ) from error


def load_checkpoint(
    path: Path, model: nn.Module, config_hash: str, optimizer: torch.optim.Optimizer | None = None
) -> int | None:
    """Fill model and optimizer; returns the epochs done, or None where no fitting checkpoint exists.

    Raises:
        DataError: the file is damaged, or has this config's hash but another architecture's tensors.
    """
    if config_hash_of(path) != config_hash:
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata()
            tensors: dict[str, Tensor] = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    try:
        model.load_state_dict({k[len(_MODEL) :]: v for k, v in tensors.items() if k.startswith(_MODEL)})
    except RuntimeError as error:
        raise DataError(
            f"checkpoint {path} holds another architecture, or one for other classes: {error}; delete it to train "
            "again, or give this run another folder (--checkpoints)"
        ) from error
    if optimizer is not None:
        _load_optimizer(optimizer, model, tensors)
    return int(metadata["epoch"])


def config_hash_of(path: Path) -> str | None:
    """Return the hash of the config that made a checkpoint; None where there is no such file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    found = metadata.get("config")
    return None if found is None else str(found)


def checkpoint_hash(path: Path) -> str:
    """Return the sha256 of a checkpoint file: it tells whether something made from it is up to date."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(path: Path, error: Exception) -> DataError:
    try:
        path.open("rb").close()
    except OSError as reason:
        return DataError(
            f"checkpoint {path} cannot be read ({reason.strerror}); it needs your permission to, or give this run "
            "another folder (--checkpoints)"
        )
    return DataError(f"checkpoint {path} is damaged ({error}); delete it to train again")


def _load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        prefix = f"{_OPTIMIZER}{name}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        # A name may be the prefix of a longer one (block.1 and block.1.weight): its keys hold a dot.
        state = {key: value for key, value in state.items() if "." not in key}
        if state:
            optimizer.state[parameter] = {key: _placed_like(parameter, value) for key, value in state.items()}


def _placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """On the parameter's device, and in its memory format: the fused optimizer of CUDA refuses any other."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
