"""Search spaces: flat, named dimensions of plain values that survive JSON."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard

from autoft.values.plan import Balance

Scalar = float | int | str | bool
Params = Mapping[str, Scalar]


@dataclass(frozen=True)
class Float:
    """A real number in `[low, high]`; with `log`, uniform in its logarithm."""

    low: float
    high: float
    log: bool = False
    kind: Literal["float"] = "float"

    def fault(self) -> str | None:
        """Why nothing can be drawn: bounds that are not finite, not in order, or not positive under `log`."""
        return _fault_of_bounds(self.low, self.high, self.log)

    def sample(self, rng: random.Random) -> float:
        """One value, uniform over the range."""
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = rng.uniform(self.low, self.high)
        return min(max(drawn, self.low), self.high)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is a number inside the range."""
        return _is_number(value) and self.low <= float(value) <= self.high


@dataclass(frozen=True)
class Int:
    """A whole number in `[low, high]`, both included; with `log`, uniform in its logarithm."""

    low: int
    high: int
    log: bool = False
    kind: Literal["int"] = "int"

    def fault(self) -> str | None:
        """Why nothing can be drawn: as of a `Float`, or bounds that are no whole numbers."""
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            return f"the bounds of an Int are whole numbers, got low={self.low!r}, high={self.high!r}"
        return _fault_of_bounds(self.low, self.high, self.log)

    def sample(self, rng: random.Random) -> int:
        """One value, uniform over the range."""
        if not self.log:
            return rng.randint(self.low, self.high)
        drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high + 1)))
        return min(max(int(drawn), self.low), self.high)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is a whole number inside the range."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of a few options, all equally likely."""

    options: tuple[Scalar, ...]
    kind: Literal["choice"] = "choice"

    def fault(self) -> str | None:
        """Why nothing can be drawn: there is no option, one stands twice, or one is no plain value."""
        if not self.options or not all(isinstance(option, Scalar) for option in self.options):
            return f"the options of a Choice are numbers, texts or truth values, at least one; got {self.options!r}"
        distinct = len(set(self.options)) == len(self.options)
        return None if distinct else f"a Choice needs distinct options, got {self.options!r}"

    def sample(self, rng: random.Random) -> Scalar:
        """One of the options."""
        return rng.choice(self.options)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is one of the options."""
        return any(value == option and _is_number(value) == _is_number(option) for option in self.options)


Dimension = Float | Int | Choice


Device = Literal["cpu", "cuda"]


FeaturesOf = Literal["last stage", "every stage"]
"""What the heads of a run see of an image."""


@dataclass(frozen=True)
class Circumstances:
    """What a space may go by: the `device` that a run begins on, and how many `images` it trains on, 0 if unknown.

    `balances` are what training can do for rare classes, where there are some and the metric weighs all classes alike;
    a recipe that says nothing of it takes the first. `features_of` is what heads see.
    """

    device: Device = "cpu"
    images: int = 0
    balances: tuple[Balance, ...] = ()
    features_of: FeaturesOf = "last stage"


@dataclass(frozen=True)
class Space:
    """Named dimensions, and `starts`: parameter sets known to do well, which searchers try first.

    Raises `TypeError` for what is no dimension, and `ValueError` for one that nothing can be drawn from and for a start
    that does not lie in the space; each names the dimension.
    """

    dimensions: Mapping[str, Dimension]
    starts: tuple[Params, ...] = ()

    def __post_init__(self) -> None:
        for name, dimension in self.dimensions.items():
            if not isinstance(dimension, Dimension):
                raise TypeError(f"{name}: a dimension is a Float, an Int or a Choice, not {dimension!r}")
            if fault := dimension.fault():
                raise ValueError(f"{name}: {fault}")
        for start in self.starts:
            if problem := self.problem(start):
                raise ValueError(f"start {dict(start)!r}: {problem}")

    def sample(self, rng: random.Random) -> dict[str, Scalar]:
        """One parameter set: a value for each dimension."""
        return {name: dimension.sample(rng) for name, dimension in self.dimensions.items()}

    def fitted(self, params: Params) -> dict[str, Scalar] | None:
        """The `params` of another space as far as their values lie in this one, completed by the first start.

        None where something is missing, and there is no start.
        """
        usual = next(iter(self.starts), {})
        fitting = {
            name: params[name] for name, one in self.dimensions.items() if name in params and one.contains(params[name])
        }
        found = {**usual, **fitting}
        return None if self.problem(found) else found

    def problem(self, params: Params) -> str | None:
        """What is wrong with `params` for this space, or None."""
        if missing := set(self.dimensions) - set(params):
            return f"{sorted(missing)} missing"
        if unknown := set(params) - set(self.dimensions):
            return f"{sorted(unknown)} unknown, there are {sorted(self.dimensions)}"
        for name, dimension in self.dimensions.items():
            if not dimension.contains(params[name]):
                return f"{name}={params[name]!r} lies outside {dimension}"
        return None


def _fault_of_bounds(low: object, high: object, log: bool) -> str | None:
    if _is_number(low) and _is_number(high) and -math.inf < low <= high < math.inf:
        return f"a logarithmic range starts above 0, got {low=}" if log and low <= 0 else None
    return f"`low <= high` must hold and both be finite numbers, got {low=}, {high=}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float | int) and not isinstance(value, bool)
