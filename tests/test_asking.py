"""Ask and tell: what a broken searcher may not do, and how a search begins late or goes on."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from parts.hosts import host_of
from parts.notes import Notes

from autoft.errors import PluginError
from autoft.parts.base import Problem, Searcher
from autoft.runners import search as asking
from autoft.runners.search import LATE_STARTS, LOSSES_BORNE, Search
from autoft.store import CheckpointStore, Journal
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.signals import StopFlag, stop_on_signals
from autoft.values.ledger import Ledger
from autoft.values.space import Float, Space
from autoft.values.trial import (
    DONE,
    WAIT,
    Candidate,
    Clock,
    Parent,
    Queued,
    Report,
    Slice,
    Started,
    Stopped,
    Wait,
)

BLAMED = r"plugin 'Offering' .* failed in ask\(\) of searcher 'scripted': ValueError: {}.*traceback in .*-p no:Offering"
CANDIDATE = Candidate("z/a", "full", 64, Space({"lr": Float(1e-4, 1e-2)}))


def slice_of(number=0, **params):
    return Slice(CANDIDATE.trial(number, params or {"lr": 1e-3}, 0), 0.0, 1.0, 90.0)


class Scripted(Searcher):
    """Answers as told; remembers the clocks it saw."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.clocks = list(answers), []

    def ask(self, problem, ledger, clock):
        self.clocks.append(clock)
        self.offered = problem.candidates
        return self.answers.pop(0)


@pytest.fixture
def search(tmp_path):
    def make(*answers, events=(), budget=100.0, elapsed=0.0, stopped=False, trials=None, candidates=(CANDIDATE,)):
        clock, flag = RunClock(time.time() - elapsed, budget), StopFlag()
        flag.signal = signal.SIGINT if stopped else None
        return Search(
            searcher=Scripted(*answers),
            problem=Problem(candidates, seed=0, workers=1, trials=trials),
            ledger=Ledger(events),
            journal=Journal(tmp_path / "trials.jsonl"),
            checkpoints=CheckpointStore(tmp_path / "checkpoints"),
            clock=clock,
            host=host_of(Scripted()),
            screen=Silent(),
            stopped=flag,
            reserve=lambda ledger, trial: 10.0,
        )

    return make


def test_nothing_is_journalled_as_started_before_it_runs(search, tmp_path):
    """Two slices wait for a worker, as on a busy cluster; the one asked for last begins first and alone."""
    begun = search(slice_of(0), slice_of(1), elapsed=30.0)
    answers = [begun.ask(), begun.ask()]
    queued = Journal.read(tmp_path / "trials.jsonl")
    assert [(type(event), event.slice) for event in queued] == [(Queued, answer) for answer in answers]
    begun.began(1)
    begun.tell(Report(0, "paused", 0.0, None, 0.0, error="no worker was free in time"))
    events = Journal.read(tmp_path / "trials.jsonl")
    assert [(event.event, event.trial) for event in events[2:]] == [("started", 1), ("paused", 0)]
    assert 30.0 <= events[2].elapsed < 40.0
    assert dict(Ledger(events).trials) == dict(begun.ledger.trials)
    assert [record.state for record in begun.ledger.trials.values()] == ["paused", "running"]


def test_no_slice_is_longer_than_the_trials_plan(search):
    """The rungs of a searcher are of no plan: one of 12 passes does not go on to 27."""
    nine = replace(slice_of(), until=9.0)
    done = [Queued(0, nine, Clock(1.0, 90.0)), Report(0, "paused", 9.0, 0.5, 1.0, horizon=12.0)]
    begun = search(replace(nine, start=9.0, until=27.0), events=done)
    assert begun.ask().until == 12.0
    assert [slice_.until for slice_ in begun.ledger.in_flight] == [12.0]  # what screens show


def test_a_trial_whose_plan_nobody_knows_yet_gets_the_slice_that_was_asked_for(search):
    back = [Queued(0, slice_of(), Clock(1.0, 90.0)), Report(0, "paused", 0.0, None, 0.0)]
    assert search(replace(slice_of(), until=27.0), events=back).ask().until == 27.0


