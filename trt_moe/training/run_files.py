"""Small files that a run keeps beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trt_moe.errors import DataError


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Say which file could not be written, and what to do.

    Raises:
        DataError: in place of an `OSError` inside.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {file}: {error}; free some space, or give another folder (--checkpoints)"
        ) from error


def read_json(file: Path) -> object:
    """What a file holds; None where there is none that can be read."""
    try:
        value: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value
