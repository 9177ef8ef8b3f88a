"""One part in a process of its own: python -m benchmarks.gpu_check.child NAME FOLDER SECONDS."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.gpu_check.parts import Work


def main(name: str, folder: str, seconds: str) -> None:
    work = Work(Path(folder), float(seconds), name)
    work.keep(importlib.import_module(f"benchmarks.gpu_check.{name}").run(work))


if __name__ == "__main__":
    main(*sys.argv[1:])
