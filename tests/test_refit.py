"""The refit: planned, asked for, executed and held against its twin; never ranked, and never scored."""

from __future__ import annotations

import heapq
import json
import math
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from parts.data import dataset, source
from parts.exported import SIZE, Tiny, handoff, torch_logits
from parts.hosts import host_of
from parts.notes import Notes

from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.builtin.searchers import Halving
from autoft.bundle.build import write_bundle
from autoft.bundle.known import KnownImages
from autoft.bundle.order import Order
from autoft.bundle.parity import QUICK
from autoft.engine.conclude import BundleMaker, NoWeights, Wanted, finalists, handoff_of
from autoft.engine.ending import FIXED_SECONDS, Ending
from autoft.engine.engine import begin
from autoft.engine.execution import ExportWish, execute, export_trial
from autoft.engine.prepare import Preparation
from autoft.engine.sitting import Sitting
from autoft.errors import PluginError
from autoft.parts.base import Problem, Searcher
from autoft.parts.host import Host
from autoft.runners.base import Runner, Site
from autoft.runners.inline import InlineRunner
from autoft.runners.refit import LATE_SECONDS, MARGIN, REFIT_SHARE, STARTING_SECONDS, WORTH_PASSES, Refits
from autoft.runners.search import Search
from autoft.store import CheckpointStore, Journal, leaderboard_rows
from autoft.study.record import Machine
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.signals import StopFlag
from autoft.system.stopwatch import Stopwatch
from autoft.train.job import CHECKED_IMAGES, Job
from autoft.train.refit import ALMOST_ALL
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.bundle import Manifest, MetricsReport, Origin, Training
from autoft.values.codec import decode, encode
from autoft.values.ledger import Kept, Ledger
from autoft.values.space import Float, Space
from autoft.values.target import MetricFacts
from autoft.values.trial import (
    DONE,
    WAIT,
    Candidate,
    Clock,
    Costs,
    Done,
    Event,
    Lost,
    Parent,
    Queued,
    Report,
    Slice,
    Started,
    Trial,
    Wait,
)

PROBE = Candidate("z/a", "probe", 64, Space({}), "closed_form")
FULL = Candidate("z/a", "full", 64, Space({"lr": Float(1e-4, 1e-2)}))
STEPS = Costs(step=0.1, steps_a_pass=10, scoring=0.5, saving=0.25, image=0.001)


def trained(
    number: int, score: float, passes: float = 3.0, event: str = "paused", bound: float | None = None
) -> list[Event]:
    """A fine-tune of so many passes, as the journal has it."""
    trial = FULL.trial(number, {"lr": 1e-3}, number)
    report = Report(number, event, passes, score, 4.0, costs=STEPS, bound=bound)
    return [Queued(number, Slice(trial, 0.0, passes, 90.0), Clock(0.0, 90.0)), report]


def refitted(number: int, twin: int, event: str | None = "finished", passes: float = 3.0) -> list[Event]:
    """The refit of such a trial; it is under way where no event has ended it."""
    trial = replace(FULL.trial(twin, {"lr": 1e-3}, twin), id=number, train_on="train+val", twin=Parent(twin, passes))
    queued = Queued(number, Slice(trial, 0.0, passes, 90.0), Clock(0.0, 90.0))
    return [queued] if event is None else [queued, Report(number, event, passes, None, 5.0)]


def numbers(records: object) -> list[int]:
    return [record.trial.id for record in records]


# ---------------------------------------------------------------- ledger, journal, leaderboard


def test_a_refit_is_exported_before_its_twin_and_ranked_nowhere() -> None:
    ledger = Ledger([*trained(0, 0.5), *trained(1, 0.9), *trained(2, 0.7), *refitted(3, twin=1)])
    assert numbers(ledger.ranking()) == [1, 2, 0]
    assert numbers(ledger.exportable()) == [3, 1, 2, 0]
    assert ledger.trials[3].score is None
    assert ledger.scored_as(ledger.trials[3]).score == 0.9
    assert ledger.trials[3].best_checkpoint == Parent(3, 3.0)
    assert ledger.kept()[3] == Kept(frozenset({3.0}))


@pytest.mark.parametrize("event", ["failed", "left out", None])
def test_a_refit_that_is_not_through_is_not_exported(event: str | None) -> None:
    ledger = Ledger([*trained(0, 0.5), *refitted(1, twin=0, event=event)])
    assert numbers(ledger.exportable()) == [0]


def test_a_refit_goes_with_the_checkpoint_that_it_repeats() -> None:
    """Its twin went on to a better one, or fell out of the best."""
    events = [*trained(0, 0.5), *refitted(1, twin=0)]
    on = Slice(FULL.trial(0, {"lr": 1e-3}, 0), 3.0, 9.0, 90.0)
    went_on = [*events, Queued(0, on, Clock(0.0, 90.0)), Report(0, "finished", 9.0, 0.6, 4.0)]
    assert numbers(Ledger(went_on).exportable()) == [0]
    assert 1 not in Ledger(went_on).kept()
    worse = [*events, Queued(0, on, Clock(0.0, 90.0)), Report(0, "finished", 9.0, 0.4, 4.0)]
    assert numbers(Ledger(worse).exportable()) == [1, 0]
    better = [*trained(2, 0.8, event="finished"), *trained(3, 0.9, event="finished")]
    ended = [*trained(0, 0.5, event="finished"), *refitted(1, twin=0)]
    assert numbers(Ledger([*ended, *better], keep=2).exportable()) == [3, 2]


def test_a_parent_stays_until_the_refit_of_its_child_is_through() -> None:
    child = replace(FULL.trial(1, {"lr": 1e-3}, 1, (Parent(0, 3.0),)))
    scored = [Queued(1, Slice(child, 0.0, 3.0, 90.0), Clock(0.0, 90.0)), Report(1, "finished", 3.0, 0.9, 1.0)]
    ledger = Ledger([*trained(0, 0.5, event="finished"), *scored], keep=1)
    assert not ledger.has_checkpoint(Parent(0, 3.0))
    ledger = Ledger([*trained(0, 0.5, event="finished"), *scored])
    again = ledger.trials[1].refit(2)
    ledger.record(Queued(2, Slice(again, 0.0, 3.0, 90.0), Clock(0.0, 90.0)))
    assert (again.parents, again.twin, again.seed) == (child.parents, Parent(1, 3.0), child.seed)
    assert 3.0 in ledger.kept()[0].steps


