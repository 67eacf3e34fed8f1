"""The hooks: everything a plugin can do, on one page.

A plugin is a module or an object with functions marked `@autoft.hookimpl`, named in the entry-point group
`autoft`. A hook returns parts (see `autoft.parts.base`); it may take fewer arguments than stand here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from autoft.parts.base import Exporter, FreezeStrategy, Searcher, Task, Zoo
    from autoft.parts.metric import Metric
    from autoft.study.record import StudyRecord
    from autoft.values.summary import Summary
    from autoft.values.trial import Report, Trial

hookspec = pluggy.HookspecMarker("autoft")
hookimpl = pluggy.HookimplMarker("autoft")


@hookspec
def autoft_zoos() -> Iterable[Zoo]:
    """Zoos: which backbones there are and how to build one."""
    raise NotImplementedError


@hookspec
def autoft_freeze_strategies() -> Iterable[FreezeStrategy]:
    """Freeze strategies: what trains, at which learning rate."""
    raise NotImplementedError


@hookspec
def autoft_searchers() -> Iterable[Searcher]:
    """Searchers: what to train next, and for how long."""
    raise NotImplementedError


@hookspec
def autoft_exporters() -> Iterable[Exporter]:
    """Exporters: a trained model to a deployable file."""
    raise NotImplementedError


@hookspec
def autoft_tasks() -> Iterable[Task]:
    """Tasks: what is predicted, with which loss and metrics, and what a model answers."""
    raise NotImplementedError


@hookspec
def autoft_metrics() -> Iterable[Metric]:
    """Metrics of all tasks of a form, beside those that the tasks bring along."""
    raise NotImplementedError


# Told, not asked; what a listener raises is a warning, never the run's end.


@hookspec
def autoft_search_started(study: StudyRecord, run: Path) -> None:
    """A search is about to ask for its first slice, or one that was stopped goes on; `run` is its folder."""


@hookspec
def autoft_slice_ended(trial: Trial, report: Report) -> None:
    """A slice of `trial` ended with `report`, which is in the journal."""


@hookspec
def autoft_search_finished(summary: Summary) -> None:
    """The search is over, the best is exported, and `summary.json` is written."""
