"""`scores`: every figure of a task on one split, the one that was searched by with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from autoft.parts.metric import Metric
from autoft.tasks.statistics import Interval, bootstrap, percentiles, proportion
from autoft.values.summary import Scores


def scores(metrics: Sequence[Metric], primary: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Every metric over judged outputs `(n, ...)`, with a 95 % interval for the primary one.

    That of a proportion is Wilson's; the others are bootstraps over images.
    """
    n = len(targets)
    found = {metric.name: metric.score(judged, targets) for metric in metrics}
    right = [round(found[metric.name] * n) for metric in metrics if metric.is_proportion]
    low, high = sorted(map(primary.facts.shown, interval(primary, judged, targets)))
    figures = {metric.name: metric.facts.shown(found[metric.name]) for metric in metrics}
    return Scores(n=n, correct=right[0] if right else None, metrics=figures, ci95=(low, high))


def interval(metric: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Interval:
    """The 95 % interval of a score."""
    n, value = len(targets), metric.score(judged, targets)
    if metric.is_proportion:
        return proportion(round(value * n), n)
    return percentiles(value, bootstrap({metric.name: metric.statistic(judged, targets)}, n)[metric.name], n)