@pytest.mark.parametrize("event", ["failed", "left out"])
def test_a_parent_goes_once_the_refit_of_its_child_is_given_up(event: str) -> None:
    child = replace(FULL.trial(1, {"lr": 1e-3}, 1, (Parent(0, 3.0),)))
    scored = [Queued(1, Slice(child, 0.0, 3.0, 90.0), Clock(0.0, 90.0)), Report(1, "finished", 3.0, 0.9, 1.0)]
    again = replace(child, id=2, train_on="train+val", twin=Parent(1, 3.0))
    ledger = Ledger([*trained(0, 0.5, event="finished"), *scored], keep=1)
    ledger.record(Queued(2, Slice(again, 0.0, 3.0, 90.0), Clock(0.0, 90.0)))
    assert 0 in ledger.kept()
    ledger.record(Report(2, event, 0.0, None, 1.0))
    assert 0 not in ledger.kept()


def test_a_refit_of_nothing_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="is the refit of trial 5, which there is not"):
        Ledger(refitted(0, twin=5))


def test_a_trial_of_an_older_journal_trains_on_the_training_images() -> None:
    written = json.loads(encode(trained(0, 0.5)[0]))
    del written["slice"]["trial"]["train_on"], written["slice"]["trial"]["twin"]
    trial = decode(Event, json.dumps(written)).slice.trial
    assert (trial.train_on, trial.twin) == ("train", None)
    assert decode(Event, encode(refitted(1, 0)[0])).slice.trial.train_on == "train+val"


def test_the_leaderboard_has_a_refit_above_its_twin_without_rank_or_score() -> None:
    ledger = Ledger([*trained(0, 0.5), *trained(1, 0.9), *refitted(2, twin=1), *refitted(3, twin=0, event="failed")])
    rows = leaderboard_rows(ledger, MetricFacts("accuracy"), "stopped")
    shown = [(row.rank, row.trial, row.score, row.latest_score, row.train_on, row.twin, row.exportable) for row in rows]
    assert shown == [
        (None, 2, None, None, "train+val", 1, True),
        (1, 1, 0.9, 0.9, "train", None, True),
        (2, 0, 0.5, 0.5, "train", None, True),
        (None, 3, None, None, "train+val", 0, False),
    ]


# ---------------------------------------------------------------- what it takes


def refits(
    budget: float = 100.0,
    now: float = 0.0,
    ending: float = 10.0,
    no_refit: bool = False,
    validation: int | None = None,
) -> Refits:
    record = SimpleNamespace(
        study=Study("data", time=budget, no_refit=no_refit),
        data=SimpleNamespace(counts={"train": 600, "val": 200, "test": 200}),
        candidates=(PROBE, FULL),
        validation=validation,
    )
    return Refits(record, lambda ledger, trial: ending, RunClock(time.time() - now, budget))


def following(plan: Refits, ledger: Ledger) -> Slice | str | None:
    winner = plan.winner(ledger)
    return None if winner is None else plan.errand(ledger, winner)


def test_what_a_refit_takes_comes_of_what_its_twin_was_measured_to_take() -> None:
    (_, report) = trained(0, 0.5)
    ledger = Ledger(trained(0, 0.5))
    besides = STARTING_SECONDS + 0.5 + 0.25 + 2 * CHECKED_IMAGES * 0.001
    assert refits().seconds(ledger, ledger.trials[0]) == pytest.approx(3 * 10 * 0.1 * 800 / 600 + besides)
    unsteady = replace(report, costs=replace(STEPS, step=None))
    ledger = Ledger([trained(0, 0.5)[0], unsteady])
    assert refits().seconds(ledger, ledger.trials[0]) == pytest.approx(4.0 * 800 / 600 + besides)


def test_a_refit_starts_more_slowly_where_processes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(trained(0, 0.5))
    before = refits().seconds(ledger, ledger.trials[0])
    monkeypatch.setattr("autoft.runners.refit.start_slowness", lambda: 3.0)
    assert refits().seconds(ledger, ledger.trials[0]) == pytest.approx(before + 2 * STARTING_SECONDS)


def test_a_closed_form_is_solved_anew_with_what_was_missing() -> None:
    trial = PROBE.trial(0, {}, 0)
    costs = Costs(image=0.01, solving=0.3)
    report = Report(0, "finished", 1.0, 0.5, 9.0, costs=costs, share=0.5)
    queued = Queued(0, Slice(trial, 0.0, 1.0, 90.0), Clock(0.0, 90.0))
    part, whole = (Ledger([queued, one]) for one in (report, replace(report, share=1.0)))
    assert refits().seconds(whole, whole.trials[0]) == pytest.approx(STARTING_SECONDS + 0.3 * 800 / 600)
    assert refits().seconds(part, part.trials[0]) == pytest.approx(STARTING_SECONDS + 0.6 * 800 / 600 + 300 * 0.01)
    some_scored = refits(validation=50)  # there was no time to score the others
    of_these = STARTING_SECONDS + 0.3 * 800 / 600 + 150 * 0.01
    assert some_scored.seconds(whole, whole.trials[0]) == pytest.approx(of_these)
    tried_again = replace(report, trial=1, share=1.0, costs=Costs(solving=0.3))  # of features that were kept
    again = replace(queued, trial=1, slice=replace(queued.slice, trial=PROBE.trial(1, {}, 0)))
    both = Ledger([queued, report, again, tried_again])
    assert some_scored.seconds(both, both.trials[1]) == pytest.approx(of_these)


def test_time_is_kept_back_for_the_refit_of_the_best() -> None:
    ledger = Ledger(trained(0, 0.5, passes=9.0))
    needed = MARGIN * refits().seconds(ledger, ledger.trials[0]) + LATE_SECONDS
    assert refits().reserve(ledger, None) == pytest.approx(10.0 + needed)
    assert refits(no_refit=True).reserve(ledger, None) == 10.0
    assert refits().reserve(Ledger(), None) == 10.0
    done = [*trained(0, 0.5, passes=9.0), *refitted(1, twin=0, passes=9.0)]
    assert refits().reserve(Ledger(done), None) == 10.0
    other = Ledger([*trained(0, 0.5, passes=9.0), *trained(1, 0.4, passes=9.0)])
    assert refits().reserve(other, other.trials[1].trial) == 10.0


def test_nothing_is_kept_back_for_a_refit_for_which_it_is_too_late() -> None:
    """Its seconds would be nobody's: too few for the refit, and denied to the search."""
    ledger = Ledger(trained(0, 0.5, passes=9.0))
    left = refits().seconds(ledger, ledger.trials[0]) - 1.0
    late = refits(now=100.0 - 10.0 - left)
    assert late.reserve(ledger, None) == late.reserve(ledger, ledger.trials[0].trial) == 10.0


@pytest.mark.parametrize("passes", [WORTH_PASSES - 1, 100.0])
def test_no_time_is_kept_back_where_more_passes_are_worth_more_or_for_much_of_it(passes: float) -> None:
    ledger = Ledger(trained(0, 0.5, passes=passes))
    assert refits().reserve(ledger, None) == refits().reserve(ledger, ledger.trials[0].trial) == 10.0
    assert isinstance(following(refits(budget=1000.0), ledger), Slice)  # all the same where there is time


