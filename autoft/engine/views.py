"""The view of a run, decided by evidence before its search begins, as far as that is to be had in time."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from autoft.data.dataset import Dataset
from autoft.engine.sitting import Sitting
from autoft.parts.host import Host
from autoft.study.machine import cores
from autoft.study.record import ViewsCompared, features_of
from autoft.study.views import Comparison
from autoft.train.job import TooLate
from autoft.values.counts import counted
from autoft.values.target import MetricFacts

PATIENCE: Final = 2.0
"""Times the seconds of a comparison, after which it is given up."""


class _NotCompared(Exception):
    """Why there is no evidence."""


def decide(
    comparison: Comparison, dataset: Dataset, facts: MetricFacts, sitting: Sitting, otherwise: str
) -> ViewsCompared | None:
    """The evidence, and the view that it speaks for; None where it was not to be had, as no run ends by that.

    A line says what was found, or the one `otherwise`, with the reason.
    """
    try:
        found = _compared(comparison, dataset, facts, sitting.host)
    except _NotCompared as reason:
        sitting.screen.note(f"{otherwise} (views were not compared: {reason})")
        return None
    sitting.screen.note(_in_words(found, facts))
    return found


def _compared(comparison: Comparison, dataset: Dataset, facts: MetricFacts, host: Host) -> ViewsCompared:
    if comparison.obstacle:
        raise _NotCompared(comparison.obstacle)
    from autoft.train.views import built_for, compare_views, with_threads  # brings torch, which else waits for workers

    try:
        networks = built_for(comparison.looks, host, features_of(dataset.info.counts["train"]))
        check = partial(_require_before, time.monotonic() + PATIENCE * comparison.seconds)
        if not comparison.whole:
            dataset = dataset.apart("train+val", comparison.images, comparison.squares, cores(), check)
        with with_threads(cores()):
            found = compare_views(dataset, comparison, networks, facts.name, check)
    except TooLate as late:
        raise _NotCompared(late) from None
    except Exception as error:  # what is wrong here is for a trial to fail by
        raise _NotCompared(host.describe(error)) from error
    figures = {view: facts.shown(score) for view, score in found.scores.items()}
    return ViewsCompared(found.best, figures, comparison.looks[0].backbone.name, found.images)


def _require_before(end: float) -> None:
    """Raise `TooLate` from that time of `time.monotonic()` on."""
    if time.monotonic() > end:
        raise TooLate("it took too much of the time")


def _in_words(found: ViewsCompared, facts: MetricFacts) -> str:
    figures = {view: facts.text(figure) for view, figure in found.figures.items()}
    others = ", ".join(f"{view} {figure}" for view, figure in figures.items() if view != found.view)
    best = (min if facts.is_loss else max)(found.figures, key=found.figures.__getitem__)
    noise = "" if best == found.view else ", no clear difference"
    said = f"view {found.view}: out-of-fold {facts.name} {figures[found.view]}, {others}{noise}"
    return f"{said}; {counted(found.images, 'image')}, {found.backbone}"
