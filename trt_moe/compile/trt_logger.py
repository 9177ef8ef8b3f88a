"""Where TensorRT's messages go."""

from __future__ import annotations

import logging
from typing import Any

from trt_moe.compile.trt_types import ILogger

_log = logging.getLogger("trt_moe")


def make_logger(trt: Any, errors: list[str]) -> ILogger:
    """A logger that adds TensorRT's errors to `errors`, one line each; warnings go to our own log."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                _log.info("TensorRT: %s", message)

    return Logger()
