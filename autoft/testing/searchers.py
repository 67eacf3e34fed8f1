"""Checks of a searcher."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from autoft.parts.base import Problem, Searcher
from autoft.testing.base import Conformance
from autoft.testing.simulation import Simulation, candidate_of, candidates, hopeless, simulate, unlucky
from autoft.values.codec import decode, encode
from autoft.values.ledger import Ledger
from autoft.values.trial import Clock, Done, Event, Slice


class SearcherConformance(Conformance[Searcher]):
    """Checks of a `Searcher`, in simulated searches with one, two and four workers."""

    def simulations(self) -> Iterator[Simulation]:
        """Searches of several sizes and fates; override it to add your own."""
        for workers in (1, 2, 4):
            yield simulate(self.part(), Problem(candidates(3), 0, workers), seconds=120.0 / workers)
            yield simulate(self.part(), Problem(candidates(), 1, workers, trials=7), unlucky)
        yield simulate(self.part(), Problem(candidates(3), 0, 2), seconds=60.0, keep=1)
        for candidate in candidates(1):
            yield simulate(self.part(), Problem((candidate,), 2, 2, trials=5), seconds=60.0)

    def test_it_starts_something(self) -> None:
        """Even one second is worth a first slice."""
        answer = self.part().ask(Problem(candidates(), 0, 1), Ledger(), Clock(0.0, 60.0))
        assert isinstance(answer, Slice), f"the first answer of a search must be a Slice, not {answer}"

    def test_it_ends(self) -> None:
        """By DONE or at the deadline, in a bounded number of questions."""
        for run in _simulated(type(self)):
            assert run.done, f"{len(run.asked)} answers and no end: make slices longer or answer DONE"

    def test_slices_end_by_the_deadline(self) -> None:
        """Time is a promise to the user."""
        for run in _simulated(type(self)):
            for one in run.asked:
                if isinstance(one.answer, Slice):
                    late = f"asked at {one.clock}, the slice may run to {one.answer.deadline}: keep to clock.deadline"
                    assert one.clock.elapsed < one.answer.deadline <= one.clock.deadline, late

    def test_nothing_is_asked_past_the_deadline(self) -> None:
        """With no time left the only answer is DONE."""
        answer = self.part().ask(Problem(candidates(), 0, 2), Ledger(), Clock(60.0, 60.0))
        assert isinstance(answer, Done), f"with no time left the answer is DONE, not {answer}"

    def test_the_same_ledger_gives_the_same_answer(self) -> None:
        """`ask` is a function: a new searcher with the journal read back from JSON goes on as the old one would."""
        for run in _simulated(type(self)):
            journal = [decode(Event, encode(event)) for event in run.events]
            for one in run.asked[:: max(1, len(run.asked) // 20)]:
                again = self.part().ask(run.problem, Ledger(journal[: one.seen], run.keep), one.clock)
                assert again == one.answer, f"after {one.seen} events a new searcher answers {again}, not {one.answer}"

    def test_trials_are_numbered_from_zero_without_gaps(self) -> None:
        """A new trial's number is `len(ledger.trials)`."""
        for run in _simulated(type(self)):
            numbers = list(dict.fromkeys(slice_.trial.id for slice_ in run.slices))
            assert numbers == list(range(len(numbers))), f"trials are numbered {numbers}; use len(ledger.trials)"

    def test_slices_of_a_trial_follow_one_another(self) -> None:
        """A slice starts at the step its trial has reached, and the trial does not change."""
        for run in _simulated(type(self)):
            for one in run.asked:
                if isinstance(one.answer, Slice):
                    self._follows(Ledger(run.events[: one.seen]), one.answer)

    def _follows(self, ledger: Ledger, slice_: Slice) -> None:
        known = ledger.trials.get(slice_.trial.id)
        reached = known.step if known else 0.0
        assert slice_.start == reached, f"the trial is at {reached}, the slice starts at {slice_.start}"
        assert slice_.until > slice_.start, f"an empty slice: {slice_}"
        assert known is None or known.trial == slice_.trial, f"trial {slice_.trial.id} changed on the way"

    def test_parameters_lie_in_the_candidates_space(self) -> None:
        """Outside it a freeze strategy promises nothing."""
        for run in _simulated(type(self)):
            for slice_ in run.slices:
                problem = candidate_of(run.problem, slice_.trial).space.problem(slice_.trial.params)
                assert problem is None, f"trial {slice_.trial.id}: {problem}"

    def test_a_candidate_begins_with_its_first_start(self) -> None:
        """What `--from` relies on, unless the searcher says that it has no use for starts."""
        for run in _simulated(type(self)) if self.part().tries_starts else ():
            begun: set[tuple[str, str]] = set()
            for trial in (slice_.trial for slice_ in run.slices):
                starts = candidate_of(run.problem, trial).space.starts
                is_first = (trial.backbone, trial.freeze) not in begun
                assert not is_first or trial.params in starts[:1] or not starts, (
                    f"trial {trial.id} is the first of its candidate and has {dict(trial.params)}, not the first of "
                    "space.starts: begin with that, or say `tries_starts = False`"
                )
                begun.add((trial.backbone, trial.freeze))

    def test_no_more_trials_than_allowed(self) -> None:
        """`Problem.trials` is a promise too."""
        for run in _simulated(type(self)):
            started = len({slice_.trial.id for slice_ in run.slices})
            limit = run.problem.trials
            assert limit is None or started <= limit, f"{started} trials started, {limit} were allowed"

    def test_it_survives_candidates_that_all_fail(self) -> None:
        """A search of failures ends, with nothing in flight."""
        run = simulate(self.part(), Problem(candidates(), 3, 2, trials=10), hopeless)
        assert run.done, "when every trial fails, answer DONE in the end"

    def test_the_seed_decides(self) -> None:
        """The same seed gives the same search."""
        one, two = (simulate(self.part(), Problem(candidates(), 5, 2), seconds=60.0) for _ in range(2))
        assert one.events == two.events, "take random numbers from problem.seed and the ledger alone"


@functools.cache
def _simulated(suite: type[SearcherConformance]) -> tuple[Simulation, ...]:
    """The simulations of one suite, run once for all of its checks."""
    return tuple(suite().simulations())
