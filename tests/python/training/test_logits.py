"""Which images gaters learn from and are ranked by, and when kept logits are of use."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from torch import nn  # noqa: E402

from trt_moe.training import TrainConfig, logits  # noqa: E402
from trt_moe.training.logits import Judged, judge, judge_parts  # noqa: E402
from trt_moe.training.splits import Corrupted, Part, Parts  # noqa: E402


def part(*labels):
    return Part(np.full((len(labels), 8, 8, 1), 100, np.uint8), np.array(labels), np.array(labels))


def test_gaters_learn_from_passes_over_their_part_and_are_ranked_on_validation_images(
    raw_config, tmp_path, monkeypatch
):
    config = TrainConfig.model_validate({**raw_config, "gater": {"passes": 3}})
    parts = Parts(part(1, 2), part(*range(10, 40)), part(3, 4))
    monkeypatch.setattr(logits, "judge", lambda *given: given[3:5])
    (learned, training), (looked_at, validation) = judge_parts(config, (), {}, parts, tmp_path)
    assert (learned, looked_at) == ("gater", "validation")
    assert training.labels.tolist() == [*range(10, 40)] * 3
    assert set(training.severities) == {0, 1, 2, 3, 4, 5}
    drawn = training.severities.reshape(3, 30).tolist()
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert validation.labels.tolist() == [3, 4] * 6
    assert validation.severities.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_logits_are_computed_again_for_other_weights_seeds_or_images(raw_config, tmp_path, monkeypatch):
    config = TrainConfig.model_validate({**raw_config, "precision": "bf16"})
    light = config.experts[0]
    model, asked = nn.Linear(1, 2), []

    def predict(model, images, precision):
        asked.append(precision)
        return np.full((len(images), 2), len(asked), np.float32)

    def first(config=config, count=4):
        images = Corrupted(np.zeros((count, 8, 8, 1), np.uint8), np.zeros(count, np.int64), np.zeros(count, np.int64))
        judged = judge(config, [light], {"light": model}, "images", images, tmp_path, lambda _: None)
        assert judged.logits.shape == (count, 1, 2)
        return judged.logits[0, 0, 0]

    monkeypatch.setattr(logits, "predict", predict)
    assert (first(), first()) == (1, 1)
    with torch.no_grad():
        model.bias += 1
    assert (first(), first()) == (2, 2)
    other = config.model_copy(update={"seed": 1})
    assert (first(other), first(other)) == (3, 3)
    assert (first(other, 3), first(other, 3)) == (4, 4)
    assert asked == ["bf16"] * 4


def test_every_nth_image_stands_for_all_with_its_logits():
    rows = np.arange(10)
    pixels = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (10, 8, 8, 1))
    judged = Judged(Corrupted(pixels, rows, rows % 6), np.broadcast_to(rows[:, None, None], (10, 2, 3)))
    some = judged.thinned(3)
    assert some.images.labels.tolist() == [0, 3, 6, 9]
    assert some.images.images[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert some.images.severities.tolist() == [0, 3, 0, 3]
    assert some.logits[:, 1, 2].tolist() == [0, 3, 6, 9]
    assert len(judged.thinned(99).images.labels) == 10


def test_a_second_look_is_answered_by_the_mean_of_both_probabilities():
    # Means 0.305, 0.3 and 0.395; the product is largest for class 1.
    both = np.log(np.array([[[0.6, 0.3, 0.1]], [[0.01, 0.3, 0.69]]], np.float32))
    images = Corrupted(np.zeros((1, 8, 8, 1), np.uint8), np.array([2]), np.array([0]))
    assert Judged(images, both[:1]).right_with(both[1:]).tolist() == [[True]]
