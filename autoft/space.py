"""Search spaces: flat, named dimensions of plain values that survive JSON."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Scalar = float | int | str | bool
Params = Mapping[str, Scalar]


@dataclass(frozen=True)
class Float:
    """A real number in `[low, high]`; with `log`, uniform in its logarithm.

    Raises `ValueError` when the bounds are not finite, not ordered, or not positive under `log`.
    """

    low: float
    high: float
    log: bool = False
    kind: Literal["float"] = "float"

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)

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
    """A whole number in `[low, high]`, both included; with `log`, uniform in its logarithm.

    Raises `ValueError` as `Float` does.
    """

    low: int
    high: int
    log: bool = False
    kind: Literal["int"] = "int"

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high, self.log)

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
    """One of a few options, all equally likely.

    Raises `ValueError` when there is no option or one stands twice.
    """

    options: tuple[Scalar, ...]
    kind: Literal["choice"] = "choice"

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise ValueError(f"a choice needs distinct options, got {self.options!r}")

    def sample(self, rng: random.Random) -> Scalar:
        """One of the options."""
        return rng.choice(self.options)

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is one of the options."""
        return value in self.options


Dimension = Float | Int | Choice


@dataclass(frozen=True)
class Space:
    """Named dimensions, and `starts`: parameter sets known to do well, which searchers try first.

    Raises `ValueError` when a start does not lie in the space.
    """

    dimensions: Mapping[str, Dimension]
    starts: tuple[Params, ...] = ()

    def __post_init__(self) -> None:
        for start in self.starts:
            if problem := self.problem(start):
                raise ValueError(f"start {dict(start)!r}: {problem}")

    def sample(self, rng: random.Random) -> dict[str, Scalar]:
        """One parameter set: a value for each dimension."""
        return {name: dimension.sample(rng) for name, dimension in self.dimensions.items()}

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


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(f"`low <= high` must hold and both be finite, got {low=}, {high=}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range starts above 0, got {low=}")


def _is_number(value: Scalar) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