def test_the_start_of_a_worker_is_not_taken_off_the_time_a_searcher_gives(search):
    """A probe's share of the time was over before its worker had imported torch. Nothing goes beyond the end."""
    short = replace(slice_of(), deadline=50.0)
    begun = search(short, replace(slice_of(1), deadline=50.0), elapsed=30.0)
    begun.starting = 6.0
    assert begun.ask().deadline == 56.0
    begun.began(0)
    begun.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    assert begun.ask().deadline == 50.0  # the worker is there
    late = search(replace(slice_of(), deadline=89.0), elapsed=30.0)
    late.starting = 6.0
    assert late.ask().deadline == pytest.approx(90.0)


def test_the_first_slice_of_a_worker_may_be_one_that_was_left_open(search):
    resumed = search(
        replace(slice_of(1), deadline=70.0), events=[Queued(0, slice_of(), Clock(5.0, 90.0))], elapsed=50.0
    )
    resumed.starting = 6.0
    assert resumed.ask().trial.id == 0
    resumed.began(0)
    resumed.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    assert resumed.ask().deadline == 70.0


@pytest.mark.parametrize("before", [[], [Started(0, 6.0)]], ids=["queued", "started"])
def test_an_open_slice_is_handed_out_again_and_asked_for_once(search, before):
    left_open = Queued(0, slice_of(), Clock(5.0, 90.0))
    resumed = search(DONE, events=[left_open, *before], elapsed=50.0)
    again = resumed.ask()
    assert again.trial == left_open.slice.trial
    assert resumed.ledger.in_flight == (again,)
    resumed.began(0)
    assert resumed.ledger.trials[0].state == "running"
    resumed.tell(Report(0, "paused", 1.0, 0.5, 1.0))
    assert resumed.ask() == DONE


@pytest.mark.parametrize("before", [[], [Started(0, 6.0)], [Started(0, 6.0), Stopped(7.0)]])
def test_what_is_handed_out_again_is_in_the_journal_with_its_new_deadline(search, tmp_path, before):
    """A second kill is counted by it: by the old one, the time since then was not used."""
    left_open = Queued(0, replace(slice_of(), deadline=30.0), Clock(5.0, 90.0))
    with Journal(tmp_path / "trials.jsonl") as journal:
        for event in [left_open, *before]:
            journal.append(event)
    resumed = search(DONE, events=[left_open, *before], elapsed=50.0)
    again = resumed.ask()
    resumed.began(0)
    assert again.deadline == pytest.approx(90.0)
    ledger = Ledger(Journal.read(tmp_path / "trials.jsonl"))
    assert ledger.trials[0].slices == (again,)
    assert (ledger.trials[0].is_cut_short, ledger.trials[0].lost) == (True, resumed.ledger.trials[0].lost)


def test_a_slice_whose_process_ran_out_of_memory_is_handed_out_again_whatever_the_searcher_says(search, tmp_path):
    begun = search(slice_of(), DONE)
    first = begun.ask()
    begun.began(0)
    begun.lost(0, "memory ran out")
    assert begun.ledger.trials[0].state == "queued"
    again = begun.ask()
    assert replace(again, deadline=first.deadline) == first
    (lost,) = begun.ledger.allowance(again.trial).lost
    assert (lost.why, lost.error) == ("memory", "memory ran out")
    begun.began(0)
    begun.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    assert begun.ask() == DONE
    assert len(begun.searcher.clocks) == 2
    events = Journal.read(tmp_path / "trials.jsonl")
    assert [event.event for event in events] == ["queued", "started", "lost", "queued", "started", "finished"]
    assert dict(Ledger(events).trials) == dict(begun.ledger.trials)


def test_a_slice_that_costs_two_processes_their_memory_has_failed_with_the_cause(search):
    begun = search(slice_of(), DONE)
    for _ in range(2):
        assert isinstance(begun.ask(), Slice)
        begun.began(0)
        begun.lost(0, "memory ran out")
    record = begun.ledger.trials[0]
    assert (record.state, record.reports[-1].error) == ("failed", "2 processes lost: memory ran out")
    assert begun.ask() == DONE


