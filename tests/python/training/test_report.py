"""The page about trained gaters, of four images whose figures can be counted by hand."""

import importlib

import numpy as np
import pytest

from support.made_answers import sure

pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.training.gater import TrainedGater
from trt_moe.training.logits import Judged
from trt_moe.training.splits import Corrupted

module = importlib.import_module("trt_moe.training.report")


def test_every_figure_of_the_page_is_what_its_heading_says(monkeypatch):
    light = [sure(True, 4), sure(False, 3), sure(False, 2.5), sure(False, 3.5)]
    heavy = [sure(True, 4), sure(True, 4), sure(True, 1), sure(False, 4)]
    images = Corrupted(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64), np.array([0, 5, 5, 0]))
    judged = Judged(images, np.stack([light, heavy], axis=1).astype(np.float32))
    good, blind = (np.stack([np.zeros(4), gains], axis=1) for gains in ([0.0, 2.0, 2.0, 0.0], [-9.0] * 4))
    monkeypatch.setattr(module, "predict", lambda scores, _: scores)
    gaters = [TrainedGater("regret", 3, good, 0.8, 0.5), TrainedGater("gumbel", 4, blind, 0.6, 0.1)]
    lines = module.report(gaters, judged, ["light", "heavy"], np.array([0.25, 1.0]), 0.1, 0.7).splitlines()
    assert lines[0] == "# Gaters on 4 images, latency weight 0.7"
    for expected in (
        "Relative costs: light 0.250, heavy 1.000, gater 0.100.",
        "| regret | 3 | 0.8000 | 0.500 | 0.0% 100.0% | 0.7500 | 0.725 |",
        "| gumbel | 4 | 0.6000 | 0.100 | 0.0% 0.0% | 0.2500 | 0.350 |",
        # From 0.25 to 0.75 over the costs 0.35 to 0.725, and then no better.
        "| gater (best) | - | 0.3167 | 0.4500 | 0.5833 | 0.7167 | 0.7500 | 0.7500 |",
        # The image passed on first stays wrong: the light expert is surer of it than the heavy one.
        "| confidence cascade | 0.2500 | 0.2500 | 0.2500 | 0.3500 | 0.4500 | 0.5000 | 0.5000 |",
        # A line, so its mean from 0.35, where the gater begins, is its value halfway to 1.
        "| random | 0.2833 | 0.3500 | 0.4167 | 0.4833 | 0.5500 | 0.6167 | 0.6833 | 0.5333 |",
        "| always light | 0.2500 | 0.250 |",
        "| always heavy | 0.7500 | 1.000 |",
        "| oracle | 0.7500 | 0.625 |",
    ):
        assert [line for line in lines if line.startswith(expected)], expected
