"""Torch modules captured like engines: for tests, and for GPUs that TensorRT does not support."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trt_moe.cuda.capture import Capture
from trt_moe.models import ImageModel


class HalfModel(nn.Module):
    """An `ImageModel` whose network computes in float16, preprocessing in float32; the argument stays as it is.

    Input uint8 [N, H, W, C], output float32 [N, K].
    """

    def __init__(self, model: ImageModel) -> None:
        """Copy the model; its network is laid out with channels last, as the images are."""
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.model.network.half().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Answer with logits."""
        return self.model.calibrate(self.model.network(self.model.preprocess(images).half()))


class TorchSource:
    """A module that takes uint8 [N, H, W, C] and gives [N, K] logits, for `capture_model`.

    What it allocates while it runs comes from a memory pool of its own (`torch.cuda.MemPool`), which nothing else
    takes from: torch would otherwise hand the same memory to other tensors later, while the graph goes on using it.
    The buckets share the pool, since of one model one runs at a time and results leave it with each run.

    Args:
        module: moved to the device, in evaluation mode.
        ordinal: of the device.
    """

    def __init__(self, module: nn.Module, ordinal: int = 0) -> None:
        """See the class."""
        self._device = torch.device("cuda", ordinal)
        self._module = module.eval().to(self._device)
        self._pool = torch.cuda.MemPool()

    def bind(self, capture: Capture) -> None:
        """See `Source`."""
        largest = capture.buckets[-1]
        self._stream = torch.cuda.ExternalStream(capture.stream, self._device)  # type: ignore[no-untyped-call]
        self._images = _view(capture.input_address, (largest, *capture.input_shape), "|u1", self._device)
        self._logits = _view(capture.output_address, (largest, capture.outputs), "<f4", self._device)
        # Weights were copied on another stream.
        torch.cuda.synchronize(self._device)

    def enqueue(self, bucket: int) -> None:
        """See `Source`."""
        with (
            torch.inference_mode(),
            torch.cuda.device(self._device),
            # Before the stream: on one that is being captured it looks for torch's own graph.
            torch.cuda.use_mem_pool(self._pool),
            torch.cuda.stream(self._stream),
            # The run before the capture finds the fastest convolutions, the capture takes those. Without TF32, which
            # is no float32, and which convolutions of float16 do not have.
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        ):
            self._logits[:bucket].copy_(self._module(self._images[:bucket]))


class _Memory:
    def __init__(self, interface: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = interface


def _view(address: int, shape: tuple[int, ...], dtype: str, device: torch.device) -> Tensor:
    """A tensor over memory of the core's."""
    interface = {"shape": shape, "typestr": dtype, "data": (address, False), "version": 2}
    return torch.as_tensor(_Memory(interface), device=device)
