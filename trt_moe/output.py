"""Files that a command writes where its user says: reports and pictures."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trt_moe.bundle.writer import write_bytes
from trt_moe.errors import InputError

PICTURE_FORMATS = ("png", "pdf", "svg", "jpg", "jpeg")


def check_output(file: Path | None, option: str = "--output") -> None:
    """Refuse what cannot be written, before minutes are spent on what goes there.

    Args:
        file: what the user named; None: nothing.
        option: where it was named.

    Raises:
        InputError: no such folder, no right to write there, or the file is a folder.
    """
    if file is None:
        return
    try:
        if file.is_dir():
            raise InputError(f"{option} {file} is a folder; expected a file name")
        # What is no regular file is not replaced, so its folder does not matter.
        real = file.resolve()
        place = real.parent if _is_replaced(file) else real
        if not place.exists():
            raise InputError(f"{option} {file}: its folder does not exist; make it, or choose another place")
        writable = os.access(place, os.W_OK)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links on Python < 3.13
        raise InputError(f"{option} {file}: cannot be written ({_why(error)}); choose another place") from None
    if not writable:
        raise InputError(f"no right to write into {place}; choose another place with {option} FILE")


def check_picture(file: Path | None) -> None:
    """`check_output`, and refuse names of formats that are not drawn.

    Raises:
        InputError: as `check_output`, or the suffix is not one of `PICTURE_FORMATS`.
    """
    if file is not None and _format(file) not in PICTURE_FORMATS:
        raise InputError(f"--picture {file}: {file.suffix} is not written; expected .{', .'.join(PICTURE_FORMATS)}")
    check_output(file, "--picture")


def write_output(file: Path, data: bytes) -> None:
    """Write a file whole or not at all; through symbolic links, and into devices and pipes instead of over them.

    Raises:
        OSError: it cannot be written; `filename` says which.
    """
    try:
        if _is_replaced(file):
            write_bytes(file.resolve(), data)
        else:
            with file.open("wb") as stream:
                stream.write(data)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({_why(error)}); choose another place", str(file)) from error


def write_json(file: Path, data: Any) -> None:
    """`write_output` of a JSON document."""
    write_output(file, json.dumps(data, indent=2, allow_nan=False).encode() + b"\n")


def save_picture(figure: Any, file: Path) -> None:
    """`write_output` of a matplotlib figure, in the format that the file's suffix names; PNG where it has none."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=_format(file))
    write_output(file, buffer.getvalue())


@contextmanager
def written_after(*files: tuple[Path | None, Callable[[Path], None]]) -> Iterator[None]:
    """Write files once the block has printed what they hold: each, even where the block or another one fails.

    Args:
        files: what the user named, or None, and what writes it.
    """
    with ExitStack() as stack:
        for file, write in reversed(files):
            if file is not None:
                stack.callback(write, file)
        yield


def _format(file: Path) -> str:
    return file.suffix[1:].lower() or "png"


def _is_replaced(file: Path) -> bool:
    """Whether a new file takes this one's place: it is regular, or new."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except FileNotFoundError:
        return True


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
