"""Takes the C++ core that a build folder holds in place of the installed one."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def load_core(build: Path) -> None:
    """Load a core that was built with TRT_MOE_CUDA=ON_HOST, before anybody imports trt_moe.

    Args:
        build: CMake's build folder.
    """
    libraries = Path(importlib.util.find_spec("openvino").origin).parent / "libs"  # type: ignore[union-attr, arg-type]
    for path in (build / "tests/cpp/cuda_on_host/libcuda.so.1", *libraries.glob("libopenvino.so.*")):
        ctypes.CDLL(str(path))  # whoever needs it by its name then gets this one
    [path] = build.glob("_core.*.so")
    spec = importlib.util.spec_from_file_location("trt_moe._core", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
