from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.values.codec import decode, encode
from autoft.values.ledger import Kept, Ledger
from autoft.values.trial import (
    Allowance,
    Clock,
    Costs,
    Event,
    Lost,
    Parent,
    Queued,
    Report,
    Slice,
    Started,
    Stopped,
    Trial,
)


def queued(number: int, start: float = 0.0, elapsed: float = 0.0, deadline: float = 60.0) -> Queued:
    trial = Trial(number, "zoo/b", "full", 32, {"rate": 0.1}, number)
    return Queued(number, Slice(trial, start, start + 1, deadline), Clock(elapsed, 60.0))


def child(number: int, parents: tuple[Parent, ...], start: float = 0.0) -> Queued:
    trial = Trial(number, "zoo/b", "full", 32, {"rate": 0.1}, number, parents)
    return Queued(number, Slice(trial, start, start + 1, 60.0), Clock(0.0, 60.0))


def test_the_precision_of_a_trial_is_that_of_the_steps_to_its_best_score() -> None:
    events: list[Event] = []
    for start, score, precision in ((0.0, 0.5, "fp32, channels last"), (1.0, 0.8, "bf16, contiguous"), (2.0, 0.6, "x")):
        facts = {"precision": precision}
        events += [queued(0, start), Report(0, "paused", start + 1, score, 1.0, facts)]
    known = [Ledger(events[:count]).trials[0].precision for count in (1, 2, 6)]
    assert known == ["", "fp32, channels last", "bf16, contiguous"]


@st.composite
def journals(draw: st.DrawFn) -> list[Event]:
    """Journals as a run writes them: slices wait, start, pause, go on, finish and fail in any order.

    A slice that was cut short, or has lost its process, is handed out and starts again; one that no worker took is
    reported without having started.
    """
    events: list[Event] = []
    running: dict[int, float] = {}
    paused: dict[int, float] = {}
    new, elapsed = 0, 0.0
    for _ in range(draw(st.integers(0, 25))):
        elapsed += draw(st.floats(0, 10))
        moves = ["ask", "stop"] + ["start", "lose", "again", "report"] * bool(running) + ["go on"] * bool(paused)
        move = draw(st.sampled_from(moves))
        if move == "ask":
            events.append(queued(new, 0.0, elapsed))
            running[new] = 0.0
            new += 1
        elif move == "stop":
            events.append(Stopped(elapsed))
        elif move == "go on":
            number = draw(st.sampled_from(sorted(paused)))
            running[number] = paused.pop(number)
            events.append(queued(number, running[number], elapsed))
        elif move == "again":
            number = draw(st.sampled_from(sorted(running)))
            events.append(queued(number, running[number], elapsed, deadline=60.0 + elapsed))
        elif move == "start":
            events.append(Started(draw(st.sampled_from(sorted(running))), elapsed))
        elif move == "lose":
            why = draw(st.sampled_from(["memory", "unknown"]))
            events.append(Lost(draw(st.sampled_from(sorted(running))), why, "gone", elapsed))
        else:
            number = draw(st.sampled_from(sorted(running)))
            step = running.pop(number) + 1
            ending = draw(st.sampled_from(["paused", "finished", "failed"]))
            score = None if ending == "failed" else draw(st.integers(0, 1000)) / 1000
            facts = {"images_at_once": draw(st.integers(1, 9)), "device": "this"} if draw(st.booleans()) else {}
            is_head = ending == "finished" and step == 1.0  # a head in closed form has one slice with a score
            folds = draw(st.integers(0, 1000)) / 1000 if is_head and draw(st.booleans()) else None
            seconds = draw(st.floats(0, 9))
            events.append(Report(number, ending, step, score, seconds, facts, elapsed=elapsed, folds=folds))
            if ending == "paused":
                paused[number] = step
    return events


def contents(ledger: Ledger) -> object:
    allowances = [ledger.allowance(record.trial) for record in ledger.trials.values()]
    rest = ledger.elapsed, ledger.ranking(), ledger.with_checkpoint()
    return dict(ledger.trials), ledger.in_flight, allowances, rest


@given(journals())
def test_a_journal_read_back_gives_the_same_ledger(events: list[Event]) -> None:
    lines = [encode(event) for event in events]
    assert contents(Ledger(decode(Event, line) for line in lines)) == contents(Ledger(events))


