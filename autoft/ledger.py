"""`Ledger`: everything that happened in a search, rebuilt from the journal's lines one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from autoft.types import Event, Report, Slice, Started, Trial

State = Literal["running", "paused", "finished", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial so far: its slices and their reports, oldest first."""

    trial: Trial
    slices: tuple[Slice, ...]
    reports: tuple[Report, ...]

    @property
    def state(self) -> State:
        """The last report's event, or "running" while a slice is in flight."""
        return "running" if len(self.slices) > len(self.reports) else self.reports[-1].event

    @property
    def step(self) -> float:
        """Passes over the training images reached so far."""
        return self.reports[-1].step if self.reports else 0.0

    @property
    def score(self) -> float | None:
        """The validation score of the trial's last scored checkpoint, which a later failure does not take away."""
        return self._scored.score if self._scored else None

    @property
    def scored_step(self) -> float:
        """The passes after which `score` was measured: the step of the checkpoint it belongs to."""
        return self._scored.step if self._scored else 0.0

    @property
    def _scored(self) -> Report | None:
        return next((report for report in reversed(self.reports) if report.score is not None), None)

    @property
    def seconds(self) -> float:
        """Seconds spent in all slices together."""
        return sum(report.seconds for report in self.reports)


class Ledger:
    """Trials, slices in flight and reports; `record` is the only way to change it.

    `keep` is how many checkpoints stay: those of the best `keep` trials, and of the best `keep` paused ones. A trial
    that fell out of both has none any more, however the others fare later.
    """

    def __init__(self, events: Iterable[Event] = (), keep: int = 5) -> None:
        self.keep = keep
        self._records: dict[int, TrialRecord] = {}
        self._elapsed = 0.0
        self._ranking: tuple[TrialRecord, ...] | None = None
        self._kept: frozenset[int] = frozenset()
        for event in events:
            self.record(event)

    def record(self, event: Event) -> None:
        """Take in one journal line. Raises `ValueError` on one that cannot follow those before."""
        match event:
            case Started():
                self._start(event)
            case Report():
                self._report(event)
        self._ranking = None
        self._kept = self._still_kept(event)

    @property
    def trials(self) -> Mapping[int, TrialRecord]:
        """Every trial by id, in the order they were started."""
        return MappingProxyType(self._records)

    @property
    def in_flight(self) -> tuple[Slice, ...]:
        """Slices handed out and not reported, oldest trial first."""
        return tuple(record.slices[-1] for record in self._records.values() if record.state == "running")

    @property
    def elapsed(self) -> float:
        """Run time in seconds at the last event."""
        return self._elapsed

    def ranking(self) -> tuple[TrialRecord, ...]:
        """Trials with a score, best first; of equal scores the one that took fewer seconds."""
        if self._ranking is None:
            scored = [record for record in self._records.values() if record.score is not None]
            scored.sort(key=lambda record: (-(record.score or 0.0), record.seconds, record.trial.id))
            self._ranking = tuple(scored)
        return self._ranking

    def with_checkpoint(self) -> frozenset[int]:
        """Ids of the trials whose checkpoint is kept: exportable, and the paused ones that can go on."""
        return self._kept

    def _still_kept(self, event: Event) -> frozenset[int]:
        alive = self._kept | {event.trial} if self._records[event.trial].score is not None else self._kept
        ranking = [record for record in self.ranking() if record.trial.id in alive]
        paused = [record for record in ranking if record.state == "paused"]
        running = [record for record in ranking if record.state == "running"]
        return frozenset(record.trial.id for record in (*ranking[: self.keep], *paused[: self.keep], *running))

    def _start(self, event: Started) -> None:
        trial = event.slice.trial
        known = self._records.get(event.trial)
        if known is None and event.trial != len(self._records):
            raise ValueError(f"trial {event.trial} started, but the next new one is {len(self._records)}")
        if known is not None and known.state != "paused":
            raise ValueError(f"trial {event.trial} started, but it is {known.state}")
        before = known or TrialRecord(trial, (), ())
        self._records[event.trial] = TrialRecord(trial, (*before.slices, event.slice), before.reports)
        self._elapsed = max(self._elapsed, event.clock.elapsed)

    def _report(self, report: Report) -> None:
        known = self._records.get(report.trial)
        if known is None or known.state != "running":
            raise ValueError(f"trial {report.trial} is {report.event}, but no slice of it is in flight")
        self._records[report.trial] = TrialRecord(known.trial, known.slices, (*known.reports, report))
        self._elapsed = max(self._elapsed, report.elapsed)
