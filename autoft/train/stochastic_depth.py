"""Stochastic depth: in training, blocks of a network are left out at random (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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


@contextmanager
def _left_out(blocks: Mapping[nn.Module, Sequence[str]]) -> Iterator[list[_LeftOut]]:
    with ExitStack() as stack:
        paths = []
        for block, places in blocks.items():
            for place in places:
                stack.callback(setattr, block, place, getattr(block, place))
                paths.append(_LeftOut())
                setattr(block, place, paths[-1])
        yield paths


@torch.no_grad()
def _with_shortcut(
    module: nn.Module, blocks: Mapping[nn.Module, Sequence[str]], images: Tensor
) -> frozenset[nn.Module]:
    """The blocks that still tell the images apart when they are left out, or round which others do.

    timm has blocks of which only some have a shortcut, and others that add features to those that there are.
    """
    apart: dict[nn.Module, bool] = {}

    def leave_out(block: nn.Module, taken: Any, named: Any, _given: object) -> None:
        with _left_out({block: blocks[block]}) as paths:
            outputs = block.forward(*taken, **named)
        if any(path.asked for path in paths):
            apart[block] = _tells_apart(outputs)

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(leave_out, with_kwargs=True).remove)
        module.eval()(images)
    others = {block: blocks[block] for block, alone in apart.items() if not alone}
    with _left_out(others):
        if others and _tells_apart(module(images)):
            return frozenset(apart)
    return frozenset(apart.keys() - others.keys())


def _tells_apart(outputs: object) -> bool:
    """Whether in each tensor one half, which is of one image, differs from the other."""
    halves = [one.chunk(2) for one in tree_leaves(outputs) if isinstance(one, Tensor) and one.ndim]
    return all(not torch.equal(first, other) for first, *others in halves for other in others)