def test_a_slice_without_memory_and_time_is_given_back(search):
    done = [Queued(0, slice_of(0), Clock(1.0, 90.0)), Report(0, "finished", 1.0, 0.5, 1.0)]
    begun = search(
        events=[*done, Queued(1, slice_of(1), Clock(5.0, 90.0)), Started(1, 6.0), Stopped(7.0)], elapsed=80.0
    )
    assert begun.ask().trial.id == 1
    begun.began(1)
    begun.lost(1, "memory ran out")
    begun.clock = RunClock(time.time() - 95.0, 100.0)
    assert begun.ask() == DONE
    assert begun.ledger.trials[1].given_back


@pytest.mark.parametrize(
    ("left", "lost"), [([], ()), ([Started(0, 6.0)], ("unknown",)), ([Started(0, 6.0), Stopped(7.0)], ())]
)
def test_a_run_that_ended_without_a_word_may_have_run_out_of_memory(search, tmp_path, left, lost):
    """As the inline runner does, which dies with the process. Not where no worker had the slice, nor after a signal."""
    open_ = Queued(0, slice_of(), Clock(5.0, 90.0))
    with Journal(tmp_path / "trials.jsonl") as journal:
        for event in [open_, *left]:
            journal.append(event)
    resumed = search(DONE, events=[open_, *left], elapsed=50.0)
    assert resumed.ask().trial == open_.slice.trial
    assert tuple(one.why for one in resumed.ledger.allowance(open_.slice.trial).lost) == lost
    resumed.began(0)
    assert dict(Ledger(Journal.read(tmp_path / "trials.jsonl")).trials) == dict(resumed.ledger.trials)


def test_a_slice_that_runs_end_over_again_and_again_has_failed(search):
    events = [Queued(0, slice_of(), Clock(5.0, 90.0)), Started(0, 6.0)]
    for number in range(LOSSES_BORNE["unknown"]):
        resumed = search(DONE, events=events, elapsed=20.0 + number)
        assert resumed.ask().trial.id == 0
        lost = resumed.ledger.allowance(events[0].slice.trial).lost
        assert len(lost) == number + 1
        events = [*events, lost[-1], Started(0, 7.0 + number)]
    resumed = search(DONE, events=events, elapsed=50.0)
    assert resumed.ask() == DONE
    record = resumed.ledger.trials[0]
    assert record.state == "failed"
    assert record.reports[-1].error.startswith("4 processes lost: the run was killed while a worker had the slice; if")


def test_a_lost_process_is_no_late_start_of_a_searcher(search):
    """Halving waits after a slice was given back; one that goes on by itself is in flight meanwhile."""
    begun = search(slice_of(), WAIT)
    begun.ask()
    begun.lost(0, "memory ran out")
    assert begun.ledger.in_flight == (begun.ledger.trials[0].slices[-1],)
    assert begun.ledger.trials[0].reports == ()
    begun.ask()
    assert begun.ask() == WAIT


def test_an_open_slice_is_given_back_when_no_time_is_left_and_there_is_a_model(search):
    """It would only delay the end, at which the model is exported."""
    done = [Queued(0, slice_of(0), Clock(1.0, 90.0)), Report(0, "finished", 1.0, 0.5, 1.0)]
    resumed = search(events=[*done, Queued(1, slice_of(1), Clock(5.0, 90.0)), Started(1, 6.0)], elapsed=95.0)
    assert resumed.ask() == DONE
    assert resumed.ledger.in_flight == ()
    given_back = resumed.ledger.trials[1]
    assert given_back.given_back
    # When it was left it had the rest of a long run, which no later sitting need have to go on with it.
    assert given_back.slices[-1].deadline <= given_back.reports[-1].elapsed


def test_the_time_until_a_run_is_cut_short_is_used(search, tmp_path):
    begun = search(slice_of(), elapsed=30.0)
    begun.ask()
    begun.stop()
    events = Journal.read(tmp_path / "trials.jsonl")
    assert isinstance(events[-1], Stopped)
    again = Ledger(events)
    assert 30.0 <= again.elapsed == begun.ledger.elapsed
    assert [slice_.trial.id for slice_ in again.in_flight] == [0]


