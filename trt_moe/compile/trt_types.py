"""Names of TensorRT's classes, which come without type stubs.

A value annotated with one of them is of TensorRT's class of that name. A test looks up all that is taken from such
values in every TensorRT that is supported, so annotate each value that TensorRT hands out; `*_rtx` functions are held
against TensorRT-RTX only, `*_classic` ones against `tensorrt` only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Builder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
ILogger: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IOptimizationProfile: TypeAlias = Any
IProgressMonitor: TypeAlias = Any
IRuntimeConfig: TypeAlias = Any
ITensor: TypeAlias = Any
ITimingCache: TypeAlias = Any
OnnxParser: TypeAlias = Any
ParserError: TypeAlias = Any
Runtime: TypeAlias = Any
