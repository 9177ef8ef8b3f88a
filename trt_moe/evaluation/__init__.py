"""Evaluation of bundles: accuracies, shares and honest latencies beside the strategies to beat."""

from trt_moe.evaluation.evaluate import Report, TestSet, evaluate, make_test_sets
from trt_moe.evaluation.held_out import load_test_images

__all__ = ["Report", "TestSet", "evaluate", "load_test_images", "make_test_sets"]
