"""Work that keeps the GPU from going to sleep, and that nothing else waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def gpu_kept_awake(every_s: float) -> Iterator[None]:
    """Run a kernel of one thread so often, on a stream of its own.

    No router is called: a call of another thread would wait for it, and that would be measured.
    """
    stop = threading.Event()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        value = torch.zeros(1, device="cuda")

    def work() -> None:
        with torch.cuda.stream(stream):
            while not stop.wait(every_s):
                value.add_(1)
                stream.synchronize()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            yield
        finally:
            stop.set()
        done.result()  # raises what ended it
