"""A stand-in for pycuda's driver: memory by address, and a stream whose work is done when it is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Allocation(int):
    """Like `pycuda.driver.DeviceAllocation`: converts to its address."""


class Stream:
    handle = 0x77

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def synchronize(self) -> None:
        for step in self.work:
            step()
        self.work.clear()


class FakePycuda:
    """Like the module `pycuda.driver`, of one stream."""

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.stream = Stream()

    def Stream(self) -> Stream:  # noqa: N802
        return self.stream

    def pagelocked_empty(self, shape: Any, dtype: Any) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    def mem_alloc(self, size: int) -> Allocation:
        address = Allocation(4096 * (len(self.memory) + 1))
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def memcpy_htod_async(self, device: Allocation, host: NDArray[Any], stream: Stream) -> None:
        def copy() -> None:
            self.memory[device][: host.nbytes] = host.reshape(-1).view(np.uint8)

        stream.work.append(copy)

    def memcpy_dtoh_async(self, host: NDArray[Any], device: Allocation, stream: Stream) -> None:
        def copy() -> None:
            host.view(np.uint8)[:] = self.memory[device][: host.nbytes]

        stream.work.append(copy)