@pytest.mark.parametrize("params", [{"lr": 1.0}, {"rate": 1e-3}])
def test_a_trial_outside_its_space_is_the_searchers_fault(search, params):
    with pytest.raises(PluginError, match="scripted"):
        search(slice_of(**params)).ask()


def test_a_trial_of_no_candidate_is_the_searchers_fault(search):
    stranger = Candidate("z/b", "full", 64, CANDIDATE.space).trial(0, {"lr": 1e-3}, 0)
    with pytest.raises(PluginError, match="is no candidate"):
        search(Slice(stranger, 0.0, 1.0, 90.0)).ask()


def test_waiting_for_nothing_is_a_bug_that_is_named(search):
    with pytest.raises(PluginError, match=BLAMED.format("it waits with nothing in flight")):
        search(WAIT).ask()


def test_a_searcher_that_asks_for_nothing_is_named(search):
    """Not where little time is left: then it may be right."""
    with pytest.raises(
        PluginError, match=BLAMED.format(r"it is done before it has asked for anything, with 90 s left")
    ):
        search(DONE).ask()
    assert search(DONE, elapsed=86.0).ask() == DONE


def test_a_late_start_still_gets_one_slice(search):
    late = search(slice_of(), DONE, budget=5.0, elapsed=60.0)
    assert isinstance(late.ask(), Slice)
    assert late.searcher.clocks[0].remaining > 0
    late.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    assert late.ask() == DONE
    assert len(late.searcher.clocks) == 1


def test_what_was_given_back_before_its_first_step_goes_on_as_the_same_trial(search):
    begun = search(slice_of(), slice_of(), trials=1)
    begun.ask()
    begun.tell(Report(0, "paused", 0.0, None, 0.0, error="no worker was free in time"))
    assert begun.ask().trial.id == 0
    assert [record.state for record in begun.ledger.trials.values()] == ["queued"]


def test_what_was_given_back_in_time_is_no_late_start(search):
    early = [Queued(number, replace(slice_of(number), deadline=1.0), Clock(0.0, 90.0)) for number in range(LATE_STARTS)]
    given_back = [Report(number, "paused", 0.0, None, 0.0) for number in range(LATE_STARTS)]
    late = search(replace(slice_of(0), deadline=1e9), events=[*early, *given_back], elapsed=95.0)
    assert late.ask().trial.id == 0


def test_late_starts_that_all_fail_come_to_an_end(search):
    late = search(*(slice_of(number) for number in range(50)), budget=5.0, elapsed=60.0)
    for number in range(LATE_STARTS):
        assert isinstance(late.ask(), Slice)
        late.tell(Report(number, "failed", 0.0, None, 1.0))
    assert late.ask() == DONE


def test_time_and_trials_are_kept_for_a_searcher_that_ignores_them(search):
    greedy = search(slice_of(0), slice_of(1), slice_of(2), trials=2)
    assert greedy.ask().trial.id == 0
    assert greedy.ask().trial.id == 1
    assert greedy.ask() == WAIT
    for number in (0, 1):
        greedy.tell(Report(number, "finished", 1.0, 0.5, 1.0))
    greedy.searcher.answers.append(slice_of(2))
    assert greedy.ask() == DONE


def test_no_slice_may_run_into_the_end(search):
    """The end of the run takes 10 s for any trial, and 40 s should trial 1 win."""
    begun = search(replace(slice_of(0), deadline=1e9), replace(slice_of(1), deadline=1e9))
    begun.reserve = lambda ledger, trial: 40.0 if trial and trial.id == 1 else 10.0
    assert begun.ask().deadline == 90.0
    begun.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    assert begun.ask().deadline == 60.0


@pytest.mark.parametrize("deadline", [-5.0, 30.0, math.nan])
def test_a_slice_that_is_over_before_it_begins_is_the_searchers_fault(search, deadline):
    with pytest.raises(PluginError, match=BLAMED.format("it asks for what cannot be: a slice that has to be over")):
        search(replace(slice_of(0), deadline=deadline), elapsed=30.0).ask()


