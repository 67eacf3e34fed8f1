"""Schedules of the learning rate: what share of its rate a group has at a step of the passes that a recipe plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from autoft.values.plan import Recipe

RISE: Final = 0.3
"""Of the plan, in which the rate of "one_cycle" rises."""

LOW, LAST = 1 / 25, 1 / 25e4
"""What "one_cycle" begins and ends with, as PyTorch's `OneCycleLR` has it."""


def constant(progress: float) -> float:
    """Always the whole rate."""
    return 1.0


def cosine(progress: float) -> float:
    """From the whole rate to zero along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return _between(1.0, 0.0, progress)


def one_cycle(progress: float) -> float:
    """Up in the first part, then down to next to nothing (Smith and Topin 2018, arXiv 1708.07120); momentum stays."""
    if progress < RISE:
        return _between(LOW, 1.0, progress / RISE)
    return _between(1.0, LAST, (progress - RISE) / (1.0 - RISE))


SCHEDULES: Final[Mapping[str, Callable[[float], float]]] = MappingProxyType(
    {schedule.__name__: schedule for schedule in (constant, cosine, one_cycle)}
)
"""By name; each maps progress through the planned passes, from 0 to 1, to a share of the rate."""


def share(recipe: Recipe, step: int, begins: int, steps_per_pass: int) -> float:
    """The share of its rate, 0 to 1, that a group which begins at step `begins` has at optimiser step `step`, from 0.

    A function of the step and of the `recipe.passes` planned, wherever a trial pauses; a group that begins later warms
    up then, and follows the schedule of the others. Zero before it begins.
    """
    begun = max(0, step - begins + 1) / steps_per_pass
    warm = begun / recipe.warmup_passes if begun < recipe.warmup_passes else float(step >= begins)
    return warm * SCHEDULES[recipe.schedule](min(1.0, step / (recipe.passes * steps_per_pass)))


def _between(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * progress))
