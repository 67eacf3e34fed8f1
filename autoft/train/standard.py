"""`Standard`: features on one scale, for a head that trains by gradient.

Adam moves every weight of a head by about the rate, whatever its feature: one that varies ten times as much as another
moves outputs ten times as far. Pooled activations of different stages do (of an EfficientNet-Lite0 by a factor of 30).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAST_SHARE = 0.05
"""Of the usual deviation: what hardly varies is not blown up to noise."""

_PREFIX = "standard."


@dataclass(frozen=True, eq=False)
class Standard:
    """`(features - centre) * scale`, both `(dim,)` float32."""

    centre: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, own: int) -> Standard:
        """By a sample of features `(n, dim)`, the first `own` of which are those of the last layer.

        All then have the same deviation, and together no more than those of the last layer had: an optimiser's rates
        are meant for that.
        """
        deviation = features.std(dim=0, correction=0)
        together = deviation[:own].mean() * own / features.shape[1]
        if not together > 0:  # a single image, or all alike
            return cls(features.mean(dim=0), torch.ones_like(deviation))
        least = max(float(LEAST_SHARE * deviation.median()), float(LEAST_SHARE * together))
        return cls(features.mean(dim=0), together / deviation.clamp_min(least))

    @classmethod
    def remembered(cls, training: Mapping[str, Tensor]) -> Standard | None:
        """What a checkpoint's training tensors hold; None in those of an older version."""
        if f"{_PREFIX}centre" not in training:
            return None
        return cls(training[f"{_PREFIX}centre"], training[f"{_PREFIX}scale"])

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint's training tensors."""
        return {f"{_PREFIX}centre": self.centre, f"{_PREFIX}scale": self.scale}


class StandardisedHead(nn.Linear):
    """Gives what the plain linear layer gave that it began as, and trains on features as the standard has them."""

    def __init__(self, plain: nn.Linear, standard: Standard) -> None:
        super().__init__(plain.in_features, plain.out_features, device=plain.weight.device)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", standard.centre.to(self.weight.device), persistent=False)
        self.register_buffer("scale", standard.scale.to(self.weight.device), persistent=False)
        with torch.no_grad():
            self.weight.copy_(plain.weight / self.scale)
            self.bias.copy_(plain.bias + plain.weight @ self.centre)

    def forward(self, features: Tensor) -> Tensor:
        """Outputs `(batch, outputs)` of features `(batch, dim)` as they come."""
        return super().forward((features - self.centre) * self.scale)

    @property
    def standard(self) -> Standard:
        """How features are put on one scale."""
        return Standard(self.centre, self.scale)

    def plain(self) -> nn.Linear:
        """The linear layer that gives the same of features as they come."""
        plain = nn.Linear(self.in_features, self.out_features, device=self.weight.device)
        with torch.no_grad():
            plain.weight.copy_(self.weight * self.scale)
            plain.bias.copy_(self.bias - plain.weight @ self.centre)
        return plain
