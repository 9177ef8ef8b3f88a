"""Training: data to bundle, in phases that resume. Needs the extra `train` (torch, timm, onnx)."""

from trt_moe.training.config import TrainConfig, load_config
from trt_moe.training.pipeline import train

__all__ = ["TrainConfig", "load_config", "train"]