@pytest.mark.parametrize("now", [30.0, 60.0, 75.0])
def test_a_slice_of_the_best_ends_when_just_its_refit_fits_behind_it(now: float) -> None:
    ledger, plan = Ledger(trained(0, 0.5, passes=6.0)), refits(now=now)
    ends = 100.0 - plan.reserve(ledger, ledger.trials[0].trial)
    if now < 60.0:  # until then it may still grow beyond its share
        assert ends == 90.0
        return
    longer = Ledger(trained(0, 0.5, passes=6.0 + (ends - now) / (10 * 0.1)))  # trained all the while
    assert ends + MARGIN * plan.seconds(longer, longer.trials[0]) + LATE_SECONDS == pytest.approx(90.0, abs=0.1)


def test_a_slice_that_ends_a_little_late_leaves_the_refit_its_time() -> None:
    trial = PROBE.trial(0, {}, 0)
    queued = Queued(0, Slice(trial, 0.0, 1.0, 90.0), Clock(0.0, 90.0))
    ledger = Ledger([queued, Report(0, "finished", 1.0, 0.5, 9.0, costs=Costs(solving=0.9))])
    deadline = 100.0 - refits().reserve(ledger, None)
    assert isinstance(following(refits(now=deadline + LATE_SECONDS), ledger), Slice)


@pytest.mark.parametrize("missing", [0.001, 0.04, 0.5])
def test_what_a_refit_takes_is_never_said_to_be_what_is_left(missing: float) -> None:
    ledger = Ledger(trained(0, 0.5))
    needed = refits().seconds(ledger, ledger.trials[0])
    found = following(refits(budget=needed + 10.0 - missing), ledger)
    assert isinstance(found, str)
    takes, left, _ = (float(figure) for figure in re.findall(r"(\d+\.\d) s", found))
    assert takes > left


def test_a_refit_that_does_not_fit_is_left_out_and_said() -> None:
    ledger = Ledger(trained(0, 0.5))
    found = following(refits(now=88.0), ledger)
    assert isinstance(found, str) and found.startswith("no refit of trial 0 on train + validation: it takes about ")
    assert re.search(r"5\.\d s, and 1\.\d s are left for it, as 10\.0 s are kept free for the export$", found)
    errand = following(refits(now=20.0), ledger)
    assert isinstance(errand, Slice)
    assert errand.trial == replace(ledger.trials[0].trial, id=1, train_on="train+val", twin=Parent(0, 3.0))
    assert (errand.start, errand.until) == (0.0, 3.0)
    assert errand.deadline == pytest.approx(90.0 - 0.4)
    assert following(refits(now=20.0, no_refit=True), ledger) is None
    assert following(refits(now=20.0), Ledger([*trained(0, 0.5), *refitted(1, twin=0)])) is None
    assert following(refits(now=20.0), Ledger()) is None


def test_a_refit_needs_the_weights_that_its_twin_began_with() -> None:
    child = FULL.trial(1, {"lr": 1e-3}, 1, (Parent(0, 3.0),))
    scored = [Queued(1, Slice(child, 0.0, 3.0, 90.0), Clock(0.0, 90.0)), Report(1, "finished", 3.0, 0.9, 1.0)]
    kept, pruned = (Ledger([*trained(0, 0.5, event="finished"), *scored], keep) for keep in (5, 1))
    assert isinstance(following(refits(), kept), Slice)
    assert "the weights of trial 0, with which it began, are not kept" in str(following(refits(), pruned))


@pytest.mark.parametrize(
    ("damaged", "twin"),
    [((), None), ((1,), 0), ((3,), 1), ((1, 3), 0), ((1, 0), 2), ((0, 1, 2, 3), None)],
    ids=str,
)
def test_what_the_export_would_pass_over_is_not_refitted(damaged: tuple[int, ...], twin: int | None) -> None:
    """Trial 1 leads, and 3 is its refit, which has its validation figures, and so needs the weights of both."""
    scores = (0.7, 0.9, 0.5)
    events = [event for number, score in enumerate(scores) for event in trained(number, score, passes=9.0)]
    ledger = Ledger([*events, *refitted(3, twin=1, passes=9.0)])
    ledger.damaged = {Parent(number, 9.0): "it is damaged" for number in damaged}
    found = following(refits(), ledger)
    assert (found.trial.twin if isinstance(found, Slice) else found) == (None if twin is None else Parent(twin, 9.0))
    assert (refits().reserve(ledger, None) > 10.0) == (twin is not None)  # nor is time kept back for another


# ---------------------------------------------------------------- asked for


class Scripted(Searcher):
    """Answers as told, then is done."""

    name = "scripted"

    def __init__(self, *answers: object) -> None:
        self.answers, self.clocks = list(answers), []

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> object:
        self.clocks.append(clock)
        return self.answers.pop(0) if self.answers else DONE


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    def make(*answers: object, events: list[Event] = [], now: float = 20.0, trials: int | None = None) -> Search:  # noqa: B006
        plan = refits(now=now)
        return Search(
            searcher=Scripted(*answers),
            problem=Problem((PROBE, FULL), seed=0, workers=2, trials=trials),
            ledger=Ledger(events),
            journal=Journal(tmp_path / "trials.jsonl"),
            checkpoints=CheckpointStore(tmp_path / "checkpoints"),
            clock=plan.clock,
            host=host_of(Scripted()),
            screen=Notes(),
            stopped=StopFlag(),
            reserve=plan.reserve,
            refits=plan,
        )

    return make


def new(number: int) -> Slice:
    return Slice(FULL.trial(number, {"lr": 1e-3}, number), 0.0, 1.0, 1e9)


def test_the_last_errand_of_any_search_is_the_winners_refit(search: Callable[..., Search], tmp_path: Path) -> None:
    begun = search(events=[*trained(0, 0.5), *trained(1, 0.9)], trials=2)
    errand = begun.ask()
    assert isinstance(errand, Slice)
    assert errand.trial.twin == Parent(1, 3.0)
    (line,) = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert json.loads(line)["slice"] == json.loads(encode(errand))
    begun.tell(Report(2, "finished", 3.0, None, 5.0))
    assert begun.ask() == DONE
    assert numbers(begun.ledger.exportable()) == [2, 1, 0]
    assert len(begun.searcher.clocks) == 1  # done is done


def test_the_winner_is_refitted_when_the_target_ends_the_search(search: Callable[..., Search]) -> None:
    begun = search(events=[*trained(0, 0.5), *trained(1, 0.9, bound=0.8)])
    begun.target = 0.75
    assert begun.ask().trial.twin == Parent(1, 3.0)
    begun.tell(Report(2, "finished", 3.0, None, 5.0))
    assert begun.ask() == DONE
    assert begun.searcher.clocks == []


