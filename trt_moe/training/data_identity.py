"""Which data a run was made from: its checkpoints and logits are of no use for any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trt_moe.bundle.writer import write_bytes
from trt_moe.data import Dataset
from trt_moe.errors import DataError, InputError

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
    noted = _read(file)
    if noted is None:
        if write:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())
            except OSError as error:
                raise DataError(
                    f"cannot write {file}: {error}; give another folder for the run (--checkpoints)"
                ) from error
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
    digest = hashlib.sha256(data.labels.tobytes())
    digest.update(data.images.tobytes())
    return {
        "class_names": list(data.class_names),
        "images": list(data.images.shape),
        "sha256": digest.hexdigest(),
    }


def _read(file: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) else None
