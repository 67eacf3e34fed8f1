"""Stochastic depth: in training, blocks of a network are left out at random (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoft.train.dropout import Draws

_PLACES: Final = ("drop_path", "drop_path1", "drop_path2", "drop_path3")
"""What timm's blocks call where they can be left out."""


def drop_blocks(module: nn.Module, rate: float, images: Tensor, draws: Draws) -> int:
    """Leave out the last block as often as `rate`, those before it less often, the first one never.

    How many blocks are left out now and then comes back: of timm's networks, and of others that are made as theirs are,
    all but those without a shortcut, as shows on two `images` `(2, 3, size, size)`. Leaves the module in eval mode.
    """
    blocks = {block: places for block in module.modules() if (places := _places(block))}
    with_shortcut, dropped = _with_shortcut(module, blocks, images), 0
    for number, (block, places) in enumerate(blocks.items()):
        own = rate * number / max(1, len(blocks) - 1)
        if block in with_shortcut:
            dropped += own > 0.0
            for place in places:
                setattr(block, place, _DropPath(own, draws))
    return dropped


class _DropPath(DropPath):
    """timm's, by `draws`."""

    def __init__(self, rate: float, draws: Draws) -> None:
        super().__init__(rate)
        self._draws = draws

    def forward(self, values: Tensor) -> Tensor:
        if not (self.training and self.drop_prob):
            return values
        return values * self._draws.mask(values, (1,) * (values.ndim - 1), self.drop_prob)


def _places(block: nn.Module) -> list[str]:
    # Of a network built without stochastic depth timm leaves an identity there, or nothing.
    return [
        place
        for place in _PLACES
        if hasattr(block, place) and isinstance(getattr(block, place), DropPath | nn.Identity | None)
    ]


class _LeftOut(nn.Module):
    """Lets nothing through, and knows whether it was asked to."""

    asked = False

    def forward(self, values: Tensor) -> Tensor:
        self.asked = True
        return torch.zeros_like(values)


@torch.no_grad()
def _with_shortcut(
    module: nn.Module, blocks: Mapping[nn.Module, Sequence[str]], images: Tensor
) -> frozenset[nn.Module]:
    """The blocks that still tell the images apart when they are left out.

    timm has others: blocks whose shortcut is in some of a stage alone, and which would make all images one.
    """
    found: set[nn.Module] = set()

    def leave_out(places: Sequence[str], block: nn.Module, taken: Any, named: Any, _given: object) -> None:
        own, left_out = [getattr(block, place) for place in places], [_LeftOut() for _ in places]
        for place, one in zip(places, left_out, strict=True):
            setattr(block, place, one)
        if _tells_apart(block.forward(*taken, **named)) and any(one.asked for one in left_out):
            found.add(block)
        for place, before in zip(places, own, strict=True):
            setattr(block, place, before)

    with ExitStack() as stack:
        for block, places in blocks.items():
            hook = block.register_forward_hook(partial(leave_out, places), with_kwargs=True)
            stack.callback(hook.remove)
        module.eval()(images)
    return frozenset(found)


def _tells_apart(outputs: object) -> bool:
    """Whether in each tensor one half, which is of one image, differs from the other."""
    halves = [one.chunk(2) for one in tree_leaves(outputs) if isinstance(one, Tensor) and one.ndim]
    return all(not torch.equal(first, other) for first, *others in halves for other in others)