def test_a_search_is_not_done_while_its_refit_is_in_flight(search: Callable[..., Search]) -> None:
    begun = search(events=trained(0, 0.5))
    assert begun.ask().trial.twin == Parent(0, 3.0)
    assert begun.ask() == WAIT  # a worker may refuse it, and nobody would ask again
    begun.tell(Report(1, "finished", 3.0, None, 5.0))
    assert begun.ask() == DONE


@pytest.mark.parametrize("now", [20.0, 95.0])
def test_a_slice_that_is_lost_when_the_searcher_is_done_is_not_waited_for(
    search: Callable[..., Search], now: float
) -> None:
    begun = search(new(1), events=trained(0, 0.5))
    assert begun.ask().trial.id == 1
    assert begun.ask() == WAIT
    begun.began(1)
    begun.lost(1, "memory ran out")
    begun.refits = refits(now=now)
    begun.clock = begun.refits.clock
    answer = begun.ask()
    if now < 80.0:
        assert answer.trial.id == 1
    else:  # no time is left to go on
        assert answer == DONE
        assert begun.ledger.trials[1].state == "paused"


def test_nobody_is_refitted_while_another_may_win(search: Callable[..., Search]) -> None:
    begun = search(new(1), events=trained(0, 0.5))
    assert begun.ask().trial.id == 1
    assert begun.ask() == begun.ask() == WAIT
    begun.tell(Report(1, "finished", 1.0, 0.9, 2.0, costs=STEPS))
    assert begun.ask().trial.twin == Parent(1, 1.0)


def test_a_refit_whose_process_ran_out_of_memory_goes_on(search: Callable[..., Search]) -> None:
    begun = search(events=trained(0, 0.5))
    errand = begun.ask()
    assert isinstance(errand, Slice)
    begun.lost(1, "memory ran out")
    again = begun.ask()
    assert isinstance(again, Slice)
    assert (again.trial, again.until) == (errand.trial, errand.until)
    assert len(begun.ledger.allowance(again.trial).lost) == 1
    begun.tell(Report(1, "finished", 3.0, None, 5.0))
    assert begun.ask() == DONE
    assert numbers(begun.ledger.exportable()) == [1, 0]


def test_a_refit_that_ran_out_of_time_is_left_out_and_is_no_models(search: Callable[..., Search]) -> None:
    begun = search(events=trained(0, 0.5))
    begun.ask()
    begun.tell(Report(1, "paused", 2.0, None, 5.0))
    record = begun.ledger.trials[1]
    assert (record.state, record.reports[-1].error) == ("left out", "there was no time for all its passes")
    assert numbers(begun.ledger.exportable()) == [0]
    assert begun.ask() == DONE


def test_a_stopped_search_has_no_last_errand(search: Callable[..., Search]) -> None:
    begun = search(events=trained(0, 0.5))
    begun.stopped.signal = signal.SIGINT
    assert begun.ask() == DONE
    assert numbers(begun.ledger.trials.values()) == [0]


def test_why_there_is_no_refit_is_one_line(search: Callable[..., Search]) -> None:
    begun = search(events=trained(0, 0.5), now=88.0)
    assert begun.ask() == begun.ask() == DONE
    (note,) = begun.screen.lines
    assert note.startswith("no refit of trial 0")


def test_a_refit_that_was_cut_short_is_given_up_where_its_twin_is_damaged(search: Callable[..., Search]) -> None:
    begun = search(events=[*trained(0, 0.9), *trained(1, 0.5), *refitted(2, twin=0, event=None)])
    begun.ledger.damaged = {Parent(0, 3.0): "it is damaged"}
    assert begun.ask().trial.twin == Parent(1, 3.0)
    record = begun.ledger.trials[2]
    assert (record.state, record.reports[-1].error) == (
        "left out",
        "no refit of trial 0 on train + validation: it is damaged",
    )


@pytest.mark.parametrize("started", [[], [Started(1, 21.0)]])
def test_a_refit_that_a_kill_cut_short_goes_on_before_anything_else(
    search: Callable[..., Search], tmp_path: Path, started: list[Event]
) -> None:
    open_ = [*trained(0, 0.5), *refitted(1, twin=0, event=None), *started]
    resumed = search(new(2), events=open_)
    again = resumed.ask()
    assert again.trial == open_[2].slice.trial
    assert resumed.ledger.in_flight == (again,)
    assert Journal.read(tmp_path / "trials.jsonl", Ledger(open_))[-1].slice == again
    assert resumed.ask().trial.id == 2  # with the time that there is besides
    resumed.tell(Report(1, "finished", 3.0, None, 5.0))
    resumed.tell(Report(2, "finished", 1.0, 0.4, 5.0))
    assert resumed.ask() == DONE
    assert numbers(resumed.ledger.exportable()) == [1, 0, 2]


def test_a_refit_that_a_kill_cut_short_is_given_up_where_no_time_is_left(search: Callable[..., Search]) -> None:
    late = search(events=[*trained(0, 0.5), *refitted(1, twin=0, event=None)], now=88.0)
    assert late.ask() == DONE
    assert late.ledger.in_flight == ()
    assert late.ledger.trials[1].state == "left out"
    assert "it takes about" in late.ledger.trials[1].reports[-1].error
    assert late.screen.lines == []


@pytest.mark.parametrize("event", ["failed", "paused"])
def test_a_refit_that_was_left_open_and_fails_is_not_made_again_in_the_same_sitting(
    search: Callable[..., Search], event: str
) -> None:
    resumed = search(events=[*trained(0, 0.5), *refitted(1, twin=0, event=None)])
    assert resumed.ask().trial.id == 1
    resumed.tell(Report(1, event, 1.0, None, 1.0))
    assert resumed.ask() == DONE
    assert numbers(resumed.ledger.trials.values()) == [0, 1]


def test_a_refit_that_is_given_up_is_no_reason_to_go_without_that_of_a_later_winner(
    search: Callable[..., Search],
) -> None:
    """Resumed with little time, the refit of a slow fine-tune does not fit, but that of the probe which then wins."""
    slow, probe = replace(STEPS, step=3.0), PROBE.trial(2, {}, 2)
    queued, report = trained(0, 0.5)
    begun = search(
        Slice(probe, 0.0, 1.0, 1e9), events=[queued, replace(report, costs=slow), *refitted(1, twin=0, event=None)]
    )
    assert begun.ask().trial == probe
    assert begun.ledger.trials[1].state == "left out"
    begun.tell(Report(2, "finished", 1.0, 0.9, 2.0, costs=Costs(image=0.001, solving=0.3)))
    assert begun.ask().trial.twin == Parent(2, 1.0)


