"""`Cut`: a network in two, from images to activations and from activations to features."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

PROBED = 2
"""Images that a cut is tried on."""

_BY_ROWS = torch.channels_last
_TRIED = 3
"""Places that are tried, from the last one on: behind some of them a shortcut still needs what lies before."""


def hold_norms(module: nn.Module) -> None:
    """Keep the running statistics of BatchNorm as they are, in train mode too."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


@dataclass(frozen=True)
class Cut:
    """A place where a network can be cut: right behind the module `place`; "" is the end of the network.

    One image of `size` pixels has float32 activations of `shape` there, in memory by rows of channels where they are
    `channels_last`. `idle` are the modules that the rest does without, each with the shape of what it gives for one
    image. Names and shapes are all a cut holds, so that it is good for every copy of the network, whatever its weights.
    """

    place: str
    size: int
    shape: tuple[int, ...]
    channels_last: bool
    idle: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, module: nn.Module, trained: Collection[str], size: int) -> Cut | None:
        """The last cut before all that depends on the parameters `trained`; None where there is none.

        It is tried on noise, in train mode with BatchNorm held: both halves in turn give what the whole gives, to the
        bit, or it is none. So a network whose shortcuts cross the cut, or with dropout before it, has none there.
        """
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            images = torch.randn(PROBED, 3, size, size).contiguous(memory_format=_BY_ROWS)
            try:
                whole = _twin(module, trained).train()
                hold_norms(whole)
                features, calls = _trace(whole, images)
            except Exception:  # it will say the same, and of whom, when it trains
                return None
            constant = [number for number, call in enumerate(calls) if not call.varies]
            first = next((number for number, call in enumerate(calls) if call.varies), len(calls))
            cuts = (_cut(calls, number, size) for number in reversed(constant) if number < first)
            for _, cut in zip(range(_TRIED), filter(None, cuts), strict=False):
                if cut._is_exact(whole, images, features):
                    return cut
        return None

    def before(self, module: nn.Module) -> nn.Module:
        """From images to activations `(batch, *shape)`, eval mode; over the tensors of `module`, which is a copy."""
        return _Before(_sharing(module).eval(), self.place)

    def after(self, module: nn.Module) -> nn.Module:
        """From activations to features, in the mode of `module`, whose tensors it trains."""
        return _After(_sharing(module), self) if self.place else nn.Identity()

    def _is_exact(self, whole: nn.Module, images: Tensor, features: Tensor) -> bool:
        torch.manual_seed(1)
        with torch.no_grad():
            try:
                return torch.equal(self.after(whole)(self.before(whole)(images)), features)
            except Exception:  # what a network does where a shape or a value is missing is its own affair
                return False


# ---------------------------------------------------------------- finding it


@dataclass(frozen=True)
class _Call:
    """A call of a module that has returned; `shape` is of what it gave for one image, None if that is no tensor."""

    module: str
    shape: tuple[int, ...] | None
    channels_last: bool
    varies: bool


def _trace(module: nn.Module, images: Tensor) -> tuple[Tensor, list[_Call]]:
    """Features of the images, and the calls of all modules as they returned."""
    calls: list[_Call] = []

    def note(name: str, child: nn.Module, given: object, gave: object) -> None:
        if not isinstance(gave, Tensor):
            calls.append(_Call(name, None, False, False))
            return
        usable = gave.dtype == torch.float32 and gave.ndim > 1 and len(gave) == PROBED
        shape = tuple(gave.shape[1:]) if usable else None
        channels_last = gave.ndim == 4 and not gave.is_contiguous() and gave.is_contiguous(memory_format=_BY_ROWS)
        calls.append(_Call(name, shape, channels_last, gave.requires_grad))

    torch.manual_seed(1)
    with ExitStack() as stack:
        for name, child in module.named_modules():
            stack.callback(child.register_forward_hook(partial(note, name)).remove)
        features: Tensor = module(images)
    return features.detach(), calls


def _cut(calls: list[_Call], number: int, size: int) -> Cut | None:
    """The cut behind that call, unless its module is called again or gives no tensor of one row an image."""
    once = {name for name, count in Counter(call.module for call in calls).items() if count == 1}
    place, shape, channels_last = calls[number].module, calls[number].shape, calls[number].channels_last
    if place not in once or shape is None:
        return None
    done = {call.module: call.shape for call in calls[:number] if call.module in once and call.shape is not None}
    idle = {name: given for name, given in done.items() if not set(_outside(name)) & {place, *done}}
    return Cut(place, size, shape, channels_last, idle)


def _outside(name: str) -> Iterator[str]:
    """The names of the modules that the module lies in."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _twin(module: nn.Module, trained: Collection[str]) -> nn.Module:
    """A copy over the same weights, in which just the `trained` ones ask for gradients."""
    own = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=name in trained)
        for name, parameter in module.named_parameters()
    }
    return copy.deepcopy(module, dict(own))


def _sharing(module: nn.Module) -> nn.Module:
    """A copy over the same tensors. Raises `ValueError` for a module that copies them all the same."""
    shared = {id(one): one for one in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, dict(shared))
    if {id(one) for one in (*twin.parameters(), *twin.buffers())} != shared.keys():
        raise ValueError("the tensors of this module cannot be shared with a copy")
    return twin


# ---------------------------------------------------------------- its two halves


class _Reached(BaseException):
    """The forward pass has come to the cut."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


class _Before(nn.Module):
    def __init__(self, module: nn.Module, place: str) -> None:
        super().__init__()
        self.module = module
        module.get_submodule(place).register_forward_hook(self._stop)

    def forward(self, images: Tensor) -> Tensor:
        try:
            self.module(images)
        except _Reached as reached:
            return reached.activations
        raise RuntimeError("the network did not come to where it is cut")

    @staticmethod
    def _stop(module: nn.Module, given: object, activations: Tensor) -> None:
        raise _Reached(activations)


class _Held:
    """What the modules up to a cut give while the rest runs."""

    activations: Tensor

    def given(self, *given: object, **named: object) -> Tensor:
        """The activations."""
        return self.activations

    def zeros(self, shape: tuple[int, ...], *given: object, **named: object) -> Tensor:
        """Of that shape for each image, in no memory."""
        return self.activations.new_zeros(()).expand(len(self.activations), *shape)


class _After(nn.Module):
    """Runs the whole network: the module at the cut gives the activations, those before it zeros that cost nothing."""

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.module, self._images, self._held = module, (3, cut.size, cut.size), _Held()
        # modules stay what they are but for their forward, as a network may read an attribute of one (timm's ViTs do)
        for name, shape in cut.idle.items():
            module.get_submodule(name).forward = partial(self._held.zeros, shape)
        module.get_submodule(cut.place).forward = self._held.given

    def forward(self, activations: Tensor) -> Tensor:
        self._held.activations = activations
        try:
            features: Tensor = self.module(self._held.zeros(self._images))
        finally:
            del self._held.activations
        return features