LARGE = replace(CANDIDATE, backbone="z/large")


def test_what_could_not_be_exported_in_time_is_not_offered_nor_handed_out(search, tmp_path):
    """The end takes 10 s, and 60 s should the large network win: with 50 s left it is out, whoever asks for it."""
    larger = Slice(LARGE.trial(1, {"lr": 1e-3}, 1), 0.0, 1.0, 90.0)
    begun = search(slice_of(0), larger, candidates=(CANDIDATE, LARGE))
    begun.reserve = lambda ledger, trial: 60.0 if trial and trial.backbone == LARGE.backbone else 10.0
    assert isinstance(begun.ask(), Slice)
    assert begun.searcher.offered == (CANDIDATE, LARGE)
    begun.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    begun.clock = RunClock(time.time() - 50.0, 100.0)
    assert begun.ask() == DONE
    assert begun.searcher.offered == (CANDIDATE,)
    assert [event.trial for event in Journal.read(tmp_path / "trials.jsonl")] == [0, 0]


def test_a_network_that_is_barred_is_not_offered(search):
    """All that comes of it would be passed over in the end."""
    begun = search(slice_of(0), DONE, DONE, DONE, candidates=(CANDIDATE, LARGE))
    begun.ask()
    begun.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    begun.ledger.barred = {(LARGE.backbone, LARGE.image_size + 1): "another size is another network"}
    assert begun.ask() == DONE
    assert begun.searcher.offered == (CANDIDATE, LARGE)
    begun.ledger.barred = {(LARGE.backbone, LARGE.image_size): "too slow"}
    begun._is_over = False
    assert begun.goes_on() is False
    assert begun.ask() == DONE
    assert begun.searcher.offered == (CANDIDATE,)


def test_where_every_network_is_barred_no_searcher_is_asked_and_nothing_goes_on(search):
    """Many would draw one of no candidates. What a kill left open is given back."""
    left_open = Queued(1, slice_of(1), Clock(5.0, 90.0))
    begun = search(events=[*FINISHED, left_open], candidates=(CANDIDATE,))
    begun.ledger.barred = {(CANDIDATE.backbone, CANDIDATE.image_size): "too slow"}
    assert begun.ask() == DONE
    assert (begun.ledger.trials[1].state, begun.ledger.in_flight) == ("paused", ())
    assert begun.goes_on() is False


@pytest.mark.parametrize("answer", [None, CANDIDATE.trial(0, {"lr": 1e-3}, 0), "done", Wait])
def test_an_answer_that_is_none_is_named(search, answer):
    with pytest.raises(PluginError, match=BLAMED.format("it gave .*, not a Slice, WAIT or DONE")):
        search(answer).ask()


PAUSED = [Queued(0, slice_of(), Clock(0.0, 90.0)), Report(0, "paused", 1.0, 0.5, 1.0)]
FINISHED = [Queued(0, slice_of(), Clock(0.0, 90.0)), Report(0, "finished", 1.0, 0.5, 1.0)]


def child_of(trial: int, step: float) -> Slice:
    return Slice(CANDIDATE.trial(1, {"lr": 1e-3}, 1, (Parent(trial, step),)), 0.0, 1.0, 90.0)


@pytest.mark.parametrize(
    ("answer", "events", "problem"),
    [
        (replace(slice_of(0, lr=2e-3), start=1.0, until=2.0), PAUSED, "as another trial than it was"),
        (replace(slice_of(0), start=0.5, until=2.0), PAUSED, "it is at 1"),
        (replace(slice_of(0), start=1.0, until=2.0), FINISHED, "it is finished"),
        (
            replace(slice_of(0), start=1.0, until=2.0),
            [PAUSED[0], replace(PAUSED[1], score=None)],
            "no checkpoint to go",
        ),
        (child_of(7, 1.0), PAUSED, "trial 7, a parent, has no checkpoint at 1 pass"),
        (child_of(0, 0.5), PAUSED, "has no checkpoint at 0.5 passes"),
        (replace(slice_of(0), until=float("nan")), [], "a slice from 0 to nan passes"),
    ],
    ids=["another trial", "not where it stands", "ended", "no checkpoint", "no parent", "no such step", "nowhere"],
)
def test_what_would_damage_the_journal_is_refused(search, tmp_path, answer, events, problem):
    with pytest.raises(PluginError, match=BLAMED.format(f"it asks for what cannot be: .*{problem}")):
        search(answer, events=events).ask()
    assert Journal.read(tmp_path / "trials.jsonl") == []


