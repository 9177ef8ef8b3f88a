"""Images and answers in device memory, where CUDA runs on the CPU: whose device memory can be written and read here."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.cuda_on_host import launch, view
from tests.support.gpu_router import check, open_router
from tests.support.tiny_bundle import TinyBundle
from trt_moe import InputError, Router, _core
from trt_moe.cuda.device import open_device
from trt_moe.cuda.interop import LEGACY_STREAM

PER_THREAD_STREAM = 2


class Producer:
    """Images in device memory, written by a stream that is late."""

    def __init__(self, images: NDArray[np.uint8], delay: float = 0.0) -> None:
        self.images = np.ascontiguousarray(images)
        self._delay = delay
        self._memory = _core.CudaCapture(
            open_device(),
            input_shape=images.shape[1:],
            outputs=1,
            buckets=sorted({1, len(images)}),
            precision="fp32",
            name="images",
        )
        self.address = self._memory.input_address

    def write(self, stream: int) -> None:
        def late() -> None:
            time.sleep(self._delay)
            ctypes.memmove(self.address, self.images.ctypes.data, self.images.nbytes)

        self._kernel = launch(stream, late)


class ByInterface(Producer):
    """It names the stream, or none where that is the legacy one."""

    def __init__(self, images: NDArray[np.uint8], delay: float = 0.0, stream: int | None = None) -> None:
        super().__init__(images, delay)
        self.write(LEGACY_STREAM if stream is None else stream)
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": images.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "stream": stream,
            "version": 3,
        }


class ByDlpack(Producer):
    """It is told a stream, and writes there."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, stream: int) -> Any:
        self.write(stream)
        return view(ctypes.c_uint8, self.address, self.images.shape).__dlpack__()


def read(array: Any) -> NDArray[Any]:
    interface = array.__cuda_array_interface__
    kind = {"<f4": ctypes.c_float, "<i4": ctypes.c_int32}[interface["typestr"]]
    return view(kind, interface["data"][0], interface["shape"]).numpy().copy()


@pytest.mark.parametrize("count", [1, 3, 32, 40])
def test_images_on_the_device(router: Router, tiny: TinyBundle, count: int) -> None:
    images = tiny.random(count, seed=count)
    for batch in (ByInterface(images), ByDlpack(images)):
        check(router.predict(batch), tiny, images)


@pytest.mark.parametrize("stream", [None, LEGACY_STREAM, PER_THREAD_STREAM])
def test_what_is_still_being_written_is_waited_for(router: Router, tiny: TinyBundle, stream: int | None) -> None:
    for seed in range(5):
        images = tiny.random(8, seed)
        check(router.predict(ByInterface(images, 0.02, stream)), tiny, images)


def test_a_dlpack_producer_is_waited_for(router: Router, tiny: TinyBundle) -> None:
    for seed in range(5):
        images = tiny.random(8, seed)
        check(router.predict(ByDlpack(images, 0.02)), tiny, images)


def test_where_an_expert_is_unsure_images_come_to_the_host(tiny: TinyBundle) -> None:
    images = tiny.random(33, seed=5)
    with open_router(tiny, verify_below=0.7, verify_by="mirror") as router:
        expected = router.predict(images)
        found = router.predict(ByInterface(images))
    assert found.probabilities.tolist() == expected.probabilities.tolist()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_answers_stay_on_the_device(router: Router, tiny: TinyBundle, count: int) -> None:
    if router.plan != "device-routed":
        pytest.skip(f"host-routed: {router.plan_reason}")
    images = tiny.random(count, seed=count)
    expected = router.predict(images)
    kept = [router.predict(batch, device_output=True) for batch in (images, ByInterface(images), images)]
    for result in kept:  # each has memory of its own
        assert read(result.probabilities).tolist() == expected.probabilities.tolist()
        assert read(result.experts).tolist() == expected.experts.tolist()
        assert read(result.gater_logits).tolist() == expected.gater_logits.tolist()


def test_memory_of_the_host_is_refused(router: Router, tiny: TinyBundle) -> None:
    images = tiny.random(4)
    batch = ByInterface(images)
    check(router.predict(batch), tiny, images)  # it is written by then, and may go
    batch.__cuda_array_interface__["data"] = (images.ctypes.data, False)
    with pytest.raises(InputError, match="memory"):
        router.predict(batch)
