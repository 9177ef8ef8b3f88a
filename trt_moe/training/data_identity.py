"""Which data a run was made from: its checkpoints and logits are of no use for any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from trt_moe.bundle.writer import write_bytes
from trt_moe.data import Dataset
from trt_moe.errors import InputError
from trt_moe.training.run_files import read_json, writing

_FILE = "data.json"


def check_data(folder: Path, training: Dataset, write: bool = True) -> None:
    """Refuse a run's folder that holds what was made from other training data; note them in a new one.

    Checkpoints know the configuration that they were made by, not the images. A run from before this note existed
    is taken to be of this data.

    Args:
        folder: of the run.
        training: its training split.
        write: note the data where nothing is noted yet.

    Raises:
        InputError: the folder is of other data; says what differs.
        DataError: the note cannot be written.
    """
    found = identity(training)
    file = folder / _FILE
    noted = read_json(file)
    if not isinstance(noted, dict):
        if write:
            with writing(file):
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())
    elif noted != found:
        differs = ", ".join(
            f"{key} {noted.get(key)!s:.80}, now {found[key]!s:.80}" for key in found if noted.get(key) != found[key]
        )
        raise InputError(
            f"{folder} holds a run on other training data ({differs}); give this one another folder (--checkpoints) or "
            f"name, or delete {folder} to train again"
        )


def identity(data: Dataset) -> dict[str, Any]:
    """Classes, shape, and a digest of labels and pixels."""
    digest = hashlib.sha256(np.ascontiguousarray(data.labels).data)
    digest.update(np.ascontiguousarray(data.images).data)
    return {
        "class_names": list(data.class_names),
        "images": list(data.images.shape),
        "sha256": digest.hexdigest(),
    }
