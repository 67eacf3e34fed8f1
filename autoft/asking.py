"""`Search`: ask and tell, between a searcher that knows no processes and a runner that knows nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from autoft.clock import RunClock
from autoft.errors import PluginError
from autoft.host import Host
from autoft.ledger import Ledger
from autoft.parts import Problem, Searcher
from autoft.screen import Screen
from autoft.store import CheckpointStore, Journal
from autoft.types import DONE, Clock, Done, Report, Slice, Started, Wait

LATE_START_SECONDS = 1.0


@dataclass(eq=False)
class Search:
    """The state of a search is its ledger, and the ledger is its journal.

    Slices that a killed run left open are handed out again first; everything else the searcher decides.
    """

    searcher: Searcher
    problem: Problem
    ledger: Ledger
    journal: Journal
    checkpoints: CheckpointStore
    clock: RunClock
    host: Host
    screen: Screen
    stopped: Callable[[], bool]

    def __post_init__(self) -> None:
        self._left_open = list(self.ledger.in_flight)

    def ask(self) -> Slice | Wait | Done:
        """The next slice, `WAIT` for a report, or `DONE`; what is handed out is in the journal before it runs."""
        if self.stopped():
            return DONE
        reading = self._reading()
        if self._left_open:
            return replace(self._left_open.pop(0), deadline=reading.deadline)
        answer = self.searcher.ask(self.problem, self.ledger, reading)
        match answer:
            case Slice():
                self._check(answer)
                self._start(Started(answer.trial.id, answer, reading))
            case Wait() if not self.ledger.in_flight:
                raise PluginError(f"searcher {self.searcher.name!r} waits with nothing in flight; this is a bug in it")
            case _:
                pass
        return answer

    def tell(self, report: Report) -> None:
        """Take in how a slice ended: journal first, then prune, notify and show."""
        report = replace(report, elapsed=self.clock.now())
        self.ledger.record(report)
        self.journal.append(report)
        self.screen.show(self.ledger, self.clock)
        record = self.ledger.trials[report.trial]
        if report.score is not None:
            self.checkpoints.settle(report.trial, report.step)
        self.checkpoints.prune(self.ledger.with_checkpoint() | {slice_.trial.id for slice_ in self.ledger.in_flight})
        self.host.notify_trial_finished(record.trial, report)

    def _check(self, answer: Slice) -> None:
        """Raise `PluginError` for a slice that goes nowhere or a trial that no candidate of the problem allows."""
        trial = answer.trial
        address = (trial.backbone, trial.freeze, trial.image_size)
        spaces = {(c.backbone, c.freeze, c.image_size): c.space for c in self.problem.candidates}
        problem = spaces[address].problem(trial.params) if address in spaces else f"{address} is no candidate"
        if not answer.start < answer.until < math.inf:
            problem = f"a slice from {answer.start} to {answer.until} passes"
        if problem:
            raise PluginError(f"searcher {self.searcher.name!r} asks for what cannot be: {problem}")

    def _reading(self) -> Clock:
        """The clock; while there is no trial yet, one that shows a little time: even a late run should give a model."""
        reading = self.clock.reading()
        if self.ledger.trials:
            return reading
        return replace(reading, deadline=max(reading.deadline, reading.elapsed + LATE_START_SECONDS))

    def _start(self, event: Started) -> None:
        """Journal a slice, once the ledger has taken it: what could not be read back must not be written."""
        try:
            self.ledger.record(event)
        except ValueError as problem:
            raise PluginError(f"searcher {self.searcher.name!r} asks for what cannot be: {problem}") from None
        self.journal.append(event)
        self.screen.show(self.ledger, self.clock)
