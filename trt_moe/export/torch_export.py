"""PyTorch to ONNX, checked against PyTorch before the file is handed out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from trt_moe.errors import ModelOutputError
from trt_moe.export.reference import run_onnx
from trt_moe.logit_error import relative_error
from trt_moe.models import ImageModel

OPSET = 20
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
MAX_ERROR = 1e-3
"""Largest accepted max |logit error| / max(1, max |logit|) between ONNX Runtime and PyTorch, both float32."""

_TRACE_BATCH = 2
_CHECK_BATCHES = (1, 3)


def export_onnx(model: ImageModel, path: Path, input_shape: tuple[int, int, int]) -> float:
    """Write one self-contained ONNX file: `images` uint8 [N, H, W, C] to `logits` float32 [N, K].

    Args:
        model: in evaluation mode afterwards.
        path: the file; its folder is made.
        input_shape: (H, W, C), static in the graph; N is dynamic.

    Returns:
        The largest relative logit error against PyTorch.

    Raises:
        ModelOutputError: ONNX Runtime disagrees with PyTorch by more than `MAX_ERROR`.
    """
    model = model.eval().to(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.from_numpy(_noise(_TRACE_BATCH, input_shape))
    with torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("N", min=1)}},
            verbose=False,
        )
    _strip_traces(path)
    error = max(_error(model, path, _noise(count, input_shape)) for count in _CHECK_BATCHES)
    if not error <= MAX_ERROR:
        raise ModelOutputError(
            f"{path}: ONNX Runtime differs from PyTorch by {error:.2e}, accepted are {MAX_ERROR:.0e}; "
            "an operator of this network does not survive the export"
        )
    return error


def _strip_traces(path: Path) -> None:
    """Leave out what torch notes at every node: stack traces with this machine's paths, a twentieth of a small file."""
    model = onnx.load(path)
    graph = model.graph
    for entries in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for entry in entries:
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")
    onnx.save(model, path)


def _error(model: ImageModel, path: Path, images: NDArray[np.uint8]) -> float:
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    return relative_error(run_onnx(path, images), expected)


def _noise(count: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    generator = np.random.Generator(np.random.PCG64(count))
    return generator.integers(0, 256, size=(count, *shape), dtype=np.uint8)
