"""`metrics_report`: how good a classifier's outputs are, each figure with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.calibration import Floats, Labels, log_losses, log_probabilities
from autoft.bundle.values import Calibration, ClassReport, Estimate, MetricsReport
from autoft.onnx_runtime import Logits
from autoft.statistics import RESAMPLES
from autoft.types import SplitName

BINS: Final = 15
MAX_CONFUSION_CLASSES: Final = 1000
_NUMBERS_AT_ONCE: Final = 2**18

Counts = NDArray[np.int64]
Hits = NDArray[np.bool_]
Confusion = tuple[tuple[int, ...], ...]
Statistic = Callable[[Counts], Floats]
"""From how often each image counts, `(resamples, n)`, to one figure a resample, `(resamples,)`."""


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
            "balanced_accuracy": _balanced_accuracy(labels, predicted),
            "macro_f1": _macro_f1(labels, predicted),
            "log_loss": _mean(log_losses(logits, labels, temperature)),
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
        metrics={"accuracy": _accuracy(hits), **estimates},
        calibration=calibration,
        per_class=_per_class(labels, predicted, class_names),
        confusion=confusion,
        note=remark,
    )


# ---------------------------------------------------------------- figures and intervals


def _accuracy(hits: Hits) -> Estimate:
    from scipy.stats import binomtest

    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Estimate(float(hits.mean()), (float(interval.low), float(interval.high)))


def _estimates(statistics: Mapping[str, Statistic], n: int) -> dict[str, Estimate]:
    every_image_once = np.ones((1, n), np.int64)
    drawn = [[statistic(counts) for statistic in statistics.values()] for counts in _resamples(n)]
    found = {}
    for (name, statistic), row in zip(statistics.items(), np.concatenate(drawn, axis=1), strict=True):
        value = float(statistic(every_image_once)[0])
        low, high = _INTERVALS.get(name, _percentile)(value, row)
        # A resample lacks some classes and repeats images, which can push it past the figure.
        found[name] = Estimate(value, (min(float(low), value), max(float(high), value)))
    return found


def _percentile(_: float, drawn: Floats) -> Floats:
    """The percentile bootstrap (Efron 1979)."""
    interval: Floats = np.percentile(drawn, [2.5, 97.5])
    return interval


def _basic(value: float, drawn: Floats) -> Floats:
    """The basic bootstrap (Davison and Hinkley 1997) of a figure in [0, 1].

    It takes off the bias of resampling. Calibration errors need that: they add up sizes of differences, so noise makes
    them greater, and a resample has twice the noise. Percentiles would often lie above the figure itself.
    """
    interval: Floats = np.clip(2 * value - _percentile(value, drawn)[::-1], 0, 1)
    return interval


def _resamples(n: int) -> Iterator[Counts]:
    """How often each of `n` images is in a resample of `n`: `RESAMPLES` rows, a few at a time to bound memory.

    Seeded as `autoft.statistics` is, and drawn in its order, so that both come to the same intervals.
    """
    rng = np.random.default_rng(0)
    step = max(1, _NUMBERS_AT_ONCE // max(n, 1))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        images = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(images.ravel(), minlength=rows * n).reshape(rows, n)


_INTERVALS = {"ece": _basic, "ece_before_temperature": _basic}


# ---------------------------------------------------------------- statistics


def _mean(values: Floats) -> Statistic:
    return lambda counts: counts @ values / len(values)


def _balanced_accuracy(labels: Labels, predicted: Labels) -> Statistic:
    """The mean recall over the classes that occur."""
    true, hit = _by_class(labels, labels), _by_class(labels, labels, predicted == labels)
    return lambda counts: _mean_over_classes(counts @ hit, counts @ true, counts @ true > 0)


def _macro_f1(labels: Labels, predicted: Labels) -> Statistic:
    """The mean F1 over the classes that occur."""
    true, hit = _by_class(labels, labels), _by_class(labels, labels, predicted == labels)
    either = true + _by_class(labels, predicted)
    return lambda counts: _mean_over_classes(2 * (counts @ hit), counts @ either, counts @ true > 0)


def _by_class(labels: Labels, classes: Labels, counted: Hits | None = None) -> Any:
    """A sparse `(n, classes that occur)`: 1 where an image is `counted` and of that class in `classes`."""
    from scipy.sparse import csr_array

    n, size = len(labels), int(max(labels.max(), classes.max())) + 1
    ones = np.ones(n, np.int64) if counted is None else counted.astype(np.int64)
    return csr_array((ones, (np.arange(n), classes)), shape=(n, size))[:, np.unique(labels)]


def _mean_over_classes(parts: Counts, wholes: Counts, occurs: Hits) -> Floats:
    ratios = np.divide(parts, wholes, out=np.zeros(parts.shape), where=occurs)
    means: Floats = ratios.sum(axis=1) / occurs.sum(axis=1)
    return means


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
