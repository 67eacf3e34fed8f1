"""How often the 95 % interval of each metric holds what endless images would have, on made-up answers.

    python benchmarks/intervals.py

Labels are rare to common (2 to 40 %), hard or easy to see; classes are of 2 to 20 %; numbers have errors with long
tails that grow with the number. Each set is drawn anew; what endless images would have comes from 100,000. Figures are
in `autoft.tasks.statistics.log_odds`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
from common import Check
from numpy.typing import NDArray

from autoft.parts.metric import Metric
from autoft.tasks import multi_label, regression, single_label
from autoft.tasks.statistics import INTERVALS, bootstrap, value_of

Drawn = tuple[NDArray[Any], NDArray[Any]]
SIZES = (60, 200, 1000)
ENDLESS = 100_000
ENOUGH, TARGET = 200, 85  # images, %


def hard_labels(rng: np.random.Generator, n: int) -> Drawn:
    """Logits and marks `(n, 12)`, of a mean average precision of .65."""
    often, clear = np.geomspace(0.02, 0.4, 12), np.linspace(1.2, 3.5, 12)
    marks = rng.random((n, 12)) < often
    seen = rng.standard_normal((n, 12)) + clear * (marks - 0.5) + np.log(often / (1 - often)) / clear
    return clear * seen, marks.astype(np.float32)


def easy_labels(rng: np.random.Generator, n: int) -> Drawn:
    """Logits and marks `(n, 12)`, of a mean average precision of .94."""
    often, clear = np.geomspace(0.05, 0.4, 12), np.linspace(2.6, 5.2, 12)
    marks = rng.random((n, 12)) < often
    return clear * (rng.standard_normal((n, 12)) + clear * (marks - 0.5)), marks.astype(np.float32)


def classes(rng: np.random.Generator, n: int) -> Drawn:
    """Logits `(n, 10)` and class indices `(n,)`."""
    often = np.geomspace(0.02, 0.3, 10) / np.geomspace(0.02, 0.3, 10).sum()
    labels = rng.choice(10, n, p=often)
    return 1.5 * (rng.standard_normal((n, 10)) + 2 * np.eye(10)[labels]) + np.log(often), labels


def numbers(rng: np.random.Generator, n: int) -> Drawn:
    """Values and what they should be, `(n, 2)`."""
    true = np.column_stack([rng.normal(50, 10, n), rng.lognormal(0, 0.7, n)])
    spread = np.column_stack([np.full(n, 5.0), 0.15 + 0.3 * true[:, 1]])
    return true + spread * rng.standard_t(5, (n, 2)), true.astype(np.float32)


KINDS: dict[str, tuple[Callable[[np.random.Generator, int], Drawn], Sequence[Metric]]] = {
    "hard labels": (hard_labels, multi_label.METRICS[:3]),
    "easy labels": (easy_labels, multi_label.METRICS[:3]),
    "classes": (classes, single_label.METRICS[1:]),
    "numbers": (numbers, (regression.MAE, regression.RMSE, regression.R2)),
}


@dataclass(frozen=True)
class Row:
    """How often of 100 sets an interval holds what endless images have, by how it is taken; `own` is the metric's."""

    kind: str
    n: int
    metric: str
    coverage: Mapping[str, int]
    own: str


@dataclass(frozen=True)
class Result:
    """`sets` of each kind and size."""

    sets: int
    rows: tuple[Row, ...]


def measure(kind: str, n: int, sets: int) -> Iterator[Row]:
    """A row a metric."""
    draw, metrics = KINDS[kind]
    endless = {metric.name: metric.score(*draw(np.random.default_rng(10**6), ENDLESS)) for metric in metrics}
    held = {metric.name: dict.fromkeys(INTERVALS, 0) for metric in metrics}
    for seed in range(sets):
        judged, targets = draw(np.random.default_rng(seed), n)
        statistics = {metric.name: metric.statistic(judged, targets) for metric in metrics}
        for name, drawn in bootstrap(statistics, n).items():
            for how, interval in INTERVALS.items():
                low, high = interval(value_of(statistics[name], n), drawn, n)
                held[name][how] += low <= endless[name] <= high
    for metric in metrics:
        parts = {how: round(100 * count / sets) for how, count in held[metric.name].items()}
        yield Row(kind, n, metric.name, parts, metric.bootstrap)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=int, default=150)
    sets = parser.parse_args().sets
    rows = tuple(row for kind in KINDS for n in SIZES for row in measure(kind, n, sets))
    columns = ("answers", "images", "metric", *INTERVALS, "its own")
    common.show("coverage in %", columns, [(r.kind, r.n, r.metric, *r.coverage.values(), r.own) for r in rows])
    worst = min((row for row in rows if row.n >= ENOUGH), key=lambda row: row.coverage[row.own])
    least = worst.coverage[worst.own]
    what = f"least coverage from {ENOUGH} images on, {worst.metric} of {worst.kind}"
    checks = [Check(what, f"{least} %", f"at least {TARGET} %", least >= TARGET)]
    return common.publish("intervals", Result(sets, rows), checks)


if __name__ == "__main__":
    sys.exit(main())
