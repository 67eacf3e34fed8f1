"""`metrics_report`: how good a classifier's outputs are, each figure with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from autoft.tasks.statistics import (
    Counts,
    Floats,
    Hits,
    Interval,
    Labels,
    Logits,
    Statistic,
    balanced_accuracy,
    bootstrap,
    log_losses,
    log_probabilities,
    macro_f1,
    mean,
    percentiles,
    proportion,
    value_of,
)
from autoft.values.bundle import Calibration, ClassReport, Estimate, MetricsReport
from autoft.values.dataset import SplitName

BINS: Final = 15
MAX_CONFUSION_CLASSES: Final = 1000

Confusion = tuple[tuple[int, ...], ...]


def metrics_report(
    split: SplitName,
    logits: Logits,
    labels: Labels,
    class_names: Sequence[str],
    calibration: Calibration,
) -> MetricsReport:
    """The report on logits `(n, classes)` and class indices `(n,)` of a split, at the calibrated temperature.

    The interval of accuracy is Wilson's; the others are bootstraps over images. With more than `MAX_CONFUSION_CLASSES`
    classes `confusion` is empty and `note` says so. Raises `ValueError` without images.
    """
    predicted = logits.argmax(axis=1)
    hits = predicted == labels
    temperature = calibration.temperature
    estimates = _estimates(
        {
            "balanced_accuracy": balanced_accuracy(labels, predicted),
            "macro_f1": macro_f1(labels, predicted),
            "log_loss": mean(log_losses(logits, labels, temperature)),
            "ece": _ece(hits, _confidences(logits, temperature)),
            "ece_before_temperature": _ece(hits, _confidences(logits, 1.0)),
        },
        len(labels),
    )
    confusion, remark = _confusion(labels, predicted, len(class_names))
    return MetricsReport(
        split=split,
        n=len(labels),
        correct=int(hits.sum()),
        ece_before_temperature=estimates.pop("ece_before_temperature"),
        metrics={"accuracy": Estimate(float(hits.mean()), proportion(int(hits.sum()), len(hits))), **estimates},
        calibration=calibration,
        per_class=_per_class(labels, predicted, class_names),
        confusion=confusion,
        note=remark,
    )


# ---------------------------------------------------------------- figures and intervals


def _estimates(statistics: Mapping[str, Statistic], n: int) -> dict[str, Estimate]:
    found = {}
    for name, drawn in bootstrap(statistics, n).items():
        value = value_of(statistics[name], n)
        found[name] = Estimate(value, _INTERVALS.get(name, percentiles)(value, drawn, n))
    return found


def _basic(value: float, drawn: Floats, n: int) -> Interval:
    """The basic bootstrap (Davison and Hinkley 1997) of a figure in [0, 1].

    It takes off the bias of resampling. Calibration errors need that: they add up sizes of differences, so noise makes
    them greater, and a resample has twice the noise. Percentiles would often lie above the figure itself.
    """
    low, high = np.clip(2 * value - np.percentile(drawn, [97.5, 2.5]), 0, 1)
    return min(float(low), value), max(float(high), value)


_INTERVALS: Final[Mapping[str, Callable[[float, Floats, int], Interval]]] = {
    "ece": _basic,
    "ece_before_temperature": _basic,
}


# ---------------------------------------------------------------- calibration


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


def _confidences(logits: Logits, temperature: float) -> Floats:
    """The probability of each image's first class, `(n,)`."""
    confidences = np.empty(len(logits))
    for rows, block in log_probabilities(logits, temperature):
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
