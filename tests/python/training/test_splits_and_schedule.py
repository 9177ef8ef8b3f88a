"""Splits are disjoint, draws repeat themselves, the learning rate is a function of the step."""

import numpy as np
import pytest

from trt_moe.data import Dataset, corrupt
from trt_moe.errors import DataError
from trt_moe.training.config import CorruptionConfig, SplitConfig
from trt_moe.training.schedule import one_cycle
from trt_moe.training.splits import KINDS, Corrupted, Part, apply, derived_seed, draw, every_severity, split


def _data(count=30):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    return Dataset(images, np.arange(count) % 3, ("a", "b", "c"), "numbers")


def test_no_image_serves_two_phases():
    parts = split(_data(), SplitConfig(experts=15, gater=10, validation=5))
    indices = [set(p.indices.tolist()) for p in (parts.experts, parts.gater, parts.validation)]
    assert [len(i) for i in indices] == [15, 10, 5]
    assert set.union(*indices) == set(range(30))
    assert (parts.gater.images[:, 0, 0, 0] == parts.gater.indices).all()


def test_another_seed_splits_otherwise():
    first, again, other = (split(_data(), SplitConfig(experts=15, gater=10, validation=5, seed=s)) for s in (0, 0, 1))
    assert first.experts.indices.tolist() == again.experts.indices.tolist()
    assert first.experts.indices.tolist() != other.experts.indices.tolist()


def test_too_few_images_are_said():
    with pytest.raises(DataError, match="30 training images, the splits need 31"):
        split(_data(), SplitConfig(experts=15, gater=10, validation=6))


def test_a_draw_follows_its_weights_and_its_seed():
    part = split(_data(), SplitConfig(experts=28, gater=1, validation=1)).experts
    first = draw(part, (1, 0, 0, 0, 0, 1), CorruptionConfig(), seed=1)
    again = draw(part, (1, 0, 0, 0, 0, 1), CorruptionConfig(), seed=1)
    np.testing.assert_array_equal(first.images, again.images)
    assert set(first.severities.tolist()) == {0, 5}
    clean = first.severities == 0
    np.testing.assert_array_equal(first.images[clean], part.images[clean])


def test_some_images_get_one_corruption_alone():
    count = 60
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    part = Part(pixels, np.zeros(count, np.int64), np.arange(count))
    harsh = (0, 0, 0, 0, 0, 1)
    both, mixed = (draw(part, harsh, CorruptionConfig(alone=alone), seed=1) for alone in (0.0, 0.5))
    assert (mixed.severities == both.severities).all()
    level = np.full(count, 5)
    made = {kind: apply(part, level, CorruptionConfig(), 1, kind) for kind in KINDS}
    np.testing.assert_array_equal(both.images, made["both"])
    share = {k: np.mean([(a == b).all() for a, b in zip(mixed.images, made[k], strict=True)]) for k in KINDS}
    assert sum(share.values()) == pytest.approx(1.0)
    assert all(share[kind] > 0.1 for kind in KINDS)
    rows = np.array([7, 3])
    some = draw(part, harsh, CorruptionConfig(alone=0.5), seed=1, rows=rows)
    np.testing.assert_array_equal(some.images, mixed.images[rows])


def test_checkpoints_made_before_single_corruptions_keep_their_hash():
    assert "alone" not in CorruptionConfig().identity()
    assert CorruptionConfig(alone=0.1).identity()["alone"] == 0.1


def test_every_severity_repeats_every_image():
    part = split(_data(), SplitConfig(experts=3, gater=1, validation=1)).experts
    full = every_severity(part, CorruptionConfig(), seed=0)
    assert full.severities.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3
    assert full.labels.tolist() == part.labels.tolist() * 6
    assert (full.images != every_severity(part, CorruptionConfig(), seed=1).images).any()


def test_images_are_corrupted_as_the_config_says():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    part = Part(pixels, np.zeros(3, np.int64), np.array([7, 8, 9]))
    sigmas = {"blur_sigma": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "noise_sigma": (0.0, 0.02, 0.03, 0.04, 0.05, 0.06)}
    made = apply(part, np.array([1, 3, 5]), CorruptionConfig(**sigmas, reference_side=8), 2)
    expected = corrupt(pixels, [1, 3, 5], 2, [7, 8, 9], *sigmas.values(), reference_side=8)
    np.testing.assert_array_equal(made, expected)


def test_mirrored_images_have_left_and_right_exchanged():
    images = Corrupted(np.array([[[[1], [2], [3]], [[4], [5], [6]]]], np.uint8), np.array([7]), np.array([5]))
    mirrored = images.mirrored()
    assert mirrored.images[0, :, :, 0].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert (mirrored.labels.tolist(), mirrored.severities.tolist()) == ([7], [5])


def test_derived_seeds_differ_by_purpose_and_never_change():
    assert derived_seed("order", 1) != derived_seed("init", 1)
    assert derived_seed("order", 1) == 1121079862195528064


def test_one_cycle_rises_then_falls():
    rates = [one_cycle(step, 100, 1.0, 0.2) for step in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx((1 + 1e-4) / 2)
    assert rates[100] == pytest.approx(1e-4)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
