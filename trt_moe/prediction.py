"""`trt-moe predict`: image files to labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trt_moe.console import ProgressCallback, clean, milliseconds, percent, print_table, routing_rule, stderr
from trt_moe.images import LoadFailure, find_images, load_images
from trt_moe.router import Router

_CHUNK = 64


@dataclass(frozen=True)
class Prediction:
    """The answer for one file.

    Attributes:
        path: of the image.
        label: likeliest class.
        probability: of that class.
        expert: who was asked last.
        ms: latency of this image, alone.
        top: the likeliest classes with their probabilities, best first.
    """

    path: str
    label: str
    probability: float
    expert: str
    ms: float
    top: tuple[tuple[str, float], ...]


@dataclass
class Predictions:
    """Answers for the readable files so far, the other files, and what was not read of the readable ones."""

    rows: list[Prediction] = field(default_factory=list)
    failures: list[LoadFailure] = field(default_factory=list)
    remarks: list[LoadFailure] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.rows or self.failures)

    def to_json(self, router: Router) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "bundle": router.bundle.name,
            "device": router.device,
            "latency_weight": router.latency_weight,
            "verify_below": router.verify_below,
            "verify_by": router.verify_by,
            "predictions": [{**asdict(row), "top": [list(pair) for pair in row.top]} for row in self.rows],
            "failures": _listed(self.failures),
            "remarks": _listed(self.remarks),
        }


def predict_files(
    router: Router, paths: Sequence[str | Path], top: int, progress: ProgressCallback, predictions: Predictions
) -> None:
    """Answer every image that `paths` name, one by one so that the latencies are those of single images.

    Args:
        router: answers.
        paths: files, and folders that are searched for images.
        top: how many classes to keep of each answer.
        progress: called as progress(what, done, total).
        predictions: gets every answer as soon as it is there, so that an interrupt loses none.
    """
    files, failures = find_images(paths)
    predictions.failures += failures
    for number, chunk in enumerate(_chunks(files)):
        loaded = load_images(chunk, router.bundle, on_error="skip")
        predictions.failures += loaded.failures
        predictions.remarks += loaded.remarks
        for path, image in zip(loaded.paths, loaded.images, strict=True):
            predictions.rows.append(_predict(router, path, image, top))
        progress("images", min(len(files), (number + 1) * _CHUNK), len(files))


def likeliest(probabilities: NDArray[np.float32], names: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    """The `top` likeliest classes with their probabilities, best first."""
    best = np.argsort(-probabilities, kind="stable")[:top]
    return tuple((names[index], float(probabilities[index])) for index in best)


def print_predictions(predictions: Predictions, router: Router) -> None:
    """Print the answers as a table, the failures to stderr."""
    if predictions.rows:
        columns = ["image", "label", "probability", "expert", "ms"]
        rows = [
            (row.path, row.label, percent(row.probability), row.expert, milliseconds(row.ms))
            for row in predictions.rows
        ]
        others = len(predictions.rows[0].top) - 1
        if others > 0:
            columns.append(f"next {others}")
            rows = [
                (*cells, ", ".join(f"{name} {percent(p)}" for name, p in row.top[1:]))  # type: ignore[misc]
                for cells, row in zip(rows, predictions.rows, strict=True)
            ]
        print_table(
            f"{router.bundle.name} on {router.device}, "
            f"{routing_rule(router.latency_weight, router.verify_below, router.verify_by)}",
            columns,
            rows,
        )
    errors = stderr()
    for failure in predictions.failures:
        errors.print(f"trt-moe: cannot read {clean(failure)}", soft_wrap=True)
    if predictions.failures:
        total = len(predictions.failures) + len(predictions.rows)
        errors.print(f"trt-moe: {len(predictions.failures)} of {total} images could not be read", soft_wrap=True)


def _predict(router: Router, path: Path, image: np.ndarray[Any, Any], top: int) -> Prediction:
    row = router.predict(image[None])[0]
    return Prediction(
        path=str(path),
        label=row.class_name,
        probability=float(row.probabilities[row.label]),
        expert=row.expert_name,
        ms=row.latency_ms,
        top=likeliest(row.probabilities, router.bundle.class_names, top),
    )


def _listed(said: Iterable[LoadFailure]) -> list[dict[str, str]]:
    return [{"path": str(each.path), "reason": each.reason} for each in said]


def _chunks(files: Iterable[Path]) -> Iterator[list[Path]]:
    remaining = iter(files)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
