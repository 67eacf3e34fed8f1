"""`scores`: every figure of a task on one split, the one that was searched by with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from autoft.parts.metric import Metric, Statistic
from autoft.tasks.statistics import (
    INTERVALS,
    Floats,
    Interval,
    IntervalOf,
    bootstrap,
    mean_of_proportions,
    proportion,
    value_of,
)
from autoft.values.bundle import Estimate
from autoft.values.summary import Scores


def scores(metrics: Sequence[Metric], primary: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Scores:
    """Every metric over judged outputs `(n, ...)`, with a 95 % interval for the primary one, and its count.

    That of a proportion is Wilson's; the others are bootstraps over images. Where the primary one counts no images, the
    count is that of the first which does. A metric that has no figure for these images, NaN, is left out; of the
    primary one there is then no interval.
    """
    n = len(targets)
    found = {metric.name: metric.score(judged, targets) for metric in metrics}
    known = [metric for metric in metrics if math.isfinite(found[metric.name])]
    ends = sorted(map(primary.facts.shown, interval(primary, judged, targets))) if primary in known else None
    # One with a form is what a plugin adds to every task of it: it does not say when an image is right.
    counting = [one for one in (primary, *metrics) if one in known and one.is_proportion and one.form is None]
    return Scores(
        n=n,
        correct=round(found[counting[0].name] * n) if counting else None,
        metrics={one.name: one.facts.shown(found[one.name]) for one in known},
        ci95=(ends[0], ends[1]) if ends else None,
        unbounded=tuple(one.name for one in known if one.facts.greatest is None),
        metric=primary.name,
    )


def interval(metric: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> Interval:
    """The 95 % interval of a score."""
    n, value = len(targets), metric.score(judged, targets)
    if metric.is_proportion:
        return proportion(round(value * n), n)
    drawn = bootstrap({metric.name: metric.statistic(judged, targets)}, n)[metric.name]
    return _ends(metric, value, drawn, (judged, targets))


def _ends(metric: Metric, value: float, drawn: Floats, of: tuple[NDArray[Any], NDArray[Any]]) -> Interval:
    """The 95 % interval of a value: by resamples, and as far as that of the classes goes beyond; `of` is scored."""
    low, high = INTERVALS[metric.bootstrap](value, drawn, len(of[1]))
    if metric.by_class is None:
        return low, high
    lower, upper = mean_of_proportions(metric.by_class(*of))
    return min(low, lower), max(high, upper)


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
        resampled = _ends(metric, value, drawn[metric.name], (judged, targets))
        ends = proportion(round(value * n), n) if metric.is_proportion else resampled
        low, high = sorted(map(metric.facts.shown, ends))
        found[metric.name] = Estimate(metric.facts.shown(value), (low, high))
    for name, (statistic, interval_of) in others.items():
        value = value_of(statistic, n)
        found[name] = Estimate(value, interval_of(value, drawn[name], n))
    return found
