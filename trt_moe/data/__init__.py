"""Data sets and corruptions, with numpy and pillow alone."""

from trt_moe.data.corruptions import (
    BLUR_SIGMA,
    EVALUATION_SEED,
    NOISE_SIGMA,
    REFERENCE_SIDE,
    SEVERITIES,
    corrupt,
)
from trt_moe.data.datasets import Dataset, load_dataset

__all__ = [
    "BLUR_SIGMA",
    "EVALUATION_SEED",
    "NOISE_SIGMA",
    "REFERENCE_SIDE",
    "SEVERITIES",
    "Dataset",
    "corrupt",
    "load_dataset",
]