@given(journals(), st.integers(0, 25))
def test_recording_goes_on_where_a_run_stopped(events: list[Event], at: int) -> None:
    ledger = Ledger(events[:at])
    for event in events[at:]:
        ledger.record(event)
    assert contents(ledger) == contents(Ledger(events))


@given(journals())
def test_a_slice_is_in_flight_until_it_is_reported(events: list[Event]) -> None:
    ledger = Ledger(events)
    asked = {(event.trial, event.slice.start): event.slice for event in events if isinstance(event, Queued)}
    assert len(ledger.in_flight) == len(asked) - sum(isinstance(event, Report) for event in events)
    assert all(slice_ == asked[slice_.trial.id, slice_.start] for slice_ in ledger.in_flight)  # as it was last sent
    last = {event.trial: event.event for event in events if not isinstance(event, Stopped)}
    for slice_ in ledger.in_flight:
        state = ledger.trials[slice_.trial.id].state
        assert state == ("running" if last[slice_.trial.id] == "started" else "queued")


@given(journals())
def test_trials_are_numbered_in_the_order_they_are_asked_for(events: list[Event]) -> None:
    assert list(Ledger(events).trials) == list(range(len(Ledger(events).trials)))


@given(journals())
def test_the_ranking_holds_scored_trials_best_first(events: list[Event]) -> None:
    ledger = Ledger(events)
    ranking = ledger.ranking()
    scores = [record.score or 0.0 for record in ranking]
    assert scores == sorted(scores, reverse=True)
    scored = {record.trial.id for record in ledger.trials.values() if record.score is not None}
    assert {record.trial.id for record in ranking} == scored


@given(journals())
def test_the_ranking_is_at_any_time_that_of_all_records_sorted_anew(events: list[Event]) -> None:
    ledger = Ledger()
    for event in events:
        ledger.record(event)
        scored = [record for record in ledger.trials.values() if record.score is not None]
        scored.sort(key=lambda record: (-(record.score or 0.0), record.seconds_to_score, record.trial.id))
        assert ledger.ranking() == tuple(scored)
        open_ = [record.slices[-1] for record in ledger.trials.values() if record.in_flight]
        assert list(ledger.in_flight) == open_


def test_a_slice_that_its_worker_left_is_queued_again_and_counts_as_no_loss() -> None:
    ledger = Ledger([queued(0), Lost(0, "memory", "gone", 0.5), Started(0, 1.0), queued(0, elapsed=2.0)])
    record = ledger.trials[0]
    assert (record.state, record.is_cut_short, len(record.slices), len(record.lost)) == ("queued", False, 1, 1)
    ledger.record(Started(0, 3.0))
    assert (ledger.trials[0].is_cut_short, ledger.elapsed) == (True, 3.0)


@given(journals(), st.integers(1, 4))
def test_checkpoints_are_bounded_and_hold_the_best(events: list[Event], keep: int) -> None:
    ledger = Ledger(events, keep)
    kept = ledger.with_checkpoint()
    in_flight = {slice_.trial.id for slice_ in ledger.in_flight}
    groups = {math.frexp(max(record.step, 1.0))[1] for record in ledger.trials.values()}
    assert len(kept - in_flight) <= keep + max(keep, len(groups))
    before = Ledger(events[:-1], keep).with_checkpoint() if events else frozenset()
    assert kept - before <= {event.trial for event in events[-1:] if not isinstance(event, Stopped)}


def test_trials_that_have_come_far_leave_places_for_those_after_them() -> None:
    """Ten of nine passes lead; of those of one pass and of three the best can go on all the same."""
    far = [event for n in range(10) for event in (queued(n), Report(n, "paused", 9.0, 0.9 - n / 1000, 1.0))]
    near = [
        event
        for n in range(10, 20)
        for event in (queued(n), Report(n, "paused", 3.0 if n % 2 else 1.0, 0.5 + n / 1000, 1.0))
    ]
    assert Ledger([*far, *near], keep=4).with_checkpoint() == {0, 1, 2, 3, 19, 18}
    assert Ledger([*far, *near], keep=2).with_checkpoint() == {0, 1, 19, 18}
    assert Ledger([*far, *near], keep=1).with_checkpoint() == {0, 19, 18}


