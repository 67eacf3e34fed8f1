"""The built-in searchers: conformance, and how halving spends a budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from autoft.builtin.searchers import Asha, Grid, Halving, OneEpoch, Random
from autoft.builtin.searchers.halving import RUNGS
from autoft.parts.base import Problem, Searcher
from autoft.testing import SearcherConformance
from autoft.testing.simulation import simulate
from autoft.values.ledger import Ledger
from autoft.values.space import Choice, Float, Int, Space
from autoft.values.trial import DONE, WAIT, Candidate, Clock, Costs, Queued, Report, Slice


class TestRandom(SearcherConformance):
    def part(self):
        return Random()


class TestHalving(SearcherConformance):
    def part(self):
        return Halving()


class TestAsha(SearcherConformance):
    def part(self):
        return Asha()


class TestGrid(SearcherConformance):
    def part(self):
        return Grid()


class TestOneEpoch(SearcherConformance):
    def part(self):
        return OneEpoch()


def problem(backbones=("z/a", "z/b", "z/c"), strategies=("full", "last"), **limits):
    space = Space({"lr": Float(1e-4, 1e-2, log=True)}, starts=({"lr": 1e-3},))
    probes = [Candidate(name, "probe", 64, Space({}), "closed_form", prior=0.7) for name in backbones]
    raced = [Candidate(name, strategy, 64, space) for name in backbones for strategy in strategies]
    return Problem((*probes, *raced), seed=0, workers=limits.pop("workers", 1), **limits)


class Play:
    """A search by hand: one slice at a time, its score and seconds given."""

    def __init__(self, asked, searcher=None, deadline=100.0):
        self.searcher = searcher or Halving()
        self.problem, self.ledger, self.now, self.deadline = asked, Ledger(), 0.0, deadline

    def ask(self):
        return self.searcher.ask(self.problem, self.ledger, Clock(self.now, self.deadline))

    def start(self):
        answer = self.ask()
        assert isinstance(answer, Slice), answer
        self.ledger.record(Queued(answer.trial.id, answer, Clock(self.now, self.deadline)))
        return answer

    def report(self, slice_, score, seconds=1.0, event=None, **facts):
        self.now += seconds
        ended = slice_.trial.freeze == "probe" or slice_.until >= RUNGS[-1]
        known = event or ("finished" if ended else "paused")
        step = slice_.start if event == "failed" else slice_.until
        value = None if event == "failed" else score
        self.ledger.record(Report(slice_.trial.id, known, step, value, seconds, elapsed=self.now, **facts))

    def probes(self, scores):
        for name, score in scores.items():
            started = self.start()
            assert started.trial.freeze == "probe"
            self.report(started, scores[started.trial.backbone] if name else score)


def test_every_backbone_is_probed_first():
    play = Play(problem())
    seen = [play.start() for _ in range(3)]
    assert {slice_.trial.backbone for slice_ in seen} == {"z/a", "z/b", "z/c"}
    assert {slice_.trial.freeze for slice_ in seen} == {"probe"}


def test_race_begins_with_the_best_probe_and_the_first_start():
    play = Play(problem())
    play.probes({"z/a": 0.5, "z/b": 0.9, "z/c": 0.7})
    first = play.start()
    assert (first.trial.backbone, first.trial.freeze, first.until) == ("z/b", "full", RUNGS[0])
    assert first.trial.params == {"lr": 1e-3}


def test_the_race_begins_with_the_probe_that_is_best_out_of_fold_where_that_is_known():
    play = Play(problem())
    scores, folds = {"z/a": 0.5, "z/b": 0.9, "z/c": 0.7}, {"z/a": 0.6, "z/b": 0.65, "z/c": 0.8}
    for _ in scores:
        probe = play.start()
        play.report(probe, scores[probe.trial.backbone], folds=folds[probe.trial.backbone])
    assert play.start().trial.backbone == "z/c"


def test_the_better_half_goes_on_without_waiting():
    play = Play(problem(("z/a",)), deadline=1000.0)
    play.probes({"z/a": 0.5})
    for score in (0.6, 0.8):
        play.report(play.start(), score)
    promoted = play.start()
    assert (promoted.trial.id, promoted.start, promoted.until) == (2, RUNGS[0], RUNGS[1])


def test_late_time_belongs_to_the_best():
    play = Play(problem(("z/a",)))
    play.probes({"z/a": 0.5})
    play.report(play.start(), 0.9)
    play.now = 80.0
    more = play.start()
    assert (more.trial.id, more.start) == (1, RUNGS[0])


def test_a_failed_trial_is_never_gone_on_with():
    play = Play(problem(("z/a",)))
    play.probes({"z/a": 0.5})
    failed = play.start()
    play.report(failed, 0.0, event="failed")
    while isinstance(answer := play.ask(), Slice) and play.now < 100:
        assert answer.trial.id != failed.trial.id
        play.report(play.start(), 0.5, seconds=5.0)


def test_time_over_is_done_once_nothing_is_in_flight():
    play = Play(problem(workers=2))
    running = play.start()
    play.now = 200.0
    assert play.ask() == WAIT
    play.report(running, 0.5)
    assert play.ask() == DONE


def test_trials_limit_counts_probes_too():
    play = Play(problem(trials=4), deadline=1e9)
    ids = set()
    while isinstance(play.ask(), Slice):
        started = play.start()
        ids.add(started.trial.id)
        play.report(started, 0.5)
    assert ids == {0, 1, 2, 3}


def test_the_trials_that_there_may_be_are_trained_to_their_end():
    play = Play(problem(("z/a",), trials=4), deadline=1e9)
    while isinstance(play.ask(), Slice):
        play.report(started := play.start(), 0.5 + started.trial.id / 10)
    assert play.ask() == DONE
    assert [record.step for record in play.ledger.trials.values()] == [1.0, *[RUNGS[-1]] * 3]


def test_one_trial_is_one_trial():
    play = Play(problem(trials=1))
    play.report(play.start(), 0.5)
    assert play.ask() == DONE


def test_what_only_fails_is_given_up():
    play = Play(problem(("z/a",)), deadline=1e9)
    asked = 0
    while isinstance(play.ask(), Slice):
        play.report(play.start(), 0.0, event="failed")
        asked += 1
    assert asked == 1 + 2 * 2  # the probe, and two tries of each strategy


def test_a_probe_on_a_part_of_the_images_is_done_again_when_there_is_time():
    play = Play(problem(("z/a",)), deadline=20.0)
    play.report(play.start(), 0.5, seconds=8.0, share=0.1)
    assert play.start().trial.freeze != "probe"  # as long again would not change much
    longer = Play(problem(("z/a",)), deadline=600.0)
    longer.report(longer.start(), 0.5, seconds=8.0, share=0.1)
    again = longer.start()
    assert (again.trial.freeze, again.trial.id) == ("probe", 1)
    longer.report(again, 0.9)
    assert longer.start().trial.freeze != "probe"


MOST = {"seconds": 84.0, "share": 0.77, "costs": Costs(scoring=18.0, image=0.0045, solving=7.5)}
"""Of a probe whose rest takes 17 and another 10 s."""


@pytest.mark.parametrize(("left", "freeze"), [(40.0, "full"), (45.0, "probe")])  # all of which it may take
def test_a_probe_on_most_of_the_images_is_done_again_when_the_rest_fits(left, freeze):
    play = Play(problem(("z/a",)), deadline=84.0 + left)
    play.report(play.start(), 0.5, **MOST)
    asked = play.start()
    assert (asked.trial.freeze, asked.deadline) == (freeze, play.deadline)


def test_a_probe_whose_rest_fitted_is_not_done_a_third_time():
    play = Play(problem(("z/a",)), deadline=250.0)
    play.report(play.start(), 0.5, **MOST)
    play.report(play.start(), 0.6, **MOST | {"seconds": 5.0, "share": 0.9})
    assert play.start().trial.freeze != "probe"


def test_the_rest_of_a_probe_waits_for_those_that_were_not_tried_and_leaves_them_their_time():
    play = Play(problem(("z/a", "z/b")), deadline=600.0)
    play.report(play.start(), 0.5, **MOST)
    other = play.start()
    assert other.trial.backbone == "z/b"
    assert other.deadline == pytest.approx(84.0 + (600.0 - 84.0) / 2)
    play.report(other, 0.4)
    again = play.start()
    assert (again.trial.backbone, again.trial.freeze) == ("z/a", "probe")


def test_the_last_trial_is_not_spent_on_the_rest_of_a_probe():
    play = Play(problem(("z/a",), trials=2), deadline=600.0)
    play.report(play.start(), 0.5, **MOST)
    assert play.start().trial.freeze != "probe"


def test_a_rest_that_no_worker_took_is_asked_for_again():
    play = Play(problem(("z/a",)), deadline=600.0)
    play.report(play.start(), 0.5, **MOST)
    again = play.start()
    play.ledger.record(Report(again.trial.id, "paused", 0.0, None, 0.0, elapsed=play.now))
    assert play.start().trial == again.trial


def test_a_probe_of_features_that_were_kept_says_nothing_of_what_scoring_takes():
    play = Play(problem(("z/a", "z/b")), deadline=100.0)
    play.report(play.start(), 0.5, seconds=1.0, costs=Costs(scoring=18.0))
    play.report(play.start(), 0.5, seconds=1.0, costs=Costs(scoring=0.0))
    others = replace(play.problem, candidates=(*play.problem.candidates, *problem(("z/c",)).candidates))
    play.problem, play.now = others, 85.0
    assert not isinstance(play.ask(), Slice) or play.ask().trial.freeze != "probe"


@pytest.mark.parametrize("event", ["finished", "failed"])
def test_a_refit_of_such_a_probe_is_none(event):
    """The run that goes on later has time for all the images."""
    play = Play(problem(("z/a",)), deadline=20.0)
    play.report(play.start(), 0.5, seconds=8.0, share=0.1)
    refit = Slice(play.ledger.trials[0].refit(1), 0.0, 1.0, 20.0)
    play.ledger.record(Queued(1, refit, Clock(play.now, 20.0)))
    play.ledger.record(Report(1, event, 1.0, None, 3.0, elapsed=11.0))
    play.deadline = 600.0
    assert play.start().trial.freeze == "probe"


def test_a_probe_that_no_worker_took_is_asked_for_again():
    play = Play(problem(("z/a",)), deadline=600.0)
    asked = play.start()
    play.ledger.record(Report(asked.trial.id, "paused", 0.0, None, 1.0, elapsed=1.0))
    assert play.start().trial == asked.trial


def test_a_probe_that_no_worker_took_uses_up_no_trial():
    play = Play(problem(("z/a",), trials=1), deadline=600.0)
    asked = play.start()
    play.ledger.record(Report(asked.trial.id, "paused", 0.0, None, 0.0, elapsed=10.0))
    again = play.start()
    assert again.trial == asked.trial
    play.report(again, 0.5)
    assert play.ask() == DONE


def test_a_probe_that_was_given_back_for_its_time_does_not_end_the_search():
    """It had half of what was left; the race goes on, and it is tried again only with a multiple of that."""
    play = Play(problem(("z/a", "z/b")), deadline=100.0)
    play.report(play.start(), 0.5)
    late = play.start()
    assert late.trial.freeze == "probe"
    play.now += 20.0
    play.ledger.record(Report(late.trial.id, "paused", 0.0, None, 20.0, elapsed=play.now))
    assert play.start().trial.freeze != "probe"
    later = Play(problem(("z/a",)), deadline=1000.0)
    given_back = later.start()
    later.ledger.record(Report(given_back.trial.id, "paused", 0.0, None, 20.0, elapsed=0.0))
    assert later.start().trial.freeze == "probe"


def test_what_a_worker_gave_back_is_not_asked_for_again_in_less_time():
    """Otherwise the last seconds, too few for a step and its score, would fill the journal."""
    play = Play(problem(("z/a",), strategies=("full",)), deadline=30.0)
    play.probes({"z/a": 0.5})
    play.report(play.start(), 0.9)
    asked = play.start()
    play.ledger.record(Report(asked.trial.id, "paused", asked.start, None, 0.1, elapsed=play.now))
    for deadline in (30.0, 30.9):
        play.deadline = deadline
        assert play.ask() == DONE
    play.deadline = 32.0
    assert isinstance(play.ask(), Slice)


@pytest.mark.parametrize("searcher", [Halving(), Random(), Asha(), Grid(), OneEpoch()], ids=str)
def test_a_run_that_ended_with_a_slice_given_back_goes_on_with_more_time(searcher: Searcher):
    """The time of the run stands still between its sittings, so what was given back last was so just now."""
    play = Play(raced_only(), searcher, deadline=30.0)
    while isinstance(play.ask(), Slice):
        given_back(play, play.start())
    play.deadline = 630.0
    assert isinstance(play.ask(), Slice)


def test_another_backbone_may_still_fit_where_one_has_no_time_left():
    play = Play(problem(("z/a", "z/b"), strategies=("full",)), deadline=30.0)
    play.probes({"z/a": 0.5, "z/b": 0.6})
    play.report(play.start(), 0.9)
    play.now = 20.0
    late = play.start()
    play.ledger.record(Report(late.trial.id, "paused", late.start, None, 0.1, elapsed=play.now))
    other = play.start()
    assert (late.trial.backbone, other.trial.backbone) == ("z/b", "z/a")
    play.ledger.record(Report(other.trial.id, "paused", other.start, None, 0.1, elapsed=play.now))
    assert play.ask() == DONE


def test_late_a_candidate_is_taken_that_fits():
    """Twice as dear a strategy has had fewer turns, and does not."""
    asked = problem(("z/a",))
    dear = tuple(replace(one, cost=2.0) if one.freeze == "full" else one for one in asked.candidates)
    play = Play(replace(asked, candidates=dear), deadline=30.0)
    play.probes({"z/a": 0.5})
    for _ in range(2):
        started = play.start()
        play.report(
            started,
            0.5,
            event="finished",
            costs=Costs(step=0.8 * (1 + (started.trial.freeze == "full")), steps_a_pass=10),
        )
    play.now = 30.0 - 3.0
    assert play.start().trial.freeze == "last"


def test_no_probe_is_begun_that_could_not_even_be_scored():
    play = Play(problem(("z/a", "z/b"), strategies=()), deadline=30.0)
    play.report(play.start(), 0.5, costs=Costs(scoring=5.0))
    play.now = 26.0
    assert play.ask() == DONE
    play.deadline = 60.0
    assert play.start().trial.freeze == "probe"


def given_back(play: Play, asked: Slice, seconds: float = 0.0) -> None:
    play.ledger.record(Report(asked.trial.id, "paused", asked.start, None, seconds, elapsed=play.now))


@pytest.mark.parametrize("searcher", [Halving(), Random()])
def test_a_trial_given_back_before_its_first_step_goes_on_as_the_same_with_more_time(searcher: Searcher):
    """As when the run is resumed with more; not before, since it would only be given back once more."""
    play = Play(problem(("z/a",), strategies=("full",)), searcher, deadline=30.0)
    asked = play.start()
    while asked.trial.freeze == "probe":
        play.report(asked, 0.5)
        asked = play.start()
    given_back(play, asked)
    play.now += 6.0
    in_the_same_time = play.ask()
    assert in_the_same_time == DONE or in_the_same_time.trial.id != asked.trial.id
    play.deadline = 600.0
    assert (play.start().trial, len(play.ledger.trials)) == (asked.trial, asked.trial.id + 1)


def cut_short(play: Play, asked: Slice, step: float) -> None:
    """By its deadline, with a score."""
    play.now = play.deadline
    play.ledger.record(Report(asked.trial.id, "paused", step, 0.5, 9.0, elapsed=play.now))


def test_random_ends_a_trial_that_was_cut_short_before_it_begins_another():
    play = Play(problem(("z/a",), strategies=("full",), trials=3), Random(), deadline=30.0)
    first = play.start()
    while first.trial.freeze == "probe":
        play.report(first, 0.5)
        first = play.start()
    cut_short(play, first, 4.0)
    play.deadline += 20.0  # less than it had
    again = play.start()
    assert (again.trial, again.start, again.until, again.deadline) == (first.trial, 4.0, first.until, play.deadline)
    given_back(play, again)  # no time for a step: not to be asked for at once, over and over
    assert play.ask() != replace(again, deadline=play.deadline)
    play.deadline = 600.0
    again = play.start()
    assert (again.trial, again.start) == (first.trial, 4.0)
    play.report(again, 0.6)  # paused where it was to go, which is not where its plan ends
    assert play.ask() == DONE or play.ask().trial.id != first.trial.id


def test_random_leaves_a_trial_that_cannot_go_on():
    """Its checkpoint is not kept, or its backbone is not on offer."""
    play = Play(problem(("z/a",), strategies=("full",)), Random(), deadline=30.0)
    asked = play.start()
    while asked.trial.freeze == "probe":
        play.report(asked, 0.5)
        asked = play.start()
    cut_short(play, asked, 4.0)
    play.deadline = 600.0
    assert play.ask().trial == asked.trial
    whole, play.problem = play.problem, problem(("z/b",), strategies=("full",))
    assert play.ask().trial.id != asked.trial.id
    play.problem = whole
    play.ledger.with_checkpoint = frozenset
    assert play.ask().trial.id != asked.trial.id


@pytest.mark.parametrize("searcher", [Halving(), Random()])
def test_a_trial_given_back_uses_up_no_trial(searcher: Searcher):
    play = Play(problem(("z/a",), strategies=("full",), trials=2), searcher, deadline=30.0)
    last = [play.start()]
    play.report(last[0], 0.5)
    last.append(play.start())
    given_back(play, last[1])
    play.now += 6.0
    assert play.ask() == DONE
    play.deadline = 600.0
    assert play.start().trial == last[1].trial


def test_there_has_to_be_time_for_the_score_too():
    play = Play(problem(("z/a",), strategies=("full",)), deadline=30.0)
    play.probes({"z/a": 0.5})
    play.report(play.start(), 0.9, costs=Costs(scoring=20.0))
    assert isinstance(play.ask(), Slice)
    play.now = 15.0
    assert play.ask() == DONE


def test_what_fails_without_parameters_is_not_tried_again():
    fixed, free = (
        Candidate("z/a", "fixed", 64, Space({})),
        Candidate("z/a", "free", 64, Space({"lr": Float(1e-4, 1e-2)})),
    )
    play, tried = Play(Problem((fixed, free), seed=0, workers=1)), []
    while isinstance(answer := play.ask(), Slice):
        play.ledger.record(Queued(answer.trial.id, answer, Clock(play.now, play.deadline)))
        play.report(answer, 0.0, event="failed")
        tried.append(answer.trial.freeze)
    assert sorted(tried) == ["fixed", "free", "free"]


def races(a_pass: float, besides: float) -> tuple[list[Slice], Play]:
    """The slices of a race in which a pass and all else in a slice take so many seconds."""
    play = Play(problem(("z/a",)), deadline=100.0)
    play.probes({"z/a": 0.5})
    slices = []
    while isinstance(play.ask(), Slice):
        slices.append(asked := play.start())
        seconds = besides + a_pass * (asked.until - asked.start)
        score = 0.6 + asked.trial.id % 7 / 100
        play.report(asked, score, seconds, costs=Costs(step=a_pass / 10, steps_a_pass=10))
    return slices, play


def test_where_passes_cost_next_to_nothing_slices_are_long():
    slices, play = races(a_pass=0.02, besides=1.0)
    assert {slice_.until for slice_ in slices[2:]} == {RUNGS[-1]}
    raced = [record for record in play.ledger.trials.values() if record.trial.freeze != "probe"]
    assert all(record.step == RUNGS[-1] for record in raced), "the first ones go on to the same rung"
    assert len(raced) > 50


def test_where_passes_take_as_long_as_all_else_slices_begin_short():
    slices, _ = races(a_pass=1.0, besides=0.9)
    assert {slice_.until for slice_ in slices if slice_.start == 0.0} == {RUNGS[0]}


def test_a_rung_between_the_two_is_found():
    slices, _ = races(a_pass=0.2, besides=1.0)
    assert {slice_.until for slice_ in slices[2:] if slice_.start == 0.0} == {RUNGS[2]}


def raced_only(strategies=("full", "last"), space=None, **limits):
    """Candidates that all train by gradient."""
    asked = problem(("z/a", "z/b"), strategies, **limits)
    raced = [one for one in asked.candidates if one.fit == "gradient"]
    return replace(asked, candidates=tuple(replace(one, space=space or one.space) for one in raced))


def test_asha_promotes_the_best_third_of_a_rung_from_the_highest_down():
    play = Play(raced_only(), Asha(), deadline=1000.0)
    for score in (0.5, 0.7):
        asked = play.start()
        assert (asked.start, asked.until) == (0.0, 1.0)
        play.report(asked, score)
    play.report(play.start(), 0.6)
    promoted = play.start()
    assert (promoted.trial.id, promoted.start, promoted.until) == (1, 1.0, 3.0)
    play.report(promoted, 0.8)
    assert play.start().trial.id == 3, "one of three has gone on: a new one"


def test_heads_in_closed_form_are_none_of_a_rung_of_asha():
    """They are through after their only pass: to count them would send a trial on that is the best of two."""
    raced = raced_only(("full",))
    probe = Candidate("z/a", "probe", 64, Space({}), "closed_form")
    play = Play(replace(raced, candidates=(probe,)), Asha(), deadline=1000.0)
    play.report(play.start(), 0.9)
    play.problem = replace(raced, candidates=(probe, *raced.candidates))
    for score in (0.5, 0.7):
        play.report(play.start(), score)
    asked = play.ask()
    assert (asked.trial.id, asked.start) == (3, 0.0), "of two trials none is a third"


@pytest.mark.parametrize("keep", [1, 5])
def test_asha_keeps_the_rungs_of_the_paper(keep: int):
    """Of each rung a third has gone on, to the end, though few checkpoints are kept.

    It may be more, as whoever was among the best third when it went on may not be for long.
    """
    run = simulate(Asha(), raced_only(), seconds=1000.0, keep=keep)
    for ledger in (Ledger(run.events[: len(run.events) // 2]), Ledger(run.events)):
        reached = [sum(record.step >= rung - 1e-6 for record in ledger.trials.values()) for rung in RUNGS]
        assert all(below / 4 < above <= below / 2 for below, above in pairwise(reached[:-1]))
    assert run.done
    assert {one.start for one in run.slices} <= {0.0, *RUNGS}


def test_halving_promotes_as_long_as_it_runs():
    """Nearly half of each rung, as few checkpoints as are kept: many small trials would crowd it out."""
    run = simulate(Halving(), problem(), seconds=1000.0)
    started = [one for one in run.slices if one.trial.freeze != "probe"]
    late = started[len(started) // 2 :]
    assert sum(one.start > 0.0 for one in late) > len(late) / 3


def test_asha_trains_on_with_the_trials_that_there_may_be():
    play = Play(raced_only(trials=3), Asha(), deadline=1e9)
    while isinstance(play.ask(), Slice):
        play.report(started := play.start(), 0.5 + started.trial.id / 10)
    assert [record.step for record in play.ledger.trials.values()] == [RUNGS[-1]] * 3


SMALL = Space(
    {
        "lr": Float(1e-4, 1e-1, log=True),
        "decay": Float(0.0, 0.3),
        "layers": Int(1, 2),
        "width": Int(1, 100),
        "how": Choice(("a", "b")),
        "fixed": Float(0.5, 0.5),
    }
)


def test_a_grid_has_every_point_once():
    asked = raced_only(("full",), SMALL)
    run = simulate(Grid(), asked, seconds=1e9)
    trials = [record.trial for record in Ledger(run.events).trials.values()]
    points = Counter((trial.backbone, *trial.params.values()) for trial in trials)
    assert set(points.values()) == {1}
    assert len(points) == 2 * 3 * 3 * 2 * 3 * 2 * 1
    assert Grid().remark(asked) == "the grid has 216 points"
    assert sorted({trial.params["lr"] for trial in trials}) == pytest.approx([10**-3.5, 10**-2.5, 10**-1.5])
    assert sorted({trial.params["decay"] for trial in trials}) == pytest.approx([0.05, 0.15, 0.25])
    assert {trial.params["layers"] for trial in trials} == {1, 2}
    assert {trial.params["width"] for trial in trials} == {18, 50, 84}


def test_a_grid_cut_short_by_time_lies_evenly():
    asked = raced_only(("full",), SMALL)
    run = simulate(Grid(), asked, seconds=9.0 * 36)
    trials = [slice_.trial for slice_ in run.slices]
    assert len(trials) == 36
    for name in ("backbone", "lr", "width", "how"):
        of = Counter(trial.backbone if name == "backbone" else trial.params[name] for trial in trials)
        assert max(of.values()) - min(of.values()) <= 4, f"{name}: {of}"


def test_a_grid_says_that_not_all_of_it_is_tried():
    assert Grid().remark(raced_only(("full",), SMALL, trials=20)) == "the grid has 216 points, of which 20 are tried"


def test_a_grid_that_is_through_goes_on_with_the_best():
    play = Play(raced_only(("full",), Space({"how": Choice(("a", "b"))})), Grid(), deadline=1e9)
    for score in (0.4, 0.7, 0.6, 0.5):
        play.report(play.start(), score)
    more = play.start()
    assert (more.trial.id, more.start, more.until) == (1, 9.0, 27.0)


def test_one_epoch_goes_on_with_the_best_first_pass_alone():
    play = Play(problem(("z/a", "z/b")), OneEpoch(), deadline=1000.0)
    firsts = []
    for score in (0.5, 0.6, 0.9, 0.55, 0.7, 0.8):
        firsts.append(play.start())
        play.report(firsts[-1], score)
    assert len({(one.trial.backbone, one.trial.freeze) for one in firsts}) == 6
    assert all((one.start, one.until) == (0.0, 1.0) for one in firsts)
    assert all(one.trial.params == {"lr": 1e-3} for one in firsts if one.trial.freeze != "probe")
    for until in (3.0, 9.0, 27.0):
        more = play.start()
        assert (more.trial.id, more.until) == (2, until)
        play.report(more, 0.6)  # worse than others were: it is not judged again
    assert play.start().trial.id == 5, "the first is through, so the next has the time"


def test_one_epoch_ranks_when_every_pair_has_had_its_pass():
    play = Play(raced_only(("full",), workers=2), OneEpoch(), deadline=1000.0)
    first, second = play.start(), play.start()
    play.report(first, 0.5)
    assert play.ask() == WAIT
    play.report(second, 0.6)
    assert [play.start().trial.id, play.start().trial.id] == [1, 0]


def test_one_epoch_tries_what_failed_once_more():
    play, tried = Play(raced_only(("full",)), OneEpoch(), deadline=1e9), []
    while isinstance(play.ask(), Slice):
        tried.append(asked := play.start())
        play.report(asked, 0.0, event="failed")
    assert Counter(one.trial.backbone for one in tried) == {"z/a": 2, "z/b": 2}
    assert len({str(one.trial.params) for one in tried if one.trial.backbone == "z/a"}) == 2


OTHERS = [Asha(), Grid(), OneEpoch()]


@pytest.mark.parametrize("searcher", OTHERS, ids=str)
def test_a_slice_cut_short_by_the_time_is_ended_first_when_there_is_more(searcher: Searcher):
    play = Play(raced_only(), searcher, deadline=30.0)
    asked = play.start()
    play.now = 30.0
    play.ledger.record(Report(asked.trial.id, "paused", 0.5, 0.6, 30.0, elapsed=30.0))
    assert play.ask() == DONE
    play.deadline = 300.0
    rest = play.start()
    assert (rest.trial, rest.start, rest.until) == (asked.trial, 0.5, asked.until)


@pytest.mark.parametrize("searcher", OTHERS, ids=str)
def test_what_was_given_back_is_the_same_trial_with_more_time(searcher: Searcher):
    play = Play(raced_only(trials=1), searcher, deadline=30.0)
    asked = play.start()
    given_back(play, asked)
    play.now += 6.0
    assert play.ask() == DONE
    play.deadline = 600.0
    assert play.start().trial == asked.trial


@pytest.mark.parametrize("searcher", OTHERS, ids=str)
def test_nothing_is_begun_that_the_time_does_not_hold(searcher: Searcher):
    """Neither a new trial nor a rest whose pass and score take longer than is left."""
    asked = raced_only()
    of_one = tuple(one for one in asked.candidates if one.backbone == "z/a")
    play = Play(replace(asked, candidates=of_one), searcher, deadline=100.0)
    play.report(play.start(), 0.5, costs=Costs(step=1.0, steps_a_pass=20, scoring=10.0))
    play.now = 100.0 - 14.0  # a quarter of a pass and the score take 15 s
    assert play.ask() == DONE
    play.now = 100.0 - 16.0
    assert isinstance(play.ask(), Slice)


@pytest.mark.parametrize(
    ("costs", "least"),
    [
        (Costs(step=1.0, steps_a_pass=400, scoring=10.0), 20.0),
        (Costs(step=1.0, steps_a_pass=400, scoring=10.0, saving=2.0), 22.0),
        (Costs(step=9.6, steps_a_pass=300, scoring=5.0), 14.6),  # one step is always taken
        (Costs(step=0.1, steps_a_pass=40, scoring=10.0), 12.0),
    ],
)
def test_of_very_many_images_a_trial_goes_on_for_as_long_as_it_takes_to_score_it(costs, least):
    """A pass over them takes minutes, and a quarter of one more than the rest of a search."""
    play = Play(replace(raced_only(), trials=1), deadline=200.0)
    play.report(play.start(), 0.5, costs=costs)
    play.now = 200.0 - least + 0.5
    assert play.ask() == DONE
    play.now = 200.0 - least - 0.5
    assert play.start().start == RUNGS[0]


@pytest.mark.parametrize("searcher", OTHERS, ids=str)
def test_the_last_seconds_do_not_fill_the_journal(searcher: Searcher):
    play = Play(raced_only(), searcher, deadline=30.0)
    asked = 0
    while isinstance(play.ask(), Slice):
        given_back(play, play.start())
        asked += 1
    assert asked <= 2, "once a backbone"


@pytest.mark.parametrize("searcher", OTHERS, ids=str)
def test_only_what_is_still_offered_goes_on(searcher: Searcher):
    """Towards the end of a run candidates are left out whose export would not fit."""
    play = Play(raced_only(("full",)), searcher, deadline=1000.0)
    first = play.start()
    play.ledger.record(Report(first.trial.id, "paused", 0.5, 0.9, 1.0, elapsed=1.0))
    left = tuple(one for one in play.problem.candidates if one.backbone != first.trial.backbone)
    play.problem = replace(play.problem, candidates=left)
    for _ in range(5):
        if isinstance(play.ask(), Slice):
            asked = play.start()
            assert asked.trial.backbone != first.trial.backbone
            play.report(asked, 0.5)
