"""Where compiled engines are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "TRT_MOE_CACHE_DIR"
"""Environment variable that moves the folder of compiled engines; empty: compiled engines are not kept."""


def engine_cache(backend: str) -> str | None:
    """The folder that keeps compiled engines, made if need be; None where they are not kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen == "":
        return None
    folder = (Path(chosen) if chosen else platformdirs.user_cache_path("trt-moe")) / backend
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # A read-only home costs a compilation at each start, no more.
    return str(folder) if os.access(folder, os.W_OK) else None
