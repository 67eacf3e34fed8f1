"""`search` and `resume` as Python calls them, and as the command line does with a screen and its own clock."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from autoft.process import prepare
from autoft.screen import Screen, Silent
from autoft.study import Study, budget_change
from autoft.summary import Summary

OFFLINE = "HF_HUB_OFFLINE"
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as huggingface_hub reads its variables


def search(
    data: str | Path,
    *,
    time: str | float = "30m",
    trials: int | None = None,
    out: str | Path = "",
    seed: int = 0,
    workers: int = 0,
    runner: str = "auto",
    backbones: str | Sequence[str] = (),
    freeze: str | Sequence[str] = (),
    searcher: str = "halving",
    exporter: Sequence[str] = ("onnx",),
    metric: str = "accuracy",
    image_size: int | str = "auto",
    view: str = "auto",
    offline: bool = False,
    licenses: str | Sequence[str] = "permissive",
    fail_under: float | None = None,
    keep: int = 5,
    batched: bool = False,
    full_parity: bool = False,
    gpus_per_trial: float = 1.0,
    plugins: Sequence[object] = (),
    screen: Screen | None = None,
) -> Summary:
    """What `autoft search DATA` comes to: the best model, exported and scored, in a run folder.

    The options are those of the command line; see `Study` for their meaning. `time` is a number of seconds or a text
    such as "10m", and runs from this call to its return. `plugins` are selections as `-p` takes them ("no:NAME", the
    path of a file), modules, or objects with `autoft.hookimpl` methods. Nothing is shown unless there is a `screen`.

    Raises the errors of `autoft.errors`: `UserError` for what cannot be done, `RunFailed` without a model, `GateFailed`
    with the summary below `fail_under`, `Interrupted` on Ctrl-C.
    """
    began = clock.time()
    selections = [str(plugin) for plugin in plugins if isinstance(plugin, str | Path)]
    objects = [plugin for plugin in plugins if not isinstance(plugin, str | Path)]
    study = Study.parse(
        {
            "data": data,
            "time": time,
            "trials": trials,
            "out": out,
            "seed": seed,
            "workers": workers,
            "runner": runner,
            "backbones": backbones,
            "freeze": freeze,
            "searcher": searcher,
            "exporter": exporter,
            "metric": metric,
            "image_size": image_size,
            "view": view,
            "offline": offline,
            "licenses": licenses,
            "fail_under": fail_under,
            "keep": keep,
            "batched": batched,
            "full_parity": full_parity,
            "gpus_per_trial": gpus_per_trial,
            "plugins": selections,
        }
    )
    return launch(study, screen or Silent(), began, objects)


def resume(run: str | Path, time: str | float | None = None, screen: Screen | None = None) -> Summary:
    """What `autoft resume RUN` comes to: the run goes on where it was, or with more time.

    `time` is the budget of the whole run, in seconds or as "40m", or what it gets on top, as "+10m". Raises as `search`
    does, and `RunFolderError` when there is no run.
    """
    return go_on(Path(run), time, screen or Silent(), clock.time())


def launch(study: Study, screen: Screen, began: float, objects: Sequence[object] = ()) -> Summary:
    """Search with a study whose budget counts from `began`, a wall-clock time."""
    prepare()
    study = _mind_the_network(study)
    from autoft import engine

    with closing(screen):
        return engine.search(study, screen, began, objects)


def go_on(run: Path, time: str | float | None, screen: Screen, began: float) -> Summary:
    """Resume a run; the time it gets now counts from `began`, a wall-clock time."""
    prepare()
    from autoft.run import Run

    more = None if time is None else budget_change(time)
    _mind_the_network(Run.open(run).record.study)
    from autoft import engine

    with closing(screen):
        return engine.resume(run.absolute(), more, screen, began)


def _mind_the_network(study: Study) -> Study:
    """The study with `offline` as flag or environment say it; offline, every library that asks the hub is told so.

    To be called before anything imports huggingface_hub, which reads the variable once.
    """
    offline = study.offline or os.environ.get(OFFLINE, "").upper() in TRUE
    if offline:
        os.environ[OFFLINE] = "1"
    return replace(study, offline=offline)
