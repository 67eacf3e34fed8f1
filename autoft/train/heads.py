"""What the heads of a run see of a network: the features of its last layer, and what its stages come to.

The last layer leaves out much of what a network has seen: a linear head on features of every stage comes near to
fine-tuning (Evci et al. 2022, "Head2Toe", arXiv 2201.03529), for no further forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from autoft.parts.linear_head import LinearHead
from autoft.parts.network import Network
from autoft.parts.taps import Axes, Tap, Taps, with_taps
from autoft.train.forward import ForwardChoice
from autoft.values.space import FeaturesOf

FOLLOWED = 2
"""Images that a network is followed with."""

MOST_WIDTH: Final = 4096
"""Numbers an image, features included: the closed-form head's time grows with their square."""


class Solved(NamedTuple):
    """A head in closed form, the share of the images to train on that it is fitted on, and the seconds of solving.

    The features that it is fitted on are in the numbers of `forward`.
    """

    head: LinearHead
    share: float
    seconds: float
    forward: ForwardChoice


def seen_by_heads(network: Network, features_of: FeaturesOf) -> Network:
    """The network that gives what heads see: itself, or one that gives what every stage comes to, as well."""
    return tapped(network, taps_of(network)) if features_of == "every stage" else network


def tapped(network: Network, taps: Taps) -> Network:
    """The network whose features `(batch, dim + width)` are its own, then what is read; itself without taps."""
    if not taps.taps:
        return network
    module, dim = with_taps(network.module, taps), network.dim + taps.width
    return Network(module, network.input, network.stages, dim, taps.width)


def taps_of(network: Network) -> Taps:
    """The means behind every stage that is a module of its own, and the maxima of those that have channels.

    Where all are too many, means come before maxima, and the last stages before the first. None at all for a network
    that cannot be followed, or has no such stage, or a forward of its instance.
    """
    if "forward" in vars(network.module):
        return Taps(())
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        images = torch.randn(FOLLOWED, 3, network.input.size, network.input.size)
        try:
            features, calls = _followed(network, images)
        except Exception:  # it will say the same, and of whom, when it is used
            return Taps(())
    order = {call.place: number for number, call in enumerate(calls)}
    room, kept = MOST_WIDTH - network.dim, list[Tap]()
    for tap in _by_worth(calls, features):
        if tap.channels <= room:
            kept.append(tap)
            room -= tap.channels
    return Taps(tuple(sorted(kept, key=lambda tap: (order[tap.place], tap.of))))


@dataclass(frozen=True, eq=False)
class _Call:
    """A stage that has returned `activations` of so many `channels`, which lie beside the `axes` of an image."""

    place: str
    activations: Tensor
    channels: int
    axes: Axes


def _followed(network: Network, images: Tensor) -> tuple[Tensor, list[_Call]]:
    """Features of the images, and the stages that were called once and gave activations, in that order."""
    calls: list[tuple[str, object]] = []

    def note(place: str, part: nn.Module, given: object, gave: object) -> None:
        calls.append((place, gave))

    named = dict(network.module.named_modules())
    with ExitStack() as stack:
        for stage in network.stages:
            if stage.name in named:
                stack.callback(named[stage.name].register_forward_hook(partial(note, stage.name)).remove)
        features = network.features(images)
    counts = Counter(place for place, _ in calls)
    found = (_call(place, gave) for place, gave in calls if counts[place] == 1)
    return features, [call for call in found if call is not None]


def _call(place: str, gave: object) -> _Call | None:
    """It, if what it gave are activations of whole images: square ones, as images are, or tokens."""
    if not isinstance(gave, Tensor) or gave.dtype != torch.float32 or len(gave) != FOLLOWED:
        return None
    shape = tuple(gave.shape[1:])
    if len(shape) == 3 and shape[1] == shape[2] > 1:
        return _Call(place, gave, shape[0], (2, 3))
    if len(shape) == 3 and shape[0] == shape[1] > 1:
        return _Call(place, gave, shape[2], (1, 2))
    if len(shape) == 2 and shape[0] > 1:
        return _Call(place, gave, shape[1], (1,))
    return None


def _by_worth(calls: Sequence[_Call], features: Tensor) -> Iterator[Tap]:
    """What can be read, the best first; not the mean that is the network's features already."""
    for call in reversed(calls):
        tap = Tap(call.place, call.channels, call.axes, "mean")
        mean = tap.read(call.activations)
        if mean.shape != features.shape or not torch.allclose(mean, features, rtol=1e-4, atol=1e-5):
            yield tap
    for call in reversed(calls):
        if len(call.axes) == 2:  # tokens are averaged, as is usual
            yield Tap(call.place, call.channels, call.axes, "max")
