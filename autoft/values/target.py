"""What is predicted of a data set, and how its scores are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["one_of", "any_of", "numbers"]
"""What a deployed model answers, whatever task it is of: one of the names, any of them, or a number for each."""


@dataclass(frozen=True)
class Targets:
    """What is predicted: the `task` by name, the `form` of the answers, and in `names` what these are about.

    That is the classes, the labels that an image may have, or the columns of numbers. `mean`, `deviation`, `least` and
    `greatest` are those of each column of numbers over the training images, in the data's own units; empty where there
    are no numbers, the last two also in a file of an older version.
    """

    task: str
    form: Form
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    least: tuple[float, ...] = ()
    greatest: tuple[float, ...] = ()


@dataclass(frozen=True)
class MetricFacts:
    """How the scores of one metric are shown.

    Of scores greater is better, always: of a metric that `is_loss` it is the negative. One that `weighs_classes` alike
    gets worse when a rare class is never found. No figure is above `greatest`; None: there is no such limit.
    """

    name: str
    is_loss: bool = False
    weighs_classes: bool = False
    greatest: float | None = 1.0

    def shown(self, score: float) -> float:
        """The figure that people and files get to see: of a loss the loss itself, positive, smaller is better."""
        return 0.0 - score if self.is_loss else score

    def score(self, shown: float) -> float:
        """The score of a figure as people get to see it."""
        return 0.0 - shown if self.is_loss else shown

    def text(self, figure: float) -> str:
        """A figure that people get to see, or a loss as such, in so many digits as it deserves; see `in_digits`."""
        return in_digits(figure, self.greatest is not None)


def in_digits(figure: float, bounded: bool) -> str:
    """A figure for people: four decimals, or five digits where it may be of any size, as in the units of data."""
    return f"{figure:.4f}" if bounded else f"{figure:.5g}"
