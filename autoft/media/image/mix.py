"""Mixup and CutMix: the images of a batch mixed with those of the batch in reverse order, all in one way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from autoft.values.plan import Recipe

SWITCH: Final = 0.5
"""How often CutMix has its turn, where both are asked for."""


@dataclass(frozen=True)
class Mix:
    """What is left of each image is `share` of it; outside `box`, rows and columns, all, if there is one.

    As timm's `Mixup` has it in its mode "batch" (Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv
    1905.04899).
    """

    share: float = 1.0
    box: tuple[slice, slice] | None = None

    @classmethod
    def drawn(cls, recipe: Recipe, side: int, draw: np.random.RandomState) -> Mix:
        """One for images of `side` pixels, under a recipe that mixes."""
        cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or draw.rand() < SWITCH)
        strength = recipe.cutmix if cuts else recipe.mixup
        share = float(draw.beta(strength, strength))
        if not cuts:
            return cls(share)
        cut = int(side * math.sqrt(1.0 - share))
        rows, columns = (_around(draw.randint(0, side), cut, side) for _ in range(2))
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return cls(1.0 - area / side**2, (rows, columns))

    def of(self, images: Tensor) -> Tensor:
        """Images `(batch, 3, side, side)`, mixed."""
        if self.share == 1.0:
            return images
        others = images.flip(0)
        if self.box is None:
            return torch.lerp(others, images, self.share)
        mixed, (rows, columns) = images.clone(), self.box
        mixed[:, :, rows, columns] = others[:, :, rows, columns]
        return mixed


def _around(centre: int, length: int, side: int) -> slice:
    return slice(max(0, centre - length // 2), min(side, centre + (length + 1) // 2))
