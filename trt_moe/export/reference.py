"""What ONNX Runtime answers in float32: the reference that a bundle records, and other runtimes are held against."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from trt_moe.bundle import Golden
from trt_moe.bundle.safety import sha256_file
from trt_moe.bundle.writer import write_golden

TOLERANCE = {"fp32": 5e-3, "fp16": 5e-2, "bf16": 2e-1}
"""Golden tolerances written to a bundle, by precision."""


def run_onnx(file: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32 [N, K] of a model of a bundle by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"images": images})[0]
    return logits


def record_golden(folder: Path, names: Iterable[str], images: NDArray[np.uint8]) -> Golden:
    """Write images, uint8 [G, H, W, C], and the logits of the models `<name>.onnx` beside them."""
    file = folder / "golden.npz"
    write_golden(file, images, {name: run_onnx(folder / f"{name}.onnx", images) for name in names})
    return Golden(file=file.name, sha256=sha256_file(file), tolerance=TOLERANCE)  # type: ignore[arg-type]