def test_a_refit_that_was_refused_is_not_made_again(search: Callable[..., Search]) -> None:
    """It would come out so again, being a function of its seed; the time for it is the search's."""
    refused = refitted(1, twin=0, event="failed", passes=9.0)
    refused[-1] = replace(refused[-1], error="worse than its twin", refused=True)
    events = [*trained(0, 0.5, passes=9.0), *refused]
    begun = search(events=events)
    assert begun.ask() == begun.ask() == DONE
    said = "no refit of trial 0 on train + validation: it has failed before, worse than its twin"
    assert (begun.screen.lines, refits(now=20.0).reserve(Ledger(events), None)) == ([said], 10.0)
    better = Ledger([*events, *trained(2, 0.9, passes=9.0)])
    assert following(refits(now=20.0), better).trial.twin == Parent(2, 9.0)


@pytest.mark.parametrize("error", [None, "CUDA out of memory", "no time was left", "a plugin's bug"])
def test_a_refit_that_failed_for_anything_else_is_made_again_by_the_next_sitting(
    search: Callable[..., Search], error: str | None
) -> None:
    """Nobody need think of marking it: a worker's report of an error, or a line of an older version, has no mark."""
    failed = refitted(1, twin=0, event="failed", passes=9.0)
    events = [*trained(0, 0.5, passes=9.0), failed[0], replace(failed[-1], error=error)]
    assert search(events=events).ask().trial.twin == Parent(0, 9.0)
    assert refits(now=20.0).reserve(Ledger(events), None) > 10.0


@pytest.mark.parametrize("losses", [[Lost(1, "memory", "memory ran out", 1.0)], []])
def test_what_time_or_a_lost_process_cost_a_refit_is_no_fault_of_it(
    search: Callable[..., Search], losses: list[Event]
) -> None:
    begun = search(events=[*trained(0, 0.5), *refitted(1, twin=0, event=None), *losses])
    if losses:
        begun.lost(1, "memory ran out")
    else:
        begun.tell(Report(1, "paused", 1.0, None, 1.0))
    assert begun.ledger.trials[1].state == ("failed" if losses else "left out")
    assert begun.ledger.refuted(begun.ledger.trials[0]) is None


def test_no_searcher_asks_for_a_refit(search: Callable[..., Search]) -> None:
    cheat = Slice(replace(FULL.trial(1, {"lr": 1e-3}, 1), train_on="train+val"), 0.0, 1.0, 90.0)
    with pytest.raises(PluginError, match="which no validation score can judge"):
        search(cheat, events=trained(0, 0.5)).ask()


def test_nobody_runs_longer_than_the_best_that_goes_on_and_is_refitted(search: Callable[..., Search]) -> None:
    going_on = Slice(FULL.trial(0, {"lr": 1e-3}, 0), 6.0, 27.0, 1e9)
    begun = search(going_on, new(1), events=trained(0, 0.5, passes=6.0), now=70.0)
    first = begun.ask()
    assert begun.ask().deadline <= first.deadline < 85.0
    assert begun.searcher.clocks[1].deadline <= first.deadline


# ---------------------------------------------------------------- simulated


class At(RunClock):
    """A clock that stands where it was set."""

    at = 0.0

    def now(self) -> float:
        return At.at


class Simulated:
    """A run whose slices take what they are said to, with workers that keep to deadlines as real ones do."""

    def __init__(self, seed: int, budget: float, workers: int) -> None:
        self.rng, self.workers, At.at = random.Random(seed), workers, 5.0
        candidates = (PROBE, FULL, replace(FULL, freeze="last_stages", cost=0.3))
        self.pace = {"full": self.rng.uniform(0.5, 10), "last_stages": self.rng.uniform(0.2, 5)}
        self.quality: dict[int, float] = {}
        self.plan = refits(budget, ending=self.rng.uniform(4, 10))
        self.plan.record.candidates = candidates
        self.plan = replace(self.plan, clock=At(0.0, budget))
        self.search = Search(
            searcher=Halving(),
            problem=Problem(candidates, seed, workers),
            ledger=Ledger(),
            journal=SimpleNamespace(append=lambda event: None),
            checkpoints=SimpleNamespace(prune=lambda *kept: None),
            clock=self.plan.clock,
            host=Host.from_refs(()),
            screen=Notes(),
            stopped=StopFlag(),
            reserve=self.plan.reserve,
            refits=self.plan,
        )

    def run(self) -> float:
        """How many seconds too late it is over."""
        under_way: list[tuple[float, int, Report]] = []
        while True:
            while len(under_way) < self.workers and isinstance(asked := self.search.ask(), Slice):
                report = self.executed(asked)
                heapq.heappush(under_way, (At.at + report.seconds, asked.trial.id, report))
            if not under_way:
                return At.at + self.plan.ending(self.search.ledger, None) - self.plan.clock.budget
            At.at, _, report = heapq.heappop(under_way)
            self.search.tell(report)

    def executed(self, asked: Slice) -> Report:
        trial, growth = asked.trial, 4 / 3 if asked.trial.twin else 1.0
        if trial.freeze == "probe":
            score = None if trial.twin else self.rng.uniform(0.5, 0.8)
            return Report(trial.id, "finished", 1.0, score, 1.5 * growth, costs=Costs(image=0.002, solving=0.5))
        a_pass = self.pace[trial.freeze] * self.rng.uniform(0.95, 1.05)
        possible = (asked.deadline - At.at - 1.1) / (a_pass * growth)
        if possible < 0.05:
            return Report(trial.id, "paused", asked.start, None, 0.3)
        step = min(asked.until, asked.start + possible)
        through = step >= 27.0 or (trial.twin is not None and step >= ALMOST_ALL * asked.until)
        quality = self.quality.setdefault(trial.id, self.rng.uniform(0.6, 0.95))
        score = None if trial.twin else quality * (1 - math.exp(-step / 3)) + self.rng.gauss(0, 0.01)
        costs = Costs(step=a_pass / 10, steps_a_pass=10, scoring=0.4, saving=0.2, image=0.002)
        seconds = 1.1 + (step - asked.start) * a_pass * growth
        return Report(trial.id, "finished" if through else "paused", step, score, seconds, costs=costs)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("budget", [60.0, 600.0])
def test_time_is_kept_and_the_winner_has_its_refit_where_it_was_planned(budget: float, workers: int) -> None:
    planned = made = 0
    for seed in range(15):
        run = Simulated(seed, budget, workers)
        assert run.run() < 1.0
        ledger = run.search.ledger
        best = ledger.ranking()[0]
        if (
            best.best_step >= WORTH_PASSES
            and MARGIN * run.plan.seconds(run.search.ledger, best) < 0.8 * REFIT_SHARE * budget
        ):
            planned, made = planned + 1, made + ledger.exportable()[0].is_refit
    assert made >= 0.6 * planned  # the others won in the last moment


