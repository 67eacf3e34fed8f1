"""Ask and tell: what a broken searcher may not do, and how a search begins late or goes on."""

from __future__ import annotations

import time

import pytest

from autoft.asking import Search
from autoft.clock import RunClock
from autoft.errors import PluginError
from autoft.host import Host
from autoft.ledger import Ledger
from autoft.parts import Problem, Searcher
from autoft.screen import Silent
from autoft.space import Float, Space
from autoft.store import CheckpointStore, Journal
from autoft.types import DONE, WAIT, Candidate, Clock, Report, Slice, Started

CANDIDATE = Candidate("z/a", "full", 64, Space({"lr": Float(1e-4, 1e-2)}))


class Scripted(Searcher):
    """Answers as told; remembers the clocks it saw."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.clocks = list(answers), []

    def ask(self, problem, ledger, clock):
        self.clocks.append(clock)
        return self.answers.pop(0)


@pytest.fixture
def search(tmp_path):
    def make(*answers, events=(), budget=100.0, elapsed=0.0, stopped=False):
        clock = RunClock(time.time() - elapsed, budget, reserve=10.0)
        return Search(
            searcher=Scripted(*answers),
            problem=Problem((CANDIDATE,), seed=0, workers=1),
            ledger=Ledger(events),
            journal=Journal(tmp_path / "trials.jsonl"),
            checkpoints=CheckpointStore(tmp_path / "checkpoints"),
            clock=clock,
            host=Host.from_refs(()),
            screen=Silent(),
            stopped=lambda: stopped,
        )

    return make


def slice_of(number=0, **params):
    return Slice(CANDIDATE.trial(number, params or {"lr": 1e-3}, 0), 0.0, 1.0, 90.0)


def test_what_is_asked_is_in_the_journal_before_it_runs(search, tmp_path):
    answer = search(slice_of()).ask()
    (event,) = Journal.read(tmp_path / "trials.jsonl")
    assert isinstance(event, Started)
    assert event.slice == answer


def test_an_open_slice_is_handed_out_again_and_not_journalled_twice(search, tmp_path):
    left_open = Started(0, slice_of(), Clock(5.0, 90.0))
    resumed = search(DONE, events=[left_open], elapsed=50.0)
    again = resumed.ask()
    assert again.trial == left_open.slice.trial
    assert Journal.read(tmp_path / "trials.jsonl") == []
    resumed.tell(Report(0, "paused", 1.0, 0.5, 1.0))
    assert resumed.ask() == DONE


@pytest.mark.parametrize("params", [{"lr": 1.0}, {"rate": 1e-3}])
def test_a_trial_outside_its_space_is_the_searchers_fault(search, params):
    with pytest.raises(PluginError, match="scripted"):
        search(slice_of(**params)).ask()


def test_a_trial_of_no_candidate_is_the_searchers_fault(search):
    stranger = Candidate("z/b", "full", 64, CANDIDATE.space).trial(0, {"lr": 1e-3}, 0)
    with pytest.raises(PluginError, match="is no candidate"):
        search(Slice(stranger, 0.0, 1.0, 90.0)).ask()


def test_waiting_for_nothing_is_a_bug_that_is_named(search):
    with pytest.raises(PluginError, match="waits with nothing in flight"):
        search(WAIT).ask()


def test_a_late_start_still_gets_one_slice(search):
    late = search(slice_of(), DONE, budget=5.0, elapsed=60.0)
    assert isinstance(late.ask(), Slice)
    assert late.searcher.clocks[0].remaining > 0
    late.tell(Report(0, "finished", 1.0, 0.5, 1.0))
    late.ask()
    assert late.searcher.clocks[1].remaining == 0


def test_nothing_is_asked_once_stopped(search):
    assert search(slice_of(), stopped=True).ask() == DONE


def test_a_report_is_stamped_with_the_run_clock(search, tmp_path):
    begun = search(slice_of(), elapsed=30.0)
    begun.ask()
    begun.tell(Report(0, "paused", 1.0, 0.5, 1.0))
    report = Journal.read(tmp_path / "trials.jsonl")[-1]
    assert 30.0 <= report.elapsed < 40.0
