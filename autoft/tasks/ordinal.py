"""Ordinal classification: one class an image, of classes that have an order."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED
from autoft.parts.metric import Metric
from autoft.system.lazy import Lazy
from autoft.tasks.number import number
from autoft.tasks.single_label import METRICS, SEPARATOR, SingleLabel
from autoft.tasks.statistics import Floats, Labels, Logits, mean, mean_by_class
from autoft.values.bundle import Calibration
from autoft.values.plan import Balance, Recipe
from autoft.values.target import MetricFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from autoft.parts.linear_head import LinearHead
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

STEPS: Final = Metric(
    MetricFacts("mae", is_loss=True, greatest=None),
    lambda logits, classes: mean(-_steps_off(logits, classes)),
)

STEPS_BY_CLASS: Final = Metric(
    MetricFacts("macro_mae", is_loss=True, weighs_classes=True, greatest=None),
    lambda logits, classes: mean_by_class(classes, -_steps_off(logits, classes)),
)

_BEGINS: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_ENDS: Final = re.compile(r"(?:(?<=\s)[+-])?[0-9]+(?:\.[0-9]+)?$")  # the hyphen of grade-1 is no sign


class Ordinal(SingleLabel):
    """One class an image, of classes in an order: numbers, or names that begin or end with one ("1 poor", "grade 2").

    Output k is the logit of being above class k, given that the image is not below it (CORN, Shi, Cao and Raschka
    2021), so the probabilities of "above" fall from class to class whatever the network gives. `mae` is in classes,
    `macro_mae` the mean of the classes' own. Nothing is claimed: whether classes have an order is for the user to say.
    """

    name = "ordinal"
    summary = "one class an image, of classes in an order"
    metrics: Sequence[Metric] = (STEPS, STEPS_BY_CLASS, *METRICS)
    balances: Sequence[Balance] = ("sampling", "weights")  # logits of steps are no logits of classes

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """The classes from lowest to highest, by their numbers.

        Raises `DataError` for fewer than two, several columns, names without a number, several labels in a cell, or two
        classes of one number.
        """
        classes = super().names(labels, columns)
        values = {name: _number(name) for name in classes}
        ordered = sorted(classes, key=values.__getitem__)
        for lower, upper in pairwise(ordered):
            if values[lower] == values[upper]:
                raise DataError(
                    f"the classes {lower!r} and {upper!r} are one number; write it in one way, or number them apart"
                )
        return tuple(ordered)

    def remark(self) -> str:
        """The order, which only a person can check."""
        return f"classes in this order: {', '.join(self.targets.names)}"

    @property
    def outputs(self) -> int:
        """One a step between classes."""
        return len(self.targets.names) - 1

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Mean over images of the binary cross entropies of the steps they reach, `(batch, steps)`, smoothed."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        steps = torch.arange(self.outputs, device=targets.device)
        above, reached = targets[:, None] > steps, targets[:, None] >= steps
        smoothed = above * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
        losses = binary_cross_entropy_with_logits(outputs, smoothed.to(outputs.dtype), reduction="none")
        return (losses * reached).sum() / len(targets)

    def closed_form(self, features: Tensor, targets: Tensor, check: Callable[[], None]) -> LinearHead | None:
        """A ridge path of the marks "above class k", over all images: near enough to begin with.

        Classes count alike where the goal weighs them so.
        """
        import torch

        from autoft.tasks.ridge import ridge_of_labels

        marks = (targets[:, None] > torch.arange(self.outputs)).float()
        return ridge_of_labels(features, marks, check, targets if self.weighs_classes else None)

    def judged(self, outputs: Logits, calibration: Calibration = UNCALIBRATED) -> NDArray[Any]:
        """Log probabilities of the classes `(n, classes)`, divided by the temperature."""
        return super().judged(_log_probabilities(outputs), calibration)

    def calibrate(self, outputs: Logits, targets: Labels) -> Calibration:
        """A temperature of the classes, where it helps.

        One of the steps would move answers: their logits are conditional, so the products change their order.
        """
        return super().calibrate(_log_probabilities(outputs), targets)

    def answers(self, outputs: Logits, calibration: Calibration) -> NDArray[np.float32]:
        """Probabilities `(n, classes)`, which add up to 1."""
        return super().answers(_log_probabilities(outputs), calibration)

    def tail(self, calibration: Calibration) -> str:
        """Each class: all steps below it taken, the one above it not; then softmax at the temperature."""
        return f"""
            minus = Neg (outputs)
            not_taken = Softplus (minus)
            taken = Neg (not_taken)
            last = Constant <value = int64 {{1}}> ()
            reached = CumSum (taken, last)
            too_far = Softplus (outputs)
            stopped = Neg (too_far)
            one_before = Constant <value = int64[4] {{0, 1, 0, 0}}> ()
            one_after = Constant <value = int64[4] {{0, 0, 0, 1}}> ()
            below = Pad (reached, one_before)
            above = Pad (stopped, one_after)
            logarithms = Add (below, above)
            temperature = Constant <value = float {{{calibration.temperature!r}}}> ()
            cooled = Div (logarithms, temperature)
            answers = Softmax <axis = -1> (cooled)"""


def _steps_off(logits: Logits, classes: Labels) -> Floats:
    """How many classes the likeliest one is away from an image's own, `(n,)`."""
    steps: Floats = np.abs(logits.argmax(axis=1) - classes).astype(np.float64)
    return steps


def _number(name: str) -> float:
    """The number that a class is, or else begins or ends with. Raises `DataError` when there is none."""
    if SEPARATOR in name:
        raise DataError(
            f"{name!r} stands for several labels, as {SEPARATOR} parts them; give an image one class, or say "
            "--task multi_label"
        )
    with suppress(ValueError):
        if math.isfinite(value := number(name)):  # "nan" is a name, and has no place among numbers
            return value
    found = _BEGINS.match(name) or _ENDS.search(name)
    if found is None:
        raise DataError(
            f"of the class {name!r} nothing says where it stands in the order; number the classes, as in 1 poor, 2 fair"
        )
    return float(found[0])


def _log_probabilities(outputs: Logits) -> NDArray[Any]:
    """Logarithms of the classes' probabilities `(n, classes)` from logits of the steps between them."""
    steps = outputs.astype(np.float64)
    none = np.zeros((len(steps), 1))
    reached = -np.logaddexp(0, -steps).cumsum(axis=1)
    found: NDArray[Any] = np.hstack([none, reached]) + np.hstack([-np.logaddexp(0, steps), none])
    return found