@given(journals(), st.integers(1, 4))
def test_the_best_of_all_can_always_be_exported(events: list[Event], keep: int) -> None:
    ledger = Ledger(keep=keep)
    for event in events:
        ledger.record(event)
        best = ledger.ranking()[:keep]
        assert list(ledger.exportable()[: len(best)]) == list(best)
        assert ledger.winner == (best[0] if best else None)


@given(journals())
def test_time_never_runs_back(events: list[Event]) -> None:
    elapsed = [Ledger(events[:at]).elapsed for at in range(len(events) + 1)]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize(
    "events",
    [
        [queued(1)],
        [queued(0), queued(0, 1.0)],
        [Report(0, "finished", 1.0, 0.5, 1.0)],
        [Started(0, 1.0)],
        [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), Started(0, 1.0)],
        [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), Lost(0, "memory", "gone", 1.0)],
        [queued(0), Report(0, "finished", 1.0, 0.5, 1.0), queued(0, 1.0)],
        [queued(0), Report(0, "failed", 0.0, None, 1.0), queued(0)],
        [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), Report(0, "paused", 2.0, 0.6, 1.0)],
        [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), queued(0, 2.0)],
        [queued(0, 1.0)],
        [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), child(0, (Parent(0, 1.0),), 1.0)],
    ],
    ids=[
        "gap",
        "asked twice",
        "report of nothing",
        "start of nothing",
        "start after its end",
        "lost after its end",
        "after finish",
        "after failure",
        "reported twice",
        "goes on elsewhere",
        "begins elsewhere",
        "another trial",
    ],
)
def test_a_line_that_cannot_follow_is_refused(events: list[Event]) -> None:
    with pytest.raises(ValueError, match="trial"):
        Ledger(events)


def test_a_slice_that_begins_elsewhere_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"trial 0 starts from 1 pass, but it is at 0$"):
        Ledger([queued(0, 1.0)])


def test_a_later_failure_leaves_the_scored_checkpoint() -> None:
    events = [queued(0), Report(0, "paused", 1.0, 0.9, 1.0), queued(0, 1.0), Report(0, "failed", 1.0, None, 2.0)]
    ledger = Ledger(events)
    assert ledger.trials[0].state == "failed"
    assert (ledger.trials[0].score, ledger.trials[0].best_step) == (0.9, 1.0)
    assert ledger.trials[0].seconds == 3.0
    assert ledger.with_checkpoint() == frozenset({0})


def test_a_trial_that_failed_at_once_has_no_score_and_no_checkpoint() -> None:
    ledger = Ledger([queued(0), Report(0, "failed", 0.0, None, 2.0)])
    assert ledger.ranking() == ()
    assert ledger.with_checkpoint() == frozenset()


def test_a_pruned_checkpoint_does_not_come_back() -> None:
    """Trial 0 is pruned for trial 1; when trial 1 goes on without a gain, trial 0 stays pruned."""
    events = [queued(0), Report(0, "paused", 1.0, 0.5, 1.0), queued(1), Report(1, "paused", 1.0, 0.6, 1.0)]
    later = [*events, queued(1, 1.0), Report(1, "paused", 2.0, 0.1, 1.0)]
    assert Ledger(events, keep=1).with_checkpoint() == frozenset({1})
    assert Ledger(later, keep=1).with_checkpoint() == frozenset({1})


@given(journals(), st.integers(1, 4))
def test_going_on_never_takes_a_score_away(events: list[Event], keep: int) -> None:
    best: dict[int, float] = {}
    ledger = Ledger(keep=keep)
    for event in events:
        ledger.record(event)
        if isinstance(event, Report) and event.score is not None:
            best[event.trial] = max(best.get(event.trial, event.score), event.score)
        assert {number: record.score for number, record in ledger.trials.items() if number in best} == best
        for record in ledger.ranking():
            if not record.in_flight and record.trial.id in ledger.with_checkpoint():
                assert record.best_step in ledger.kept()[record.trial.id].steps


def test_the_best_checkpoint_stays_beside_the_latest() -> None:
    events = [queued(0), Report(0, "paused", 1.0, 0.89, 1.0), queued(0, 1.0), Report(0, "paused", 3.0, 0.88, 1.0)]
    record = Ledger(events).trials[0]
    assert (record.score, record.best_step, record.latest_score, record.step) == (0.89, 1.0, 0.88, 3.0)
    assert Ledger(events).kept() == {0: Kept(frozenset({1.0, 3.0}), going_on=3.0)}
    ended = [*events, queued(0, 3.0), Report(0, "finished", 4.0, 0.87, 1.0)]
    assert Ledger(ended).kept() == {0: Kept(frozenset({1.0}))}  # nothing goes on from the last one


