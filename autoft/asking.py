"""`Search`: ask and tell, between a searcher that knows no processes and a runner that knows nothing else."""

from __future__ import annotations

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
                self._record(Started(answer.trial.id, answer, reading))
            case Wait() if not self.ledger.in_flight:
                raise PluginError(f"searcher {self.searcher.name!r} waits with nothing in flight; this is a bug in it")
            case _:
                pass
        return answer

    def tell(self, report: Report) -> None:
        """Take in how a slice ended: journal first, then prune, notify and show."""
        report = replace(report, elapsed=self.clock.now())
        self._record(report)
        self.checkpoints.prune(self.ledger.with_checkpoint())
        self.host.notify_trial_finished(self.ledger.trials[report.trial].trial, report)

    def _reading(self) -> Clock:
        """The clock; while there is no trial yet, one that shows a little time: even a late run should give a model."""
        reading = self.clock.reading()
        if self.ledger.trials:
            return reading
        return replace(reading, deadline=max(reading.deadline, reading.elapsed + LATE_START_SECONDS))

    def _record(self, event: Started | Report) -> None:
        self.journal.append(event)
        self.ledger.record(event)
        self.screen.show(self.ledger, self.clock)
