"""`Search`: ask and tell, between a searcher that knows no processes and a runner that knows nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from autoft.errors import PluginError
from autoft.parts import hookspecs
from autoft.parts.base import Problem, Searcher
from autoft.parts.host import Host
from autoft.runners.deaths import FEWER
from autoft.runners.refit import Refits, Reserve
from autoft.store import CheckpointStore, Journal
from autoft.system.clock import RunClock
from autoft.system.screen import Screen
from autoft.system.signals import StopFlag, TimeOver, time_limit
from autoft.values.counts import passes
from autoft.values.ledger import Ledger
from autoft.values.trial import (
    DONE,
    WAIT,
    Clock,
    Done,
    Event,
    Lost,
    Parent,
    Queued,
    Report,
    Slice,
    Started,
    Stopped,
    Trial,
    Wait,
)

LATE_START_SECONDS = 5.0
LATE_STARTS = 3
# How long a searcher may take to answer: a share of the time left, within bounds, and not far past the end of the time.
# With Ray no report is taken in meanwhile, and the end of the run is not prepared.
ANSWER_SHARE, LEAST_ANSWER_SECONDS, MOST_ANSWER_SECONDS = 0.25, 5.0, 60.0
ANSWER_SECONDS = 2.0
MUCH_SECONDS = 600.0  # what "more time" means where it is asked whether there is anything to do with it
LOSSES_BORNE: Final[Mapping[Literal["memory", "unknown"], int]] = {"memory": 1, "unknown": 3}
"""How many processes a slice may cost and be handed out again. Runs are killed for other reasons too: more of those."""
CUT_SHORT: Final = f"the run was killed while a worker had the slice; if for lack of memory, {FEWER}"


@dataclass(eq=False)
class Search:
    """The state of a search is its ledger, and the ledger is its journal.

    Slices that a killed run left open are handed out again first, or given back where no time is left; so are those for
    whose processes memory ran out. For each process that one has cost, half as many images go through at a time, and
    one that goes on costing some is failed. Everything else the searcher decides, within the budget: past the time or
    the number of trials it is not asked, and no slice may run longer than the end allows. The first slice of each
    worker begins `starting` seconds after it is handed out, so much later is a deadline of the searcher's own. When it
    has nothing more, or the best trial has reached the `target` beyond noise, the winner is trained once more as
    `refits` say; `reserve` has the time for that in it.
    """

    searcher: Searcher
    problem: Problem
    ledger: Ledger
    journal: Journal
    checkpoints: CheckpointStore
    clock: RunClock
    host: Host
    screen: Screen
    stopped: StopFlag
    reserve: Reserve
    told: Callable[[Ledger], None] = lambda ledger: None
    refits: Refits | None = None
    starting: float = 0.0
    target: float | None = None
    """The score at which the search ends, whatever time is left; greater is better."""

    def __post_init__(self) -> None:
        trials = self.ledger.trials.values()
        self._cut_short = [record.trial.id for record in trials if record.is_cut_short]
        self._left_open: list[Slice] = []
        self._refits_left_open: list[Trial] = []
        for record in trials:
            if record.in_flight and not record.is_cut_short:
                self._leave_open(record.slices[-1])
        self._unanswered: str | None = None
        self._is_over = False
        self._is_at_target = False
        self._refits_done_with: set[Parent] = set()
        """The checkpoints whose refit this sitting has made, left out or given up."""
        self._still_to_start = self.problem.workers
        self._ends: dict[int, float] = {}
        """When the slice of a trial has to be over at the latest, whatever the searcher wants."""

    def ask(self) -> Slice | Wait | Done:
        """The next slice, `WAIT` for a report, or `DONE`; what is handed out is in the journal, as queued."""
        if self.stopped():
            return DONE
        while self._cut_short:
            self._lose(self._cut_short.pop(0), "unknown", CUT_SHORT)
        nothing_more = self._is_over and not self._left_open  # a worker may be lost after the searcher was done
        answer = self._refit_left_open() or (DONE if nothing_more else self._searched_for())
        if not isinstance(answer, Done) or self.stopped():
            return answer
        self._is_over = True
        if self.ledger.in_flight:  # what a worker refuses has to be handed out again: a runner is done after `DONE`
            return WAIT
        return DONE if self.refits is None else self._refit(self.refits)

    def _searched_for(self) -> Slice | Wait | Done:
        """The next slice of the search itself."""
        reading = self._reading()
        if self._has_reached_target():
            self._give_back(self._left_open, "the target was reached")
            return self._nothing_more()
        if reading.remaining <= 0:
            self._give_back(self._left_open, "no time was left to go on")
        known = {(one.backbone, one.freeze) for one in self.problem.candidates} if self._left_open else ()
        gone = [one for one in self._left_open if (one.trial.backbone, one.trial.freeze) not in known]
        self._give_back(gone, "the plugin with its backbone or freeze strategy is switched off")
        barred = self.ledger.barred
        slow = [one for one in self._left_open if one.trial.network in barred]
        self._give_back(slow, "its network is not to be handed over")
        if self._left_open:
            left_open = self._left_open.pop(0)
            return self._sent(replace(left_open, deadline=self._deadline(left_open.trial, reading)), reading)
        if reading.remaining <= 0 or self._unanswered:
            return self._nothing_more()
        if not self._allowed().candidates and self.ledger.trials:
            return self._nothing_more()
        answer = self._answer(reading)
        match answer:
            case Slice():
                return self._hand_out(answer, reading)
            case Wait() if self.ledger.in_flight:
                return answer
            case Wait():
                raise self._refused("it waits with nothing in flight")
            case Done() if not (self.ledger.trials or self.stopped()) and reading.remaining > LATE_START_SECONDS:
                raise self._refused(f"it is done before it has asked for anything, with {reading.remaining:.0f} s left")
            case Done():
                return answer
        raise self._refused(f"it gave {answer!r}, not a Slice, WAIT or DONE")

    def _has_reached_target(self) -> bool:
        """Whether the best trial has; said when it is found, and so to the end: slices under way may bring another."""
        best = self.ledger.reaching(self.target)
        if best is not None and not self._is_at_target:
            self._is_at_target = True
            self.screen.note(f"the target is reached, so the search ends: {best.standing(self.screen.metric)}")
        return self._is_at_target

    def _refit_left_open(self) -> Slice | None:
        """A refit whose process is gone, if it fits the time that is left; else it is given up."""
        if not self._refits_left_open or self.refits is None:
            return None
        trial = self._refits_left_open.pop()
        if trial.twin is not None:
            self._refits_done_with.add(trial.twin)  # what does not fit now, or fails, will hardly do better later
        if (problem := self.refits.problem(self.ledger, trial)) is None:
            return self._sent(self.refits.slice(self.ledger, trial))
        self.tell(Report(trial.id, "left out", 0.0, None, 0.0, error=problem))
        return None

    def _refit(self, refits: Refits) -> Slice | Done:
        """The last errand: the winner once more, on the validation images too; once in a sitting for a checkpoint."""
        winner = refits.winner(self.ledger)
        if winner is None or winner.best_checkpoint in self._refits_done_with:
            return DONE
        self._refits_done_with.add(winner.best_checkpoint)
        match refits.errand(self.ledger, winner):
            case Slice() as errand:
                return self._sent(errand)
            case str() as reason:
                self.screen.note(reason)
        return DONE

    def _answer(self, reading: Clock) -> Slice | Wait | Done:
        """What the searcher answers; nothing more when a signal comes first, or it takes too long."""
        try:
            with self.stopped.at_once():
                seconds = answer_seconds(reading.remaining)
                return _answer_in_time(self.searcher, self._offered(), self.ledger, reading, seconds)
        except KeyboardInterrupt:
            if not self.stopped():
                raise
            return DONE
        except _NoAnswer as problem:
            self._unanswered = f"{problem}; {self.host.traceback(problem.__cause__ or problem)}"
            self.screen.note(f"{self._unanswered}; the run ends with what it has")
            return self._nothing_more()

    def _offered(self) -> Problem:
        """The problem, of its candidates those that may be handed over and whose end still fits.

        That of a large network may take much longer.
        """
        allowed = self._allowed()
        if not self._has_model:
            return allowed
        one_each = {one.network: one.trial(0, {}, 0) for one in allowed.candidates}
        fits = {network for network, trial in one_each.items() if self._ends_at(trial) > self.clock.now()}
        offered = (one for one in allowed.candidates if one.network in fits)
        return replace(allowed, candidates=tuple(offered))

    def _allowed(self) -> Problem:
        """The problem, of its candidates those that may be handed over."""
        barred = self.ledger.barred
        allowed = (one for one in self.problem.candidates if one.network not in barred)
        return replace(self.problem, candidates=tuple(allowed)) if barred else self.problem

    def goes_on(self) -> bool:
        """Whether more time would be put to use: the searcher would try more, or a refit that was left out would fit.

        A searcher that does not answer at once would not. Nothing is tried once the target is reached.
        """
        if self.ledger.reaching(self.target):
            return False
        more = replace(self.clock, budget=self.clock.budget + MUCH_SECONDS)
        if self.refits and isinstance(replace(self.refits, clock=more).due(self.ledger), Slice):
            return True
        try:
            allowed = self._allowed()
            is_done = not allowed.candidates or is_over(
                self.searcher, allowed, self.ledger, more.reading(0.0), ANSWER_SECONDS
            )
            return not is_done
        except PluginError:
            return False

    @property
    def deadline(self) -> float:
        """When searching ends, in run time; only a late start goes beyond it."""
        return self.clock.reading(self.reserve(self.ledger, None)).deadline

    def began(self, trial: int) -> None:
        """Take in that a worker has the trial's slice, which is queued until then."""
        self._record(Started(trial, self.clock.now()))

    def left(self, slice_: Slice) -> None:
        """Take in that the worker which had begun the slice has left it as it was: it is queued again."""
        self._queue(slice_)

    def tell(self, report: Report) -> None:
        """Take in how a slice ended, or that it is given back as it was: journal first, then prune, notify and show.

        A refit that is not through is left out: no searcher is to go on with it.
        """
        report = replace(report, elapsed=self.clock.now())
        if report.event == "paused" and self.ledger.trials[report.trial].is_refit:
            error = report.error or "there was no time for all its passes"
            report = replace(report, event="left out", error=error)
        self._record(report)
        self.checkpoints.prune(self.ledger.kept(), {slice_.trial.id for slice_ in self.ledger.in_flight})
        self.told(self.ledger)
        self.host.tell(hookspecs.autoft_slice_ended, self.ledger.trials[report.trial].trial, report)

    def lost(self, trial: int, error: str) -> None:
        """Take in that memory ran out, and with it the process that had the trial's slice is gone.

        The slice is handed out again, or failed, as `LOSSES_BORNE` says.
        """
        self._lose(trial, "memory", error)

    def stop(self) -> None:
        """Take in that the run ends here, before its time: what it has used is used when it goes on."""
        self._write(Stopped(self.clock.now()))

    def _lose(self, trial: int, why: Literal["memory", "unknown"], error: str) -> None:
        self._record(Lost(trial, why, error, self.clock.now()))
        record = self.ledger.trials[trial]
        slice_, losses = record.slices[-1], sum(one.why == why for one in record.lost)
        if losses > LOSSES_BORNE[why]:
            cause = f"{losses} processes lost: {error}"
            self.tell(Report(trial, "failed", slice_.start, None, 0.0, error=cause))
            return
        self._leave_open(slice_)
        if why == "memory":
            self.screen.note(f"trial {trial}: {error}; it goes on with half as many images at a time")

    def _leave_open(self, slice_: Slice) -> None:
        """To be handed out again."""
        if slice_.trial.twin is None:
            self._left_open.append(slice_)
        else:
            self._refits_left_open.append(slice_.trial)

    def _give_back(self, left_open: Sequence[Slice], why: str) -> None:
        for slice_ in tuple(left_open):
            self._left_open.remove(slice_)
            self._queue(replace(slice_, deadline=self.clock.now()))  # not the time that it had when it was left
            self.tell(Report(slice_.trial.id, "paused", slice_.start, None, 0.0, error=why))

    def _hand_out(self, asked: Slice, reading: Clock) -> Slice | Wait | Done:
        """The slice as it may run, journalled; nothing more where it would be one trial too many, or has no time."""
        if _is_one_too_many(asked, self.problem, self.ledger):
            return self._nothing_more()
        if problem := problem_of(asked, self.problem, self.ledger):
            raise self._refused(f"it asks for what cannot be: {problem}")
        if not asked.deadline > reading.elapsed:
            over = f"a slice that has to be over at {asked.deadline:g} s, asked for at {reading.elapsed:g} s"
            raise self._refused(f"it asks for what cannot be: {over}")
        wanted = asked.deadline + (self.starting if self._still_to_start > 0 else 0.0)
        allowed = replace(asked, deadline=min(wanted, self._deadline(asked.trial, reading)))
        if allowed.deadline <= self.clock.now():  # its worker would give it back at once, and so over and over
            return self._nothing_more()
        if known := self.ledger.trials.get(asked.trial.id):  # its plan may end before a searcher's next rung
            allowed = replace(allowed, until=min(allowed.until, known.horizon))
        return self._sent(allowed, reading)

    def _sent(self, slice_: Slice, reading: Clock | None = None) -> Slice:
        """The slice that a worker is to have now, journalled with its deadline, by which the time of a kill counts."""
        self._queue(slice_, reading)
        self._still_to_start -= 1
        return slice_

    def _nothing_more(self) -> Wait | Done:
        """`WAIT` or `DONE`. Raises `PluginError` when there is no model because the searcher does not answer."""
        if self._unanswered and not self.ledger.in_flight and not self._has_model:
            raise PluginError(f"{self._unanswered}; choose another with --searcher")
        return WAIT if self.ledger.in_flight else DONE

    def _deadline(self, trial: Trial, reading: Clock) -> float:
        """When a slice of this trial has to be over, so that the run is in time even if it is the best in the end."""
        ends = self._ends_at(trial)
        self._ends[trial.id] = ends
        return min(reading.deadline, ends) if self._has_model else reading.deadline

    def _ends_at(self, trial: Trial) -> float:
        """When the search has to be over, in run time, should this trial win."""
        return self.clock.budget - self.reserve(self.ledger, trial)

    @property
    def _has_model(self) -> bool:
        """Whether there is one that may be handed over."""
        barred = self.ledger.barred
        return any(one.trial.network not in barred for one in self.ledger.ranking())

    def _reading(self) -> Clock:
        """The clock; while there is no model yet, one that shows a little time: even a late run should give one."""
        reading = self.clock.reading(self.reserve(self.ledger, None))
        if self._has_model:
            # Whoever of those under way wins, its refit can begin when it ends: so nobody else runs longer.
            ends = (self._ends.get(slice_.trial.id, reading.deadline) for slice_ in self.ledger.in_flight)
            return replace(reading, deadline=min([reading.deadline, *ends]))
        handed_out = (slice_ for record in self.ledger.trials.values() for slice_ in record.slices)
        if sum(slice_.deadline > reading.deadline for slice_ in handed_out) >= LATE_STARTS:
            return reading
        return replace(reading, deadline=max(reading.deadline, reading.elapsed + LATE_START_SECONDS))

    def _queue(self, slice_: Slice, reading: Clock | None = None) -> None:
        reading = reading or self.clock.reading(self.reserve(self.ledger, None))
        try:
            self._record(Queued(slice_.trial.id, slice_, reading))
        except ValueError as problem:
            raise self._refused(f"it asks for what cannot be: {problem}") from None

    def _refused(self, problem: str) -> PluginError:
        """What to raise for an answer that cannot be carried out, as if the searcher had raised it."""
        try:
            with self.host.blaming(Searcher, self.searcher.name, "ask()"):
                raise ValueError(problem)
        except PluginError as blamed:
            return blamed

    def _record(self, event: Event) -> None:
        self._write(event)
        self.screen.show(self.ledger, self.clock)

    def _write(self, event: Event) -> None:
        """Journal an event, once the ledger has taken it: what could not be read back must not be written."""
        self.ledger.record(event)
        self.journal.append(event)


