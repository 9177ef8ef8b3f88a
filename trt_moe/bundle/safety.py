"""Reading files of a bundle that a stranger may have made: bounded, inside the folder, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from trt_moe.errors import BundleError

MAX_JSON_BYTES = 4 << 20
MAX_ONNX_BYTES = 2 << 30
MAX_NPZ_BYTES = 64 << 20
_BLOCK = 1 << 20


def inside(root: Path, relative: str) -> Path:
    """Return the regular file `relative` of the folder `root`, with symbolic links resolved.

    Raises:
        BundleError: it is missing, not a regular file, or its real place is outside `root`.
    """
    path = root / relative
    try:
        real = path.resolve(strict=True)
        base = root.resolve(strict=True)
    except FileNotFoundError:
        raise BundleError(f"{root}: {relative} is missing; copy the whole bundle again") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links on Python < 3.13
        raise BundleError(f"{root}: {relative} cannot be read ({error})") from error
    if not real.is_relative_to(base):
        raise BundleError(f"{root}: {relative} leads out of the bundle; a bundle must hold its own files")
    # A FIFO or a device would block or never end.
    if not stat.S_ISREG(real.stat().st_mode):
        raise BundleError(f"{root}: {relative} is not a regular file")
    return real


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        BundleError: it cannot be read or is larger; `what` starts the message.
    """
    try:
        with path.open("rb") as stream:
            # What fstat says decides, the name may lead elsewhere by the time it is opened.
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise BundleError(f"{what}: cannot be read ({error.strerror or error})") from error
    if size > limit or len(data) > limit:
        raise BundleError(f"{what}: has {max(size, len(data)):,} bytes; at most {limit:,} are read")
    return data


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as lower-case hex, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(root: Path, relative: str, expected: str, found: str) -> None:
    """Raise BundleError where a file of the bundle is not the one that the manifest names."""
    if found != expected:
        raise BundleError(
            f"{root}: bundle.json says sha256 {expected[:12]}.. of {relative}, the file has {found[:12]}..; "
            "copy the bundle again or rebuild it with `trt-moe pack`"
        )


def read_json(path: Path, what: str) -> Any:
    """Decode a JSON file of at most 4 MiB; NaN, Infinity and repeated keys are refused.

    Raises:
        BundleError: too large, not UTF-8, not JSON; `what` starts the message.
    """
    raw = read_bounded(path, MAX_JSON_BYTES, what)
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise BundleError(f"{what}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise BundleError(f"{what}: not JSON ({error.msg} in line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what}: not acceptable JSON ({str(error)[:200]})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r:.60} appears twice in one object")
        result[key] = value
    return result
