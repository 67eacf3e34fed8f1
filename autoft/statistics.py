"""Scores with their uncertainty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from autoft.summary import Scores
from autoft.task import METRICS, SingleLabel

RESAMPLES = 1000


def scores(task: SingleLabel, primary: str, logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Every metric of the task over logits `(n, classes)`, with a 95 % interval for the primary one."""
    metrics = {name: task.score(name, logits, labels) for name in task.metrics}
    correct = int((logits.argmax(axis=1) == labels).sum())
    interval = _INTERVALS.get(primary, _bootstrap)(lambda rows: task.score(primary, logits[rows], labels[rows]), labels)
    figures = {name: METRICS[name].shown(score) for name, score in metrics.items()}
    low, high = sorted(map(METRICS[primary].shown, interval))
    return Scores(n=len(labels), correct=correct, metrics=figures, ci95=(low, high))


def _wilson(score: Callable[[np.ndarray], float], labels: np.ndarray) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    from scipy.stats import binomtest

    hits = round(score(np.arange(len(labels))) * len(labels))
    interval = binomtest(hits, len(labels)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _bootstrap(score: Callable[[np.ndarray], float], labels: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap over images (Efron 1979); seeded, so that a score has one interval."""
    rng = np.random.default_rng(0)
    drawn = [score(rng.integers(len(labels), size=len(labels))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


_INTERVALS = {"accuracy": _wilson}
