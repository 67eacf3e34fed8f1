"""Stochastic depth: in training, blocks of a network are left out at random (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from timm.layers.drop import DropPath
from torch import nn

_PLACES: Final = ("drop_path", "drop_path1", "drop_path2", "drop_path3")
"""What timm's blocks call where they can be left out."""


def drop_blocks(module: nn.Module, rate: float) -> int:
    """Leave out the last block as often as `rate`, those before it less often, the first one never.

    How many blocks can be comes back: all those of timm's networks, of others those that are made as theirs are.
    """
    blocks = [places for block in module.modules() if (places := [*_places(block)])]
    for number, places in enumerate(blocks):
        for block, place in places:
            setattr(block, place, DropPath(rate * number / max(1, len(blocks) - 1)))
    return len(blocks)


def _places(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for place in _PLACES:
        # Of a network built without stochastic depth timm leaves an identity there, or nothing.
        if hasattr(block, place) and isinstance(getattr(block, place), DropPath | nn.Identity | None):
            yield block, place
