"""How sure experts are, against how often they are right."""

import numpy as np
import pytest

from support.made_answers import sure

pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.training import TrainConfig
from trt_moe.training.calibration import temperature, temperatures
from trt_moe.training.logits import Judged
from trt_moe.training.splits import Corrupted


def judged(severities, *experts):
    """What each expert answers for an image of every severity in turn, all of class 0."""
    count = len(severities)
    logits = np.stack([np.asarray(rows, np.float32) for rows in experts], axis=1)
    return Judged(Corrupted(np.zeros((count, 8, 8, 1), np.uint8), np.zeros(count, np.int64), severities), logits)


def test_a_temperature_makes_the_labels_likeliest():
    # Three of four right, at every margin: the fitted confidence is 0.75, so margin / T = ln 3.
    logits = np.array([sure(i % 4 != 0, 4.0) for i in range(40)], np.float32)
    assert temperature(logits, np.zeros(40, int)) == pytest.approx(4 / np.log(3), rel=0.03)


def test_an_expert_is_calibrated_on_what_it_was_trained_on(raw_config):
    light, heavy = raw_config["experts"]
    light = {**light, "severities": [1, 0, 0, 0, 0, 0]}
    heavy = {**heavy, "severities": [0, 0, 0, 0, 0, 1]}
    config = TrainConfig.model_validate({**raw_config, "experts": [light, heavy]})
    # Clean images: three of four right. Harsh ones: one of two.
    severities = np.repeat([0, 5], 20)
    answers = [sure(i % 4 != 0 if s == 0 else i % 2 == 0, 1.0) for i, s in enumerate(severities)]
    fitted = temperatures(config.experts, judged(severities, answers, answers))
    assert fitted["light"] == pytest.approx(1 / np.log(3), rel=0.03)
    assert fitted["heavy"] == 4.0  # nothing tells the classes apart: as unsure as can be


def test_an_expert_that_saw_none_of_the_severities_is_calibrated_on_all(raw_config):
    experts = [{**expert, "severities": [0, 0, 0, 1, 0, 0]} for expert in raw_config["experts"]]
    config = TrainConfig.model_validate({**raw_config, "experts": experts})
    answers = [sure(i % 4 != 0, 4.0) for i in range(40)]
    fitted = temperatures(config.experts, judged(np.repeat([0, 5], 20), answers, answers))
    np.testing.assert_allclose(list(fitted.values()), 4 / np.log(3), rtol=0.03)


def test_being_too_sure_costs_an_expert_nothing_once_it_is_calibrated(raw_config):
    config = TrainConfig.model_validate(raw_config)
    bold = [sure(i % 10 != 0, 12.0) for i in range(100)]  # right more often, and far too sure
    modest = [sure(i % 5 != 0, np.log(4)) for i in range(100)]
    of = judged(np.arange(100) % 6, bold, modest)
    assert of.losses.mean(0)[0] > of.losses.mean(0)[1]
    fitted = temperatures(config.experts, of)
    assert fitted == {"light": 4.0, "heavy": pytest.approx(1.0, rel=0.03)}  # bold: as unsure as can be
    fair = of.divided_by(list(fitted.values())).losses.mean(0)
    assert fair[0] < fair[1]
