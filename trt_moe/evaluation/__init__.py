"""Evaluation of bundles: accuracies, shares and honest latencies beside the strategies to beat."""

from trt_moe.evaluation.evaluate import Report, TestSet, evaluate, make_test_sets

__all__ = ["Report", "TestSet", "evaluate", "make_test_sets"]
