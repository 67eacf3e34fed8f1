"""BatchNorm whose statistics are held, done by the convolution before it: the same function, and less memory traffic.

With running statistics that stay as they are, BatchNorm is a factor and a summand for each channel, and so is part of
the weights of the convolution that it follows (Jacob et al. 2018, arXiv 1712.05877, section 3.2). Both go on training:
the gradient flows through the product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

PROBED: Final = 2
"""Images that a folded network is tried on."""

FOLDED_FROM_PIXELS: Final = {"cpu": 2**18, "cuda": 2**19}
"""Of the images that go through at a time; for fewer the products of weights take longer than what they save."""

TOLERANCE: Final = 1e-2
"""Of the greatest output: convolutions on a GPU round to ten bits."""


@dataclass(frozen=True)
class Pair:
    """A convolution and the norm that takes what it gives."""

    kernel: nn.Conv2d
    norm: nn.BatchNorm2d

    def fold(self) -> None:
        """From now on the kernel does what the norm did; names and tensors stay where they are."""
        # Attributes of the instances, which their classes' methods stand behind.
        self.kernel.__dict__["forward"] = self._convolve
        self.norm.__dict__["forward"] = partial(_activate, self.norm)

    def unfold(self) -> None:
        """Each does its own part again."""
        del self.kernel.__dict__["forward"], self.norm.__dict__["forward"]

    def _convolve(self, inputs: Tensor) -> Tensor:
        kernel, norm = self.kernel, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * factor
        if kernel.bias is not None:
            shift = shift + kernel.bias * factor
        outputs: Tensor = kernel._conv_forward(inputs, kernel.weight * factor.view(-1, 1, 1, 1), shift)
        return outputs


def fold_norms(module: nn.Module, inputs: Tensor) -> tuple[Pair, ...]:
    """Fold what can be folded in `module`, in the mode that it is in; what was folded comes back.

    Until it is unfolded a folded layer refers to itself: only the collector of cycles would free its tensors.

    `inputs` are a few images, or what the module takes. It is tried on them: unless the module still gives the same,
    it stays as it was. So a convolution is only folded when nothing but its norm takes what it gives.
    """
    inputs = inputs[:PROBED]
    with torch.no_grad(), _same_randomness(inputs.device) as begin_anew:
        pairs = tuple(_pairs(module, inputs))
        begin_anew()
        wanted: Tensor = module(inputs)
        for pair in pairs:
            pair.fold()
        begin_anew()
        with ExitStack() as unless_it_is_the_same:
            for pair in pairs:
                unless_it_is_the_same.callback(pair.unfold)
            if _close(module(inputs), wanted):
                unless_it_is_the_same.pop_all()
                return pairs
    return ()


def _pairs(module: nn.Module, inputs: Tensor) -> Iterator[Pair]:
    """Convolutions and norms of one forward pass that are used once, one behind the other, and train together."""
    calls: Counter[nn.Module] = Counter()
    given: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: list[Pair] = []

    def gave(kernel: nn.Module, taken: object, output: Tensor) -> None:
        calls[kernel] += len(kernel._forward_hooks)  # others than this one want what it gives as well
        given[id(output)] = (kernel, output)  # type: ignore[assignment]  # which keeps it, and so its id

    def takes(norm: nn.Module, taken: tuple[Tensor, ...]) -> None:
        calls[norm] += 1
        if taken and id(taken[0]) in given:
            found.append(Pair(given[id(taken[0])][0], norm))  # type: ignore[arg-type]

    with ExitStack() as stack:
        for child in module.modules():
            if type(child).forward is nn.Conv2d.forward:
                stack.callback(child.register_forward_hook(gave).remove)
            elif type(child) in (nn.BatchNorm2d, BatchNormAct2d) and not child.training:
                stack.callback(child.register_forward_pre_hook(takes).remove)
        module(inputs)
    return (pair for pair in found if calls[pair.kernel] == calls[pair.norm] == 1 and _can_fold(pair))


def _can_fold(pair: Pair) -> bool:
    """Whether there are statistics and weights; a kernel that stands still must not need a gradient for its norm's."""
    norm = pair.norm
    has_all = norm.running_var is not None and norm.weight is not None
    return has_all and (pair.kernel.weight.requires_grad or not norm.weight.requires_grad)


def _activate(norm: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """What a norm does besides: timm's have an activation."""
    outputs: Tensor = norm.act(norm.drop(inputs)) if isinstance(norm, BatchNormAct2d) else inputs
    return outputs


@contextmanager
def _same_randomness(device: torch.device) -> Iterator[Callable[[], object]]:
    """What begins the random numbers anew; after the block they are where they were before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield partial(torch.manual_seed, torch.initial_seed())


def _close(given: Tensor, wanted: Tensor) -> bool:
    return bool((given - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1e-6))