class _NoAnswer(PluginError):
    """A searcher did not answer in its time."""


def _answer_in_time(
    searcher: Searcher, problem: Problem, ledger: Ledger, reading: Clock, seconds: float
) -> Slice | Wait | Done:
    """What the searcher answers. Raises `_NoAnswer` when that takes more than so many seconds."""
    try:
        with time_limit(seconds):
            return searcher.ask(problem, ledger, reading)
    except TimeOver as over:
        raise _NoAnswer(f"searcher {searcher} did not answer for {seconds:.0f} s") from over


def answer_seconds(remaining: float) -> float:
    """How long a searcher may take to answer when so many seconds are left to search."""
    share = min(ANSWER_SHARE * remaining, MOST_ANSWER_SECONDS)
    return min(max(share, LEAST_ANSWER_SECONDS), remaining + ANSWER_SECONDS)


def is_over(searcher: Searcher, problem: Problem, ledger: Ledger, reading: Clock, seconds: float) -> bool:
    """Whether a search that stands there with nothing in flight would end at once: done, or out of trials.

    Raises `PluginError` when the searcher does not answer within so many seconds.
    """
    answer = _answer_in_time(searcher, problem, ledger, reading, seconds)
    return isinstance(answer, Done) or (isinstance(answer, Slice) and _is_one_too_many(answer, problem, ledger))


