"""The core built with TRT_MOE_CUDA=ON_HOST, and what takes the place of torch's CUDA there: no GPU is needed."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trt_moe import _core
from trt_moe.cuda.capture import Capture


class HostSource:
    """Like `trt_moe.cuda.torch_source.TorchSource`, with a kernel that is a torch module on the CPU."""

    def __init__(self, module: nn.Module, ordinal: int = 0) -> None:
        self._module = module.eval()
        self._kernels: list[object] = []

    def bind(self, capture: Capture) -> None:
        largest = capture.buckets[-1]
        self._stream = capture.stream
        self._images = view(ctypes.c_uint8, capture.input_address, (largest, *capture.input_shape))
        self._logits = view(ctypes.c_float, capture.output_address, (largest, capture.outputs))

    def enqueue(self, bucket: int) -> None:
        def run() -> None:
            with torch.inference_mode():
                self._logits[:bucket].copy_(self._module(self._images[:bucket]))

        self._kernels.append(launch(self._stream, run))


def launch(stream: int, function: Callable[[], None]) -> object:
    """Enqueue a function as a kernel; what comes back must be kept until it has run, or for as long as its graph."""
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: function())
    enqueue = ctypes.CDLL(_core.__file__).on_host_launch
    enqueue.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    status = enqueue(stream, ctypes.cast(kernel, ctypes.c_void_p), None)
    assert status == 0, f"CUDA error {status}"
    return kernel


def view(kind: type[Any], address: int, shape: tuple[int, ...]) -> Tensor:
    """Device memory as a tensor; kind: of its elements, in ctypes."""
    return torch.from_numpy(np.ctypeslib.as_array((kind * math.prod(shape)).from_address(address))).view(shape)
