"""One part in a process of its own: python -m benchmarks.gpu_check.child NAME FOLDER DEADLINE, in seconds as `time`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from time import time

from benchmarks.gpu_check.parts import Work


def main(name: str, folder: str, deadline: str) -> None:
    # The imports above took some of the time already.
    work = Work(Path(folder), float(deadline) - time(), name)
    work.keep(importlib.import_module(f"benchmarks.gpu_check.{name}").run(work))


if __name__ == "__main__":
    main(*sys.argv[1:])
