"""
The C++ core of trt-moe: routing, batching and engine execution.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['Model', 'Pipeline', 'built_backends', 'cpu_name', 'plan_routes', 'usable_cpus']
class Model:
    """
    One model compiled for one device.
    """
    def __init__(self, onnx: bytes, *, backend: str, precision: str = 'auto', threads: typing.SupportsInt | typing.SupportsIndex = 0, cache_dir: str = '', buckets: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = []) -> None:
        ...
    def logits(self, images: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
        """
        uint8 [N,H,W,C] images to float32 [N, outputs] logits.
        """
    def time(self, image: numpy.ndarray, iterations: typing.SupportsInt | typing.SupportsIndex, warmup: typing.SupportsInt | typing.SupportsIndex = 0) -> numpy.typing.NDArray[numpy.float64]:
        """
        Wall times of single-image inference, float64 [iterations], in milliseconds, by the C++ clock.
        """
    @property
    def buckets(self) -> list[int]:
        ...
    @property
    def device(self) -> str:
        ...
    @property
    def input_shape(self) -> tuple[int, int, int]:
        ...
    @property
    def outputs(self) -> int:
        ...
    @property
    def precision(self) -> str:
        ...
    @property
    def threads(self) -> int:
        ...
class Pipeline:
    """
    A gater and its experts behind one scheduler.
    """
    def __init__(self, gater: Model, experts: collections.abc.Sequence[Model], *, names: collections.abc.Sequence[str], costs: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], latency_weight: typing.SupportsFloat | typing.SupportsIndex, max_batch: typing.SupportsInt | typing.SupportsIndex, max_wait_us: typing.SupportsInt | typing.SupportsIndex, max_queue: typing.SupportsInt | typing.SupportsIndex, warmup: bool) -> None:
        ...
    def close(self, cancel_pending: bool) -> None:
        ...
    def predict(self, images: numpy.ndarray) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.float32]]:
        """
        (probabilities float32 [N,C], gater logits float32 [N,K], routes int64 [N], latency_ms float32 [N]).
        """
    def stats(self) -> dict[str, typing.Any]:
        ...
    def submit(self, ticket: typing.SupportsInt | typing.SupportsIndex, image: numpy.ndarray) -> None:
        ...
    def take_completed(self) -> list[tuple[int, typing.Any, numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], int, float]]:
        """
        Blocks for finished submissions: [(ticket, error or None, probabilities, gater logits, route, latency_ms)];
        an empty list means closed and drained.
        """
    @property
    def latency_weight(self) -> float:
        ...
    @latency_weight.setter
    def latency_weight(self, arg1: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
def built_backends() -> list[str]:
    """
    Names of the backends this build has, best first.
    """
def cpu_name() -> str:
    """
    The CPU's model name.
    """
def plan_routes(logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], costs: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], latency_weight: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int64]:
    """
    The expert index of each image, int64 [images]: argmax_k(logits[k] - latency_weight * costs[k]), ties to the
    lower index; -1 where a logit is not finite.
    """
def usable_cpus() -> int:
    """
    CPUs this process may use: its affinity mask and cgroup quota.
    """