def test_a_parent_of_another_backbone_is_refused(search):
    other = replace(CANDIDATE, backbone="z/b")
    begun = search(child_of(0, 1.0), candidates=(CANDIDATE, other), events=[
        Queued(0, Slice(other.trial(0, {"lr": 1e-3}, 0), 0.0, 1.0, 90.0), Clock(0.0, 90.0)), PAUSED[1]
    ])  # fmt: skip
    with pytest.raises(PluginError, match="is of another backbone, z/b"):
        begun.ask()


def test_nothing_is_asked_once_stopped(search):
    assert search(slice_of(), stopped=True).ask() == DONE


class Deaf(Searcher):
    """Never answers, and takes whatever is raised for a failure of its own."""

    name, asked = "deaf", 0

    def ask(self, problem, ledger, clock):
        self.asked += 1
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue


@pytest.fixture
def deaf(search, monkeypatch):
    """A search by a searcher that never answers, with a moment left."""
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(asking, "LATE_START_SECONDS", 0.1)

    def make(events, elapsed=89.8):
        begun = search(events=events, elapsed=elapsed)
        begun.searcher, begun.screen = Deaf(), Notes()
        return begun

    return make


def test_a_searcher_that_never_answers_ends_the_search_in_time_with_what_there_is(deaf):
    begun = deaf(FINISHED)
    assert begun.ask() == begun.ask() == DONE
    assert begun.searcher.asked == 1
    (note,) = begun.screen.lines
    (trace,) = re.findall(r"deaf.* did not answer for .* s; traceback in (\S+);", note)
    assert "in ask" in Path(trace).read_text()


def test_a_searcher_that_never_answers_is_the_reason_why_there_is_no_model(deaf):
    with pytest.raises(PluginError, match=r"deaf.* did not answer for .*; choose another with --searcher"):
        deaf([]).ask()


def test_what_a_switched_off_plugin_left_open_is_given_back(search):
    """No plugin has its strategy any more: handed out it would fail, and go with it."""
    left_open = Queued(0, slice_of(), Clock(5.0, 90.0))
    resumed = search(DONE, events=[left_open, Started(0, 6.0)], elapsed=50.0)
    resumed.problem = replace(resumed.problem, candidates=())
    assert resumed.ask() == DONE
    record = resumed.ledger.trials[0]
    assert record.given_back and "is switched off" in record.reports[-1].error


@pytest.mark.parametrize(("remaining", "seconds"), [(0, 2), (8, 5), (40, 10), (3600, 60)])
def test_an_answer_may_take_a_share_of_the_time_left(remaining, seconds):
    assert asking.answer_seconds(remaining) == seconds


