"""One epoch on a network of one weight, and the images that it is served."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from trt_moe.training.config import GaterConfig  # noqa: E402
from trt_moe.training.loop import Order, epoch_order, images_in_order, run_epoch  # noqa: E402
from trt_moe.training.schedule import one_cycle  # noqa: E402
from trt_moe.training.splits import Corrupted  # noqa: E402

SETTINGS = GaterConfig(epochs=3, learning_rate=0.5, warmup=0.3, clip=1e6)


@pytest.fixture
def descend():
    """Go down the slopes [steps, pieces, n] with a weight that starts at 0, at one rate or at those of the settings."""

    def run(slopes, settings=SETTINGS, epoch=0):
        slopes = torch.tensor(slopes)
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=9.0)
        order = Order(np.zeros(slopes.shape, np.int64), np.zeros(slopes.shape, bool))
        rates = []

        def loss_of(_, slope, __):
            rates.append(optimizer.param_groups[0]["lr"])
            return (network.weight * slope).mean() + 1

        loss = run_epoch(
            "w", network, optimizer, settings, epoch, order, lambda *at: (torch.zeros(1), slopes[at]), loss_of
        )
        return network.weight.item(), rates, loss

    return run


def test_the_learning_rate_follows_the_schedule_of_all_epochs(descend):
    _, rates, _ = descend([[[1.0]]] * 4, epoch=1)
    assert rates == [one_cycle(step, 12, 0.5, 0.3) for step in (4, 5, 6, 7)]


def test_a_step_goes_down_the_mean_slope_of_its_pieces_alone(descend):
    weight, rates, loss = descend([[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 2.0]]])
    first = -4.0 * rates[0]
    assert weight == pytest.approx(first - 2.0 * rates[2])
    assert loss == pytest.approx((1.0 + (2.0 * first + 1.0)) / 2)


def test_a_steep_slope_is_clipped(descend):
    weight, rates, _ = descend([[[4.0]], [[0.5]]], SETTINGS.model_copy(update={"clip": 1.0}))
    assert weight == pytest.approx(-1.0 * rates[0] - 0.5 * rates[1])


def test_every_piece_is_served_its_own_images_some_with_left_and_right_exchanged():
    drawn = Corrupted(np.arange(24, dtype=np.uint8).reshape(4, 2, 3, 1), np.array([3, 0, 1, 2]), np.zeros(4, np.int64))
    order = Order(np.array([[[3], [0]], [[1], [2]]]), np.array([[[False], [True]], [[False], [False]]]))
    fetch = images_in_order(drawn, order)
    images, labels = fetch(0, 1)
    assert images[0, :, :, 0].tolist() == [[8, 7, 6], [11, 10, 9]]
    assert labels.tolist() == [0]
    images, labels = fetch(1, 0)
    assert images[0, :, :, 0].tolist() == [[12, 13, 14], [15, 16, 17]]
    assert labels.tolist() == [1]


def test_half_of_the_images_are_mirrored_or_none_and_a_short_rest_is_left_out():
    order, other = (epoch_order(410, 20, seed, True) for seed in (0, 1))
    assert order.chosen.shape == (20, 1, 20)
    assert 0.4 < order.mirrored.mean() < 0.6
    assert order.chosen.tolist() != other.chosen.tolist()
    assert not epoch_order(410, 20, 0, False).mirrored.any()
