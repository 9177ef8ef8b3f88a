"""Where a bundle goes: what it may replace, and how it gets there without anything being lost."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trt_moe.bundle.manifest import parse_manifest
from trt_moe.bundle.safety import read_json
from trt_moe.bundle.writer import MANIFEST_FILE
from trt_moe.errors import BundleError, DataError, InputError


def check_destination(out: Path, force: bool, used: Mapping[str, Path], run: str | None = None) -> None:
    """Refuse a folder that a bundle must not replace, or that cannot be written: before the work, not after it.

    Args:
        out: the bundle's folder; not there yet, empty, or a bundle.
        force: replace a bundle, whoever made it.
        used: what must not lie in `out`, by what it is.
        run: name of a training run, which replaces its own bundle without `force`.

    Raises:
        InputError: says why, and what to type.
    """
    target = out.resolve()
    for what, path in {**used, "the current directory": Path.cwd()}.items():
        if path.resolve().is_relative_to(target):
            raise InputError(f"{out} is or holds {what}, {path}, which a bundle would replace; choose another folder")
    if _holds_something(out) and not force and not (run is not None and _is_of_run(target, run)):
        whose = "is a bundle already" if run is None else f"is a bundle, but not of a training run called {run!r}"
        raise InputError(f"{out} {whose}; replace it with --force, or choose another folder")
    check_writable(target.parent, out)


def check_writable(folder: Path, out: Path) -> None:
    """Refuse a folder that cannot be made, or written into; nothing is left there.

    Args:
        folder: to write into.
        out: what the message is about.

    Raises:
        InputError: names `out` and the reason.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        # Tried, as rights alone do not say: there are read-only file systems, and some take no files at all.
        Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=there)).rmdir()
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another folder") from error


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Give a folder to write a bundle into, which replaces `out` at the end of the block, unless that raises.

    Raises:
        InputError: by then there is something at `out` that is not a bundle.
        DataError: it cannot be written.
    """
    target = out.resolve()
    work = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        work.mkdir(parents=True)
        yield work
        if _holds_something(out):
            _replace(work, target)
        else:
            work.replace(target)
    except OSError as error:
        # Not the file that the error names: of a copy, that is the one which was read.
        reason = error.strerror or error
        raise DataError(f"cannot write the bundle to {out}: {reason}; free some space, or choose another folder") from (
            error
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _holds_something(out: Path) -> bool:
    """Whether there is a bundle at `out`, not nothing or an empty folder.

    Raises:
        InputError: there is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST_FILE).is_file():
        raise InputError(f"{out} is not a bundle, so it is not replaced; choose another folder")
    return True


def _is_of_run(target: Path, run: str) -> bool:
    file = target / MANIFEST_FILE
    try:
        manifest = parse_manifest(read_json(file, str(file)), str(file))
    except BundleError:
        return False
    return manifest.training is not None and manifest.name == run


def _replace(work: Path, target: Path) -> None:
    """Put the new folder where the old one is; the old one is only removed once the new one is there."""
    old = work.with_suffix(".old")
    try:
        target.replace(old)
        work.replace(target)
    finally:
        # An error or Ctrl-C may end any of these lines: what is where decides, not how far they came.
        if not work.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif not target.exists():
            old.replace(target)
