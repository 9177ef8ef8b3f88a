"""Reading npz files that a stranger may have made; apart from `safety`, since a look at a bundle needs no numpy."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trt_moe.bundle.safety import MAX_NPZ_BYTES
from trt_moe.errors import BundleError

_MAX_NPY_HEADER = 4096


def read_npz(
    path: Path,
    required: Collection[str],
    optional: Collection[str],
    check: Callable[[str, np.dtype[Any], tuple[int, ...]], str | None],
    what: str,
) -> dict[str, NDArray[Any]]:
    """Read named arrays from an npz file without ever unpickling.

    Headers are read first: `check(name, dtype, shape)` sees what every array declares and returns a
    complaint or None, and the declared sizes must sum to at most 64 MiB, before any of the data is read.

    Raises:
        BundleError: not an npz, an array missing, unknown, refused by `check`, too large or cut short.
    """
    if path.stat().st_size > MAX_NPZ_BYTES:
        raise BundleError(f"{what}: has {path.stat().st_size:,} bytes; at most {MAX_NPZ_BYTES:,} are read")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _npz_members(archive, required, optional, what)
            declared = 0
            headers: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
            for name, member in members.items():
                with archive.open(member) as stream:
                    dtype, shape = _npy_header(stream)  # type: ignore[arg-type]
                complaint = check(name, dtype, shape)
                if complaint:
                    raise BundleError(f"{what}: array {name}: {complaint}")
                headers[name] = (dtype, shape)
                declared += _array_bytes(dtype, shape)
                if declared > MAX_NPZ_BYTES:
                    raise BundleError(f"{what}: declares over {MAX_NPZ_BYTES:,} bytes of arrays, the most that is read")
            arrays = {}
            for name, member in members.items():
                with archive.open(member) as stream:
                    _npy_header(stream)  # type: ignore[arg-type]
                    arrays[name] = _npy_data(stream, *headers[name])  # type: ignore[arg-type]
            return arrays
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        SyntaxError,
    ) as error:
        raise BundleError(f"{what}: not a readable npz file ({str(error)[:200]})") from None


def _npz_members(
    archive: zipfile.ZipFile, required: Collection[str], optional: Collection[str], what: str
) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in members or (name not in required and name not in optional):
            expected = ", ".join([*required, *optional])
            raise BundleError(f"{what}: unexpected member {member.filename!r:.80}; expected arrays {expected}")
        members[name] = member
    missing = [name for name in required if name not in members]
    if missing:
        raise BundleError(f"{what}: arrays missing: {', '.join(missing)}")
    return members


def _npy_header(stream: BinaryIO) -> tuple[np.dtype[Any], tuple[int, ...]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_NPY_HEADER)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=_MAX_NPY_HEADER)
    else:
        raise ValueError(f"npy format version {version}")
    if dtype.hasobject:
        raise ValueError("an array of Python objects (pickle) is never read")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    return dtype, shape


def _array_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    total = dtype.itemsize
    for side in shape:
        if side < 0:
            raise ValueError(f"an array of shape {shape}")
        total *= side
    return total


def _npy_data(stream: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    expected = _array_bytes(dtype, shape)
    data = stream.read(expected + 1)
    if len(data) != expected:
        raise ValueError(f"an array of {expected} bytes has {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
