"""Where compiled engines are kept."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "TRT_MOE_CACHE_DIR"
"""Environment variable that moves the folder of compiled engines; empty: compiled engines are not kept."""


def cache_root() -> Path | None:
    """The folder of all backends' compiled engines, which need not exist; None where they are not kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    import platformdirs

    return platformdirs.user_cache_path("trt-moe")


def engine_cache(backend: str) -> str | None:
    """The folder that keeps one backend's compiled engines, made if need be; None where they are not kept."""
    root = cache_root()
    if root is None:
        return None
    folder = root / backend
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # A read-only home costs a compilation at each start, no more.
    return str(folder) if os.access(folder, os.W_OK) else None
