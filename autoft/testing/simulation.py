"""A whole search on a made-up clock: for checking and comparing searchers."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from autoft.parts.base import Problem, Searcher
from autoft.runners.search import problem_of
from autoft.values.ledger import Ledger
from autoft.values.space import Float, Space
from autoft.values.trial import Candidate, Clock, Done, Event, Queued, Report, Slice, Started, Trial, Wait

Score = Callable[[Trial, float], float | None]


def candidates(backbones: int = 2) -> tuple[Candidate, ...]:
    """For each backbone one closed-form candidate and one that trains by gradient."""
    rate = Space({"learning_rate": Float(1e-5, 1e-1, log=True)}, ({"learning_rate": 1e-3},))
    found: list[Candidate] = []
    for number in range(backbones):
        found.append(Candidate(f"zoo/b{number}", "probe", 32, Space({}, ({},)), "closed_form", 1.0 + number, 0.7))
        found.append(Candidate(f"zoo/b{number}", "full", 32, rate, "gradient", 1.0 + number, 0.7))
    return tuple(found)


def steady(trial: Trial, step: float) -> float | None:
    """A learning curve that saturates, its height set by backbone, strategy and parameters."""
    height = 0.5 + 0.4 * random.Random(f"{trial.backbone} {trial.freeze} {sorted(trial.params.items())}").random()
    return height * (1 - 0.5 * math.exp(-step / 3))


def hopeless(trial: Trial, step: float) -> float | None:
    """Every trial fails."""
    return None


def unlucky(trial: Trial, step: float) -> float | None:
    """Every third trial fails, the others do as `steady` says."""
    return None if trial.id % 3 == 1 else steady(trial, step)


@dataclass(frozen=True)
class Asked:
    """One question: how many journal lines the searcher saw, the clock, and what it answered."""

    seen: int
    clock: Clock
    answer: Slice | Wait | Done


@dataclass
class Simulation:
    """What came of `simulate`: the journal, every question, and whether the search ended by itself or in time."""

    problem: Problem
    keep: int
    events: list[Event] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    done: bool = False

    @property
    def slices(self) -> list[Slice]:
        """The slices handed out, in order."""
        return [one.answer for one in self.asked if isinstance(one.answer, Slice)]


def simulate(
    searcher: Searcher,
    problem: Problem,
    score: Score = steady,
    seconds: float = 600.0,
    asks: int = 2000,
    keep: int = 5,
) -> Simulation:
    """A whole search on a made-up clock: no image, no network, the same every time.

    A pass takes as many seconds as the candidate's `cost`, a closed-form slice a third of that; `score` gives the
    validation score of a trial at a step, None for a failure. Ends with `Done`, at the deadline of `seconds`, or after
    `asks` questions. Checkpoints of `keep` trials are kept. Raises `AssertionError` on WAIT with nothing in flight.
    """
    run, ledger = Simulation(problem, keep), Ledger(keep=keep)
    flying: list[tuple[float, int, Report]] = []
    now = 0.0
    while len(run.asked) < asks and not (run.done and not flying):
        clock = Clock(now, seconds)
        answer = _ask(searcher, run, ledger, clock) if len(flying) < problem.workers else Wait()
        if isinstance(answer, Slice):
            wrong = problem_of(answer, problem, ledger)
            assert wrong is None, f"the searcher asked for what cannot be: {wrong}"
            _take(run, ledger, Queued(answer.trial.id, answer, clock))
            report = _outcome(problem, answer, score, now)
            heapq.heappush(flying, (report.elapsed, answer.trial.id, report))
            continue
        run.done = run.done or isinstance(answer, Done)
        assert flying or run.done, "WAIT with nothing in flight would wait for ever: answer with a Slice or DONE"
        _begin(run, ledger, now)
        if flying:
            now, _, report = heapq.heappop(flying)
            _take(run, ledger, report)
    return run


def _ask(searcher: Searcher, run: Simulation, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
    if run.done or clock.remaining == 0:
        run.done = True
        return Done()
    before = dict(ledger.trials)
    answer = searcher.ask(run.problem, ledger, clock)
    run.asked.append(Asked(len(run.events), clock, answer))
    assert dict(ledger.trials) == before, "ask() must leave the ledger as it is"
    assert isinstance(answer, Slice | Wait | Done), f"ask() must give a Slice, WAIT or DONE, not {answer!r}"
    return answer


def _begin(run: Simulation, ledger: Ledger, now: float) -> None:
    """What is queued: as with processes, a slice begins a while after it was asked for."""
    queued = [record.trial.id for record in ledger.trials.values() if record.state == "queued"]
    for number in queued:
        _take(run, ledger, Started(number, now))


def _take(run: Simulation, ledger: Ledger, event: Event) -> None:
    try:
        ledger.record(event)
    except ValueError as error:
        raise AssertionError(f"the searcher asked for what cannot be: {error}") from error
    run.events.append(event)


def candidate_of(problem: Problem, trial: Trial) -> Candidate:
    """The candidate a trial is of; `AssertionError` when there is none."""
    key = (trial.backbone, trial.freeze, trial.image_size)
    found = [c for c in problem.candidates if (c.backbone, c.freeze, c.image_size) == key]
    assert found, f"trial {trial.id} is of no candidate: {key}; make trials with Candidate.trial()"
    return found[0]


def _outcome(problem: Problem, slice_: Slice, score: Score, now: float) -> Report:
    candidate = candidate_of(problem, slice_.trial)
    closed = candidate.fit == "closed_form"
    horizon = 1.0 if closed else 27.0
    until = horizon if closed else min(slice_.until, horizon)
    end = min(now + max(until - slice_.start, 0.01) * candidate.cost * (0.3 if closed else 1.0), slice_.deadline)
    step = until if closed else min(until, slice_.start + (end - now) / candidate.cost)
    value = score(slice_.trial, step)
    state = "failed" if value is None else "finished" if closed or step >= horizon else "paused"
    error = "simulated" if value is None else None
    return Report(slice_.trial.id, state, step, value, end - now, error=error, elapsed=end)  # type: ignore[arg-type]
