"""Regression: one number or several an image, in the data's own units."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED, Task
from autoft.parts.metric import Counts, Floats, Metric, Statistic
from autoft.system.lazy import Lazy
from autoft.tasks.number import number
from autoft.tasks.statistics import mean
from autoft.values.bundle import Calibration
from autoft.values.counts import counted
from autoft.values.plan import Recipe
from autoft.values.target import MetricFacts, Targets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from autoft.parts.linear_head import LinearHead
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

MAX_CLASSES: Final = 20
"""A column of so many different whole numbers or fewer holds classes: stars, grades, digits."""

MISSING: Final = 0.05
"""Part of the labels of a column of numbers that may be something else, such as "n/a"."""

MAX_STRATA: Final = 10
STRATUM: Final = 10
"""Images a stratum, at least, where there are enough for two; a fifth of them is more than one."""

_DECIMAL_COMMA: Final = re.compile(r"\s*[+-]?\d+,\d+\s*")
_GREATEST: Final = 1e18  # the square of it, and sums of those, are finite in float32
_FAR: Final = 1e6
"""So many times the range of 90 % of a column's values away, one value leaves nothing of the others to learn."""
_GRAIN: Final = 64
"""Steps of float32 in a column's deviation, at least: coarser ones would be an error of their own."""


def _rmse(values: NDArray[Any], targets: NDArray[Any]) -> Statistic:
    squares = np.square(values - targets.astype(np.float64))
    return lambda counts: -np.sqrt(counts @ squares / len(squares)).mean(axis=1)


def _r2(values: NDArray[Any], targets: NDArray[Any]) -> Statistic:
    """Columns that are constant over the images are left out: there is nothing to explain; of none it is 0."""
    truth = targets.astype(np.float64)
    errors, shifted = np.square(values - truth), truth - truth[0]  # shifted, as squares of large numbers lose digits

    def statistic(counts: Counts) -> Floats:
        n, second = counts.sum(axis=1, keepdims=True), counts @ np.square(shifted)
        spread = second - np.square(counts @ shifted) / n
        varies = spread > 1e-12 * second
        explained = 1 - np.divide(counts @ errors, spread, out=np.zeros(spread.shape), where=varies)
        means: Floats = (explained * varies).sum(axis=1) / np.maximum(varies.sum(axis=1), 1)
        return means

    return statistic


MAE: Final = Metric(
    MetricFacts("mae", is_loss=True, greatest=None),
    lambda values, targets: mean(-np.abs(values - targets.astype(np.float64)).mean(axis=1)),
)
RMSE: Final = Metric(MetricFacts("rmse", is_loss=True, greatest=None), _rmse)
R2: Final = Metric(MetricFacts("r2"), _r2)


def numbers_in(label: str) -> tuple[float, ...]:
    """The numbers in a line of CSV, `1.5` or `1.5,-2e3`. Raises `ValueError` when something else stands there."""
    return tuple(map(number, _cells(label)))


