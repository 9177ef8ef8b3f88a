"""The losses of experts and gater; every one takes float32 logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trt_moe.errors import InputError

_LEAST_LIKELIHOOD = 1e-30

_CHOICE_TEMPERATURE = 0.03
"""Nats within which `regret_loss` takes experts for equally good: about what experts differ by on easy images."""
_REGRESSION = 0.3


def distillation_loss(
    student: Tensor, labels: Tensor, teacher: Tensor | None, weight: float, temperature: float
) -> Tensor:
    """(1 - weight) * cross-entropy + weight * T^2 * KL(teacher || student); plain CE without a teacher.

    `student` and `teacher` are logits [N, K], `labels` int64 [N]; returns the mean over N.
    """
    task = functional.cross_entropy(student, labels)
    if teacher is None or weight == 0:
        return task
    return (1 - weight) * task + weight * soft_loss(student, teacher, temperature)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, mean over N."""
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def expert_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every expert on every image: logits [N, K, classes] and labels [N] give [N, K]."""
    count, experts, classes = logits.shape
    flat = functional.cross_entropy(
        logits.reshape(count * experts, classes), labels.repeat_interleave(experts), reduction="none"
    )
    return flat.reshape(count, experts)


def gumbel_loss(
    scores: Tensor,
    losses: Tensor,
    costs: Tensor,
    latency_weight: float,
    temperature: float = 1.0,
    noise: Tensor | None = None,
) -> Tensor:
    """sum_k g_k CE_k + latency_weight * sum_k g_k cost_k, mean over N.

    g is a straight-through Gumbel-Softmax sample: one-hot forward, soft backward (Jang et al., Categorical
    Reparameterization with Gumbel-Softmax, ICLR 2017).

    Args:
        scores: gater logits [N, K].
        losses: each expert's cross-entropy [N, K], see `expert_losses`.
        costs: latency of each expert divided by the largest [K].
        latency_weight: lambda >= 0, nats for one unit of cost.
        temperature: of the Gumbel-Softmax.
        noise: Gumbel noise [N, K] from `gumbel_noise`; drawn here where left out.

    Raises:
        InputError: negative latency weight, or costs of the wrong length.
    """
    check_costs(costs, scores.shape[1], latency_weight)
    if noise is None:
        gates = functional.gumbel_softmax(scores, temperature, hard=True)
    else:
        soft = ((scores + noise) / temperature).softmax(dim=1)
        hard = functional.one_hot(soft.argmax(dim=1), soft.shape[1])
        gates = hard - soft.detach() + soft
    return (gates * (losses + latency_weight * costs)).sum(dim=1).mean()


def gumbel_noise(count: int, experts: int, seed: int) -> Tensor:
    """Standard Gumbel noise, float32 [count, experts], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return -torch.empty(count, experts).exponential_(generator=generator).log()


def likelihood_loss(
    scores: Tensor, losses: Tensor, costs: Tensor, latency_weight: float, temperature: float = 1.0
) -> Tensor:
    """-log sum_k g_k p_k(label) + latency_weight * sum_k g_k cost_k, mean over N, with p_k = exp(-CE_k).

    The negative log-likelihood of a mixture of experts (Jacobs et al. 1991), its gates drawn as in
    `gumbel_loss`, whose arguments and errors it shares. Forward the two are equal, as one gate is 1; this one's
    gradient pulls an image to an expert that is likelier to be right, however wrong the other one is.
    """
    check_costs(costs, scores.shape[1], latency_weight)
    gates = functional.gumbel_softmax(scores, temperature, hard=True)
    # Divided by the likelihood of the best expert, so that no image's likelihoods all round to zero.
    least = losses.min(dim=1, keepdim=True).values
    likelihood = (gates * (least - losses).exp()).sum(dim=1).clamp(min=_LEAST_LIKELIHOOD)
    task = least.squeeze(1) - likelihood.log()
    return (task + latency_weight * (gates * costs).sum(dim=1)).mean()


def balance_loss(scores: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' mean gates, 0 where all get equal shares.

    The importance loss of Shazeer et al. 2017 (sparsely-gated mixture of experts), over softmax(scores [N, K]).
    """
    importance = scores.softmax(dim=1).mean(dim=0)
    balance: Tensor = importance.var(unbiased=False) / importance.mean() ** 2
    return balance


def gate_entropy(scores: Tensor) -> Tensor:
    """Entropy of softmax(scores [N, K]) in nats, mean over N."""
    entropy: Tensor = torch.special.entr(scores.softmax(dim=1)).sum(dim=1).mean()
    return entropy


def benefit_loss(scores: Tensor, losses: Tensor, clip: float) -> Tensor:
    """Mean squared error of each score against minus the expert's clipped cross-entropy.

    The minimum is score_k = -E[min(CE_k, clip) | x]: differences of scores are expected benefits in nats,
    whatever latency weight is used later.
    """
    return functional.mse_loss(scores, -losses.clamp(max=clip))


def regret_loss(scores: Tensor, losses: Tensor, costs: Tensor, clip: float, weights: Tensor | None = None) -> Tensor:
    """What images pay by a gater's choices, at latency weights drawn for each image from 0 to 1, mean over N.

    An image pays sum_k g_k (min(CE_k, clip) + weight * cost_k), where g is the choice at its weight, softened:
    g = softmax((score - weight * cost) / 0.03). Only what changes a choice is learned, so the large and noisy
    losses on hard images do not drown the small differences on easy ones, as they do in `benefit_loss`. A small
    part of regression, of each score's distance to the mean of the experts, keeps the scores in nats.

    Decision-focused learning in the sense of Elmachtoub and Grigas, Smart "Predict, then Optimize", Management
    Science 2022, with a softened choice in place of their surrogate.

    Args:
        scores: gater logits [N, K], free of costs.
        losses: each expert's cross-entropy [N, K].
        costs: latency of each expert divided by the largest [K].
        clip: nats; losses count at most so much.
        weights: latency weights [N, 1]; drawn here where left out.
    """
    losses = losses.clamp(max=clip)
    if weights is None:
        weights = torch.rand(len(scores), 1, device=scores.device)
    latency = weights * costs
    gates = ((scores - latency) / _CHOICE_TEMPERATURE).softmax(dim=1)
    paid = (gates * (losses + latency)).sum(dim=1).mean()
    benefits = losses.mean(dim=1, keepdim=True) - losses
    regression = (scores - scores.mean(dim=1, keepdim=True) - benefits).square().sum(dim=1).mean()
    return paid + _REGRESSION * regression / (scores.shape[1] - 1)


def check_costs(costs: Tensor, experts: int, latency_weight: float) -> None:
    """Refuse a negative or infinite latency weight and costs that do not fit the experts.

    Raises:
        InputError: says what was given and what was expected.
    """
    if not 0 <= latency_weight < float("inf"):
        raise InputError(f"latency weight is {latency_weight}; expected a number >= 0")
    if costs.shape != (experts,):
        raise InputError(f"{tuple(costs.shape)} costs for {experts} experts; expected one per expert")
    if not bool(torch.isfinite(costs).all()) or bool((costs <= 0).any()):
        raise InputError(f"costs must be positive and finite, got {costs.tolist()}")
