"""Networks: the gater, experts by name, their mixture, and the wrapper that puts preprocessing into the graph."""

from trt_moe.models.gater import SqueezeNetLight, fused_gater
from trt_moe.models.mixture import Mixture
from trt_moe.models.preprocess import ImageModel
from trt_moe.models.registry import create_expert, expert_names

__all__ = ["ImageModel", "Mixture", "SqueezeNetLight", "create_expert", "expert_names", "fused_gater"]
