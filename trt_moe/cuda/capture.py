"""A model's work, enqueued once for each bucket while the core captures it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trt_moe import _core
from trt_moe.collector import no_collection

_log = logging.getLogger("trt_moe")

_one_at_a_time = threading.Lock()
"""What comes before a capture: torch waits for the whole device there, which would end another's."""


class Capture(Protocol):
    """What a source sees of `_core.CudaCapture`: a stream, and memory that the core owns.

    Attributes:
        stream: handle of the stream that all work goes to.
        input_address: of uint8 [largest bucket, H, W, C] on the device.
        output_address: of float32 [largest bucket, outputs] on the device.
        buckets: batch sizes, ascending.
        input_shape: (H, W, C).
        outputs: logits for each image.
    """

    @property
    def stream(self) -> int: ...  # noqa: D102

    @property
    def input_address(self) -> int: ...  # noqa: D102

    @property
    def output_address(self) -> int: ...  # noqa: D102

    @property
    def buckets(self) -> list[int]: ...  # noqa: D102

    @property
    def input_shape(self) -> tuple[int, int, int]: ...  # noqa: D102

    @property
    def outputs(self) -> int: ...  # noqa: D102

    def reserve_activation(self, bytes: int) -> int:
        """Address of at least so many bytes that the captured runs share; at most once."""

    def hold_gater(self, weights: NDArray[np.float32], *, side: tuple[int, int], third: bool) -> None:
        """Put the core's own kernels of a gater in the place of these bytes; see `GaterSource`."""

    def enqueue_gater(self, bucket: int) -> None:
        """Enqueue them."""


class Source(Protocol):
    """Something that runs a model on the stream of a capture."""

    def bind(self, capture: Capture) -> None:
        """Take the addresses that all runs read and write; called once, before any run."""

    def enqueue(self, bucket: int) -> None:
        """Enqueue the model for the first `bucket` images of the input; nothing may wait for the device."""


def capture_model(
    source: Source,
    device: _core.CudaDevice,
    *,
    name: str,
    input_shape: tuple[int, int, int],
    outputs: int,
    buckets: Sequence[int],
    precision: str,
) -> _core.Model:
    """Capture a model once for each bucket.

    Each capture follows a run that is not captured: libraries load kernels and take memory in their first run, which
    a capture does not allow. The model keeps the source alive, since the graphs use its memory.

    Raises:
        EngineBuildError: the source enqueues what cannot be captured.
        DeviceError: the device has no memory left, or failed.
    """
    capture = _core.CudaCapture(
        device, input_shape=input_shape, outputs=outputs, buckets=list(buckets), precision=precision, name=name
    )
    with _one_at_a_time:
        source.bind(capture)
        for bucket in buckets:
            source.enqueue(bucket)
            capture.synchronize()
            # It may free GPU memory, of a closed router for one, and that ends a capture on the same thread.
            with no_collection():
                capture.begin(bucket)
                try:
                    source.enqueue(bucket)
                except BaseException:
                    capture.discard()
                    raise
                nodes = capture.end()
            _log.debug("%s, batch of %d: captured %s", name, bucket, nodes)
    return capture.finish(owner=source)
