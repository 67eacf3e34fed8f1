"""`metrics_report`: how good a classifier's outputs are, each figure with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autoft.tasks.forms.base import Answering
from autoft.tasks.scores import estimates
from autoft.tasks.statistics import Counts, Floats, Hits, Interval, Labels, Logits, Statistic, log_probabilities
from autoft.values.bundle import ClassReport, MetricsReport
from autoft.values.dataset import SplitName

BINS: Final = 15
MAX_CONFUSION_CLASSES: Final = 1000

Confusion = tuple[tuple[int, ...], ...]


def metrics_report(split: SplitName, outputs: NDArray[Any], labels: Labels, answering: Answering) -> MetricsReport:
    """The report on outputs `(n, outputs)` and class indices `(n,)` of a split, with what was calibrated.

    The interval of a proportion is Wilson's; the others are bootstraps over images. With more than
    `MAX_CONFUSION_CLASSES` classes `confusion` is empty and `note` says so. Raises `ValueError` without images.
    """
    names = answering.task.targets.names
    cooled, plain = answering.judged(outputs), answering.task.judged(outputs)
    predicted = cooled.argmax(axis=1)
    hits = predicted == labels
    errors = {"ece": _ece(hits, _confidences(cooled)), "ece_before_temperature": _ece(hits, _confidences(plain))}
    found = estimates(answering.task.metrics, cooled, labels, {name: (one, _basic) for name, one in errors.items()})
    before = found.pop("ece_before_temperature")
    confusion, remark = _confusion(labels, predicted, len(names))
    return MetricsReport(
        split=split,
        n=len(labels),
        correct=int(hits.sum()),
        ece_before_temperature=before,
        metrics=found,
        calibration=answering.calibration,
        per_class=_per_class(labels, predicted, names),
        confusion=confusion,
        note=remark,
        ece_bins=f"{min(BINS, len(labels))} of equal mass",
    )


# ---------------------------------------------------------------- calibration


def _basic(value: float, drawn: Floats, n: int) -> Interval:
    """The basic bootstrap (Davison and Hinkley 1997) of a figure in [0, 1].

    It takes off the bias of resampling. Calibration errors need that: they add up sizes of differences, so noise makes
    them greater, and a resample has twice the noise. Percentiles would often lie above the figure itself.
    """
    low, high = np.clip(2 * value - np.percentile(drawn, [97.5, 2.5]), 0, 1)
    return min(float(low), value), max(float(high), value)


def _ece(hits: Hits, confidences: Floats) -> Statistic:
    """The expected calibration error over `BINS` bins of equal mass (Nguyen and O'Connor 2015)."""
    n = len(hits)
    # Equal confidences in random order: in the order of files, whole classes would fall into one bin.
    order = np.lexsort((np.random.default_rng(0).random(n), confidences))
    excess = (confidences - hits)[order]
    starts = np.cumsum([0, *map(len, np.array_split(order, min(BINS, n)))])[:-1]

    def statistic(counts: Counts) -> Floats:
        resampled = np.repeat(np.tile(excess, len(counts)), counts[:, order].ravel()).reshape(counts.shape)
        errors: Floats = np.abs(np.add.reduceat(resampled, starts, axis=1)).sum(axis=1) / n
        return errors

    return statistic


def _confidences(logits: Logits) -> Floats:
    """The probability of each image's first class, `(n,)`."""
    confidences = np.empty(len(logits))
    for rows, block in log_probabilities(logits, 1.0):
        confidences[rows] = np.exp(block.max(axis=1))
    return confidences


# ---------------------------------------------------------------- classes


def _per_class(labels: Labels, predicted: Labels, names: Sequence[str]) -> tuple[ClassReport, ...]:
    columns = [
        np.bincount(of, minlength=len(names)).tolist() for of in (labels, predicted, labels[predicted == labels])
    ]
    return tuple(
        ClassReport(name, n, _ratio(hits, taken), _ratio(hits, n), _ratio(2 * hits, n + taken))
        for name, n, taken, hits in zip(names, *columns, strict=True)
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _confusion(labels: Labels, predicted: Labels, classes: int) -> tuple[Confusion, str]:
    """The matrix, and a remark when there are too many classes for one."""
    if classes > MAX_CONFUSION_CLASSES:
        return (), f"The confusion matrix of {classes} classes is left out."
    cells = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return tuple(map(tuple, cells.tolist())), ""
