"""Profiles of bundles: latency of each model and of the mixture, throughput under load, stage by stage."""

from trt_moe.profiling.measure import profile

__all__ = ["profile"]
