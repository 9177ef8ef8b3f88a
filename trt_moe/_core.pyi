"""
The C++ core of trt-moe: routing, batching and engine execution.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['CallTimes', 'CudaCapture', 'CudaDevice', 'DeviceRows', 'MAX_DEADLINE_MS', 'MIN_DEADLINE_MS', 'Model', 'Pipeline', 'arena_plan', 'built_backends', 'cpu_name', 'cpu_quota', 'cuda_build', 'cuda_built', 'cuda_compute_capability', 'dlpack_capsule', 'graph_topology', 'plan_routes', 'read_dlpack', 'route_reference', 'usable_cpus']
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
class CallTimes:
    """
    When a call was made, which is now, and when its answers are due.
    """
    def __init__(self, deadline_ms: typing.SupportsFloat | typing.SupportsIndex | None = None) -> None:
        ...
    def before(self, others: typing.SupportsInt | typing.SupportsIndex) -> CallTimes:
        """
        For a part of the call's images, which so many others follow.
        """
    @property
    def later(self) -> int:
        """
        Images of the call that follow those of this part.
        """
    @property
    def over(self) -> bool:
        """
        Whether they are late by now.
        """
class DeviceRows:
    """
    Answers on the device, one row an image; addresses there.
    """
    @property
    def gater_logits(self) -> int:
        ...
    @property
    def probabilities(self) -> int:
        ...
    @property
    def routes(self) -> int:
        ...
class Pipeline:
    """
    A gater and its experts behind one scheduler.
    """
    def __init__(self, gater: Model, experts: collections.abc.Sequence[Model], *, names: collections.abc.Sequence[str], costs: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], latency_weight: typing.SupportsFloat | typing.SupportsIndex, verify_below: typing.SupportsFloat | typing.SupportsIndex, verify_by_mirror: bool, max_batch: typing.SupportsInt | typing.SupportsIndex, max_wait_us: typing.SupportsInt | typing.SupportsIndex, max_queue: typing.SupportsInt | typing.SupportsIndex, warmup: bool, device_routed: bool = False, speculate: bool = False) -> None:
        ...
    def close(self, cancel_pending: bool) -> bool:
        """
        False: called out of a predict on this thread, by a signal handler; close once more after it.
        """
    def device_rows(self, count: typing.SupportsInt | typing.SupportsIndex) -> DeviceRows:
        """
        Memory on the device for predict's `keep`; used again once it is dropped. float32 probabilities [N,C] and
        gater logits [N,K], int32 routes [N].
        """
    def input_buffer(self, count: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.uint8]:
        """
        A uint8 [count,H,W,C] array; predict of it, or of a part of it, needs no copy on the host where the
        pipeline routes on the device.
        """
    def latencies(self, limits_ns: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> dict[str, tuple[list[int], int, float]]:
        """
        By stage: how many are within each limit, how many there are, and their sum in milliseconds.
        """
    def memory(self) -> dict[str, dict[str, int]]:
        """
        Bytes on the device and page-locked on the host, by model; its own weights not counted.
        """
    def predict(self, images: numpy.ndarray, keep: DeviceRows | None = None, times: CallTimes | None = None) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.float32]]:
        """
        (probabilities float32 [N,C], gater logits float32 [N,K], routes int64 [N], latency_ms float32 [N]). `keep`:
        device_rows(N), which get the answers too.
        """
    def predict_device(self, address: typing.SupportsInt | typing.SupportsIndex, count: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex, keep: DeviceRows | None = None, times: CallTimes | None = None) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.float32]]:
        """
        predict for `count` uint8 [H,W,C] images, densely packed at an address of the models' CUDA device. They are
        read after the work that is on `stream` now: a CUDA stream, 1 (the legacy default), 2 (the thread's) or 0
        (they are complete). A pipeline that routes or verifies on the host copies them there first.
        """
    def stats(self) -> dict[str, typing.Any]:
        ...
    def submit(self, ticket: typing.SupportsInt | typing.SupportsIndex, image: numpy.ndarray, times: CallTimes | None = None) -> None:
        ...
    def take_completed(self) -> list[tuple[int, typing.Any, numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], int, float]]:
        """
        Blocks for finished submissions: [(ticket, error or None, probabilities, gater logits, route, latency_ms)];
        an empty list means closed and drained.
        """
    @property
    def closed(self) -> bool:
        ...
    @property
    def input_stream(self) -> int:
        """
        A CUDA stream for predict_device, to make others' work be waited for; 0 on the CPU.
        """
    @property
    def latency_weight(self) -> float:
        ...
    @latency_weight.setter
    def latency_weight(self, arg1: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def plan(self) -> str:
        """
        How predict routes: "device-routed" or "host-routed".
        """
    @property
    def plan_reason(self) -> str:
        """
        Why.
        """
    @property
    def verify_below(self) -> float:
        ...
    @verify_below.setter
    def verify_below(self, arg1: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def waited_ms(self) -> float:
        """
        How long all device-routed predicts together have waited for the device; the rest of their time is the
        host's.
        """
class CudaDevice:
    """
    One NVIDIA GPU.
    """
    def __init__(self, ordinal: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        ...
    @property
    def info(self) -> dict[str, typing.Any]:
        """
        name, compute_capability "9.0", driver and runtime (CUDA versions), memory in bytes, integrated,
        conditionals "switch", "if" or "none".
        """
    @property
    def usable(self) -> bool:
        """
        False after an error that leaves the device unusable for this process.
        """
class CudaCapture:
    """
    Makes a Model of work that another runtime enqueues on `stream`, once for each bucket, reading
    uint8 [bucket,H,W,C] at input_address and writing float32 [bucket,outputs] at output_address.
    """
    def __init__(self, device: CudaDevice, *, input_shape: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"], outputs: typing.SupportsInt | typing.SupportsIndex, buckets: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], precision: str, name: str) -> None:
        ...
    def begin(self, bucket: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        What is enqueued on the stream now is captured, not run.
        """
    def discard(self) -> None:
        """
        Ends a capture that went wrong and forgets it; harmless when none was begun.
        """
    def end(self) -> dict[str, int]:
        """
        Ends the capture: how many nodes of each kind it has.
        """
    def enqueue_gater(self, bucket: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Enqueues these kernels on the stream, for the first `bucket` images.
        """
    def finish(self, owner: typing.Any = None) -> Model:
        """
        The model, once every bucket is captured; nothing else may be called afterwards. owner: what the captured
        work needs, such as TensorRT's engine and contexts; it lives as long as the model.
        """
    def hold_gater(self, weights: numpy.typing.NDArray[numpy.float32], *, side: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"], third: bool) -> None:
        """
        Puts the core's own kernels of a gater in the place of the activation memory.
        
        weights: float32, as trt_moe.cuda.gater_source packs them. side: rows and columns that images are resized
        to. third: whether it has a third Fire block.
        """
    def reserve_activation(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Device memory for what happens between input and output, shared by all buckets; its address. Once only.
        """
    def synchronize(self) -> None:
        """
        Waits for what is on the stream.
        """
    @property
    def buckets(self) -> list[int]:
        ...
    @property
    def input_address(self) -> int:
        ...
    @property
    def input_shape(self) -> tuple[int, int, int]:
        ...
    @property
    def output_address(self) -> int:
        ...
    @property
    def outputs(self) -> int:
        ...
    @property
    def stream(self) -> int:
        """
        A CUDA stream, as an integer.
        """
def arena_plan(largest_bucket: typing.SupportsInt | typing.SupportsIndex, image_bytes: typing.SupportsInt | typing.SupportsIndex, outputs: typing.SupportsInt | typing.SupportsIndex) -> tuple[int, int, int]:
    """
    Where a captured model's images and logits lie in its device memory, and its size: (input, output, bytes).
    """
def built_backends() -> list[str]:
    """
    Names of the backends this build has, best first.
    """
def cpu_name() -> str:
    """
    The CPU's model name.
    """
def cpu_quota() -> int:
    """
    CPUs that the cgroup's quota allows, rounded up; 0 without a limit.
    """
def cuda_build() -> str:
    """
    Toolkit and GPU architectures of the CUDA backend; empty when it was not built.
    """
def cuda_built() -> bool:
    """
    Whether this build has the CUDA backend.
    """
def cuda_compute_capability(ordinal: typing.SupportsInt | typing.SupportsIndex) -> str:
    """
    "9.0", of a GPU on which no context is left. DeviceError where there is none: why.
    """
def dlpack_capsule(address: typing.SupportsInt | typing.SupportsIndex, shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], dtype: str, device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], owner: typing.Any) -> typing_extensions.CapsuleType:
    """
    A DLPack capsule of a C-contiguous tensor that is complete; `owner` lives until its consumer lets go.
    dtype: "float32" or "int32". device: (type, id) as DLPack numbers them.
    """
