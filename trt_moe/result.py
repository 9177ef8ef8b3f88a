"""What a router answers."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trt_moe.cuda.device_array import DeviceArray


# Equal to itself alone: arrays do not compare to one truth.
@dataclass(frozen=True, eq=False)
class ResultRow:
    """The answer for one image.

    Attributes:
        probabilities: float32 [classes], softmax of the expert's logits; where that was unsure, the mean of its and the
            second look's, see `Router(verify_by)`.
        label: index of the likeliest class.
        class_name: its name.
        expert: index of the expert that was asked last, cheapest first.
        expert_name: its name.
        latency_ms: milliseconds from the call to this image's answer.
        gater_logits: float32 [experts], the gater's score of each expert before the latency weight.
    """

    probabilities: NDArray[np.float32]
    label: int
    class_name: str
    expert: int
    expert_name: str
    latency_ms: float
    gater_logits: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Result:
    """The answers for a batch of N images, in input order; index or iterate it for `ResultRow`s, slice it for a part.

    Attributes:
        probabilities: float32 [N, classes], softmax of the routed expert's logits; where that was unsure, the mean of
            its and the second look's, see `Router(verify_by)`.
        experts: int64 [N], index of the expert that was asked last, cheapest first.
        latency_ms: float32 [N], milliseconds from the call to each image's answer.
        gater_logits: float32 [N, experts], the gater's scores before the latency weight.
        class_names: name of every class.
        expert_names: name of every expert.
    """

    probabilities: NDArray[np.float32]
    experts: NDArray[np.int64]
    latency_ms: NDArray[np.float32]
    gater_logits: NDArray[np.float32]
    class_names: list[str]
    expert_names: list[str]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Int64 [N], index of the likeliest class."""
        labels: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return labels

    @property
    def classes(self) -> list[str]:
        """Name of the likeliest class of each image."""
        return [self.class_names[label] for label in self.labels]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.experts)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ResultRow: ...
    @overload
    def __getitem__(self, index: slice) -> Result: ...

    def __getitem__(self, index: SupportsIndex | slice) -> ResultRow | Result:
        """The answer for one image, or with a slice the answers for several."""
        if isinstance(index, slice):
            return replace(
                self,
                probabilities=self.probabilities[index],
                experts=self.experts[index],
                latency_ms=self.latency_ms[index],
                gater_logits=self.gater_logits[index],
            )
        index = operator.index(index)
        label = int(self.probabilities[index].argmax())
        expert = int(self.experts[index])
        return ResultRow(
            probabilities=self.probabilities[index],
            label=label,
            class_name=self.class_names[label],
            expert=expert,
            expert_name=self.expert_names[expert],
            latency_ms=float(self.latency_ms[index]),
            gater_logits=self.gater_logits[index],
        )

    def __iter__(self) -> Iterator[ResultRow]:
        """The answers image by image."""
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class DeviceResult:
    """The answers for a batch of N images on the GPU, in input order, complete when `predict` returns.

    Attributes:
        probabilities: float32 [N, classes], softmax of the routed expert's logits.
        experts: int32 [N], index of the expert that answered, cheapest first.
        gater_logits: float32 [N, experts], the gater's scores before the latency weight.
        latency_ms: float32 [N] on the host, milliseconds from the call to each image's answer.
        class_names: name of every class.
        expert_names: name of every expert.
    """

    probabilities: DeviceArray
    experts: DeviceArray
    gater_logits: DeviceArray
    latency_ms: NDArray[np.float32]
    class_names: list[str]
    expert_names: list[str]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.experts)


def as_result(row: ResultRow, class_names: list[str], expert_names: list[str]) -> Result:
    """The answers for a batch of one."""
    return Result(
        row.probabilities[None],
        np.asarray([row.expert]),
        np.asarray([row.latency_ms], np.float32),
        row.gater_logits[None],
        class_names,
        expert_names,
    )


def join(results: Sequence[Result]) -> Result:
    """Several results of one router as one, in order."""
    return Result(
        np.concatenate([result.probabilities for result in results]),
        np.concatenate([result.experts for result in results]),
        np.concatenate([result.latency_ms for result in results]),
        np.concatenate([result.gater_logits for result in results]),
        results[0].class_names,
        results[0].expert_names,
    )
