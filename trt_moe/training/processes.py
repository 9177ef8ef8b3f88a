"""One process or many: devices, gradient averaging and who goes first, by Hugging Face accelerate.

`torchrun --nproc-per-node 4 -m trt_moe train CONFIG` starts one process a GPU (or CPU processes where there is
no GPU); without torchrun there is one process. `batch` counts images over all of them, so their number changes
neither the learning-rate schedule nor which images form a step.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_moe.errors import InputError
from trt_moe.models import ImageModel

# The others wait while the first process exports, measures and trains gaters.
_PATIENCE = timedelta(days=2)


def connect() -> Accelerator:
    """Join the processes that torchrun started; every call in a process answers for the same group."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def share_network(processes: Accelerator, model: ImageModel) -> nn.Module:
    """Move the model to this process's device; returns its network, with gradients averaged over processes.

    Batch norms of many GPUs see the whole step's images (of one piece, where a step is accumulated), as one
    process would. On CPU processes torch has no such norm: each normalises by its own images and the first
    one's running statistics are kept, so results depend on the number of processes.
    """
    model.to(processes.device)
    if processes.num_processes > 1 and processes.device.type == "cuda":
        model.network = convert_sync_batchnorm(model.network)  # type: ignore[no-untyped-call]
    network: nn.Module = processes.prepare_model(model.network)
    return network


def has_batch_norm(network: nn.Module) -> bool:
    """Say whether any layer normalises over the batch."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def check_batch(processes: Accelerator, what: str, batch: int, accumulate: int) -> None:
    """Refuse a batch that the processes cannot share equally.

    Raises:
        InputError: names the numbers.
    """
    pieces = processes.num_processes * accumulate
    if batch % pieces:
        raise InputError(
            f"{what}: batch {batch} cannot be divided by {processes.num_processes} processes x {accumulate} "
            f"accumulated pieces; give a multiple of {pieces}"
        )
