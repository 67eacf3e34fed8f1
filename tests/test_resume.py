"""Resuming: what is checked before a run folder changes, and that a resume that fails changes nothing."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from parts.data import TASKS, dataset

import autoft
from autoft import api, hookimpl
from autoft.__main__ import _run
from autoft.bundle.predict import searched_on
from autoft.data.dataset import write_split_csv
from autoft.engine import engine
from autoft.engine.conclude import let_stand
from autoft.engine.ending import Ending
from autoft.engine.execution import ExportWish, _damage, _export_path, _layout, _search, execute, export_trial
from autoft.engine.prepare import Preparation
from autoft.engine.sitting import Sitting
from autoft.errors import (
    AutoftError,
    DataError,
    GateFailed,
    Interrupted,
    PluginError,
    RunFailed,
    RunFolderError,
    StudyError,
)
from autoft.parts.base import Problem, Searcher
from autoft.parts.host import Host
from autoft.parts.plugins import PluginRef, builtin_ref
from autoft.runners.base import Site
from autoft.runners.inline import InlineRunner
from autoft.runners.refit import Refits
from autoft.runners.search import Search
from autoft.shell.commands.run import _lines, _next
from autoft.store import Checkpoint, CheckpointStore, Journal, RunFolder
from autoft.study.machine import Slowness
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.files import sha256
from autoft.system.parallel import never_stop
from autoft.system.screen import Silent
from autoft.system.signals import stop_on_signals
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.forms.one_of import OneOf
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.codec import encode
from autoft.values.ledger import Ledger
from autoft.values.prediction import Prediction
from autoft.values.space import Space
from autoft.values.summary import Best, RunnerUp, Scores, Summary
from autoft.values.target import MetricFacts
from autoft.values.trial import DONE, Candidate, Clock, Done, Parent, Queued, Report, Slice, Started, Stopped, Trial


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


SCORES = Scores(n=2, correct=1, metrics={"accuracy": 0.5}, ci95=(0.1, 0.9))


@pytest.fixture(autouse=True)
def zoo_and_strategy_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the run below, which nothing here builds or trains."""
    monkeypatch.setattr(Host, "has_zoo", lambda host, backbone: True)
    monkeypatch.setattr(Host, "has", lambda host, backbone, freeze: True)


