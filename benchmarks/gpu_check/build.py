"""The module with the CUDA core, the way a user builds it where nothing can be downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from benchmarks.gpu_check.parts import CHECKOUT, Work
from trt_moe.hardware import gpu_report

_LOOK = "from trt_moe import _core; print(_core.__file__, _core.cuda_built(), _core.built_backends())"


def run(work: Work) -> dict[str, Any]:
    """Install into a folder of its own; nothing of this Python changes."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    command += [
        "--no-compile",
        "--target",
        str(work.folder / "site"),
        f"--config-settings=build-dir={work.folder / 'build'}",
    ]
    settings = ["TRT_MOE_OPENVINO=OFF", "TRT_MOE_CUDA=ON", *architectures()]
    command += [f"--config-settings=cmake.define.{setting}" for setting in settings]
    print(" ".join(command), flush=True)
    # Where there is no Ninja, make would compile one file at a time.
    parallel = {"CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0)))}
    subprocess.run([*command, str(CHECKOUT)], check=True, env={**os.environ, **parallel})
    looked = subprocess.run([sys.executable, "-c", _LOOK], check=True, capture_output=True, text=True, cwd=work.folder)
    if not looked.stdout.startswith(str(work.folder)):
        raise SystemExit(
            f"this Python has an editable trt_moe that comes first ({looked.stdout.strip()}); use another Python, or "
            "--skip-build"
        )
    return {"command": " ".join([*command, "."]), "module": looked.stdout.strip()}


def architectures() -> list[str]:
    """The CMake setting that compiles for this machine's GPU only, which is quicker; none where there is no GPU."""
    devices = gpu_report()["devices"]
    return [f"CMAKE_CUDA_ARCHITECTURES={devices[0]['compute_capability'].replace('.', '')}"] if devices else []
