"""Multi-label classification: any of the labels an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED, Task
from autoft.parts.metric import Floats, Metric
from autoft.system.lazy import Lazy
from autoft.system.natural import natural_key
from autoft.tasks.calibration import cross_fitted
from autoft.tasks.label_statistics import (
    Marks,
    average_precisions,
    f1s,
    macro_f1,
    mean_average_precision,
    micro_f1,
    subset_accuracy,
)
from autoft.tasks.lookalikes import loosely, refuse_lookalikes
from autoft.tasks.single_label import focal
from autoft.tasks.statistics import Labels, Logits
from autoft.tasks.thresholds import MIN_IMAGES, fit_thresholds
from autoft.values.bundle import DEFAULT_THRESHOLD, Calibration
from autoft.values.plan import Recipe
from autoft.values.target import MetricFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from autoft.parts.linear_head import LinearHead
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

METRICS: Final = (
    Metric(
        MetricFacts("map", weighs_classes=True),
        lambda logits, marks: mean_average_precision(marks, logits),
        bootstrap="log_odds",
        by_class=lambda logits, marks: average_precisions(marks, logits),
    ),
    Metric(
        MetricFacts("macro_f1", weighs_classes=True),
        lambda logits, marks: macro_f1(marks, logits >= 0),
        bootstrap="log_odds",
        by_class=lambda logits, marks: f1s(marks, logits >= 0),
    ),
    Metric(
        MetricFacts("micro_f1"),
        lambda logits, marks: micro_f1(marks, logits >= 0),
    ),
    Metric(
        MetricFacts("subset_accuracy"),
        lambda logits, marks: subset_accuracy(marks, logits >= 0),
        is_proportion=True,
    ),
)

_DELIMITER: Final = re.compile(r"[|;]")


def names_in(label: str) -> tuple[str, ...]:
    """The names in a cell, `cat|red fox` or `cat; red fox`, each once; none in an empty cell.

    Spaces within a name belong to it, those around it do not. A comma is no delimiter: it separates columns.
    """
    return tuple(dict.fromkeys(name for part in _DELIMITER.split(label) if (name := part.strip())))


class MultiLabel(Task):
    """Any of the labels an image, or none of them."""

    name = "multi_label"
    summary = "any of the labels an image"
    form = "any_of"
    metrics: Sequence[Metric] = METRICS

    def claims(self, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """One column, and a cell of it with `|` or `;`."""
        return len(columns) == 1 and any(map(_DELIMITER.search, labels))

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """All labels, in natural order.

        Raises `DataError` for several columns, both delimiters, no label at all, a single one that all images have, or
        two that a person takes for one.
        """
        if len(columns) > 1:
            raise DataError(
                f"an image's labels stand in one column, as in cat|dog, and there are {len(columns)}: "
                f"{', '.join(columns)}; join them"
            )
        bar, semicolon = ([label for label in labels if delimiter in label] for delimiter in "|;")
        if bar and semicolon:
            raise DataError(f"{bar[0]!r} separates labels by | and {semicolon[0]!r} by ; write | everywhere, or ;")
        found = sorted({name for label in labels for name in names_in(label)}, key=natural_key)
        if not found:
            raise DataError("no image has a label; write those of an image into its cell, as in cat|dog")
        if len(found) == 1 and all(map(names_in, labels)):
            raise DataError(f"every image has the one label {found[0]!r}; there is nothing to tell apart")
        refuse_lookalikes(found, loosely)
        return tuple(found)

    def problem(self, label: str) -> str | None:
        """Every cell will do: an image without a label has none of them."""
        return None

    def encode(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """Marks `(n, labels)`: 1 where an image has the label, else 0."""
        index = {name: number for number, name in enumerate(self.targets.names)}
        marks = np.zeros((len(labels), len(index)), np.float32)
        for row, label in enumerate(labels):
            marks[row, [index[name] for name in names_in(label)]] = 1
        return marks

    def strata(self, labels: Sequence[str]) -> Sequence[Hashable]:
        """The rarest label of each image, "" where it has no label.

        Rare labels go first, as in iterative stratification (Sechidis et al. 2011): what is common evens out.
        """
        found = [names_in(label) for label in labels]
        counts = Counter(name for names in found for name in names)
        return [min(names, key=lambda name: (counts[name], name), default="") for names in found]

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Mean binary cross entropy, or focal loss, of logits against marks, both `(batch, labels)`.

        Smoothing takes from a mark what it does from one of two classes, and gives it to its absence as well.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        smoothed = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
        if recipe.loss == "focal":
            found = (outputs * (2 * targets - 1)).sigmoid()
            return focal(binary_cross_entropy_with_logits(outputs, smoothed, reduction="none"), found)
        return binary_cross_entropy_with_logits(outputs, smoothed)

    def closed_form(self, features: Tensor, targets: Tensor, check: Callable[[], None]) -> LinearHead | None:
        """A ridge path of all labels."""
        from autoft.tasks.ridge import ridge_of_labels

        return ridge_of_labels(features, targets, check)

    def judged(self, outputs: Logits, calibration: Calibration = UNCALIBRATED) -> Floats:
        """Logits `(n, labels)` at the temperature, from 0 on where a label is said to be there."""
        from scipy.special import logit

        cooled: Floats = outputs.astype(np.float64) / calibration.temperature
        return cooled - logit(calibration.thresholds) if calibration.thresholds else cooled

    def calibrate(self, outputs: Logits, targets: Marks) -> Calibration:
        """A temperature and a threshold for each label, where they help.

        Thresholds are those of the best F1. On new images of made-up sets (12 labels, 100 to 1,000 images to fit on)
        macro F1 changed by -.001 to +.19, most where labels are hard to see, and up to .07 of subset accuracy was lost.
        """

        def losses(rows: Labels, temperature: float) -> Floats:
            return _log_losses(outputs[rows] / temperature, targets[rows])

        found = cross_fitted(losses, _rarest(targets))
        thresholds = fit_thresholds(outputs / np.float32(found.temperature), targets)
        return replace(found, thresholds=thresholds, reason=f"{found.reason} {_moved(thresholds)}")

    def answers(self, outputs: Logits, calibration: Calibration) -> NDArray[np.float32]:
        """A probability for each label, `(n, labels)`."""
        from scipy.special import expit

        probabilities: NDArray[Any] = expit(outputs.astype(np.float64) / calibration.temperature)
        return probabilities.astype(np.float32)

    def tail(self, calibration: Calibration) -> str:
        """Sigmoid at the temperature."""
        return f"""
            temperature = Constant <value = float {{{calibration.temperature!r}}}> ()
            cooled = Div (outputs, temperature)
            answers = Sigmoid (cooled)"""


def _moved(thresholds: Sequence[float]) -> str:
    """Of which labels the threshold was moved, and why not of the others."""
    moved, labels = sum(threshold != DEFAULT_THRESHOLD for threshold in thresholds), len(thresholds)
    why = (
        f"fewer than {MIN_IMAGES} validation images have the label, or have it not, "
        "or no other threshold has a greater F1 on images it was not fitted on"
    )
    if not moved:
        return f"The threshold of each label is {DEFAULT_THRESHOLD}, the default: {why}."
    found = f"The thresholds of {moved} of {labels} labels have a greater F1 on images they were not fitted on"
    return f"{found}." if moved == labels else f"{found}; of the others it is {DEFAULT_THRESHOLD}, the default: {why}."


def _log_losses(logits: NDArray[Any], marks: Marks) -> Floats:
    """Of each image the mean over the labels of the negative log-likelihood, `(n,)`."""
    found: Floats = (np.logaddexp(0, logits.astype(np.float64)) - logits * marks).mean(axis=1)
    return found


def _rarest(marks: Marks) -> Labels:
    """The rarest label of each image by its index, one past the last where it has none, `(n,)`."""
    counts = np.where(marks > 0, marks.sum(axis=0), np.inf)
    rarest: Labels = np.where((marks > 0).any(axis=1), counts.argmin(axis=1), marks.shape[1])
    return rarest
