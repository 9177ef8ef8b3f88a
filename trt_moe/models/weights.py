"""Weights from a file that the user has: safetensors only, as a pickle may run code when it is read."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trt_moe.errors import BundleError

_PICKLE_STARTS = (b"PK", b"\x80")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        BundleError: it is none; of a pickle (.pth, .bin) the message says how to convert it.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        if _is_pickle(file):
            raise BundleError(
                f"{file} is a pickle file, which may run code when it is read; expected safetensors. Where you "
                "trust it, convert it: python -c 'import torch; from safetensors.torch import save_file; "
                f'weights = torch.load("{file}", map_location="cpu", weights_only=True); '
                f'save_file({{k: v.clone() for k, v in weights.items()}}, "{file.with_suffix(".safetensors")}")\''
            ) from error
        raise BundleError(f"{file} is not a readable safetensors file: {error}") from error


def _is_pickle(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(2).startswith(_PICKLE_STARTS)
    except OSError:
        return False