class Regression(Task):
    """One number or several an image.

    The network gives them standardised, by mean and deviation of each column over the training images. Of one column
    the mean absolute error is the metric to search by, which no single odd image decides; of several it is R2, as
    errors in grams and in metres do not add up. `mae`, `rmse` and `r2` are means over the columns, the first two in
    their units.
    """

    name = "regression"
    summary = "one number or several an image"
    form = "numbers"
    metrics: Sequence[Metric] = (MAE, RMSE, R2)

    def on(self, targets: Targets) -> Self:
        """Of several columns, R2 comes first."""
        bound = super().on(targets)
        if len(targets.names) > 1:
            bound.metrics = sorted(self.metrics, key=lambda metric: metric.name != R2.name)
        return bound

    def claims(self, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """Numbers in several columns, or in one that cannot be classes.

        Those are numbers of which one is not whole, or of more than `MAX_CLASSES` whole ones that are no mere numbering
        (from 0 or 1 without a gap, as of the 1000 classes of ImageNet). What is written with zeros before it ("007") is
        an identifier. A column of few whole numbers stays classes. Empty cells do not count, nor do a few that hold
        something else: they are missing values. Numbers with a decimal comma are claimed, to be refused by name.
        """
        filled = [_with_points(label, len(columns)) for label in labels if label.strip()]
        usable = [label for label in filled if not self.problem(label)]
        if not usable or len(filled) - len(usable) > MISSING * len(filled) or any(map(_is_identifier, usable)):
            return False
        rows = list(map(numbers_in, usable))
        if len(columns) > 1 or any(len(row) > 1 for row in rows):  # too many of them: `names` says what to do
            return True
        found = {number for row in rows for number in row}
        if not all(map(float.is_integer, found)):
            return True
        numbering = min(found) in (0, 1) and max(found) - min(found) == len(found) - 1
        return len(found) > MAX_CLASSES and not numbering

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """The columns.

        Raises `DataError` for labels of fewer or more numbers, when no column varies, or one more finely than float32
        can tell, and for a value beside which the others are one.
        """
        for label in labels:
            _refuse_decimal_comma(label, columns)
            if len(numbers_in(label)) != len(columns):
                raise DataError(
                    f"{label!r} holds {counted(len(numbers_in(label)), 'number')}, and the columns are "
                    f"{', '.join(columns)}; give one number for each, with a point before its decimals"
                )
        values = np.array([numbers_in(label) for label in labels])
        if (values == values[0]).all():
            raise DataError(f"every image has the same {', '.join(columns)}, {labels[0]}; there is nothing to predict")
        _require_grain(columns, values, np.ptp(values, axis=0) / 2)  # the most there is, however often each occurs
        _refuse_outliers(columns, labels, values)
        return tuple(columns)

    def problem(self, label: str) -> str | None:
        """Whether something in it is no number, or one that is not finite or too large to compute with in float32."""
        if not label.strip():
            return "it has no number"
        for cell in _cells(label):
            try:
                value = number(cell)
            except ValueError:
                return f"{cell!r} is no number{_pointed(cell)}"
            if not math.isfinite(value):
                return f"{cell.strip()!r} is not finite"
            if abs(value) > _GREATEST:
                return f"{cell.strip()!r} is too large; {_GREATEST:g} is the most, so choose larger units"
        return None

    def encode(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """The numbers `(n, columns)`, in their own units."""
        if not labels:
            return np.zeros((0, len(self.targets.names)), np.float32)
        return np.array([numbers_in(label) for label in labels], np.float32)

    def strata(self, labels: Sequence[str]) -> Sequence[Hashable]:
        """Ranges of numbers with as many images each, ten where there are enough.

        Of several columns along the direction in which, standardised, they vary most.
        """
        values = np.array([numbers_in(label) for label in labels])
        line = _along(values) if values.shape[1] > 1 else values[:, 0]
        edges = np.quantile(line, np.linspace(0, 1, min(MAX_STRATA, len(line) // STRATUM or 1) + 1)[1:-1])
        ranges: list[int] = np.searchsorted(edges, line, side="right").tolist()
        return ranges

    def with_moments(self, targets: Targets, training: NDArray[Any]) -> Targets:
        """The moments and ends of each column; a constant one gets the deviation 1, or more where float32 needs it.

        Raises `DataError` when one varies more finely over these images than float32 can tell.
        """
        exact = training.astype(np.float64)
        deviation = np.where(np.ptp(exact, axis=0) > 0, exact.std(axis=0), 0.0)
        _require_grain(targets.names, exact, deviation)
        deviation = np.where(deviation > 0, deviation, np.maximum(1.0, _least_deviation(exact)))
        found = (exact.mean(axis=0), exact.min(axis=0), exact.max(axis=0))
        mean, least, greatest = (tuple(one.tolist()) for one in found)
        return replace(targets, mean=mean, deviation=tuple(deviation.tolist()), least=least, greatest=greatest)

    def standardised(self, targets: Tensor) -> Tensor:
        """What the network should give for targets `(batch, columns)`: deviations from the mean, float32."""
        mean, deviation = (targets.new_tensor(moments) for moments in (self.targets.mean, self.targets.deviation))
        return ((targets - mean) / deviation).float()

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Mean Huber loss (1964) of `(batch, columns)`, a parabola up to one deviation.

        Beyond it is a line, so a mistyped target pulls no more than one that is a deviation off.
        """
        from torch.nn.functional import huber_loss

        return huber_loss(outputs, self.standardised(targets))

    def closed_form(self, features: Tensor, targets: Tensor, check: Callable[[], None]) -> LinearHead | None:
        """The best of a ridge path of the standardised numbers."""
        from autoft.tasks.ridge import ridge_of_values

        return ridge_of_values(features, self.standardised(targets), check)

    def judged(self, outputs: NDArray[Any], calibration: Calibration = UNCALIBRATED) -> Floats:
        """Numbers `(n, columns)` in the data's own units."""
        found: Floats = outputs.astype(np.float64) * self.targets.deviation + self.targets.mean
        return found

    def answers(self, outputs: NDArray[Any], calibration: Calibration) -> NDArray[np.float32]:
        """Numbers `(n, columns)` in the data's own units."""
        return self.judged(outputs).astype(np.float32)

    def tail(self, calibration: Calibration) -> str:
        """Times the deviation, plus the mean."""
        return f"""
            deviation = Constant <value = {_constant(self.targets.deviation)}> ()
            mean = Constant <value = {_constant(self.targets.mean)}> ()
            scaled = Mul (outputs, deviation)
            answers = Add (scaled, mean)"""


def _refuse_outliers(columns: Sequence[str], labels: Sequence[str], values: Floats) -> None:
    """Raise `DataError` for one of `values` `(n, columns)` that is far beyond all others of its column."""
    for name, column in zip(columns, values.T, strict=True):
        low, high = np.quantile(column, 0.05, method="higher"), np.quantile(column, 0.95, method="lower")
        distance = np.abs(column - np.median(column))
        row = distance.argmax()
        if distance[row] > _FAR * (high - low) > 0:
            raise DataError(
                f"{name} is {column[row]:g} where the label is {labels[row]!r}, and most others lie from {low:g} to "
                f"{high:g}: nothing of them could be learned; correct it, take the line out, or predict logarithms"
            )


def _cells(label: str) -> Sequence[str]:
    try:
        return next(csv.reader([label]))
    except csv.Error:  # a line break in it
        return (label,)


def _least_deviation(values: Floats) -> Floats:
    """The deviation that a column of `values` `(n, columns)` needs for float32 to tell it, `(columns,)`."""
    least: Floats = _GRAIN * np.spacing(np.abs(values).max(axis=0).astype(np.float32)).astype(np.float64)
    return least


def _require_grain(columns: Sequence[str], values: Floats, deviations: Floats) -> None:
    """Raise `DataError` for a column of `values` `(n, columns)` that varies, but not enough."""
    for name, column, deviation, least in zip(columns, values.T, deviations, _least_deviation(values), strict=True):
        if 0 < deviation < least:
            raise DataError(
                f"{name} varies by {deviation:.3g} about {column.mean():.7g}, which 32-bit numbers do not tell apart; "
                f"subtract {column.mean():.7g} from it"
            )


def _constant(numbers: Sequence[float]) -> str:
    """Numbers as ONNX text has them."""
    return f"float[{len(numbers)}] {{{', '.join(map(repr, numbers))}}}"


def _pointed(cell: str) -> str:
    """What to write instead of a number with a decimal comma; of other text there is nothing to say."""
    return f"; write a point, {cell.replace(',', '.').strip()}" if _DECIMAL_COMMA.fullmatch(cell) else ""


def _with_points(label: str, columns: int) -> str:
    """The label with points for decimal commas, where its cells are numbers with one."""
    cells = [label] if columns == 1 else _cells(label)
    return ",".join(cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells)


def _refuse_decimal_comma(label: str, columns: Sequence[str]) -> None:
    """Raise `DataError` for the label of one column that is a number with a comma before its decimals."""
    if len(columns) == 1 and _DECIMAL_COMMA.fullmatch(label):
        raise DataError(f"{label!r} in {columns[0]} has a decimal comma{_pointed(label)}, in every line")


def _is_identifier(label: str) -> bool:
    return any(len(cell) > 1 and cell[0] == "0" and cell.isdigit() for cell in _cells(label))


def _along(values: Floats) -> Floats:
    """Where each of `values` `(n, columns)` lies in the direction in which, standardised, they vary most, `(n,)`."""
    deviation = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    direction = np.linalg.eigh(standard.T @ standard).eigenvectors[:, -1]
    direction *= np.sign(direction[np.abs(direction).argmax()])
    # Rounded, as what is alike must not be parted by the last digit of a sum.
    along: Floats = (standard @ direction).round(9)
    return along