def test_a_slice_that_was_given_back_changes_nothing_but_the_time() -> None:
    begun = [queued(0), Started(0, 1.0), Report(0, "paused", 1.0, 0.5, 1.0)]
    ledger = Ledger([*begun, queued(0, 1.0), Report(0, "paused", 1.0, None, 0.2)])
    assert (ledger.trials[0].score, ledger.trials[0].step, ledger.trials[0].state) == (0.5, 1.0, "paused")
    assert ledger.trials[0].started == {0}
    ledger.record(queued(0, 1.0))
    assert ledger.trials[0].state == "queued"
    ledger.record(Report(0, "paused", 1.0, None, 0.2))
    assert ledger.kept() == {0: Kept(frozenset({1.0}), going_on=1.0)}


def test_a_parents_checkpoint_stays_until_the_child_has_one() -> None:
    """Trial 1 drives trial 0 out of the kept ones; trial 2 is its child, and was started before that."""
    parent = [queued(0), Report(0, "finished", 1.0, 0.5, 1.0)]
    begun = [*parent, queued(1), child(2, (Parent(0, 1.0),)), Report(1, "finished", 1.0, 0.9, 1.0)]
    assert Ledger(begun, keep=1).with_checkpoint() == frozenset({1})
    assert Ledger(begun, keep=1).kept() == {0: Kept(frozenset({1.0})), 1: Kept(frozenset({1.0}))}
    assert Ledger(begun, keep=1).has_checkpoint(Parent(0, 1.0))
    born = [*begun, Report(2, "paused", 1.0, 0.4, 1.0)]
    assert 0 not in Ledger(born, keep=1).kept()
    assert not Ledger(born, keep=1).has_checkpoint(Parent(0, 1.0))
    failed = [*begun, Report(2, "failed", 0.0, None, 1.0)]
    assert 0 not in Ledger(failed, keep=1).kept()


def test_whose_weights_are_damaged_is_no_winner_and_reaches_no_target() -> None:
    """It is ranked all the same, and is among the finalists: what a run came to does not hang on its checkpoints."""
    scores = (0.5, 0.9, 0.75)
    events = [(queued(n), Report(n, "finished", 1.0, score, 1.0, bound=score)) for n, score in enumerate(scores)]
    ledger = Ledger(event for pair in events for event in pair)
    assert ledger.winner == ledger.reaching(0.8) == ledger.trials[1]
    ledger.damaged = {Parent(1, 1.0): "it is damaged"}
    assert [record.trial.id for record in ledger.ranking()] == [1, 2, 0]
    assert [record.trial.id for record in ledger.finalists()] == [1, 2, 0]
    assert [record.trial.id for record in ledger.exportable()] == [2, 0]
    assert ledger.winner == ledger.reaching(0.7) == ledger.trials[2]
    assert ledger.reaching(0.8) is None
    assert [ledger.damage(record) for record in ledger.ranking()] == ["it is damaged", None, None]
    ledger.damaged = {Parent(n, 1.0): "it is damaged" for n in range(3)}
    assert (ledger.winner, ledger.exportable()) == (None, ())


def test_the_pace_is_that_of_the_last_slice_that_told_one() -> None:
    slow, steady, short = Costs(scoring=1.0), Costs(0.5, 10, 2.0), Costs(scoring=3.0)
    events: list[Event] = [queued(0), Report(0, "paused", 1.0, 0.5, 1.0, costs=slow)]
    assert Ledger(events).trials[0].costs.a_pass is None
    events += [queued(0, 1.0), Report(0, "paused", 2.0, 0.5, 1.0, costs=steady)]
    events += [queued(0, 2.0), Report(0, "paused", 2.1, 0.5, 1.0, costs=short)]
    assert Ledger(events).trials[0].costs == Costs(0.5, 10, 3.0)
    assert Ledger(events).trials[0].costs.a_pass == 5.0


