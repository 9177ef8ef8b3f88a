"""Gater and experts as one network: dense while it trains, sparse when it answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trt_moe.models.preprocess import ImageModel


class Mixture(nn.Module):
    """A gater and its K experts, in the gater's order.

    Called, it trains: every expert is computed for every image, as each one's loss decides the gater's gradient. The
    choice itself is the loss's, see `trt_moe.training.losses.gumbel_loss`.

    Input uint8 [N, H, W, C]; outputs the gater's scores [N, K] and the experts' logits [N, K, classes], float32.
    """

    def __init__(self, gater: ImageModel, experts: Sequence[ImageModel]) -> None:
        """Join a gater of K scores with K experts."""
        super().__init__()
        self.gater = gater
        self.experts = nn.ModuleList(experts)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score the experts, and let all of them classify."""
        return self.gater(images), torch.stack([expert(images) for expert in self.experts], dim=1)

    @torch.inference_mode()
    def answer(self, images: Tensor, costs: Tensor, latency_weight: float) -> tuple[Tensor, Tensor]:
        """Route by argmax(score - latency_weight * cost), as a router does; each expert sees its own images only.

        Returns routes int64 [N] and logits float32 [N, classes]; put the mixture into evaluation mode first.
        """
        routes = (self.gater(images) - latency_weight * costs).argmax(dim=1)
        groups = [torch.nonzero(routes == index)[:, 0] for index in range(len(self.experts))]
        answers = [expert(images[group]) for expert, group in zip(self.experts, groups, strict=True) if len(group)]
        order = torch.cat(groups)
        logits = torch.cat(answers)
        return routes, torch.empty_like(logits).index_copy_(0, order, logits)
