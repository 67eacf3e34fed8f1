import math
from dataclasses import replace
from statistics import mean

import pytest

pytest.importorskip("optuna")

import optuna
from autoft_optuna import OptunaCmaEs, OptunaGp, OptunaTpe

from autoft import Candidate, Choice, Float, Int, Ledger, Problem, Space
from autoft.builtin.searchers import Asha
from autoft.testing import SearcherConformance
from autoft.testing.simulation import candidates, simulate
from autoft.values.trial import Clock, Queued, Report

ALL = [OptunaTpe(), OptunaGp(), OptunaCmaEs()]
FLAT = Space({"lr": Float(1e-5, 1e-1, log=True), "decay": Float(0.0, 1.0)}, starts=({"lr": 1e-5, "decay": 0.0},))
MIXED = Space(
    {"lr": Float(1e-5, 1e-1, log=True), "k": Int(1, 4), "how": Choice(("a", 2, True)), "one": Float(0.5, 0.5)}
)


class Small(SearcherConformance):
    """Fewer simulations: each question to Optuna takes a while."""

    def simulations(self):
        yield simulate(self.part(), Problem(candidates(2), 0, 2), seconds=60.0)
        yield simulate(self.part(), Problem((Candidate("z/a", "mixed", 32, MIXED),), 1, 1, trials=14), seconds=200.0)


class TestTpe(Small):
    def part(self):
        return OptunaTpe()


class TestGp(Small):
    def part(self):
        return OptunaGp()


class TestCmaEs(Small):
    def part(self):
        return OptunaCmaEs()


def hill(trial, step):
    """The best rate is 1e-3, the best decay .7; nothing else counts."""
    return 1.0 - (math.log10(trial.params["lr"]) + 3.0) ** 2 / 8 - (trial.params["decay"] - 0.7) ** 2


def late_scores(searcher):
    """What the trials 30 to 59 of a search on a hill came to in the mean."""
    run = simulate(searcher, Problem((Candidate("z/a", "flat", 32, FLAT),), 3, 1, trials=60), hill, seconds=1e9)
    trials = list(Ledger(run.events).trials.values())
    return mean(hill(record.trial, 0.0) for record in trials[30:])


@pytest.mark.parametrize("searcher", ALL, ids=str)
def test_it_learns_where_chance_does_not(searcher):
    assert late_scores(searcher) > late_scores(Asha()) + 0.1


@pytest.mark.parametrize("searcher", ALL, ids=str)
def test_the_better_candidate_has_more_trials(searcher):
    good, bad = Candidate("z/good", "flat", 32, FLAT), Candidate("z/bad", "flat", 32, MIXED)
    run = simulate(
        searcher,
        Problem((bad, good), 0, 1, trials=40),
        lambda trial, step: 0.9 if trial.backbone == "z/good" else 0.1,
        seconds=1e9,
    )
    later = [record.trial.backbone for record in Ledger(run.events).trials.values()][20:]
    assert later.count("z/good") > 2 * later.count("z/bad")


@pytest.mark.parametrize("searcher", ALL, ids=str)
def test_starts_come_first(searcher):
    run = simulate(searcher, Problem((Candidate("z/a", "flat", 32, FLAT),), 0, 1, trials=2), hill, seconds=1e9)
    first, second = (record.trial.params for record in Ledger(run.events).trials.values())
    assert first == FLAT.starts[0]
    assert second != first


def test_trials_pause_at_rungs():
    run = simulate(OptunaTpe(), Problem((Candidate("z/a", "flat", 32, FLAT),), 0, 1, trials=9), hill, seconds=1e9)
    assert {slice_.until for slice_ in run.slices} == {3.0, 9.0, 27.0}


@pytest.mark.parametrize("searcher", ALL, ids=str)
def test_what_is_under_way_is_told_too(searcher, monkeypatch):
    """Otherwise workers that ask at the same time would all be sent to the same place."""
    asked, told = optuna.Study.ask, []

    def ask(study, *args, **kwargs):
        told.append([(trial.params, trial.state.name) for trial in study.trials])
        return asked(study, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "ask", ask)
    problem, ledger = Problem((Candidate("z/a", "flat", 32, replace(FLAT, starts=())),), 0, 3), Ledger()
    for score in (0.5, None, None):
        clock = Clock(0.0, 1e9)
        slice_ = searcher.ask(problem, ledger, clock)
        ledger.record(Queued(slice_.trial.id, slice_, clock))
        if score is not None:
            ledger.record(Report(slice_.trial.id, "paused", slice_.until, score, 1.0))
    searcher.ask(problem, ledger, Clock(0.0, 1e9))
    states = ["COMPLETE", "RUNNING", "RUNNING"]
    assert told[-1] == [(one.trial.params, state) for one, state in zip(ledger.trials.values(), states, strict=True)]


def test_a_start_that_failed_is_not_tried_again():
    asked = Problem((Candidate("z/a", "flat", 32, FLAT),), 0, 1, trials=5)
    run = simulate(OptunaTpe(), asked, lambda trial, step: None, seconds=1e9)
    first, second = (record.trial.params for record in Ledger(run.events).trials.values())
    assert first != second