def test_of_a_trials_equal_scores_the_smaller_loss_is_the_better() -> None:
    """With twenty easy images all is right after a pass, at odds of one to one: training on must count."""
    losses = [0.69, 0.4, 0.5, None]
    events: list[Event] = []
    for start, loss in enumerate(losses):
        events += [queued(0, float(start)), Report(0, "paused", start + 1.0, 1.0, 1.0, loss=loss)]
    best = [Ledger(events[: 2 * count]).trials[0].best_step for count in (1, 2, 3, 4)]
    assert best == [1.0, 2.0, 2.0, 2.0]


def test_training_on_with_nothing_gained_does_not_cost_a_trial_its_rank() -> None:
    events: list[Event] = []
    for number, seconds in ((0, 2.0), (1, 3.0)):
        events += [queued(number), Report(number, "paused", 1.0, 1.0, seconds, loss=0.5)]
    events += [queued(0, 1.0), Report(0, "paused", 2.0, 1.0, 60.0, loss=0.5)]
    assert [record.trial.id for record in Ledger(events).ranking()] == [0, 1]


def test_of_equal_scores_the_cheaper_trial_ranks_first() -> None:
    dear, cheap = Report(0, "finished", 1.0, 0.5, 9.0), Report(1, "finished", 1.0, 0.5, 2.0)
    assert [record.trial.id for record in Ledger([queued(0), queued(1), dear, cheap]).ranking()] == [1, 0]


def found(number: int, images: int, device: str = "this") -> Report:
    return Report(number, "paused", 1.0, 0.5, 1.0, {"images_at_once": images, "device": device})


def test_what_was_found_to_fit_holds_for_the_backbone_and_size_on_that_device() -> None:
    events = [*(queued(number) for number in range(3)), found(0, 16), found(1, 8), found(2, 32, "other")]
    ledger, new = Ledger(events), queued(3).slice.trial
    assert ledger.allowance(new).held == {"this": 8, "other": 32}
    assert ledger.allowance(replace(new, image_size=64)).held == {}
    assert ledger.allowance(replace(new, backbone="zoo/c")).held == {}


def test_what_a_slice_was_halved_to_on_suspicion_says_nothing_of_others() -> None:
    new = queued(2).slice.trial
    for why, held in {"memory": {"this": 8}, "unknown": {}}.items():
        lost = Lost(0, why, "gone", 1.0)  # type: ignore[arg-type]
        assert Ledger([queued(0), Started(0, 0.5), lost, found(0, 8)]).allowance(new).held == held


def test_a_slice_loses_processes_for_itself_alone() -> None:
    lost = Lost(0, "memory", "gone", 1.0)
    ledger = Ledger([queued(0), Started(0, 0.5), lost])
    assert (ledger.trials[0].state, ledger.allowance(ledger.trials[0].trial).lost) == ("queued", (lost,))
    ledger.record(Report(0, "paused", 1.0, 0.5, 1.0))
    assert ledger.allowance(ledger.trials[0].trial).lost == ()
    ledger.record(queued(0, 1.0))
    assert ledger.allowance(ledger.trials[0].trial).lost == ()


@pytest.mark.parametrize(
    ("events", "is_cut_short"),
    [
        ([], False),
        ([Started(0, 1.0)], True),
        ([Started(0, 1.0), Stopped(2.0)], False),
        ([Started(0, 1.0), Stopped(2.0), Started(0, 3.0)], True),
        ([Started(0, 1.0), Lost(0, "memory", "gone", 2.0)], False),
        ([Started(0, 1.0), Lost(0, "memory", "gone", 2.0), Started(0, 3.0)], True),
        ([Started(0, 1.0), Report(0, "paused", 1.0, 0.5, 1.0)], False),
    ],
)
def test_a_slice_is_cut_short_where_the_run_ended_without_a_word(events: list[Event], is_cut_short: bool) -> None:
    assert Ledger([queued(0), *events]).trials[0].is_cut_short == is_cut_short


@pytest.mark.parametrize(
    ("lost", "wanted", "images"),
    [(0, 32, 100), (1, 32, 16), (2, 32, 8), (9, 32, 1), (1, 256, 50)],
)
def test_half_of_what_a_slice_would_have_at_a_time_for_each_process(lost: int, wanted: int, images: int) -> None:
    allowance = Allowance({"other": 2}, lost * (Lost(0, "memory", "gone", 1.0),))
    assert allowance.images(100, wanted, "this") == images
    assert allowance.images(100, wanted, "other") == max(1, 2 >> lost)


def test_trials_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        Ledger([queued(0)]).trials[1] = None  # type: ignore[index]
