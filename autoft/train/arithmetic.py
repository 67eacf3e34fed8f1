"""`Arithmetic`: in which numbers and which memory format training steps are computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from autoft.parts.network import Network

Numbers = Literal["fp32", "bf16"]
Layout = Literal["channels_last", "contiguous"]

_FORMATS: Final = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_NOTE: Final = "arithmetic."


@dataclass(frozen=True)
class Arithmetic:
    """Numbers and memory format of a training step.

    "fp32" is TF32 in the matrix products of a GPU that has it, "bf16" is autocast: weights, gradients and optimiser
    stay fp32.
    """

    numbers: Numbers = "fp32"
    layout: Layout = "channels_last"

    def __str__(self) -> str:
        """As people read it."""
        return f"{self.numbers}, {self.layout.replace('_', ' ')}"

    @property
    def memory_format(self) -> torch.memory_format:
        """What weights and images have."""
        return _FORMATS[self.layout]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """For one forward pass and its loss.

        To be made anew for each, inside of what a CUDA graph captures. No casts of weights are kept: one from before
        the capture would be replayed as it was then, and in a pass no weight is used twice but tied ones.
        """
        bf16 = self.numbers == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    @contextmanager
    def training(self, device: torch.device) -> Iterator[None]:
        """For a stretch of steps, backward passes included: what fp32 is on a GPU. Afterwards it is what it was."""
        if device.type != "cuda" or self.numbers != "fp32":
            yield
            return
        products = torch.backends.cuda.matmul
        before = products.fp32_precision
        products.fp32_precision = "tf32"
        try:
            yield
        finally:
            products.fp32_precision = before

    def note(self, device: torch.device) -> Mapping[str, Tensor]:
        """The arithmetic as a tensor without elements whose name says it, for the checkpoint of a trial."""
        return {f"{_NOTE}{device.type}.{self.numbers}.{self.layout}": torch.empty(0)}


def usual(network: Network, device: torch.device) -> Arithmetic:
    """What is used unless something else is clearly faster: bf16 on a GPU, fp32 on cores; `Network.layout`."""
    numbers: Numbers = "bf16" if device.type == "cuda" else "fp32"
    return Arithmetic(numbers, "channels_last" if network.layout(device) == torch.channels_last else "contiguous")


def candidates(network: Network, device: torch.device) -> tuple[Arithmetic, ...]:
    """What may be used, the usual first, then by how likely it is to be faster.

    Not what `Network.layout` keeps away from: one step of it costs more than can be spent on finding out.
    """
    first = usual(network, device)
    other: Numbers = "bf16" if first.numbers == "fp32" else "fp32"
    here = (first, Arithmetic(other, first.layout))
    if first.layout == "contiguous":
        return here
    return (*here, Arithmetic(other, "contiguous"), Arithmetic(first.numbers, "contiguous"))


def begun(training: Mapping[str, Tensor], network: Network, device: torch.device) -> Arithmetic | None:
    """What a trial with these tensors in its checkpoint began in; None where that was for another kind of device.

    One of a version that left no note began in the usual one.
    """
    if not any(name.startswith(_NOTE) for name in training):
        return usual(network, device)
    known = (Arithmetic(*pair) for pair in product(get_args(Numbers), get_args(Layout)))
    return next((one for one in known if one.note(device).keys() <= training.keys()), None)
