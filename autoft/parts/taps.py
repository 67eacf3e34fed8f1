"""`Taps`: where in a network a linear head reads besides its features, and the network that gives both.

Features of the last layer alone leave out much of what a network has seen: heads on features of every stage come near to
fine-tuning (Evci et al. 2022, "Head2Toe", arXiv 2201.03529), for no further forward pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import torch
from torch import Tensor, nn

from autoft.parts.cut import Cut
from autoft.parts.network import Network
from autoft.values.backbone import ParameterInfo, Stage

TRIED = 2
"""Images that a network is followed with."""

MOST_WIDTH: Final = 4096
"""Numbers that are read of an image: the closed-form head's time grows with their square."""

Order = Literal["channels first", "channels last", "tokens"]

INNER = "inner"


@dataclass(frozen=True)
class Tap:
    """Behind the module `place`: activations of so many `channels`, in this `order`."""

    place: str
    channels: int
    order: Order

    @property
    def width(self) -> int:
        """Numbers an image: the mean of each channel and its maximum; of tokens the mean."""
        return self.channels if self.order == "tokens" else 2 * self.channels

    def pooled(self, activations: Tensor) -> Tensor:
        """`(batch, width)` of activations as the place gives them."""
        if self.order == "tokens":
            return activations.mean(dim=1)
        space = (2, 3) if self.order == "channels first" else (1, 2)
        return torch.cat([activations.mean(dim=space), activations.amax(dim=space)], dim=1)


@dataclass(frozen=True)
class Taps:
    """The places, in the order in which the network comes to them. Names and numbers only: good for every copy."""

    taps: tuple[Tap, ...]

    @property
    def width(self) -> int:
        """Numbers an image in all."""
        return sum(tap.width for tap in self.taps)

    @classmethod
    def of(cls, network: Network) -> Taps:
        """Behind each stage that is a module of its own, the last ones first where all are too many.

        None at all for a network that cannot be followed, or has no such stage.
        """
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            images = torch.randn(TRIED, 3, network.input.size, network.input.size)
            try:
                calls = _calls(network.module, images)
            except Exception:  # it will say the same, and of whom, when it is used
                return cls(())
        stages = {stage.name for stage in network.stages}
        once = {name for name, count in Counter(call.place for call in calls).items() if count == 1}
        found = [call for call in calls if call.place in once & stages]
        kept: list[Tap] = []
        for call in reversed(found):
            tap = Tap(call.place, call.channels, call.order)
            if sum(one.width for one in kept) + tap.width <= MOST_WIDTH - network.dim:
                kept.insert(0, tap)
        return cls(tuple(kept))

    def on(self, network: Network) -> Network:
        """The network whose features `(batch, dim + width)` are its own, followed by what is read; itself without taps."""
        if not self.taps:
            return network
        stages = tuple(Stage(stage.name, tuple(map(_within, stage.parameters))) for stage in network.stages)
        return Network(Tapped(network.module, self), network.input, stages, network.dim + self.width)


def _within(info: ParameterInfo) -> ParameterInfo:
    return replace(info, name=f"{INNER}.{info.name}")


class Tapped(nn.Module):
    """Gives an image's features, followed by the pooled activations at the taps: `(batch, dim + width)`."""

    def __init__(self, inner: nn.Module, taps: Taps) -> None:
        super().__init__()
        self.inner, self.taps = inner, taps

    def forward(self, images: Tensor) -> Tensor:
        """Features and what is read on the way."""
        with reading(self.inner, self.taps.taps) as read:
            features: Tensor = self.inner(images)
        return torch.cat([features, *(tap.pooled(read[tap.place]) for tap in self.taps.taps)], dim=1)


@contextmanager
def reading(module: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[str, Tensor]]:
    """What the module's parts give at the taps while the block runs, by place."""
    read: dict[str, Tensor] = {}

    def note(place: str, part: nn.Module, given: object, gave: Tensor) -> None:
        read[place] = gave

    with ExitStack() as stack:
        for tap in taps:
            handle = module.get_submodule(tap.place).register_forward_hook(partial(note, tap.place))
            stack.callback(handle.remove)
        yield read


@dataclass(frozen=True)
class _Call:
    """A module that has returned activations: of which `size`, so many `channels`, in which `order`."""

    place: str
    size: tuple[int, ...]
    channels: int
    order: Order