class Graphs(Preparation):
    """Graphs that are prepared on the clock of the simulation, in so many seconds each."""

    def __init__(self, record: Any, seconds: float) -> None:
        run: Any = SimpleNamespace(record=record, trainable=lambda host: record.candidates)
        super().__init__(run, Host.recorded(()))
        self.seconds, self._took = seconds, None

    def begin(self, backbone: str, image_size: int) -> None:
        if not self._busy():
            self._began.setdefault((backbone, image_size), At.at)

    def left(self, trial: Trial) -> float:
        """Seconds to wait for the trial's graph at the end; nearly half of them where the export has to do without."""
        address, without = (trial.backbone, trial.image_size), 0.5 * self.seconds
        if self.ready_in(*address, 1.0) > without:
            return without
        return max(0.0, self._began[address] + self.seconds - At.at)

    def _busy(self) -> bool:
        return any(began + self.seconds > At.at for began in self._began.values())

    def _is_ready(self, backbone: str, image_size: int) -> bool:
        return self._began.get((backbone, image_size), math.inf) + self.seconds <= At.at


class Whole(Simulated):
    """Three backbones, with the end that a run has: its graph, its images to score. `late` is what comes of it."""

    def __init__(self, seed: int, budget: float, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(seed, budget, workers)
        monkeypatch.setattr("autoft.engine.prepare.time", SimpleNamespace(time=lambda: At.at, sleep=time.sleep))
        monkeypatch.setattr("autoft.engine.ending.cores", lambda: 1)
        self.sizes = {"z/a": 1.0, "z/b": 1.6, "z/c": 2.4}
        lasts = replace(FULL, freeze="last_stages", cost=0.3)
        of = [
            replace(one, backbone=name, cost=one.cost * size, prior=size)
            for name, size in self.sizes.items()
            for one in (PROBE, FULL, lasts)
        ]
        record: Any = self.plan.record
        record.candidates = tuple(of)
        record.backbones = tuple(Backbone(name, round(5e6 * size), InputSpec(64)) for name, size in self.sizes.items())
        record.machine, record.data.counts = Machine("inline", 1, 2, "cpu"), {"train": 210, "val": 70, "test": 70}
        self.unit, self.image = self.rng.uniform(1, 6), self.rng.uniform(0.002, 0.02)
        self.graphs = Graphs(record, self.rng.uniform(7, 12))
        ending = Ending(record, self.graphs, self.plan.clock, lambda: 1.0)
        self.plan = replace(self.plan, ending=ending)
        self.search.problem, self.search.refits = Problem(record.candidates, seed, workers), self.plan
        self.search.reserve, self.search.told = self.plan.reserve, ending.prepare
        ending.prepare(self.search.ledger)

    def run(self) -> float:
        super().run()
        winner = self.search.ledger.ranking()[0].trial
        an_image = self.image * self.sizes[winner.backbone]
        end = self.graphs.left(winner) + FIXED_SECONDS + 70 * an_image + QUICK.takes(70, an_image)
        return At.at + end - self.plan.clock.budget

    def executed(self, asked: Slice) -> Report:
        trial, an_image = asked.trial, self.image * self.sizes[asked.trial.backbone]
        scoring, left = 70 * an_image, asked.deadline - At.at
        self.pace = {"full": self.unit * self.sizes[trial.backbone]}
        self.pace["last_stages"] = 0.3 * self.pace["full"]
        if trial.freeze != "probe":
            report = super().executed(replace(asked, deadline=asked.deadline - scoring))
            costs = replace(report.costs, scoring=scoring, image=an_image)
            return replace(report, seconds=report.seconds + scoring * (report.score is not None), costs=costs)
        if trial.twin is not None:
            return Report(trial.id, "finished", 1.0, None, 1.7)
        if self.search.ledger.ranking() and scoring + 64 * an_image > left + 2.0:
            return Report(trial.id, "paused", 0.0, None, max(0.1, left + 0.5))
        fitted = max(64, min(210, round((0.8 * left - scoring) / an_image)))
        costs = Costs(image=an_image, solving=0.5, scoring=scoring)
        seconds = 1.5 + scoring + fitted * an_image
        score = self.rng.uniform(0.5, 0.8)
        return Report(trial.id, "finished", 1.0, score, seconds, costs=costs, share=fitted / 210)


@pytest.mark.parametrize("budget", [40.0, 60.0, 120.0])
def test_a_short_run_is_over_in_time_and_leaves_little_unused(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial at a time; the few that leave more had less than a quarter of a pass left."""
    late = [Whole(seed, budget, 1, monkeypatch).run() for seed in range(30)]
    assert max(late) < 5.0
    assert sum(-one > max(5.0, 0.08 * budget) for one in late) <= len(late) // 6
    assert -sum(late) / len(late) < max(2.0, 0.04 * budget)


# ---------------------------------------------------------------- executed

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
FOREVER = 1e12


@pytest.fixture
def run(tiny_images: Path, tmp_path: Path) -> Run:
    backbones = ("small/test_resnet",)
    study = Study(data=str(tiny_images), plugins=(ZOO,), backbones=backbones, image_size=64, runner="inline")
    now = time.time()
    sitting = Sitting(Host.discover(study.plugins), InlineRunner(), Silent(), Stopwatch(now), RunClock(now, study.time))
    return begin(study, source(tiny_images), tmp_path / "run", sitting)


@pytest.fixture
def worker(run: Run) -> Worker:
    return Worker(Workshop(run, run.host()))


def first(run: Run, freeze: str, **params: object) -> Trial:
    candidate = next(one for one in run.record.candidates if one.freeze == freeze)
    start = candidate.space.starts[0] if candidate.space.starts else {}
    return candidate.trial(0, {**start, **params}, seed=5)


def searched(worker: Worker, trial: Trial, until: float) -> Ledger:
    """After a trial."""
    queued = Queued(0, Slice(trial, 0.0, until, FOREVER), Clock(0.0, FOREVER))
    return Ledger([queued, worker.run(Job(queued.slice, time.time()))])


def searched_and_refitted(worker: Worker, trial: Trial, until: float) -> Ledger:
    """After a trial and its refit."""
    ledger = searched(worker, trial, until)
    errand = Slice(ledger.trials[0].refit(1), 0.0, ledger.trials[0].best_step, FOREVER)
    ledger.record(Queued(1, errand, Clock(0.0, FOREVER)))
    ledger.record(worker.run(Job(errand, time.time())))
    return ledger


def test_a_refitted_head_is_that_of_all_images_together(run: Run, worker: Worker) -> None:
    ledger = searched_and_refitted(worker, first(run, "probe"), 1.0)
    report = ledger.trials[1].reports[-1]
    assert (report.event, report.score, report.share, report.error) == ("finished", None, 1.0, None)
    shop, network = worker.shop, worker.shop.network("small/test_resnet")
    rows = np.concatenate([shop.dataset.rows("train"), shop.dataset.rows("val")])
    targets = np.concatenate([shop.dataset.targets("train"), shop.dataset.targets("val")])
    features = shop.features.features(network, shop.images(ledger.trials[1].trial), rows)
    expected = shop.task.closed_form(features, torch.from_numpy(targets), shop.check)
    kept = shop.saved(ledger.trials[1].best_checkpoint)
    torch.testing.assert_close(kept.model["head.weight"], expected.weight, rtol=1e-3, atol=1e-5)
    scored = shop.outputs(shop.restored(kept), shop.images(kept.trial).batches(shop.validation))
    np.testing.assert_allclose(kept.logits, scored, rtol=1e-3, atol=1e-4)


def test_a_fine_tune_is_refitted_over_the_same_passes_of_more_images(run: Run, worker: Worker) -> None:
    ledger = searched_and_refitted(worker, first(run, "full", batch_size=16), 2.0)
    twin, refit = ledger.trials[0].reports[-1], ledger.trials[1].reports[-1]
    assert (refit.event, refit.score, refit.step) == ("finished", None, 2.0)
    counts = run.record.data.counts
    assert twin.costs.steps_a_pass == counts["train"] // 16
    assert refit.costs.steps_a_pass == (counts["train"] + counts["val"]) // 16
    origin = handoff_of(run.record, ledger.trials[1], ledger.trials[0]).origin
    lengths = [Training(2.0, 2 * report.costs.steps_a_pass) for report in (refit, twin)]
    assert [origin.training, origin.twin_training] == lengths
    kept = worker.shop.saved(ledger.trials[1].best_checkpoint)
    assert not np.allclose(kept.logits, worker.shop.saved(Parent(0, 2.0)).logits)


def test_a_refit_trains_on_validation_images_that_there_was_no_time_to_score(run: Run) -> None:
    limited = replace(run, record=replace(run.record, validation=3))
    shop = Workshop(limited, limited.host())
    trial = first(run, "probe")
    again = replace(trial, id=1, train_on="train+val", twin=Parent(0, 1.0))
    counts = run.record.data.counts
    assert len(shop.validation) == 3
    assert len(shop.trained_on(again).rows(again.train_on)) == counts["train"] + counts["val"]
    assert len(shop.trained_on(trial).rows(trial.train_on)) == counts["train"]


def test_a_refit_that_ends_at_its_deadline_is_not_through(run: Run, worker: Worker) -> None:
    again = searched(worker, first(run, "full", batch_size=2), 1.0).trials[0].refit(1)
    report = worker.run(Job(Slice(again, 0.0, 20.0, 0.5), time.time()))
    assert (report.event, report.score) == ("paused", None)
    assert report.step < 20.0


def test_a_refit_is_not_refused_for_a_loss_that_its_twin_has_too(
    run: Run, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers surely pays more for a few errors than one that says nothing, and may be a good one."""
    monkeypatch.setattr("autoft.train.gradient.share", lambda *of: -1e3)
    again = searched(worker, first(run, "full", batch_size=4), 1.0).trials[0].refit(1)
    report = worker.run(Job(Slice(again, 0.0, 1.0, FOREVER), time.time()))
    assert (report.event, report.error) == ("finished", None)


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ("loss", r"its loss has not fallen: on training images it is \S+, and 1\.1 from zeros"),
        ("labels", r"on 24 training images it comes to accuracy 0\.\d+, and its twin to 1\.0+"),
        ("logits", r"logits of \d+ of \d+ validation images are not finite"),
    ],
)
def test_a_refit_that_is_worse_than_its_twin_has_failed_with_the_figures(
    run: Run, worker: Worker, monkeypatch: pytest.MonkeyPatch, broken: str, cause: str
) -> None:
    trial = first(run, "full", batch_size=4) if broken == "loss" else first(run, "probe")
    again = searched(worker, trial, 1.0).trials[0].refit(1)
    if broken == "loss":
        monkeypatch.setattr("autoft.train.gradient.share", lambda *of: -1e3)
    elif broken == "labels":
        task, fit = worker.shop.task, worker.shop.task.closed_form
        monkeypatch.setattr(task, "closed_form", lambda x, y, check: fit(x, (y + 1) % 3, check), raising=False)
    else:
        task, fit = worker.shop.task, worker.shop.task.closed_form
        head = lambda *given: replace(fit(*given), bias=torch.full((3,), math.nan))  # noqa: E731
        monkeypatch.setattr(task, "closed_form", head, raising=False)
    report = worker.run(Job(Slice(again, 0.0, 1.0, FOREVER), time.time()))
    assert (report.event, report.score) == ("failed", None)
    assert re.search(cause, report.error), report.error
    assert report.refused == (broken != "logits")  # what is not finite is found before, as in any slice


