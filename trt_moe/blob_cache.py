"""The models that OpenVINO keeps compiled for the CPU: counted, cleared, and kept within a limit.

OpenVINO writes them itself, each under a name of its own, and never deletes one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trt_moe.engine_folder import cache_root

BACKEND = "openvino"
LIMIT = 4 << 30
"""Most bytes that they may take."""


@dataclass(frozen=True)
class Blob:
    """One compiled model."""

    path: Path
    bytes: int
    last_used: float


def blobs() -> list[Blob]:
    """All compiled models in the cache, the least recently used first."""
    root = cache_root()
    found = []
    for path in (root / BACKEND).glob("*.blob") if root is not None else ():
        with suppress(FileNotFoundError):  # Another process deletes them too.
            status = path.stat()
            # Where a disk keeps no times of access, the oldest is the least recently used.
            found.append(Blob(path, status.st_size, max(status.st_atime, status.st_mtime)))
    return sorted(found, key=lambda blob: blob.last_used)


def trim(limit: int) -> list[Blob]:
    """Delete the least recently used until the rest is within the limit, and return those deleted.

    Who has one open goes on, and who misses one compiles it again.
    """
    kept = blobs()
    total, deleted = sum(blob.bytes for blob in kept), []
    for blob in kept:
        if total <= limit:
            break
        try:
            blob.path.unlink(missing_ok=True)
        except OSError:  # A cache that may only be read does not grow either.
            break
        deleted.append(blob)
        total -= blob.bytes
    return deleted
