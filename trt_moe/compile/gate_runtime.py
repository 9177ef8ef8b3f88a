"""ONNX graphs run on the CPU by ONNX Runtime, for the accuracy gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from trt_moe.hardware import cpu_report

_BATCH = 16
_ERRORS_ONLY = 3


def open_session(model: onnx.ModelProto) -> Any:
    """An `onnxruntime.InferenceSession` on as many CPUs as this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu_report()["usable"]
    options.log_severity_level = _ERRORS_ONLY
    # Its int8 kernels saturate in 16-bit sums on CPUs without VNNI; Q/DQ nodes one by one compute what a device does.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def logits(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32 [N, K] of uint8 [N, H, W, C], in batches."""
    session = open_session(model)
    name = session.get_inputs()[0].name
    starts = range(0, len(images), _BATCH)
    return np.concatenate([session.run(None, {name: images[start : start + _BATCH]})[0] for start in starts])