# ---------------------------------------------------------------- handed over


def test_a_refit_is_handed_over_with_the_figures_of_its_twin(run: Run, worker: Worker) -> None:
    ledger = searched_and_refitted(worker, first(run, "probe"), 1.0)
    maker = BundleMaker(run, ledger, worker.shop, Stopwatch(0.0))
    refit, twin = finalists(ledger)
    assert numbers([refit, twin]) == [1, 0]
    np.testing.assert_array_equal(maker._twins_logits(refit), worker.shop.saved(Parent(0, 1.0)).logits)
    assert maker._twins_logits(twin) is None
    made = handoff_of(run.record, refit, ledger.scored_as(refit))
    assert (made.trial.train_on, made.validation_score) == ("train+val", twin.score)
    on_a_part = replace(twin, reports=tuple(replace(report, share=0.25) for report in twin.reports))
    made = handoff_of(run.record, refit, on_a_part)
    assert (made.share, made.scored_share) == (1.0, 0.25)


def test_a_refit_whose_twin_is_gone_is_passed_over(run: Run, worker: Worker) -> None:
    ledger = searched_and_refitted(worker, first(run, "probe"), 1.0)
    for path in run.folder.checkpoints.glob("00000-*"):
        path.unlink()
    with pytest.raises(NoWeights, match="trial 0 has no whole checkpoint at 1 pass any more; trial 0 is its twin"):
        BundleMaker(run, ledger, worker.shop, Stopwatch(0.0))._twins_logits(ledger.trials[1])