def test_a_searcher_that_never_answers_is_found_early(deaf, monkeypatch):
    monkeypatch.setattr(asking, "LEAST_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(asking, "MOST_ANSWER_SECONDS", 0.1)
    begun = deaf(FINISHED, elapsed=0.0)
    assert begun.ask() == DONE
    assert begun.clock.now() < 60.0


def test_whether_a_search_is_over_is_answered_in_time(deaf):
    with pytest.raises(PluginError, match=r"did not answer for 0 s"):
        asking.is_over(Deaf(), deaf(FINISHED).problem, Ledger(FINISHED), Clock(89.8, 90.0), 0.2)


def test_a_searcher_that_does_not_answer_goes_on_with_no_more_time(deaf, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_SECONDS", 0.1)
    assert not deaf(FINISHED).goes_on()


def test_what_runs_while_a_searcher_does_not_answer_is_waited_for(deaf):
    begun = deaf([])
    begun.ledger.record(PAUSED[0])
    assert begun.ask() == begun.ask() == WAIT
    begun.tell(FINISHED[1])
    assert begun.ask() == DONE
    assert begun.searcher.asked == 1


def test_a_signal_reaches_a_searcher_that_does_not_answer(deaf):
    began = time.monotonic()
    with stop_on_signals() as stopped:
        begun = deaf([], elapsed=0.0)
        begun.stopped = stopped
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert begun.ask() == DONE
    assert stopped.signal == signal.SIGINT
    assert time.monotonic() - began < 30.0


def test_a_report_is_stamped_with_the_run_clock(search, tmp_path):
    begun = search(slice_of(), elapsed=30.0)
    begun.ask()
    begun.tell(Report(0, "paused", 1.0, 0.5, 1.0))
    report = Journal.read(tmp_path / "trials.jsonl")[-1]
    assert 30.0 <= report.elapsed < 40.0


def test_a_trial_that_is_in_flight_is_not_handed_out_twice() -> None:
    candidate = Candidate("zoo/b", "full", 32, Space({}))
    again = Slice(candidate.trial(0, {}, 0), 0.0, 1.0, 60.0)
    ledger = Ledger([Queued(0, again, Clock(0.0, 60.0)), Started(0, 1.0)])
    said = asking.problem_of(again, Problem((candidate,), 0, 1), ledger)
    assert said == "trial 0 is asked for, but it is running"


# ---------------------------------------------------------------- the target

AT_TARGET = [Queued(0, slice_of(), Clock(1.0, 90.0)), Report(0, "finished", 1.0, 0.95, 1.0, bound=0.93)]


@pytest.mark.parametrize(
    ("score", "bound", "target", "is_over"),
    [
        (0.95, 0.93, 0.93, True),
        (0.95, 0.93, 0.94, False),
        (0.95, None, 0.5, False),  # nobody has said how sure it is
        (-0.2, -0.3, -0.35, True),  # losses of .2, .3 at most, and .35
        (-0.2, -0.3, -0.25, False),
        (0.95, 0.93, None, False),
    ],
)
def test_a_search_is_over_when_all_of_the_interval_is_past_the_target(search, score, bound, target, is_over):
    report = Report(0, "finished", 1.0, score, 1.0, bound=bound)
    begun = search(slice_of(1), events=[AT_TARGET[0], report])
    begun.target = target
    assert (begun.ask() == DONE) is is_over
    assert len(begun.searcher.clocks) == (not is_over)


def test_what_is_under_way_at_the_target_ends_by_itself_and_nothing_follows(search):
    """It may bring a better score that is less sure: no reason to begin anew."""
    begun = search(slice_of(0), slice_of(1))
    begun.target, begun.screen = 0.9, Notes()
    assert (begun.ask().trial.id, begun.ask().trial.id) == (0, 1)
    begun.tell(AT_TARGET[1])
    assert begun.ask() == begun.ask() == WAIT
    begun.tell(Report(1, "paused", 1.0, 0.96, 1.0, bound=0.85))
    assert begun.ask() == DONE
    assert begun.screen.lines == [
        "the target is reached, so the search ends: trial 0 has score 0.9500, at least 0.9300 by its 95 % interval"
    ]


def test_a_slice_that_is_left_open_at_the_target_is_given_back(search):
    open_ = [Queued(1, slice_of(1), Clock(2.0, 90.0)), Started(1, 3.0)]
    resumed = search(events=[*AT_TARGET, *open_], elapsed=20.0)
    resumed.target = 0.9
    assert resumed.ask() == DONE
    record = resumed.ledger.trials[1]
    assert (record.given_back, record.reports[-1].error) == (True, "the target was reached")


def test_nothing_goes_on_at_the_target(search):
    begun = search(slice_of(1), slice_of(1), events=AT_TARGET)
    assert begun.goes_on()
    begun.target = 0.9
    assert not begun.goes_on()
