"""`scores`: every figure of a task on one split, the one that was searched by with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from autoft.parts.metric import Floats, Metric, Statistic
from autoft.tasks.statistics import Interval, bootstrap, percentiles, proportion, value_of
from autoft.values.bundle import Estimate
from autoft.values.summary import Scores


def scores(metrics: Sequence[Metric], primary: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Every metric over judged outputs `(n, ...)`, with a 95 % interval for the primary one, and its count.

    That of a proportion is Wilson's; the others are bootstraps over images. A metric that has no figure for these
    images, NaN, is left out.
    """
    n = len(targets)
    found = {metric.name: metric.score(judged, targets) for metric in metrics}
    right = round(found[primary.name] * n) if primary.is_proportion else None
    low, high = sorted(map(primary.facts.shown, interval(primary, judged, targets)))
    figures = {one.name: one.facts.shown(found[one.name]) for one in metrics if math.isfinite(found[one.name])}
    return Scores(n=n, correct=right, metrics=figures, ci95=(low, high))


def interval(metric: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Interval:
    """The 95 % interval of a score."""
    n, value = len(targets), metric.score(judged, targets)
    if metric.is_proportion:
        return proportion(round(value * n), n)
    return percentiles(value, bootstrap({metric.name: metric.statistic(judged, targets)}, n)[metric.name], n)


IntervalOf = Callable[[float, Floats, int], Interval]
"""The 95 % interval of a figure, from its value, its resamples and the number of images."""


def estimates(
    metrics: Sequence[Metric],
    judged: NDArray[Any],
    targets: NDArray[Any],
    further: Mapping[str, tuple[Statistic, IntervalOf]] | None = None,
) -> dict[str, Estimate]:
    """Every metric over judged outputs `(n, ...)` as people know it, with its 95 % interval.

    `further` are figures that are no metrics, each with the interval it takes. One bootstrap serves all. A metric that
    has no figure for these images is left out.
    """
    n, others = len(targets), further or {}
    statistics = {metric.name: metric.statistic(judged, targets) for metric in metrics}
    drawn = bootstrap(statistics | {name: statistic for name, (statistic, _) in others.items()}, n)
    found = {}
    for metric in metrics:
        value = value_of(statistics[metric.name], n)
        if not math.isfinite(value):
            continue
        resampled = percentiles(value, drawn[metric.name], n)
        ends = proportion(round(value * n), n) if metric.is_proportion else resampled
        low, high = sorted(map(metric.facts.shown, ends))
        found[metric.name] = Estimate(metric.facts.shown(value), (low, high))
    for name, (statistic, interval_of) in others.items():
        value = value_of(statistic, n)
        found[name] = Estimate(value, interval_of(value, drawn[name], n))
    return found
