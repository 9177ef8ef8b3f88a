"""Bundles: the portable folders of ONNX models that trt-moe routes between."""

from trt_moe.bundle.bundle import Bundle, shipped_bundles
from trt_moe.bundle.manifest import (
    SCHEMA_VERSION,
    Corruption,
    Evaluation,
    Golden,
    InputSpec,
    Latency,
    LatencyTable,
    Manifest,
    ModelEntry,
    Samples,
    SeverityEvaluation,
    Training,
)
from trt_moe.bundle.safety import sha256_file
from trt_moe.bundle.writer import write_golden, write_manifest

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "Corruption",
    "Evaluation",
    "Golden",
    "InputSpec",
    "Latency",
    "LatencyTable",
    "Manifest",
    "ModelEntry",
    "Samples",
    "SeverityEvaluation",
    "Training",
    "sha256_file",
    "shipped_bundles",
    "write_golden",
    "write_manifest",
]
