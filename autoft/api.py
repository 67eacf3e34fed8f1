"""`search` and `resume` as Python calls them, and as the command line does with a screen and its own clock."""

from __future__ import annotations

import inspect
import os
import sys
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack, get_type_hints

from autoft.study.options import options_of
from autoft.study.study import Change, Study, budget_change
from autoft.system.process import prepare
from autoft.system.screen import Screen, Silent
from autoft.values.summary import Summary

OFFLINE = "HF_HUB_OFFLINE"
SAME = "TRANSFORMERS_OFFLINE"  # which huggingface_hub reads where the other is not set
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as huggingface_hub reads its variables


class Options(TypedDict, total=False):
    """The options of `search` by the names of `Study`, with what Python may give for each; a test compares the two."""

    time: str | float
    trials: int | None
    target: float | None
    out: str | Path
    seed: int
    task: str
    metric: str
    fail_under: float | None
    fail_above: float | None
    backbones: str | Sequence[str]
    freeze: str | Sequence[str]
    image_size: str | int
    view: str
    searcher: str
    from_: str | Path
    offline: bool
    licenses: str | Sequence[str]
    max_params: str | int | None
    max_latency: str | float | None
    runner: str
    workers: int
    gpus_per_trial: str | float | None
    precision: str
    keep: int
    no_refit: bool
    exporter: str | Sequence[str]
    strict: bool
    batched: bool
    full_parity: bool


def search(
    data: str | Path, *, plugins: Sequence[object] = (), screen: Screen | None = None, **options: Unpack[Options]
) -> Summary:
    """What `autoft search DATA` comes to: the best model, exported and scored, in a run folder.

    The options are those of the command line; docs/options.md has them all. `time` is a number of seconds or a text
    such as "10m", and runs from this call to its return. `plugins` are selections as `-p` takes them ("no:NAME", the
    path of a file), modules, or objects with `autoft.hookimpl` methods. Nothing is shown unless there is a `screen`.

    Raises the errors of `autoft.errors`: `UserError` for what cannot be done, `RunFailed` without a model, `GateFailed`
    with the summary below `fail_under` or above `fail_above`, `Interrupted` on Ctrl-C.
    """
    began = clock.time()
    selections, objects = _told_apart(plugins)
    study = Study.parse({**options, "data": data, "plugins": selections})
    return launch(study, screen or Silent(), began, objects)


def _spelled_out() -> inspect.Signature:
    """The signature of `search` with each option and its default, for `help` and notebooks; editors read `Options`."""
    written, defaults = inspect.signature(search), {one.name: one.default for one in options_of(Study)}
    plain = [one for one in written.parameters.values() if one.kind is not one.VAR_KEYWORD]
    named = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in get_type_hints(Options).items()
    ]
    return written.replace(parameters=[*plain, *named])


search.__signature__ = _spelled_out()  # type: ignore[attr-defined]


def resume(
    run: str | Path,
    time: str | float | None = None,
    *,
    data: str | Path | None = None,
    target: float | None = None,
    plugins: Sequence[object] = (),
    screen: Screen | None = None,
) -> Summary:
    """What `autoft resume RUN` comes to: the run goes on where it was, or with more time.

    `time` is the budget of the whole run, in seconds or as "40m", or what it gets on top, as "+10m". `data` is where
    its images lie now, if they have moved, `target` what to stop at instead. `plugins`, as in `search`, take the place
    of recorded ones of the same name. Raises as `search` does, and `RunFolderError` when there is no run.
    """
    return go_on(Path(run), change_of(time, data, plugins, target), screen or Silent(), clock.time())


def launch(study: Study, screen: Screen, began: float, objects: Sequence[object] = ()) -> Summary:
    """Search with a study whose budget counts from `began`, a wall-clock time."""
    prepare()
    with closing(screen), _minding_the_network(study) as study:
        from autoft.engine import engine

        return engine.search(study, screen, began, objects)


def change_of(
    time: str | float | None, data: str | Path | None, plugins: Sequence[object] = (), target: float | None = None
) -> Change:
    """What a resumed run gets anew, from options as people write them. Raises `StudyError`."""
    selections, objects = _told_apart(plugins)
    more, root = None if time is None else budget_change(time), None if data is None else Path(data)
    return Change(more, root, tuple(selections), tuple(objects), target)


def _told_apart(plugins: Sequence[object]) -> tuple[list[str], list[object]]:
    """Selections as `-p` takes them, and modules and objects; a text alone is one selection."""
    listed = [plugins] if isinstance(plugins, str) else plugins
    selections = [str(plugin) for plugin in listed if isinstance(plugin, str | Path)]
    return selections, [plugin for plugin in listed if not isinstance(plugin, str | Path)]


def go_on(run: Path, change: Change, screen: Screen, began: float) -> Summary:
    """Resume a run; the time it gets now counts from `began`, a wall-clock time."""
    prepare()
    from autoft.study.run import Run

    with closing(screen), _minding_the_network(Run.open(run).record.study):
        from autoft.engine import engine

        return engine.resume(run.absolute(), change, screen, began)


@contextmanager
def _minding_the_network(study: Study) -> Iterator[Study]:
    """The study with `offline` as flag or environment say it; while the block runs, what asks the hub is told so."""
    before = os.environ.get(OFFLINE)
    study = replace(study, offline=study.offline or _asked_offline())
    if study.offline:
        os.environ[OFFLINE] = "1"
    _tell_hub(study.offline)
    try:
        yield study
    finally:
        if before is None:
            os.environ.pop(OFFLINE, None)
        else:
            os.environ[OFFLINE] = before
        _tell_hub(_asked_offline())


def _asked_offline() -> bool:
    return (os.environ.get(OFFLINE) or os.environ.get(SAME) or "").upper() in TRUE


def _tell_hub(offline: bool) -> None:
    """huggingface_hub reads the variable once, at its import, which may be over: then its constant has to know too."""
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_OFFLINE = offline  # type: ignore[attr-defined]