def _calls(module: nn.Module, images: Tensor) -> list[_Call]:
    calls: list[_Call] = []

    def note(place: str, part: nn.Module, given: object, gave: object) -> None:
        if place and isinstance(gave, Tensor) and gave.dtype == torch.float32 and len(gave) == TRIED:
            if (found := _activations(place, tuple(gave.shape[1:]))) is not None:
                calls.append(found)

    with ExitStack() as stack:
        for name, part in module.named_modules():
            stack.callback(part.register_forward_hook(partial(note, name)).remove)
        module(images)
    return calls


def _activations(place: str, shape: tuple[int, ...]) -> _Call | None:
    """What `shape` says of the activations of one image: square ones, as images are, or tokens."""
    if len(shape) == 3 and shape[1] == shape[2] > 1:
        return _Call(place, shape[1:], shape[0], "channels first")
    if len(shape) == 3 and shape[0] == shape[1] > 1:
        return _Call(place, shape[:2], shape[2], "channels last")
    if len(shape) == 2 and shape[0] > 1:
        return _Call(place, shape[:1], shape[1], "tokens")
    return None


# ---------------------------------------------------------------- cutting it in two


@dataclass(frozen=True)
class TappedCut(Cut):
    """A cut of a `Tapped` network: its activations are those at the cut of the `inner` one, flat, and what was read before.

    `early` are the taps that are read before the cut, one at the cut itself among them, `late` the others.
    """

    inner: Cut
    early: tuple[Tap, ...]
    late: tuple[Tap, ...]

    @classmethod
    def of(cls, module: nn.Module, trained: Collection[str], size: int) -> TappedCut | None:
        """As `Cut.of`, where the inner network can be cut and the halves give in turn what the whole gives."""
        if not isinstance(module, Tapped):
            return None
        inner = Cut.of(module.inner, {name.removeprefix(f"{INNER}.") for name in trained}, size)
        if inner is None:
            return None
        taps = module.taps.taps
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            images = torch.randn(TRIED, 3, size, size).contiguous(memory_format=torch.channels_last)
            half = inner.before(module.inner)
            with reading(_network_of(half), taps) as read:
                half(images)
            early = tuple(tap for tap in taps if tap.place in read or tap.place == inner.place)
            late = tuple(tap for tap in taps if tap not in early)
            shape = (math.prod(inner.shape) + sum(tap.width for tap in early),)
            cut = cls(inner.place, size, shape, False, {}, inner, early, late)
            # Later taps must lie behind all earlier ones, and none of them in what the rest does without.
            is_exact = taps == early + late and torch.equal(cut.after(module)(cut.before(module)(images)), module(images))
        return cut if is_exact else None

    def before(self, module: nn.Module) -> nn.Module:
        """From images to activations `(batch, *shape)`, eval mode."""
        assert isinstance(module, Tapped)
        return _Before(self.inner.before(module.inner), self)

    def after(self, module: nn.Module) -> nn.Module:
        """From activations to features, in the mode of `module`, whose tensors it trains."""
        assert isinstance(module, Tapped)
        return _After(self.inner.after(module.inner), self)


def _network_of(half: nn.Module) -> nn.Module:
    """The copy of the network that a half of it runs; the half itself where it runs nothing."""
    module = getattr(half, "module", half)
    assert isinstance(module, nn.Module)
    return module


class _Before(nn.Module):
    def __init__(self, part: nn.Module, cut: TappedCut) -> None:
        super().__init__()
        self.part, self.cut = part, cut

    def forward(self, images: Tensor) -> Tensor:
        at_the_cut = [tap for tap in self.cut.early if tap.place == self.cut.place]
        with reading(_network_of(self.part), [tap for tap in self.cut.early if tap not in at_the_cut]) as read:
            activations: Tensor = self.part(images)
        read |= {tap.place: activations for tap in at_the_cut}
        pooled = [tap.pooled(read[tap.place]) for tap in self.cut.early]
        return torch.cat([activations.flatten(1), *pooled], dim=1)


class _After(nn.Module):
    def __init__(self, part: nn.Module, cut: TappedCut) -> None:
        super().__init__()
        self.part, self.cut = part, cut

    def forward(self, flat: Tensor) -> Tensor:
        inner = self.cut.inner
        kept, early = flat.split([math.prod(inner.shape), flat.shape[1] - math.prod(inner.shape)], dim=1)
        activations = kept.reshape(-1, *inner.shape)
        if inner.channels_last:
            activations = activations.contiguous(memory_format=torch.channels_last)
        with reading(_network_of(self.part), self.cut.late) as read:
            features: Tensor = self.part(activations)
        return torch.cat([features, early, *(tap.pooled(read[tap.place]) for tap in self.cut.late)], dim=1)
