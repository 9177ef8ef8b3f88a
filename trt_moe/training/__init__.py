"""Training: data to bundle, in phases that resume (`pipeline.train`). Needs the extra `train` (torch, timm, onnx)."""

from trt_moe.training.config import TrainConfig, load_config

__all__ = ["TrainConfig", "load_config"]
