"""`StartingPoint`: the pretrained weights, to which L2-SP pulls those that train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StartingPoint:
    """Adds to a loss half the squared distance from pretrained weights, times `strength`, by way of gradients.

    L2-SP (Li, Grandvalet and Davoine 2018, arXiv 1802.01483), over `parameters` and what they were `pretrained` to. A
    head has no such weights; its weight decay is the other half of that paper's penalty.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], pretrained: Sequence[Tensor], strength: float) -> None:
        self._strength = strength
        self._pairs = [
            (one, torch.empty_like(one, requires_grad=False).copy_(start))
            for one, start in zip(parameters, pretrained, strict=True)
        ]

    @torch.no_grad()
    def pull(self) -> None:
        """To be called between a loss's gradients and their clipping; what has no gradient yet stays."""
        moving = [(one, one.grad, start) for one, start in self._pairs if one.grad is not None]
        if moving:
            weights, gradients, starts = (list(column) for column in zip(*moving, strict=True))
            torch._foreach_add_(gradients, torch._foreach_sub(weights, starts), alpha=self._strength)
