"""Requests of the Open Inference Protocol."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def body(
    data: Any = None,
    shape: tuple[int, ...] = (1, 2, 2, 1),
    tail: bytes = b"",
    tensor: dict[str, Any] | None = None,
    **request: Any,
) -> tuple[bytes, str | None]:
    """The bytes of a request, and the value of its header."""
    images: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": list(shape)}
    images |= {"data": data} if data is not None else {}
    head = json.dumps({"inputs": [images | (tensor or {})], **request}).encode()
    return head + tail, str(len(head)) if tail else None


def binary(pixels: NDArray[np.uint8], **request: Any) -> tuple[bytes, str | None]:
    """The same with the images as bytes."""
    size = {"parameters": {"binary_data_size": pixels.size}}
    return body(None, pixels.shape, pixels.tobytes(), size, **request)