@pytest.fixture
def run(tiny_images: Path, tmp_path: Path) -> Run:
    """A finished run of one trial with a budget of a minute on `tiny_images`."""
    folder, data = tmp_path / "run", dataset(tiny_images, {(64, "bicubic", "crop")})
    candidate = Candidate("zoo/net", "probe", 64, Space({}))
    record = StudyRecord(
        study=Study(
            data=str(tiny_images), out=str(folder), time=60.0, task="single_label", metric="accuracy", runner="inline"
        ),
        data=data.info,
        backbones=(Backbone("zoo/net", 1_000_000, InputSpec(64)),),
        candidates=(candidate,),
        view="crop",
        plugins=(*map(builtin_ref, ("autoft.builtin.searchers", "autoft.builtin.onnx_exporter")), TASKS),
        versions={},
        machine=Machine("inline", 1, 1, "cpu"),
        metric=MetricFacts("accuracy"),
    )
    created = RunFolder.create(folder, encode(record), lambda folder: write_split_csv(data, folder.split_csv))
    opened = Run(created, record)
    with Journal(opened.folder.journal) as journal:
        journal.append(Queued(0, Slice(candidate.trial(0, {}, 0), 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        journal.append(Report(0, "finished", 1.0, 0.75, 2.0, elapsed=3.0))
    best = Best(0, "zoo/net", "probe", 64, {})
    model = "export/model.onnx"
    ended = Summary(str(folder), "accuracy", best, SCORES, SCORES, {"finished": 1}, {"total": 9.0}, model, 60.0, 9.0)
    opened.folder.export.mkdir()
    (opened.folder.export / "manifest.json").write_text("{}")
    opened.folder.summary.write_text(encode(replace(ended, finalists=(Parent(0, 1.0),))))
    return opened


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """What would have been searched, instead of a search."""
    runs: list[Run] = []

    def execute(run: Run, *others: object) -> Summary:
        runs.append(run)
        ended = run.summary()
        assert ended is not None
        return ended

    monkeypatch.setattr(engine, "_execute", execute)
    return runs


def rewrite(run: Run, record: StudyRecord) -> None:
    run.folder.study.write_text(encode(record))


def without_plugin(run: Run) -> Iterator[None]:
    rewrite(run, replace(run.record, plugins=(PluginRef("gone", "file", str(run.folder.path / "gone.py")),)))
    yield


def with_other_images(run: Run) -> Iterator[None]:
    (run.images() / "red" / "0.png").unlink()
    yield


def without_images(run: Run) -> Iterator[None]:
    run.images().rename(run.images().with_name("elsewhere"))
    yield


def in_use(run: Run) -> Iterator[None]:
    with run.folder.lock():
        yield


def without_its_searcher(run: Run) -> Iterator[None]:
    rewrite(run, replace(run.record, study=replace(run.record.study, searcher="gone")))
    yield


def without_its_count_of_scorings(run: Run) -> Iterator[None]:
    run.folder.test_openings.write_text("?")
    yield


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (without_its_count_of_scorings, RunFolderError),
        (without_plugin, PluginError),
        (with_other_images, DataError),
        (without_images, DataError),
        (in_use, RunFolderError),
        (without_its_searcher, StudyError),
    ],
)
def test_a_resume_that_fails_leaves_the_run_as_it_was(
    trouble: Callable[[Run], Iterator[None]], error: type[AutoftError], run: Run
) -> None:
    circumstances = trouble(run)
    next(circumstances)
    before = state(run)
    with pytest.raises(error):
        api.resume(run.folder.path, "+10s")
    assert state(run) == before
    list(circumstances)


def state(run: Run) -> dict[str, bytes]:
    files = (path for path in run.folder.path.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("time", ["59s", "2s"])
@pytest.mark.parametrize("used", [9.0, 60.0, 75.0, 3000.0])
def test_less_time_than_a_finished_run_had_is_refused_with_more_that_would_do(
    used: float, time: str, run: Run, executed: list[Run]
) -> None:
    ended = run.summary()
    assert ended is not None
    run.folder.summary.write_text(encode(replace(ended, elapsed=used)))
    before = state(run)
    with pytest.raises(StudyError, match=r"is finished and had 60 s.* --time \+\d+s$") as refused:
        api.resume(run.folder.path, time)
    assert (state(run), executed) == (before, [])
    api.resume(run.folder.path, str(refused.value).rpartition(" ")[2])
    assert len(executed) == 1


@pytest.mark.parametrize("time", [None, "1m"])
def test_a_finished_run_with_the_time_it_had_is_done(time: str | None, run: Run, executed: list[Run]) -> None:
    before = state(run)
    assert api.resume(run.folder.path, time) == run.summary()
    assert (state(run), executed) == (before, [])


def test_nobody_is_told_to_go_on_with_plugins_that_leave_nothing_to_go_on_with(run: Run) -> None:
    """The hint of a finished run, once more with what was switched off."""
    ended = run.summary()
    assert ended is not None
    run.folder.summary.write_text(encode(replace(ended, goes_on=True)))
    assert api.resume(run.folder.path).goes_on
    assert not api.resume(run.folder.path, plugins=["no:searchers"]).goes_on
    with pytest.raises(StudyError, match="no searcher is called 'halving'"):
        api.resume(run.folder.path, "+1m", plugins=["no:searchers"])


def test_more_time_is_searched_with_and_written_only_by_the_search(run: Run, executed: list[Run]) -> None:
    before = state(run)
    api.resume(run.folder.path, "+10s")
    assert [one.record.study.time for one in executed] == [70.0]
    assert state(run) == before
    executed[0].save()
    assert Run.open(run.folder.path).record.study.time == 70.0


def at_target(run: Run, target: float, bound: float) -> Run:
    """The run as one with a target, whose trial has 0.75 and is sure of `bound`."""
    rewrite(run, replace(run.record, study=replace(run.record.study, target=target)))
    queued, report = Journal.read(run.folder.journal)
    assert isinstance(report, Report)
    run.folder.journal.unlink()
    with Journal(run.folder.journal) as journal:
        journal.append(queued)
        journal.append(replace(report, bound=bound))
    ended = run.summary()
    assert ended is not None
    run.folder.summary.write_text(encode(replace(ended, target=target, reached=bound >= target)))
    return Run.open(run.folder.path)


HOW = r"is reached: trial 0 has accuracy 0.7500, at least 0.7000 by its 95 % interval"


def test_a_run_that_has_reached_its_target_says_so_and_is_done(run: Run, executed: list[Run]) -> None:
    run, screen = at_target(run, 0.6, 0.7), Notes()
    before = state(run)
    assert api.resume(run.folder.path, screen=screen) == run.summary()
    assert screen.lines == [f"--target 0.6 {HOW}"]
    assert (state(run), executed) == (before, [])


@pytest.mark.parametrize(("time", "target"), [("+1m", None), (None, 0.5), (None, 0.7), ("+1m", 0.7), ("+1s", None)])
def test_more_time_and_a_target_that_is_reached_too_leave_nothing_to_do(
    time: str | None, target: float | None, run: Run, executed: list[Run]
) -> None:
    run = at_target(run, 0.6, 0.7)
    before = state(run)
    with pytest.raises(StudyError, match=rf"the run is finished: --target {target or 0.6:g} {HOW}; .* target beyond"):
        api.resume(run.folder.path, time, target=target)
    assert (state(run), executed) == (before, [])


def test_a_target_beyond_what_was_reached_is_searched_for_in_the_time_left(run: Run, executed: list[Run]) -> None:
    """And a target is set where there was none; one that no score reaches is refused."""
    with pytest.raises(StudyError, match=r"--target .* at most 1"):
        api.resume(run.folder.path, target=71)
    api.resume(run.folder.path, target=0.9)
    run = at_target(run, 0.6, 0.7)
    api.resume(run.folder.path, target=0.71)
    assert [(one.record.study.target, one.record.study.time) for one in executed] == [(0.9, 60.0), (0.71, 60.0)]
    executed[1].save()
    assert Run.open(run.folder.path).record.study.target == 0.71


def test_a_target_beyond_what_was_reached_takes_time(run: Run, executed: list[Run]) -> None:
    at_target(run, 0.6, 0.7)
    with Journal(run.folder.journal) as journal:
        journal.append(Stopped(58.0))
    with pytest.raises(StudyError, match=r"leaves no time to search: .* --time \+"):
        api.resume(run.folder.path, target=0.71)
    assert executed == []


@pytest.mark.parametrize(("target", "is_said"), [(None, False), (0.3, False), (0.99, True)])
def test_a_target_of_which_no_validation_score_is_sure_is_told_before_the_search(
    target: float | None, is_said: bool, run: Run
) -> None:
    record, screen = replace(run.record, study=replace(run.record.study, target=target)), Notes()
    engine._report_validation(record, run.task(run.host()), screen)
    assert [line.startswith("--target 0.99 will not end the search") for line in screen.lines] == [True] * is_said


def done_at_once(run: Run) -> Host:
    """The host of the run, to which a searcher comes that has nothing to try."""

    class Idle(Searcher):
        name = "idle"

        def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Done:
            return DONE

    class Plugin:
        @autoft.hookimpl
        def autoft_searchers(self) -> list[Searcher]:
            return [Idle()]

    return Host.recorded(run.record.plugins, objects=[Plugin()])


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"trials": 1}, r"--trials 1 is used up"), ({"searcher": "idle"}, r"searcher 'idle' has nothing more to try")],
)
def test_more_time_with_which_nothing_can_be_searched_is_refused(
    asked: dict[str, Any], why: str, run: Run, executed: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(run, replace(run.record, study=replace(run.record.study, **asked)))
    host = done_at_once(run)
    monkeypatch.setattr(Run, "host", lambda run, *changes: host)
    before = state(run)
    with pytest.raises(StudyError, match=f"the run is finished: {why}"):
        api.resume(run.folder.path, "+1m")
    assert api.resume(run.folder.path) == run.summary()
    assert (state(run), executed) == (before, [])


@pytest.mark.parametrize(("no_refit", "goes_on"), [(False, True), (True, False)])
def test_more_time_is_for_the_refit_that_there_was_none_for(
    no_refit: bool, goes_on: bool, run: Run, executed: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the trials used up; nothing is damaged."""
    monkeypatch.setattr(CheckpointStore, "problem", lambda store, wanted: None)
    rewrite(run, replace(run.record, study=replace(run.record.study, trials=1, no_refit=no_refit)))
    with nullcontext() if goes_on else pytest.raises(StudyError, match="--trials 1 is used up"):
        api.resume(run.folder.path, "+1m")
    assert len(executed) == goes_on


def test_more_time_that_is_too_little_for_the_refit_is_refused_with_what_it_takes(
    run: Run, executed: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointStore, "problem", lambda store, wanted: None)
    monkeypatch.setattr(Refits, "seconds", lambda refits, ledger, record: 600.0)
    rewrite(run, replace(run.record, study=replace(run.record.study, trials=1)))
    with pytest.raises(StudyError, match=r"--trials 1 is used up.*; no refit of trial 0 .*: it takes about 600\.0 s"):
        api.resume(run.folder.path, "+1m")
    assert executed == []


@pytest.mark.parametrize("no_refit", [False, True])
def test_a_result_without_its_refit_offers_more_time(no_refit: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The searcher has nothing more to try, and no refit fitted."""
    monkeypatch.setattr(CheckpointStore, "problem", lambda store, wanted: None)
    rewrite(run, replace(run.record, study=replace(run.record.study, trials=1, no_refit=no_refit)))
    run = Run.open(run.folder.path)
    with Journal(run.folder.journal) as journal, stop_on_signals() as stopped:
        sitting = Sitting(run.host(), InlineRunner(), Silent(), Stopwatch(0.0), RunClock(time.time() - 59.0, 60.0))
        ending = Ending(run.record, Preparation(run, run.host()), sitting.clock, lambda: 1.0)
        search = _search(run, sitting, run.ledger(), journal, stopped, ending)
        assert search.ask() is DONE
        assert search.goes_on() is not no_refit


@pytest.mark.parametrize(("trials", "goes_on"), [(None, True), (1, False), (2, True)])
def test_what_the_result_says_to_do_next_can_be_done(
    trials: int | None, goes_on: bool, run: Run, executed: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one candidate more than was tried, which nobody may begin where one trial was allowed."""
    (tried,) = run.record.candidates
    candidates = (tried, replace(tried, freeze="full", fit="gradient"))
    asked = replace(run.record.study, trials=trials, searcher="halving", no_refit=True)
    rewrite(run, replace(run.record, study=asked, candidates=candidates))
    run = Run.open(run.folder.path)
    with Journal(run.folder.journal) as journal, stop_on_signals() as stopped:
        clock = RunClock(time.time() - 59.0, 60.0)
        sitting = Sitting(run.host(), InlineRunner(), Silent(), Stopwatch(0.0), clock)
        ending = Ending(run.record, Preparation(run, run.host()), sitting.clock, lambda: 1.0)
        before = run.summary()
        assert before is not None
        summary = let_stand(run, _search(run, sitting, run.ledger(), journal, stopped, ending), before)
    hints = [line.split() for line in _next(summary) if " resume " in line]
    assert [words[:2] for words in hints] == [["autoft", "resume"]] * goes_on
    assert summary == run.summary()
    for hint in hints or [["autoft", "resume", str(run.folder.path), "--time", "+10m"]]:
        monkeypatch.setattr(sys, "argv", hint)
        assert _run() == (0 if goes_on else 2)
    assert len(executed) == len(hints)


def reported(event: Literal["paused", "finished", "failed"], score: float | None, elapsed: float) -> Report:
    return Report(1, event, 1.0 if score else 0.0, score, 2.0, elapsed=elapsed, error=None if score else "why")


@pytest.mark.parametrize(
    ("report", "goes_on", "says"),
    [
        (reported("finished", 0.5, 70.0), True, "nothing better was found"),
        (reported("failed", None, 70.0), False, "nothing better was found"),
        (reported("paused", None, 70.0), True, "there was no time to look for a better one"),
        (reported("finished", 0.5, 5.0), True, "there was no time to look for a better one"),
        (reported("finished", 0.5, 5.0), False, "there was nothing more to try"),
    ],
)
def test_why_a_model_stands_is_said_as_it_is(report: Report, goes_on: bool, says: str, run: Run) -> None:
    ledger, said = run.ledger(), list[str]()
    ledger.record(Queued(1, Slice(run.record.candidates[0].trial(1, {}, 0), 0.0, 1.0, 60.0), Clock(4.0, 60.0)))
    ledger.record(report)
    screen = SimpleNamespace(note=said.append)
    search: Any = SimpleNamespace(
        ledger=ledger, clock=RunClock(time.time() - 71.0, 90.0), screen=screen, goes_on=lambda: goes_on
    )
    before = run.summary()
    assert before is not None
    let_stand(run, search, before)
    assert said == [f"{says}; the model and its score stand, and the test images stay shut"]


def test_a_model_stands_at_its_target_for_that_reason(run: Run) -> None:
    run, screen = at_target(run, 0.6, 0.7), Notes()
    clock = RunClock(time.time() - 71.0, 90.0)
    search: Any = SimpleNamespace(ledger=run.ledger(), clock=clock, screen=screen, goes_on=lambda: False)
    before = run.summary()
    assert before is not None
    summary = let_stand(run, search, replace(before, target=None, reached=False))
    assert screen.lines == ["the target is reached; the model and its score stand, and the test images stay shut"]
    assert (summary.target, summary.reached) == (0.6, True)


def test_trials_that_ended_after_the_last_summary_are_exported_with_no_trial_left(
    run: Run, executed: list[Run]
) -> None:
    """A run that was extended, and killed when all its trials were done."""
    rewrite(run, replace(run.record, study=replace(run.record.study, trials=2, time=70.0)))
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(run.record.candidates[0].trial(1, {}, 0), 0.0, 1.0, 60.0), Clock(20.0, 60.0)))
        journal.append(Report(1, "finished", 1.0, 0.875, 2.0, elapsed=23.0))
    api.resume(run.folder.path)
    assert len(executed) == 1


class Breaks(InlineRunner):
    """Tells of one more trial, then fails as a plugin, a worker or a person would have it."""

    def __init__(self, how: BaseException) -> None:
        super().__init__()
        self.how = how

    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        asked = search.ask()
        assert isinstance(asked, Slice)
        search.tell(Report(asked.trial.id, "finished", 1.0, 0.875, 2.0))
        raise self.how


@pytest.mark.parametrize("how", [PluginError("the searcher is broken"), RunFolderError("full"), KeyboardInterrupt()])
def test_a_search_that_fails_leaves_a_leaderboard_of_what_it_has(how: BaseException, run: Run) -> None:
    more = replace(run, record=replace(run.record, study=replace(run.record.study, time=600.0)))
    now = time.time()
    with pytest.raises(type(how)):
        execute(more, Sitting(more.host(), Breaks(how), Silent(), Stopwatch(now), RunClock(now - 9.0, 600.0)))
    rows = list(csv.DictReader(run.folder.leaderboard.read_text().splitlines()))
    assert [(row["trial"], row["score"]) for row in rows] == [("1", "0.875"), ("0", "0.75")]


def test_a_plugin_that_ends_a_search_costs_no_model(run: Run) -> None:
    """Its line says how to come to what there is; of a run without a model it has nothing to say."""
    assert run.best_so_far(Ledger(), run.host()) == ""
    more, now = replace(run, record=replace(run.record, study=replace(run.record.study, time=600.0))), time.time()
    sitting = Sitting(more.host(), Breaks(PluginError("it is broken")), Silent(), Stopwatch(now), RunClock(now, 600.0))
    with pytest.raises(PluginError, match=r"^it is broken; the best so far is kept, and `autoft export .*/run` hands"):
        execute(more, sitting)


def test_a_run_whose_searcher_is_gone_says_what_can_be_done(run: Run, executed: list[Run]) -> None:
    list(without_its_searcher(run))
    with pytest.raises(StudyError, match=r"'gone'.*goes on with the searcher.*or begin a new run with another$"):
        api.resume(run.folder.path, "+10s")
    run.checkpoints.save(Checkpoint(run.record.candidates[0].trial(0, {}, 0), 1.0, "any", {"head": torch.ones(3)}))
    with pytest.raises(StudyError, match=r"'gone'.*goes on with the searcher.*have it back.*`autoft export .*` hands"):
        api.resume(run.folder.path, "+10s")
    assert executed == []


@pytest.mark.parametrize("how", [PluginError("the searcher is broken"), KeyboardInterrupt()])
def test_the_time_of_a_search_that_is_cut_short_is_used(how: BaseException, run: Run) -> None:
    """Also that since the last report, which nothing else tells."""
    more = replace(run, record=replace(run.record, study=replace(run.record.study, time=600.0)))
    now = time.time()
    with pytest.raises(type(how)):
        execute(more, Sitting(more.host(), Breaks(how), Silent(), Stopwatch(now), RunClock(now - 90.0, 600.0)))
    last = Journal.read(run.folder.journal)[-1]
    assert isinstance(last, Stopped)
    assert run.ledger().elapsed == last.elapsed >= 90.0


@pytest.mark.parametrize(("later", "used"), [(20.0, 23.0), (-5.0, 3.0), (3600.0, 60.0)])
@pytest.mark.parametrize("place", ["curves", "checkpoints"])
def test_the_time_until_a_killed_worker_last_wrote_is_used(place: str, later: float, used: float, run: Run) -> None:
    """But no more than its slice had: a copy of a run may have files of any time."""
    folder = run.folder
    trial = run.record.candidates[0].trial(1, {}, 0)
    with Journal(folder.journal) as journal:
        journal.append(Queued(1, Slice(trial, 0.0, 9.0, 60.0), Clock(3.0, 60.0)))
        journal.append(Started(1, 3.0))
    assert run.elapsed(run.ledger()) == 3.0
    (folder.path / place).mkdir()
    (written := folder.path / place / "00001").touch()
    os.utime(folder.journal, (1e9, 1e9))
    os.utime(written, (1e9 + later, 1e9 + later))
    assert run.elapsed(run.ledger()) == used
    with Journal(folder.journal) as journal:  # what ends in good order knows its time
        journal.append(Stopped(4.0))
    os.utime(folder.journal, (1e9, 1e9))
    assert run.elapsed(run.ledger()) == 4.0


def test_a_file_that_goes_while_the_time_of_its_run_is_read_is_passed_over(run: Run) -> None:
    """As the temporary name of a checkpoint does, in a run that is in use."""
    (curves := run.folder.curve(1).parent).mkdir()
    (curves / "kept").touch()
    (curves / "gone").symlink_to(curves / "nowhere")
    os.utime(run.folder.journal, (1e9, 1e9))
    os.utime(curves / "kept", (1e9 + 20.0, 1e9 + 20.0))
    assert run.folder.seconds_after_journal() == 20.0


def test_the_time_of_a_slice_that_was_killed_twice_goes_by_when_it_had_to_be_over_the_second_time(run: Run) -> None:
    trial, folder = run.record.candidates[0].trial(1, {}, 0), run.folder
    with Journal(folder.journal) as journal:
        for elapsed, deadline in ((3.0, 60.0), (70.0, 600.0)):
            journal.append(Queued(1, Slice(trial, 0.0, 9.0, deadline), Clock(elapsed, deadline)))
            journal.append(Started(1, elapsed))
    os.utime(folder.journal, (1e9, 1e9))
    folder.curve(1).parent.mkdir()
    folder.curve(1).touch()
    os.utime(folder.curve(1), (1e9 + 300.0, 1e9 + 300.0))
    assert run.elapsed(run.ledger()) == 370.0


def test_what_a_killed_run_has_used_counts_when_it_goes_on(
    run: Run, executed: list[Run], crowded: None, started: list[str]
) -> None:
    unfinished(run, seconds=60.0, elapsed=3.0, score=None)
    trial = run.record.candidates[0].trial(2, {}, 0)
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(2, Slice(trial, 0.0, 9.0, 60.0), Clock(3.0, 60.0)))
        journal.append(Started(2, 3.0))
    os.utime(run.folder.journal, (1e9, 1e9))
    run.folder.curve(2).parent.mkdir()
    run.folder.curve(2).touch()
    os.utime(run.folder.curve(2), (1e9 + 50.0, 1e9 + 50.0))
    with pytest.raises(StudyError, match=r"--time 60s is too short: 5\d s are over"):
        api.resume(run.folder.path)


def damaged_weights(folder: Path, trial: int) -> None:
    (path,) = folder.glob(f"{trial:05d}-*.model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def damaged_state(folder: Path, trial: int) -> None:
    (path,) = folder.glob(f"{trial:05d}-*.training.safetensors")
    path.write_bytes(b"")


def without_files(folder: Path, trial: int) -> None:
    for path in folder.glob(f"{trial:05d}-*"):
        path.unlink()


def looked_at(run: Run) -> Ledger:
    """The ledger of the run, with what is wrong with its checkpoints."""
    ledger = run.ledger()
    ledger.damaged = run.checkpoints.damaged(ledger)
    return ledger


@pytest.mark.parametrize(
    ("damage", "trial", "says"),
    [
        (damaged_weights, 0, r"trial 0 is passed over in the export: 00000-1.* is damaged"),
        (without_files, 0, r"trial 0 is passed over in the export: 00000-1.*json is gone"),
        (damaged_weights, 1, r"trial 1 is passed over in the export and begins anew if it goes on: .* is damaged"),
        (damaged_state, 1, r"trial 1 begins anew if it goes on: .*training.* is damaged"),
        (without_files, 1, r"trial 1 is passed over in the export and begins anew if it goes on: .*json is gone"),
    ],
)
def test_a_checkpoint_that_is_damaged_or_gone_is_told_when_the_run_goes_on(
    damage: Callable[[Path, int], None], trial: int, says: str, run: Run
) -> None:
    run.folder.summary.unlink()  # there will be an export
    tensors = {"head": torch.ones(3)}
    begun = run.record.candidates[0].trial(1, {}, 0)
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(begun, 0.0, 4.0, 60.0), Clock(3.0, 60.0)))
        journal.append(Report(1, "paused", 4.0, 0.5, 2.0, elapsed=6.0))
    finished = run.record.candidates[0].trial(0, {}, 0)
    run.checkpoints.save(Checkpoint(finished, 1.0, "weights", tensors))
    run.checkpoints.save(Checkpoint(begun, 4.0, "weights", tensors, {"moment": torch.ones(3)}))
    assert list(_damage(run, looked_at(run), never_stop)) == []
    damage(run.folder.checkpoints, trial)
    (line,) = _damage(run, looked_at(run), never_stop)
    assert re.match(says, line), line


def test_a_refit_of_which_the_twin_is_damaged_is_told_too(run: Run) -> None:
    run.folder.summary.unlink()
    refit = run.ledger().trials[0].refit(1)
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(refit, 0.0, 1.0, 60.0), Clock(3.0, 60.0)))
        journal.append(Report(1, "finished", 1.0, None, 2.0, elapsed=6.0))
    run.checkpoints.save(Checkpoint(refit, 1.0, "weights", {"head": torch.ones(3)}))
    assert [line.partition(": ")[::2] for line in _damage(run, looked_at(run), never_stop)] == [
        (f"trial {number} is passed over in the export", "00000-1.000000.json is gone") for number in (0, 1)
    ]


def test_nothing_is_said_of_an_export_while_the_model_of_a_run_stands(run: Run) -> None:
    """Its weights are gone, but nobody needs them; a better trial brings an export, which passes over what it cannot.

    The one that is under way to it is begun anew, and that is said.
    """
    more, now = replace(run, record=replace(run.record, study=replace(run.record.study, time=90.0))), time.time()
    paused, notes = run.record.candidates[0].trial(1, {}, 0), Notes()
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(paused, 0.0, 1.0, 60.0), Clock(3.0, 60.0)))
        journal.append(Report(1, "paused", 1.0, 0.5, 2.0, elapsed=6.0))
    found = execute(more, Sitting(more.host(), NothingRuns(), notes, Stopwatch(now), RunClock(now - 9.0, 90.0)))
    assert found.finalists == (Parent(0, 1.0),)
    assert [line for line in notes.lines if line.startswith("trial ")] == [
        "trial 1 begins anew if it goes on: 00001-1.000000.json is gone"
    ]
    run.folder.summary.unlink()
    with pytest.raises(GateFailed, match=r"none of 2 trials.*trial 0: 00000-1.*json is gone; trial 1: 00001-1.*gone"):
        execute(more, Sitting(more.host(), NothingRuns(), notes, Stopwatch(now), RunClock(now - 9.0, 90.0)))
    assert "trial 0 is passed over in the export: 00000-1.000000.json is gone" in notes.lines


def test_whose_weights_are_gone_is_no_model_to_be_handed_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export names the cause, whether it is to take the best or that one."""
    assert run.best_so_far(looked_at(run), run.host()) == ""
    monkeypatch.setattr("autoft.engine.execution._shop", lambda *_: None)
    shutil.rmtree(run.folder.export)
    with pytest.raises(GateFailed, match=r"^none of 1 trial can be exported: trial 0: 00000-1.000000.json is gone$"):
        export_trial(run, (), ExportWish(None, None, "image"), Silent())
    with pytest.raises(RunFolderError, match=r"^trial 0: 00000-1.000000.json is gone; see autoft leaderboard"):
        export_trial(run, (), ExportWish(0, None, "image"), Silent())


@pytest.mark.parametrize(("best", "hashed"), [(1.0, 3), (4.0, 2)])
def test_each_file_of_a_run_that_was_copied_is_read_once_until_a_signal_comes(
    best: float, hashed: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a trial that stands at 4 passes, and was best there or before."""
    begun = run.record.candidates[0].trial(1, {}, 0)
    with Journal(run.folder.journal) as journal:
        for start, until in ((0.0, 1.0), (1.0, 4.0)):
            journal.append(Queued(1, Slice(begun, start, until, 60.0), Clock(3.0, 60.0)))
            journal.append(Report(1, "paused", until, 0.5 if until == best else 0.4, 2.0, elapsed=6.0))
            run.checkpoints.save(Checkpoint(begun, until, "weights", {"head": torch.ones(3)}, {"m": torch.ones(3)}))
    for path in run.folder.checkpoints.iterdir():
        os.utime(path, (1e9, 1e9))
    read: list[Path] = []
    monkeypatch.setattr("autoft.store.checkpoints.sha256", lambda path: read.append(path) or sha256(path))
    lines = list(_damage(run, looked_at(run), never_stop))
    assert [line for line in lines if line.startswith("trial 1 ")] == []
    assert len(read) == len(set(read)) == hashed

    def stop() -> None:
        raise Interrupted("stopped", signal.SIGINT)

    for path in run.folder.checkpoints.iterdir():
        os.utime(path, (2e9, 2e9))
    with pytest.raises(Interrupted):
        list(_damage(run, run.ledger(), stop))
    with pytest.raises(Interrupted):
        run.checkpoints.damaged(run.ledger(), stop)
    assert len(read) == hashed


def unfinished(run: Run, seconds: float, elapsed: float, score: float | None) -> None:
    """Make it a run with Ray of so many seconds, cut short when so many were over, with a model or without."""
    run.folder.journal.unlink()
    study = replace(run.record.study, time=seconds, runner="auto")
    rewrite(run, replace(run.record, study=study, machine=Machine("ray", 2, 1, "cpu")))
    with Journal(run.folder.journal) as journal:
        for number in range(2):
            trial = run.record.candidates[0].trial(number, {}, 0)
            journal.append(Queued(number, Slice(trial, 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        if score is not None:
            journal.append(Report(0, "finished", 1.0, score, 2.0, elapsed=3.0))
        journal.append(Stopped(elapsed))


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which all takes twice as long as on an idle one."""
    monkeypatch.setattr(Slowness, "__call__", lambda _: 2.0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runners that were started, by what the study says; none really is."""
    names: list[str] = []

    def start(study: Study, *others: object) -> InlineRunner:
        names.append(study.runner)
        return InlineRunner()

    monkeypatch.setattr(engine, "_runner", start)
    return names


def test_a_run_without_a_model_and_without_time_for_one_is_refused_with_the_least(
    run: Run, executed: list[Run], crowded: None, started: list[str]
) -> None:
    unfinished(run, seconds=60.0, elapsed=50.0, score=None)
    before = state(run)
    with pytest.raises(StudyError, match=r"--time 60s is too short: 5\d s are over, .* take \d\d s more") as refused:
        api.resume(run.folder.path)
    assert (state(run), executed, started) == (before, [], [])
    least = str(refused.value).rpartition("--time ")[2]
    api.resume(run.folder.path, least)
    assert len(executed) == 1


@pytest.mark.parametrize("budget", ["62s", "+4s"])
def test_a_budget_that_leaves_no_time_to_search_is_refused_with_the_least_though_there_is_a_model(
    budget: str, run: Run, executed: list[Run], crowded: None, started: list[str]
) -> None:
    """Without one, what there is would be exported; whoever names one wants more than that."""
    unfinished(run, seconds=60.0, elapsed=55.0, score=0.5)
    before = state(run)
    with pytest.raises(StudyError, match=r"is too short: 55 s are over, .* take \d\d s more") as refused:
        api.resume(run.folder.path, budget)
    assert (state(run), executed, started) == (before, [], [])
    api.resume(run.folder.path, str(refused.value).rpartition("--time ")[2])
    assert len(executed) == 1


@pytest.mark.parametrize(("elapsed", "runner"), [(3.0, "auto"), (20.0, "inline"), (100.0, "inline")])
def test_a_run_with_a_model_ends_without_ray_where_starting_it_would_not_repay(
    elapsed: float, runner: str, run: Run, executed: list[Run], crowded: None, started: list[str]
) -> None:
    unfinished(run, seconds=60.0, elapsed=elapsed, score=0.5)
    api.resume(run.folder.path)
    assert (started, len(executed)) == ([runner], 1)


@pytest.mark.parametrize(
    ("seconds", "crowding", "asked", "workers", "runner"),
    [
        (20.0, 1.0, "auto", 0, "inline"),
        (20.0, 1.0, "auto", 2, "auto"),
        (20.0, 2.0, "auto", 2, "inline"),
        (20.0, 2.0, "ray", 0, "ray"),
        (60.0, 2.0, "auto", 0, "auto"),
    ],
)
def test_a_new_run_goes_without_ray_where_starting_it_would_not_repay(
    seconds: float,
    crowding: float,
    asked: str,
    workers: int,
    runner: str,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[str],
) -> None:
    """Not where Ray was asked for, or several workers are and can be started, as beside two busy loops they cannot."""
    monkeypatch.setattr(Slowness, "__call__", lambda _: crowding)
    monkeypatch.setattr(engine, "begin", lambda *_: pytest.fail("it begins"))
    study = Study(str(tiny_images), out=str(tmp_path / "new"), time=seconds, runner=asked, workers=workers)
    with pytest.raises(pytest.fail.Exception, match="it begins"):
        engine.search(study, Silent(), time.time() - 1.0)
    assert started == [runner]


@pytest.mark.parametrize(
    ("more", "slowness", "runner"),
    [
        ("+13s", 1.0, "inline"),
        ("+40s", 1.0, "inline"),
        ("+1m", 1.0, "auto"),
        ("+1m", 3.0, "inline"),
        ("+3m", 3.0, "auto"),
    ],
)
def test_a_finished_run_of_ray_goes_on_without_it_where_starting_it_would_not_repay(
    more: str,
    slowness: float,
    runner: str,
    run: Run,
    executed: list[Run],
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Slowness, "__call__", lambda _: slowness)
    monkeypatch.setattr(engine, "start_slowness", lambda: slowness)
    study = replace(run.record.study, runner="auto")
    rewrite(run, replace(run.record, study=study, machine=Machine("ray", 2, 1, "cpu")))
    before = run.summary()
    assert before is not None
    run.folder.summary.write_text(encode(replace(before, elapsed=60.0)))
    api.resume(run.folder.path, more)
    assert (started, len(executed)) == ([runner], 1)


def test_a_leaderboard_that_cannot_be_written_does_not_hide_why_the_search_failed(run: Run) -> None:
    run.folder.leaderboard.mkdir()
    with pytest.raises(PluginError, match="is broken"):
        execute(
            run,
            Sitting(
                run.host(),
                Breaks(PluginError("it is broken")),
                Silent(),
                Stopwatch(time.time()),
                RunClock(time.time(), 60.0),
            ),
        )


class Tracker:
    """Is told of the ends of searches."""

    def __init__(self) -> None:
        self.told: list[Summary] = []

    @hookimpl
    def autoft_search_finished(self, summary: Summary) -> None:
        self.told.append(summary)


class Listener:
    """Writes down what it is told, in the order in which it hears it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def autoft_search_started(self, run: Path, study: StudyRecord) -> None:
        self.heard.append((study, run, Journal.read(run / "trials.jsonl")))

    @hookimpl
    def autoft_slice_ended(self, report: Report, trial: Trial) -> None:
        self.heard.append((trial.id, report.event))

    @hookimpl
    def autoft_search_finished(self) -> None:
        self.heard.append("the end")


def test_listeners_hear_of_the_start_of_every_slice_and_of_an_end_that_came(run: Run) -> None:
    listener = Listener()
    more = replace(run, record=replace(run.record, study=replace(run.record.study, time=600.0)))
    now, before = time.time(), Journal.read(run.folder.journal)
    sitting = Sitting(
        more.host((), (listener,)), Breaks(KeyboardInterrupt()), Silent(), Stopwatch(now), RunClock(now - 9.0, 600.0)
    )
    with pytest.raises(KeyboardInterrupt):
        execute(more, sitting)
    assert listener.heard == [(more.record, run.folder.path, before), (1, "finished")]


class NothingRuns(InlineRunner):
    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        """As with a searcher that is done."""


class LooksAtTheTime(InlineRunner):
    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        """How late it is for the search, and for its workers."""
        self.late = search.clock.now(), time.time() - site.origin


@pytest.mark.parametrize(("used", "ended", "late"), [(50.0, 0.0, 55.0), (4.0, 0.0, 14.0), (4.0, 50.0, 55.0)])
def test_what_another_command_has_used_until_the_lock_was_free_is_used(
    used: float, ended: float, late: float, run: Run
) -> None:
    """This one began 5 s ago, and found that 9 s were used. What an export took, summary.json tells alone."""
    trial, runner, now = run.record.candidates[0].trial(1, {}, 0), LooksAtTheTime(), time.time()
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(trial, 0.0, 1.0, 60.0), Clock(3.5, 60.0)))
        journal.append(Report(1, "finished", 1.0, 0.5, 0.5, elapsed=used))
    summary = run.summary()
    assert summary is not None
    run.folder.summary.write_text(encode(replace(summary, elapsed=ended)))
    execute(run, Sitting(run.host(), runner, Silent(), Stopwatch(now - 5.0), RunClock(now - 14.0, 60.0)))
    assert runner.late == pytest.approx((late, late), abs=2.0)


def test_a_search_that_brought_nothing_new_leaves_the_test_images_shut(run: Run) -> None:
    more = replace(run, record=replace(run.record, study=replace(run.record.study, time=90.0)))
    now = time.time()
    tracker = Tracker()
    host = more.host((), (tracker,))
    found = execute(more, Sitting(host, NothingRuns(), Silent(), Stopwatch(now), RunClock(now - 9.0, 90.0)))
    assert tracker.told == [found]
    assert (found.test, found.test_openings, found.budget) == (SCORES, 1, 90.0)
    assert [path.name for path in run.folder.export.iterdir()] == ["manifest.json"]
    assert api.resume(run.folder.path) == found  # the time is used


@pytest.mark.parametrize("left", [".export.0123abcd", ".export.0123abcd.new", ".export.0123abcd.old"])
def test_what_a_killed_export_has_left_is_swept_when_the_run_goes_on(left: str, run: Run) -> None:
    """Whether it comes to another export or, as here, not."""
    more, now = replace(run, record=replace(run.record, study=replace(run.record.study, time=90.0))), time.time()
    (folder := run.folder.path / left).mkdir()
    os.utime(folder, (1e9, 1e9))
    execute(more, Sitting(more.host(), NothingRuns(), Silent(), Stopwatch(now), RunClock(now - 9.0, 90.0)))
    assert [path.name for path in run.folder.path.glob(".export*")] == []
    assert [path.name for path in run.folder.export.iterdir()] == ["manifest.json"]


class Tells(InlineRunner):
    """Runs one more slice, which ends so."""

    def __init__(self, event: Literal["finished", "paused", "failed"], score: float | None) -> None:
        super().__init__()
        self.event, self.score = event, score

    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        asked = search.ask()
        assert isinstance(asked, Slice)
        search.tell(Report(asked.trial.id, self.event, 0.0 if self.score is None else 1.0, self.score, 2.0))


@pytest.mark.parametrize(("event", "score"), [("failed", None), ("paused", None), ("finished", 0.5)])
def test_a_slice_that_brought_no_better_model_leaves_the_test_images_shut(
    event: Literal["finished", "paused", "failed"], score: float | None, run: Run
) -> None:
    more = replace(run, record=replace(run.record, study=replace(run.record.study, time=600.0)))
    now = time.time()
    found = execute(
        more, Sitting(more.host(), Tells(event, score), Silent(), Stopwatch(now), RunClock(now - 9.0, 600.0))
    )
    assert (found.test, found.test_openings, found.budget) == (SCORES, 1, 600.0)
    assert found.trials == {"finished": 1, "paused": 0, "left out": 0, "failed": 0} | {event: 1 + (event == "finished")}
    assert [path.name for path in run.folder.export.iterdir()] == ["manifest.json"]


class LeavesTheRefitOut(InlineRunner):
    """The first sitting was killed in the refit, and no time is left for that."""

    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        assert search.ask() == DONE


def test_a_refit_for_which_no_time_is_left_is_not_shown_as_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = run.ledger().trials[0]
    with Journal(run.folder.journal) as journal:
        journal.append(Queued(1, Slice(twin.refit(1), 0.0, 1.0, 60.0), Clock(3.5, 60.0)))
        journal.append(Started(1, 3.5))
    now = time.time()
    runner, clock = LeavesTheRefitOut(), RunClock(now - 59.0, 60.0)
    found = execute(run, Sitting(run.host(), runner, Silent(), Stopwatch(now), clock))
    assert found.trials == {"finished": 1, "paused": 0, "left out": 1, "failed": 0}
    assert "1 left out" in next(line for line in _lines(found) if line.startswith("trials"))
    near, far = RunnerUp(7, 0.9, 0.05, 0.04), RunnerUp(7, 0.9, 0.05, 0.01)
    assert not [line for line in _lines(replace(found, runner_up=far)) if line.startswith("second")]
    (said,) = [line for line in _lines(replace(found, runner_up=near)) if line.startswith("second")]
    assert "7: validation 0.9000, 0.0500 behind with a standard error of 0.0400, so chance may have decided" in said
    assert re.search(r"^,1,left out,", run.folder.leaderboard.read_text(), re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["autoft", "leaderboard", str(run.folder.path)])
    assert _run() == 0
    shown = capsys.readouterr()
    assert "failed" not in shown.out + shown.err
    assert "trial 1 left out: no refit of trial 0 on train + validation: " in shown.err


def with_reports(run: Run, *reports: Report) -> Ledger:
    """The ledger of the run once further trials have ended so."""
    ledger = run.ledger()
    for report in reports:
        trial = run.record.candidates[0].trial(report.trial, {}, 0)
        ledger.record(Queued(trial.id, Slice(trial, 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        ledger.record(report)
    return ledger


@pytest.mark.parametrize(
    ("further", "is_said"),
    [([], False), ([Report(1, "finished", 1.0, 0.5, 2.0)], False), ([Report(1, "finished", 1.0, 0.875, 2.0)], True)],
    ids=["concluded", "nothing-better", "better"],
)
@pytest.mark.parametrize("name", [".", "export", "export/model.onnx", "elsewhere"])
def test_a_model_is_said_to_be_of_before_a_later_search(
    name: str,
    further: list[Report],
    is_said: bool,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the bundle as of the run; not of another bundle in it, such as that of a trial of one's own choice."""
    (run.folder.export / "model.onnx").touch()
    shutil.copytree(run.folder.export, run.folder.path / "elsewhere")
    monkeypatch.setattr("autoft.bundle.predict.open_model", lambda path: SimpleNamespace(form=OneOf()))
    monkeypatch.setattr(
        "autoft.bundle.predict.predictions", lambda model, inputs: iter([Prediction("x", "a", 1.0, {"a": 1.0})])
    )
    with Journal(run.folder.journal) as journal:
        for report in further:
            trial = run.record.candidates[0].trial(1, {}, 0)
            journal.append(Queued(1, Slice(trial, 0.0, 1.0, 60.0), Clock(9.0, 60.0)))
            journal.append(report)
    for command in (["predict", str(run.folder.path / name), "x"], ["verify", str(run.folder.path / name)]):
        monkeypatch.setattr(sys, "argv", ["autoft", *command])
        assert _run() == (0 if "predict" in command else 3)
        path = run.folder.path
        said = f"run {path} was searched on since it exported this model: `autoft resume {path}` goes on with it"
        assert capsys.readouterr().err.count(said) == (is_said and name != "elsewhere")


@pytest.mark.parametrize("damaged", ["study", "journal", "summary"])
def test_a_run_that_is_damaged_keeps_no_model_of_it_from_answering(damaged: str, run: Run) -> None:
    getattr(run.folder, damaged).write_text("?\n")
    assert searched_on(run.folder.export) is None


def test_another_model_is_new_though_the_clock_was_set_back(run: Run) -> None:
    assert run.concluded(with_reports(run)) == run.summary()
    assert run.concluded(with_reports(run, Report(1, "finished", 1.0, 0.5, 2.0, elapsed=1e6))) == run.summary()
    assert run.concluded(with_reports(run, Report(1, "finished", 1.0, 0.875, 2.0, elapsed=1.0))) is None


def test_the_same_trial_trained_on_to_a_better_score_is_another_model(run: Run) -> None:
    ledger, trial = Ledger(), run.record.candidates[0].trial(0, {}, 0)
    for start, score in ((0.0, 0.75), (1.0, 0.625), (2.0, 0.875)):
        ledger.record(Queued(0, Slice(trial, start, start + 1, 60.0), Clock(1.0, 60.0)))
        assert run.concluded(ledger) is None  # a slice is open
        ledger.record(Report(0, "paused", start + 1, score, 2.0, elapsed=3.0))
        assert (run.concluded(ledger) is None) == (score == 0.875)


def test_one_between_the_exported_and_those_passed_over_is_another_model(run: Run) -> None:
    ended = run.summary()
    assert ended is not None
    over = Report(1, "finished", 1.0, 0.875, 2.0)
    run.folder.summary.write_text(encode(replace(ended, finalists=(Parent(1, 1.0), Parent(0, 1.0)))))
    assert run.concluded(with_reports(run, over))
    assert run.concluded(with_reports(run, over, Report(2, "finished", 1.0, 0.8125, 2.0))) is None
    assert run.concluded(with_reports(run, over, Report(2, "finished", 1.0, 0.5, 2.0)))


def test_a_summary_of_an_older_version_goes_by_the_clock(run: Run) -> None:
    ended = json.loads(run.folder.summary.read_text())
    del ended["finalists"]
    run.folder.summary.write_text(json.dumps(ended))
    assert run.concluded(run.ledger()) == run.summary()
    assert run.concluded(with_reports(run, Report(1, "failed", 0.0, None, 2.0, elapsed=10.0))) is None


def test_images_that_moved_are_searched_where_they_are(run: Run, executed: list[Run]) -> None:
    moved = run.images().rename(run.images().with_name("elsewhere"))
    with pytest.raises(DataError, match=r"there is no folder .*tiny_images.* --data DIR"):
        api.resume(run.folder.path, "+10s")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        api.resume(run.folder.path, "+10s", data=moved.with_name("nowhere"))
    api.resume(run.folder.path, "+10s", data=os.path.relpath(moved))
    assert [(one.record.data.root, one.record.study.data) for one in executed] == [(str(moved), str(moved))]


def test_a_manifest_that_moved_is_found_by_its_name_in_the_folder_given(tmp_path: Path, run: Run) -> None:
    listed = replace(run.record.data, root="/gone", manifest="/gone/cases.csv")
    of_manifest = replace(run, record=replace(run.record, data=listed))
    (tmp_path / "cases.csv").write_text("image,label\n")
    for data in (tmp_path, tmp_path / "cases.csv"):
        found = of_manifest.with_images(data)
        assert (found.record.data.root, found.record.data.manifest) == (str(tmp_path), str(tmp_path / "cases.csv"))
        assert found.images() == tmp_path
    with pytest.raises(DataError, match=r"no file /gone/cases\.csv, which .*--data says where to, with the CSV"):
        of_manifest.images()
    with pytest.raises(DataError, match=r"no file .*/red/cases\.csv"):
        of_manifest.with_images(run.images() / "red").images()


def test_a_lost_model_is_put_back_before_the_run_goes_on(run: Run, executed: list[Run]) -> None:
    shutil.rmtree(run.folder.export)
    trial = run.record.candidates[0].trial(0, {}, 0)
    for says in ("trial 0 cannot write it anew", r"`autoft export .*/run --trial 0` writes"):  # without weights, with
        for time_ in (None, "+10s"):
            with pytest.raises(RunFolderError, match=rf"model of the run is gone.*{says}"):
                api.resume(run.folder.path, time_)
        run.checkpoints.save(Checkpoint(trial, 1.0, "weights", {"head": torch.ones(3)}))
    assert not executed


def test_a_model_is_put_back_only_where_it_was_lost(run: Run) -> None:
    (record,) = run.ledger().exportable()
    assert _export_path(run, record, None) == run.folder.path / "exports" / "0"
    with pytest.raises(StudyError, match="place of the model that summary"):
        _export_path(run, record, run.folder.export)
    shutil.rmtree(run.folder.export)
    for out in (None, run.folder.export):
        assert _export_path(run, record, out) == run.folder.export
    later = replace(run.summary(), finalists=(Parent(0, 2.0),))
    run.folder.summary.write_text(encode(later))  # it has trained on since: these are other weights
    assert _export_path(run, record, None) == run.folder.path / "exports" / "0"


def test_a_model_that_is_put_back_takes_what_it_took(run: Run) -> None:
    batched = replace(run, record=replace(run.record, study=replace(run.record.study, batched=True)))
    wish = ExportWish(None, None, "image")
    assert _layout(batched, run.folder.export, wish) == "batch"
    assert _layout(run, run.folder.export, wish) == _layout(batched, run.folder.path / "other", wish) == "image"


@pytest.mark.parametrize("lose", [lambda path: path.unlink(), lambda path: path.write_text("")])
def test_a_journal_that_is_gone_is_no_short_search(lose: Callable[[Path], None], run: Run) -> None:
    lose(run.folder.journal)
    with pytest.raises(RunFolderError, match=r"trials\.jsonl is (missing|empty), and every trial stood in it"):
        run.ledger()
    run.folder.summary.unlink()
    if not run.folder.journal.exists():
        assert not run.ledger().trials  # a run that has just begun
        run.folder.leaderboard.write_text("")
        with pytest.raises(RunFolderError, match="missing"):
            run.ledger()


def test_a_finished_run_remembers_where_its_images_went(run: Run, executed: list[Run]) -> None:
    moved = run.images().rename(run.images().with_name("elsewhere"))
    assert api.resume(run.folder.path, data=moved) == run.summary()
    assert executed == []
    assert json.loads(run.folder.study.read_text())["data"]["root"] == str(moved)


def test_other_images_are_not_taken_for_those_that_moved(run: Run, executed: list[Run]) -> None:
    moved = run.images().rename(run.images().with_name("elsewhere"))
    (moved / "red" / "0.png").unlink()
    before = state(run)
    with pytest.raises(DataError, match="not those the run started with"):
        api.resume(run.folder.path, data=moved)
    assert (state(run), executed) == (before, [])


def asked_for(run: Run, number: int) -> Queued:
    return Queued(number, Slice(run.record.candidates[0].trial(number, {}, 0), 0.0, 1.0, 60.0), Clock(1.0, 60.0))


@pytest.mark.parametrize("number", [None, 0])
@pytest.mark.parametrize(
    ("reports", "error", "says"),
    [
        ([], RunFolderError, "no trial of the run in .*/run has a score yet; `autoft resume .*/run` goes on with it"),
        ([Report(0, "failed", 0.0, None, 1.0, error="it broke")], RunFailed, "no trial gave a model: it broke"),
    ],
    ids=["not so far", "failed"],
)
def test_an_export_of_a_run_without_a_score_says_what_to_do_about_it(
    number: int | None, reports: list[Report], error: type[AutoftError], says: str, run: Run
) -> None:
    run.folder.summary.unlink()
    run.folder.journal.unlink()
    with Journal(run.folder.journal) as journal:
        for event in (asked_for(run, 0), Started(0, 1.0), *reports, asked_for(run, 1)):
            journal.append(event)
    with pytest.raises(error, match=says):
        export_trial(run, (), ExportWish(number, None, "image"), Silent())


def test_ctrl_c_ends_an_export_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr("autoft.engine.execution._shop", lambda *_: None)
    monkeypatch.setattr("autoft.engine.execution.BundleMaker", lambda *_: SimpleNamespace(make=slow))
    began = time.monotonic()
    with pytest.raises(Interrupted, match="stopped; nothing was exported"):
        export_trial(run, (), ExportWish(None, None, "image"), Silent())
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_run_that_memory_ends_goes_on_with_what_fits(tiny_images: Path, tmp_path: Path) -> None:
    """The inline runner dies with its process, at every resume until a batch goes through in parts of eight images."""
    run, zoo = tmp_path / "run", Path(__file__).parent / "parts" / "hungry_zoo.py"
    asked = f"-p {zoo} --backbones hungry/* --freeze full --searcher random --trials 1 --time 5m --no-refit"
    search = [
        "search",
        str(tiny_images),
        *asked.split(),
        "--runner",
        "inline",
        "--precision",
        "fp32",
        "--out",
        str(run),
    ]
    codes = []
    for arguments in (search, *2 * [["resume", str(run)]]):
        done = subprocess.run([sys.executable, "-m", "autoft", *arguments], capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        if done.returncode == 0:
            break
    assert codes in ([-signal.SIGKILL, 0], [-signal.SIGKILL, -signal.SIGKILL, 0]), done.stderr
    events = Journal.read(run / "trials.jsonl")
    kinds = [event.event for event in events]
    assert kinds == [*(len(codes) - 1) * ["queued", "started", "lost"], "queued", "started", "paused"]
    assert isinstance(events[-1], Report)
    assert 4 <= int(events[-1].facts["images_at_once"]) <= 8