def graph_topology(buckets: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], capacity: typing.SupportsInt | typing.SupportsIndex, conditionals: str, speculate: bool = False) -> list[tuple[str, list[int], int, int, int, int]]:
    """
    Nodes of the device-routed graph for so many buckets of each expert and images, with "switch" or "if" nodes:
    [(kind, indices of the nodes it waits for, parent or -1, body or -1, expert or -1, bucket or -1)].
    """
def plan_routes(logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], costs: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], latency_weight: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int64]:
    """
    The expert index of each image, int64 [images]: argmax_k(logits[k] - latency_weight * costs[k]), ties to the
    lower index; -1 where a logit is not finite.
    """
def read_dlpack(capsule: typing.Any) -> tuple[int, str, list[int], list[int] | None]:
    """
    (address, dtype such as "uint8", shape, strides in elements or None: C-contiguous) of what `__dlpack__`
    gave, which is not consumed: it must live for as long as the tensor is used.
    """
def route_reference(logits: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], costs: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], latency_weight: typing.SupportsFloat | typing.SupportsIndex, capacity: typing.SupportsInt | typing.SupportsIndex, buckets: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """
    What the route kernel writes for float32 [images, experts] logits: (routes, counts, rows [experts * capacity] in
    input order and then -1, index of each expert's smallest bucket that holds its images or their number).
    """
def usable_cpus() -> int:
    """
    CPUs this process may use: its affinity mask and cgroup quota.
    """
MAX_DEADLINE_MS: float = 1000000000.0
MIN_DEADLINE_MS: float = 1e-06