def test_a_refit_whose_twin_has_other_weights_than_were_scored_is_passed_over(run: Run, worker: Worker) -> None:
    ledger = searched_and_refitted(worker, first(run, "probe"), 1.0)
    (report,) = ledger.trials[0].reports
    events = [Queued(0, ledger.trials[0].slices[0], Clock(0.0, FOREVER)), replace(report, score=report.score - 0.25)]
    other = Ledger([*events, Queued(1, ledger.trials[1].slices[0], Clock(0.0, FOREVER)), *ledger.trials[1].reports])
    with pytest.raises(NoWeights, match=r"the weights of trial 0 scored .*damaged; trial 0 is its twin"):
        BundleMaker(run, other, worker.shop, Stopwatch(0.0))._twins_logits(other.trials[1])


def test_the_runner_up_is_told_with_the_noise_of_the_difference(run: Run, worker: Worker) -> None:
    """Also where a refit is handed over; the noise is by images that both were scored on."""
    ledger = searched_and_refitted(worker, first(run, "probe"), 1.0)
    maker = BundleMaker(run, ledger, worker.shop, Stopwatch(0.0))
    assert maker.runner_up(finalists(ledger)[0]) is None  # its twin is no other trial
    other = replace(first(run, "probe"), id=2)
    piece = Slice(other, 0.0, 1.0, FOREVER)
    report, saved = worker.run(Job(piece, time.time())), worker.shop.saved(Parent(2, 1.0))
    logits = saved.logits + 100 * np.random.default_rng(0).standard_normal(saved.logits.shape, np.float32)
    worker.shop.checkpoints.save(replace(saved, logits=logits), 1.0)
    ledger.record(Queued(2, piece, Clock(0.0, FOREVER)))
    ledger.record(replace(report, score=worker.shop.score(logits)))
    found = maker.runner_up(finalists(ledger)[0])
    assert found.trial == 2 and found.validation == pytest.approx(worker.shop.score(logits))
    assert found.behind == pytest.approx(ledger.trials[0].score - found.validation)
    assert found.behind > 0 and found.standard_error > 0


class KilledInTheRefit(InlineRunner):
    """The first sitting of a run: it is killed when the refit begins."""

    def run(self, search: Search, site: Site, stopped: StopFlag) -> None:
        ask = search.ask

        def until_the_refit() -> Slice | Wait | Done:
            answer = ask()
            if isinstance(answer, Slice) and answer.trial.twin is not None:
                raise KeyboardInterrupt
            return answer

        search.ask = until_the_refit
        super().run(search, site, stopped)


def sitting_of(run: Run, runner: Runner) -> Sitting:
    now = time.time()
    return Sitting(run.host(), runner, Notes(), Stopwatch(now), RunClock(now - 5.0, run.record.study.time))


def test_from_a_kill_in_the_refit_to_the_bundle_of_the_refit_and_back_to_its_twin(
    run: Run, worker: Worker, tmp_path: Path
) -> None:
    probe = tuple(one for one in run.record.candidates if one.freeze == "probe")
    short = replace(run, record=replace(run.record, candidates=probe))
    run.folder.study.write_text(encode(short.record))
    with pytest.raises(KeyboardInterrupt):
        execute(short, sitting_of(short, KilledInTheRefit()))
    assert [record.state for record in short.ledger().trials.values()] == ["finished", "queued"]
    summary = execute(short, sitting_of(short, InlineRunner()))
    assert (summary.best.trial, summary.best.twin, summary.best.train_on) == (1, 0, "train+val")
    assert summary.finalists == (Parent(1, 1.0),)
    shown = summary.validation.metrics["accuracy"]
    assert shown == short.ledger().trials[0].score
    known = decode(KnownImages, (run.folder.export / "images.json").read_text())
    counts = run.record.data.counts
    assert known.train_on == "train+val"
    card = (run.folder.export / "MODEL_CARD.md").read_text()
    both = counts["train"] + counts["val"]
    assert f"trained on all {both} training and validation images (trial 1, a refit)" in card
    assert f"come from trial 0, the same training on\nall {counts['train']} training images, scored on" in card
    assert "calibrated" not in card  # on so few validation images
    report = decode(MetricsReport, (run.folder.export / "metrics.json").read_text())
    written = decode(Manifest, (run.folder.export / "manifest.json").read_text())
    assert report.origin == written.origin == Origin(1, "train+val", 0)
    assert (report.split, report.of_trial, report.test_openings) == ("test", None, 1)
    again = BundleMaker(short, short.ledger(), worker.shop, Stopwatch(0.0)).make(
        short.ledger().trials[1], tmp_path / "extended", Wanted(QUICK, "image", "test")
    )
    assert again.report.test_openings == 2
    assert "scored 2 times in this run's life" in (tmp_path / "extended" / "MODEL_CARD.md").read_text()
    notes = Notes()
    exported = export_trial(short, (), ExportWish(1, tmp_path / "again", "image"), notes)
    assert exported.validation.metrics["accuracy"] == shown
    report = decode(MetricsReport, (tmp_path / "again" / "metrics.json").read_text())
    assert (report.split, report.of_trial, report.test_openings) == ("val", 0, 0)
    card = (tmp_path / "again" / "MODEL_CARD.md").read_text()
    assert "figures are not its own" in card and "Trial 0, whose refit this model is, was scored on" in card
    for path in run.folder.checkpoints.glob("00001-*.safetensors"):
        path.write_bytes(b"damaged")
    best = export_trial(short, (), ExportWish(None, tmp_path / "twin", "image"), notes)
    assert best.trial.id == 0
    assert any(note.startswith("trial 1 is passed over: ") for note in notes.lines)


def test_figures_and_calibration_of_a_refit_are_its_twins(tiny_images: Path, tmp_path: Path) -> None:
    data = dataset(tiny_images, {(SIZE, "bicubic", "crop")})
    model, targets = Tiny(3).eval(), data.targets("val")
    made = handoff(labels=data.info.targets.names)
    refit = replace(made, trial=replace(made.trial, id=4, train_on="train+val", twin=Parent(3, 1.0)))
    wrong = -5.0 * np.eye(3, dtype=np.float32)[targets]  # the twin took every image for another class
    order = Order(refit, lambda x: torch_logits(model, x), data, "val", QUICK, "image", {}, twin=wrong)
    exports = OnnxExporter().export(model, refit, tmp_path / "b")
    bundle = write_bundle(order, exports, tmp_path / "b", Stopwatch(0))
    assert bundle.validation.metrics["accuracy"] == 0.0
    assert bundle.calibration == data.task.calibrate(wrong, targets)
    assert bundle.report.of_trial == 3
    tested = replace(order, reported="test")
    reported = write_bundle(tested, OnnxExporter().export(model, refit, tmp_path / "t"), tmp_path / "t", Stopwatch(0))
    assert reported.validation.metrics["accuracy"] == 0.0
    assert reported.scores.metrics["accuracy"] > 0.0  # the file's own
    assert reported.report.of_trial is None
