"""Losses against values computed by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from trt_moe.errors import InputError  # noqa: E402
from trt_moe.training.losses import (  # noqa: E402
    balance_loss,
    benefit_loss,
    distillation_loss,
    expert_losses,
    gate_entropy,
    gumbel_loss,
    gumbel_noise,
    likelihood_loss,
    regret_loss,
    soft_loss,
)

NEVER = -1e4  # a score so low that no Gumbel noise makes up for it


def test_expert_losses_are_cross_entropies_per_expert():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]] * 2)
    expected = [[math.log(2), math.log(4 / 3)], [math.log(2), math.log(4)]]
    torch.testing.assert_close(expert_losses(logits, torch.tensor([0, 1])), torch.tensor(expected))


def test_gumbel_loss_is_the_chosen_experts_loss_plus_its_weighted_cost():
    scores = torch.tensor([[0.0, NEVER], [NEVER, 0.0]])
    losses = torch.tensor([[2.0, 9.0], [9.0, 0.5]])
    loss = gumbel_loss(scores, losses, torch.tensor([0.1, 1.0]), latency_weight=0.7)
    assert loss.item() == pytest.approx((2.0 + 0.07 + 0.5 + 0.7) / 2)


def test_the_gradient_of_the_gumbel_loss_pulls_to_the_better_expert():
    torch.manual_seed(0)
    scores = torch.zeros(512, 2, requires_grad=True)
    gumbel_loss(scores, torch.tensor([[2.0, 0.1]]).expand(512, 2), torch.tensor([0.1, 1.0]), 0.7).backward()
    assert scores.grad is not None
    assert scores.grad[:, 1].mean() < 0 < scores.grad[:, 0].mean()


def test_given_noise_decides_the_gates_and_their_gradient():
    scores = torch.zeros(2, 2, requires_grad=True)
    noise = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    losses = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    loss = gumbel_loss(scores, losses, torch.ones(2), 0.0, temperature=1.0, noise=noise)
    assert loss.item() == pytest.approx((1.0 + 2.0) / 2)
    loss.backward()
    # Of softmax: g0 * g1 * (loss0 - loss1) = 1/4 * 3/4 for either image, over two images.
    torch.testing.assert_close(scores.grad, torch.tensor([[1.0, -1.0], [1.0, -1.0]]) * 3 / 32)


def with_noise(scores, losses, costs, latency_weight, temperature):
    return gumbel_loss(scores, losses, costs, latency_weight, temperature, torch.zeros(1, 2))


@pytest.mark.parametrize(("loss", "slope"), [(gumbel_loss, 1.0), (with_noise, 1.0), (likelihood_loss, math.e - 1)])
def test_gates_are_hard_forward_and_as_soft_as_the_temperature_says_backward(loss, slope):
    # So hot that both soft gates are a half whatever the noise, which cannot make up for the scores.
    scores = torch.tensor([[0.0, -100.0]], requires_grad=True)
    value = loss(scores, torch.tensor([[2.0, 1.0]]), torch.ones(2), 0.0, 1e5)
    assert value.item() == pytest.approx(2.0)
    value.backward()
    torch.testing.assert_close(scores.grad * 1e5, torch.tensor([[slope, -slope]]) / 4, rtol=1e-2, atol=0)


def test_gumbel_noise_is_standard_and_repeats_itself():
    noise = gumbel_noise(20_000, 2, seed=1)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert torch.equal(noise, gumbel_noise(20_000, 2, seed=1))
    assert not torch.equal(noise, gumbel_noise(20_000, 2, seed=2))


def test_likelihood_loss_equals_the_gumbel_loss_where_gates_are_hard():
    scores = torch.tensor([[0.0, NEVER], [NEVER, 0.0]])
    losses = torch.tensor([[2.0, 9.0], [9.0, 0.5]])
    loss = likelihood_loss(scores, losses, torch.tensor([0.1, 1.0]), latency_weight=0.7)
    assert loss.item() == pytest.approx((2.0 + 0.07 + 0.5 + 0.7) / 2)


def test_the_gradient_of_the_likelihood_loss_grows_with_the_ratio_of_likelihoods():
    """d(-log sum_k g_k p_k)/dg_k = -p_k / p_chosen: a linear loss would give the difference of losses."""
    gradients = []
    for gap in (1.0, 3.0):
        torch.manual_seed(0)
        scores = torch.tensor([[5.0, -5.0]]).repeat(256, 1).requires_grad_()
        losses = torch.tensor([[gap, 0.0]]).expand(256, 2)
        likelihood_loss(scores, losses, torch.tensor([0.5, 1.0]), 0.0).backward()
        gradients.append(float(-scores.grad[:, 1].sum()))
    assert gradients[1] / gradients[0] == pytest.approx((math.exp(3) - 1) / (math.exp(1) - 1), rel=1e-3)


def test_the_likelihood_loss_is_finite_for_hopeless_experts():
    scores = torch.zeros(4, 2, requires_grad=True)
    loss = likelihood_loss(scores, torch.tensor([[500.0, 0.0]]).expand(4, 2), torch.tensor([0.5, 1.0]), 0.7)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_balance_loss_is_zero_for_equal_shares_and_largest_for_one_expert():
    equal = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    assert balance_loss(equal).item() == pytest.approx(0, abs=1e-6)
    assert balance_loss(torch.tensor([[99.0, 0.0, 0.0]])).item() == pytest.approx(2.0)


def test_gate_entropy_is_that_of_the_softmax():
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [500.0, -500.0]])
    quarter = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert gate_entropy(scores).item() == pytest.approx((math.log(2) + quarter) / 3)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_latency_weight_below_zero_or_not_finite_is_refused(weight):
    with pytest.raises(InputError, match="latency weight"):
        gumbel_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(2), weight)


@pytest.mark.parametrize("costs", [[1.0], [0.1, 0.5, 1.0], [0.0, 1.0], [0.5, float("nan")]])
def test_costs_that_do_not_fit_are_refused(costs):
    with pytest.raises(InputError, match="costs"):
        gumbel_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor(costs), 0.7)


COSTS = torch.tensor([0.2, 1.0])


def test_regret_is_what_the_choice_at_the_drawn_weight_pays_plus_a_little_regression():
    scores = torch.tensor([[0.0, 0.5], [0.0, 0.5]])
    losses = torch.tensor([[9.0, 0.5], [2.0, 1.5]])
    weights = torch.tensor([[0.0], [1.0]])
    # At weight 0 the first image gets the dear expert, at weight 1 the second one the cheap one.
    paid = (0.5 + 2.0 + 0.2) / 2
    # Benefits of the dear expert are 5.5 (its rival's loss clipped to 6) and 0.5; both scores say 0.5.
    regression = 0.3 * (2 * 2.5**2 + 0.0) / 2
    assert regret_loss(scores, losses, COSTS, 6.0, weights).item() == pytest.approx(paid + regression, abs=1e-4)


def test_the_regression_in_regret_is_a_mean_over_the_benefits_of_the_other_experts():
    # All three share the image, so it pays a third of 3 nats; distances to the benefits are 2, 1 and 1.
    loss = regret_loss(torch.zeros(1, 3), torch.tensor([[3.0, 0.0, 0.0]]), torch.ones(3), 6.0, torch.zeros(1, 1))
    assert loss.item() == pytest.approx(1.0 + 0.3 * (4 + 1 + 1) / 2)


def test_regret_learns_from_images_that_are_near_a_choice_and_hardly_from_others():
    # The gater asks the dear expert for all three; at this weight each must gain more than 0.4 by it.
    scores = torch.tensor([[0.0, 0.41], [0.0, 0.9], [0.0, 0.41]], requires_grad=True)
    losses = torch.tensor([[0.9, 0.8], [1.7, 0.8], [1.21, 0.8]])
    regret_loss(scores, losses, COSTS, 6.0, torch.full((3, 1), 0.5)).backward()
    pull = scores.grad[:, 1] * 3
    near, far, right = pull.tolist()
    assert near > 1.0
    assert abs(far) < 1e-3
    assert abs(right) < 0.1


def test_regret_draws_a_weight_for_each_image():
    torch.manual_seed(0)
    scores = torch.tensor([[0.0, 0.4]]).expand(4000, 2)
    losses = torch.tensor([[1.0, 0.6]]).expand(4000, 2)
    # The dear expert is taken below weight 0.5, which is right: on average 1/2 (0.6 + 0.25) + 1/2 (1 + 0.15).
    assert regret_loss(scores, losses, COSTS, 6.0).item() == pytest.approx(1.0, abs=0.02)


def test_benefit_loss_is_the_squared_distance_to_minus_the_clipped_loss():
    scores = torch.tensor([[-1.0, -5.0]])
    losses = torch.tensor([[2.0, 100.0]])
    assert benefit_loss(scores, losses, clip=6.0).item() == pytest.approx((1.0 + 1.0) / 2)


def test_soft_loss_is_scaled_kl_and_zero_for_equal_logits():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    assert soft_loss(logits, logits + 3, 2.0).item() == pytest.approx(0, abs=1e-6)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_mixes_both_terms():
    student, teacher = torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, 0.0]])
    labels = torch.tensor([1])
    task = distillation_loss(student, labels, None, 0.5, 2.0)
    both = distillation_loss(student, labels, teacher, 0.25, 2.0)
    torch.testing.assert_close(both, 0.75 * task + 0.25 * soft_loss(student, teacher, 2.0))
    torch.testing.assert_close(distillation_loss(student, labels, teacher, 0.0, 2.0), task)
