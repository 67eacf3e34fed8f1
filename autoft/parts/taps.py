"""`Taps`: where in a network a head reads besides its features, and `Tapped`, the network that gives both."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from autoft.parts.cut import Cut

TRIED = 2
"""Images that a cut is tried on."""

Axes = tuple[int, ...]
"""Of activations `(batch, ...)`, those over an image: (2, 3) channels first, (1, 2) channels last, (1,) tokens."""


@dataclass(frozen=True)
class Tap:
    """A number for each of so many `channels`, of what the module `place` gives: its mean or maximum over `axes`."""

    place: str
    channels: int
    axes: Axes
    of: Literal["mean", "max"]

    def read(self, activations: Tensor) -> Tensor:
        """`(batch, channels)` of activations as the place gives them."""
        return activations.mean(dim=self.axes) if self.of == "mean" else activations.amax(dim=self.axes)


@dataclass(frozen=True)
class Taps:
    """Those of a network, by places in the order in which it comes to them. Names and numbers: good for every copy."""

    taps: tuple[Tap, ...]

    @property
    def width(self) -> int:
        """Numbers an image in all."""
        return sum(tap.channels for tap in self.taps)

    @property
    def places(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(tap.place for tap in self.taps))

    def at(self, places: Collection[str]) -> Taps:
        """Those at these places."""
        return Taps(tuple(tap for tap in self.taps if tap.place in places))

    def read(self, activations: dict[str, Tensor]) -> list[Tensor]:
        """What each reads of the activations at its place."""
        return [tap.read(activations[tap.place]) for tap in self.taps]

    def read_in_training(self, activations: dict[str, Tensor], features: Tensor) -> list[Tensor]:
        """As `read`, and zeros for each image of the features where the pass has not come to a place.

        Some networks leave stages out at random while they train.
        """
        count = features.shape[0]
        return [
            tap.read(activations[tap.place]) if tap.place in activations else features.new_zeros(count, tap.channels)
            for tap in self.taps
        ]


class Tapped(nn.Module):
    """What a network's class is made to derive from: it gives its features, then what is read, `(batch, dim + width)`.

    All else of the network stays what it is, its attributes and the names of its tensors, for plugins that know them.
    """

    head_taps: Taps

    def forward(self, images: Tensor) -> Tensor:
        """Features and what is read on the way."""
        with noting(self, self.head_taps.places) as activations:
            features: Tensor = super().forward(images)  # of the class that stands behind
        return torch.cat([features, *_read(self.head_taps, self, activations, features)], dim=1)


def _read(taps: Taps, module: nn.Module, activations: dict[str, Tensor], features: Tensor) -> list[Tensor]:
    return taps.read_in_training(activations, features) if module.training else taps.read(activations)


def with_taps(module: nn.Module, taps: Taps) -> nn.Module:
    """A copy over the same tensors and modules that reads the taps. (torch's parametrisations swap classes so, too.)"""
    twin, kind = copy.copy(module), type(module)
    twin.__class__ = type(kind.__name__, (Tapped, kind), {"__module__": kind.__module__})
    assert isinstance(twin, Tapped)
    twin.head_taps = taps
    return twin


def untapped(module: nn.Module) -> nn.Module:
    """A copy over the same tensors and modules that gives its own features alone; the module itself if it is so."""
    if not isinstance(module, Tapped):
        return module
    twin = copy.copy(module)
    _, twin.__class__ = type(module).__bases__
    return twin


@contextmanager
def noting(module: nn.Module, places: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the module's parts at these places give while the block runs, by place."""
    noted: dict[str, Tensor] = {}

    def note(place: str, part: nn.Module, given: object, gave: Tensor) -> None:
        noted[place] = gave

    with ExitStack() as stack:
        for place in places:
            stack.callback(module.get_submodule(place).register_forward_hook(partial(note, place)).remove)
        yield noted


# ---------------------------------------------------------------- cutting it in two


@dataclass(frozen=True)
class TappedCut(Cut):
    """A cut of a `Tapped` network: activations are those at the `inner` cut, of it untapped, flat, and what was read.

    `early` are the taps up to the cut, `late` those behind it.
    """

    inner: Cut
    early: Taps
    late: Taps

    @classmethod
    def of(cls, module: nn.Module, trained: Collection[str], size: int) -> TappedCut | None:
        """As `Cut.of`, where the inner network can be cut and the halves give in turn what the whole gives."""
        assert isinstance(module, Tapped)
        inner = Cut.of(untapped(module), trained, size)
        if inner is None:
            return None
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            images = torch.randn(TRIED, 3, size, size).contiguous(memory_format=torch.channels_last)
            half = inner.before(untapped(module))
            with noting(_copied(half), module.head_taps.places) as activations:
                half(images)
            early = module.head_taps.at({*activations, inner.place})
            late = module.head_taps.at(set(module.head_taps.places) - set(early.places))
            shape = (math.prod(inner.shape) + early.width,)
            cut = cls(inner.place, size, shape, False, {}, inner, early, late)
            # A place that the rest comes to in another order, or does without, would show.
            is_exact = torch.equal(cut.after(module)(cut.before(module)(images)), module(images))
        return cut if is_exact else None

    def before(self, module: nn.Module) -> nn.Module:
        """From images to activations `(batch, *shape)`, eval mode."""
        return _Before(self.inner.before(untapped(module)), self)

    def after(self, module: nn.Module) -> nn.Module:
        """From activations to features, in the mode of `module`, whose tensors it trains."""
        return _After(self.inner.after(untapped(module)), self)


def _copied(half: nn.Module) -> nn.Module:
    """The copy of the network that a half of it runs; the half itself where it runs nothing."""
    module = getattr(half, "module", half)
    assert isinstance(module, nn.Module)
    return module


class _Before(nn.Module):
    def __init__(self, part: nn.Module, cut: TappedCut) -> None:
        super().__init__()
        self.part, self.cut = part, cut

    def forward(self, images: Tensor) -> Tensor:
        places = set(self.cut.early.places) - {self.cut.place}  # the pass ends before a hook at the cut would be called
        with noting(_copied(self.part), places) as noted:
            noted[self.cut.place] = self.part(images)
        return torch.cat([noted[self.cut.place].flatten(1), *self.cut.early.read(noted)], dim=1)


class _After(nn.Module):
    def __init__(self, part: nn.Module, cut: TappedCut) -> None:
        super().__init__()
        self.part, self.cut = part, cut

    def forward(self, flat: Tensor) -> Tensor:
        inner = self.cut.inner
        kept, early = torch.split(flat, [math.prod(inner.shape), self.cut.early.width], dim=1)
        activations = kept.reshape(-1, *inner.shape)
        if inner.channels_last:
            activations = activations.contiguous(memory_format=torch.channels_last)
        with noting(_copied(self.part), self.cut.late.places) as noted:
            features: Tensor = self.part(activations)
        return torch.cat([features, early, *_read(self.cut.late, _copied(self.part), noted, features)], dim=1)
