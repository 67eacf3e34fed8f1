"""Augmentation of whole batches, on whatever device they are on, with parameters of each image's own.

A crop, its enlargement and a mirror are one affine map, so a batch takes one bilinear sampling instead of a Python call
an image. The maps are drawn on the CPU: the same ones for every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import functional

# Gentler than the usual (0.08, 1.0): short fine-tunes of pretrained weights are hurt by losing most of the object.
CROP_AREA: Final = (0.6, 1.0)
CROP_RATIO: Final = (0.85, 1.18)


def crops(count: int, generator: Generator) -> Tensor:
    """Affine maps `(count, 2, 3)` from places in the result to places in the image, both from -1 to 1: random crops.

    Area and ratio of sides are drawn as torchvision's `RandomResizedCrop` draws them (Szegedy et al. 2015, arXiv
    1409.4842); a side that would leave the image is cut to it.
    """
    area = torch.empty(count).uniform_(*CROP_AREA, generator=generator)
    ratio = torch.empty(count).uniform_(*map(math.log, CROP_RATIO), generator=generator).exp()
    sides = torch.stack([area.mul(ratio).sqrt(), area.div(ratio).sqrt()], dim=1).clamp(max=1.0)
    centres = torch.empty(count, 2).uniform_(-1.0, 1.0, generator=generator) * (1.0 - sides)
    return torch.cat([torch.diag_embed(sides), centres[:, :, None]], dim=2)


def crops_and_mirrors(count: int, generator: Generator) -> Tensor:
    """The same, every other one mirrored left to right."""
    maps = crops(count, generator)
    maps[:, 0, 0] *= torch.randint(2, (count,), generator=generator) * 2 - 1
    return maps


MAPS: Final[Mapping[str, Callable[[int, Generator], Tensor | None]]] = {
    "none": lambda count, generator: None,
    "crop": crops,
    "crop_flip": crops_and_mirrors,
}


def warped(images: Tensor, maps: Tensor) -> Tensor:
    """Images `(batch, 3, size, size)` float32, each seen through its map; `maps` `(batch, 2, 3)` on their device."""
    places = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="border", align_corners=False)