def _is_one_too_many(asked: Slice, problem: Problem, ledger: Ledger) -> bool:
    is_new = asked.trial.id not in ledger.trials
    return is_new and problem.trials is not None and len(ledger.trials) >= problem.trials


def problem_of(asked: Slice, problem: Problem, ledger: Ledger) -> str | None:
    """What is wrong with a slice that goes nowhere, or of a trial that the problem or the ledger does not allow."""
    trial = asked.trial
    if trial.train_on != "train" or trial.twin is not None:
        return f"a trial on {trial.train_on}, which no validation score can judge"
    address = (trial.backbone, trial.freeze, trial.image_size)
    spaces = {(c.backbone, c.freeze, c.image_size): c.space for c in problem.candidates}
    if address not in spaces:
        return f"{address} is no candidate"
    if not asked.start < asked.until < math.inf:
        return f"a slice from {asked.start:g} to {passes(asked.until, 6)}"
    known = ledger.trials.get(trial.id)
    if known is not None and known.in_flight:
        return f"trial {trial.id} is asked for, but it is {known.state}"
    if known is not None and not known.given_back:
        return None if trial.id in ledger.with_checkpoint() else f"trial {trial.id} has no checkpoint to go on from"
    return spaces[address].problem(trial.params) or _problem_of_parents(trial, ledger)


def _problem_of_parents(trial: Trial, ledger: Ledger) -> str | None:
    for parent in trial.parents:
        record = ledger.trials.get(parent.trial)
        if record is None or not ledger.has_checkpoint(parent):
            return f"trial {parent.trial}, a parent, has no checkpoint at {passes(parent.step, 6)}"
        if record.trial.backbone != trial.backbone:
            return f"trial {parent.trial}, a parent, is of another backbone, {record.trial.backbone}"
    return None
