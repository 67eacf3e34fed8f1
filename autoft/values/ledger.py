"""`Ledger`: everything that happened in a search, rebuilt from the journal's lines one by one."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from types import MappingProxyType
from typing import Literal

from autoft.values.bundle import Training
from autoft.values.counts import passes
from autoft.values.target import MetricFacts
from autoft.values.trial import (
    Allowance,
    Costs,
    Event,
    Lost,
    Network,
    Parent,
    Queued,
    Report,
    Slice,
    Started,
    Stopped,
    Trial,
)

State = Literal["queued", "running", "paused", "finished", "failed", "left out"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial so far: its slices and their reports, oldest first; `started` are the slices that a worker has had, by
    their place in `slices`, and `lost` the processes that the last slice has cost.

    A slice is `stopped` when the run ended in good order while a worker had it.
    """

    trial: Trial
    slices: tuple[Slice, ...]
    reports: tuple[Report, ...]
    started: frozenset[int] = frozenset()
    lost: tuple[Lost, ...] = ()
    stopped: bool = False

    @property
    def in_flight(self) -> bool:
        """Whether a slice of it is handed out and not reported."""
        return len(self.slices) > len(self.reports)

    @property
    def state(self) -> State:
        """The last report's event; of a slice in flight "running", or "queued" until a worker has it."""
        if self.in_flight:
            return "running" if len(self.slices) - 1 in self.started else "queued"
        return self.reports[-1].event

    @property
    def is_cut_short(self) -> bool:
        """Of a journal that nobody writes any more: whether a worker had a slice when the run ended without a word."""
        return self.state == "running" and not self.stopped

    @property
    def given_back(self) -> bool:
        """Whether it stands at its beginning: no worker, or no time, for its first step. It needs no checkpoint."""
        return self.state == "paused" and self.step == 0 and self.score is None

    @property
    def step(self) -> float:
        """Passes over the training images reached so far."""
        return self.reports[-1].step if self.reports else 0.0

    @property
    def score(self) -> float | None:
        """The best validation score so far: what ranks, is shown and is exported. Nothing later takes it away."""
        return self._best.score if self._best else None

    @property
    def standard_error(self) -> float | None:
        """That of `score`, for the images that it comes from; None where these are many, or nobody has said."""
        return self._best.standard_error if self._best else None

    @property
    def bound(self) -> float | None:
        """The lower end of the 95 % interval of `score`: what it reaches beyond noise; None where that is not known."""
        return self._best.bound if self._best else None

    @property
    def folds(self) -> float | None:
        """The score out of fold, of a head in closed form on few images; None of all else."""
        return self._best.folds if self._best else None

    @property
    def best_step(self) -> float:
        """The passes after which `score` was measured: the step of the checkpoint it belongs to.

        Of a refit those at its end.
        """
        return self._best.step if self._best else 0.0

    @property
    def best_checkpoint(self) -> Parent:
        """The checkpoint of the best score."""
        return Parent(self.trial.id, self.best_step)

    @property
    def latest_score(self) -> float | None:
        """The validation score that was measured last, at or before `step`."""
        return next((report.score for report in reversed(self.reports) if report.score is not None), None)

    @property
    def share(self) -> float:
        """The part of the images to train on that the head of the best score was fitted on; 1 unless time was short."""
        return self._best.share if self._best else 1.0

    @property
    def precision(self) -> str:
        """What the steps to the best score were computed in, such as "bf16, channels last"; "" where there were none.

        Weights are fp32 in any case, and so are the passes that score them.
        """
        return str(self._best.facts.get("precision", "")) if self._best else ""

    @property
    def training(self) -> Training | None:
        """How long it trained by gradient until its best score; None of a head in closed form."""
        if self._best is None or not self._best.costs.steps_a_pass:
            return None
        return Training(self._best.step, round(self._best.step * self._best.costs.steps_a_pass))

    @property
    def balance(self) -> str:
        """What training did for rare classes, as `Recipe.balance` has it; "" for nothing."""
        return str(self._best.facts.get("balance", "")) if self._best else ""

    def standing(self, metric: MetricFacts) -> str:
        """What it has come to and how sure that is, in words."""
        score = f"trial {self.trial.id} has {metric.name} {metric.text(metric.shown(self.score or 0.0))}"
        if self.bound is None:
            return score
        side = "at most" if metric.is_loss else "at least"
        return f"{score}, {side} {metric.text(metric.shown(self.bound))} by its 95 % interval"

    @property
    def is_refit(self) -> bool:
        """Whether it has trained on validation images, as its twin has not."""
        return self.trial.twin is not None

    def refit(self, number: int) -> Trial:
        """The trial `number` that does once more what led to the best score, on the validation images too."""
        return replace(self.trial, id=number, train_on="train+val", twin=self.best_checkpoint)

    @property
    def has_weights(self) -> bool:
        """Whether it has weights of its own to hand over: it has a score, or is a refit that is through."""
        return self._best is not None

    @cached_property
    def _best(self) -> Report | None:
        """The report of the best score; of equal ones that of the smallest loss, and then the first.

        With few validation images scores are soon equal, and training on still makes the model surer of what is right.
        Of a refit it is the one it has finished with.
        """
        if self.is_refit:
            return self.reports[-1] if self.state == "finished" else None
        scored = [report for report in self.reports if report.score is not None]
        return max(scored, key=lambda report: (report.score or 0.0, -_loss(report)), default=None)

    @cached_property
    def costs(self) -> Costs:
        """The costs that were measured last.

        Those of a step come from the last slice that told a steady pace, those of solving from the one that solved.
        """
        measured = [report.costs for report in self.reports if report.score is not None]
        if not measured:
            return Costs()
        steady = next((costs for costs in reversed(measured) if costs.step is not None), measured[-1])
        solving = max(costs.solving for costs in measured)
        return replace(measured[-1], step=steady.step, steps_a_pass=steady.steps_a_pass, solving=solving)

    @property
    def horizon(self) -> float:
        """The passes after which its plan ends, as its slices have reported; infinite while that is not known."""
        return next((report.horizon for report in reversed(self.reports) if report.horizon), math.inf)

    @property
    def seconds(self) -> float:
        """Seconds spent in all slices together."""
        return sum(report.seconds for report in self.reports)

    @cached_property
    def seconds_to_score(self) -> float:
        """Seconds spent until it first had its best score. Training on does not change them."""
        first = next((n for n, report in enumerate(self.reports) if report.score == self.score), len(self.reports))
        return sum(report.seconds for report in self.reports[: first + 1])


def _loss(report: Report) -> float:
    """Journals of older versions have none."""
    return math.inf if report.loss is None else report.loss


def _best_at_their_passes(ranking: Iterable[TrialRecord], keep: int) -> list[TrialRecord]:
    """`keep` of the trials, those ahead among trials with as many passes, within a doubling, first; but one of each.

    By score alone the few that have come far would leave no place for those which are to come after them.
    """
    places: Counter[int] = Counter()
    ordered: list[tuple[int, int, TrialRecord]] = []
    for record in ranking:
        doublings = math.frexp(max(record.step, 1.0))[1]
        ordered.append((places[doublings], -doublings, record))
        places[doublings] += 1
    ordered.sort(key=itemgetter(0, 1))
    return [record for _, _, record in ordered[: max(keep, len(places))]]


def _best_of_each(ranking: Iterable[TrialRecord], number: int) -> Iterator[TrialRecord]:
    """So many of the trials of each network, the first ones."""
    seen: Counter[Network] = Counter()
    for record in ranking:
        network = record.trial.network
        seen[network] += 1
        if seen[network] <= number:
            yield record


def rank(record: TrialRecord) -> tuple[float, float, int]:
    """What trials with a score are ranked by, the smallest first, and no two alike: score, then time, then number.

    Of equal scores that is better which took fewer seconds until its trial first had it.
    """
    return -(record.score or 0.0), record.seconds_to_score, record.trial.id


@dataclass(frozen=True)
class Kept:
    """Which checkpoints of a trial stay: those of `steps`; the one of `going_on` with all that training needs."""

    steps: frozenset[float]
    going_on: float | None = None


class Ledger:
    """Trials, slices in flight and reports; `record` is the only way to change them.

    `keep` bounds the checkpoints: the best `keep` trials have theirs, and `keep` paused ones, the best of those that
    stand at about as many passes, from each such group alike and at least one. It is the weights of the best score and,
    of a trial that can go on, those of the last with the state of its optimiser. A trial that fell out of both has none
    any more, however the others fare later. A refit has its own as long as its twin has the one that it repeats.
    Besides, the best `of_each` of each network have theirs.
    """

    def __init__(self, events: Iterable[Event] = (), keep: int = 5, of_each: int = 0) -> None:
        self.keep, self.of_each = keep, of_each
        self.damaged: Mapping[Parent, str] = {}
        """What ails the weights of checkpoints that are kept; no journal knows, whoever opens a run looks once."""
        self.barred: Mapping[Network, str] = {}
        """The networks of which nothing is to be handed over, whatever it scores, and why."""
        self._records: dict[int, TrialRecord] = {}
        self._elapsed = 0.0
        self._held: dict[tuple[str, int], dict[str, int]] = {}
        self._ranked: list[TrialRecord] = []  # these follow from the records, and are not worked out anew each time
        self._in_flight: set[int] = set()
        self._unborn: set[int] = set()
        self._alive: frozenset[int] = frozenset()
        for event in events:
            self.record(event)

    def record(self, event: Event) -> None:
        """Take in one journal line. Raises `ValueError` on one that cannot follow those before."""
        match event:
            case Queued():
                self._queue(event)
            case Started():
                self._start(event)
            case Lost():
                self._lose(event)
            case Report():
                self._report(event)
            case Stopped():
                self._stop(event)
                return
        self._alive = self._still_alive(event.trial)

    @property
    def trials(self) -> Mapping[int, TrialRecord]:
        """Every trial by id, in the order they were asked for."""
        return MappingProxyType(self._records)

    @property
    def in_flight(self) -> tuple[Slice, ...]:
        """Slices handed out and not reported, oldest trial first."""
        return tuple(self._records[number].slices[-1] for number in sorted(self._in_flight))

    @property
    def elapsed(self) -> float:
        """Run time in seconds at the last event."""
        return self._elapsed

    def allowance(self, trial: Trial) -> Allowance:
        """How many images the trial's next slice, or the one in flight, can have go through at a time."""
        record = self._records.get(trial.id)
        held = self._held.get(trial.network, {})
        return Allowance(dict(held), record.lost if record and record.in_flight else ())

    def ranking(self) -> tuple[TrialRecord, ...]:
        """Trials with a score, best first, as `rank` says."""
        return tuple(self._ranked)

    @property
    def winner(self) -> TrialRecord | None:
        """The trial that would be exported now, or whose refit would; None without one."""
        return next((record for record in self._best_of(self._alive) if not self.damage(record)), None)

    def reaching(self, target: float | None) -> TrialRecord | None:
        """The winner, if its score has reached the target beyond noise: all of its 95 % interval lies there."""
        best = self.winner
        if target is None or best is None or best.bound is None:
            return None
        return best if best.bound >= target else None

    def image_seconds(self, backbone: str, image_size: int) -> float | None:
        """What a forward pass of one image takes a worker, as measured in the run; None where nobody has.

        The median over the trials of that backbone and size, as one may have been measured in a bad moment.
        """
        networks = (r for r in self._ranked if r.trial.network == (backbone, image_size))
        measured = [record.costs.image for record in networks if record.costs.image > 0]
        return statistics.median_high(measured) if measured else None

    def finalists(self) -> tuple[TrialRecord, ...]:
        """Trials with a score whose checkpoint is kept, whole or not, best first; before each its refit, if any."""
        return tuple(one for record in self._best_of(self._alive) for one in (*self.refits(record), record))

    def exportable(self) -> tuple[TrialRecord, ...]:
        """The finalists whose weights are whole, as far as is known."""
        return tuple(record for record in self.finalists() if not self.damage(record))

    def damage(self, record: TrialRecord) -> str | None:
        """Why a trial is not to be exported: its network is barred, or what ails the checkpoints that are taken.

        None where there is nothing, as far as is known. A refit takes its twin's too, whose validation figures it has.
        """
        taken = (record.best_checkpoint, *filter(None, [record.trial.twin]))
        barred = self.barred.get(record.trial.network)
        return barred or next(filter(None, map(self.damaged.get, taken)), None)

    def refits(self, record: TrialRecord) -> tuple[TrialRecord, ...]:
        """The refits of a trial's best checkpoint that are through and kept."""
        kept = (self._records[number] for number in sorted(self._alive))
        return tuple(one for one in kept if one.has_weights and one.trial.twin == record.best_checkpoint)

    def refuted(self, record: TrialRecord) -> Report | None:
        """How a refit of a trial's best checkpoint was refused: another would be, so it is not made again.

        One that failed otherwise, for want of time or memory, or by a fault that somebody may mend, may go well yet.
        """
        tried = (one for one in self._records.values() if one.trial.twin == record.best_checkpoint)
        return next((report for one in tried for report in one.reports if report.refused), None)

    def scored_as(self, record: TrialRecord) -> TrialRecord:
        """Whose validation score stands for the trial: its own, or its twin's."""
        return record if record.trial.twin is None else self._records[record.trial.twin.trial]

    def with_checkpoint(self) -> frozenset[int]:
        """Ids of the trials whose checkpoints are kept: exportable, and the paused ones that can go on."""
        return self._alive

    def kept(self) -> Mapping[int, Kept]:
        """Which checkpoints stay, by trial; a trial in flight is not among them, it may be saving one."""
        needed = (self._records[number] for number in self._alive | {parent.trial for parent in self._parents()})
        return {record.trial.id: self._kept(record) for record in needed if not record.in_flight}

    def has_checkpoint(self, parent: Parent) -> bool:
        """Whether the checkpoint that `parent` names is kept."""
        record = self._records.get(parent.trial)
        return record is not None and parent.step in self._kept(record).steps

    def _kept(self, record: TrialRecord) -> Kept:
        number, ended = record.trial.id, record.state in ("finished", "failed", "left out")
        claims = frozenset(parent.step for parent in self._parents() if parent.trial == number)
        if number not in self._alive:
            return Kept(claims)
        if ended:
            return Kept(claims | {record.best_step})
        return Kept(claims | {record.best_step, record.step}, going_on=record.step)

    def _parents(self) -> frozenset[Parent]:
        """The checkpoints that trials still need which have no weights of their own yet."""
        return frozenset(parent for number in self._unborn for parent in self._records[number].trial.parents)

    def _best_of(self, numbers: Iterable[int]) -> list[TrialRecord]:
        """Those of the trials that have a score, best first."""
        records = (self._records[number] for number in numbers)
        return sorted((record for record in records if record.score is not None), key=rank)

    def _still_alive(self, changed: int) -> frozenset[int]:
        alive = self._alive | {changed} if self._records[changed].has_weights else self._alive
        ranking = self._best_of(alive)
        paused = [record for record in ranking if record.state == "paused"]
        in_flight = [record for record in ranking if record.in_flight]
        going_on = _best_at_their_passes(paused, self.keep)
        kept = {record.trial.id: record for record in (*ranking[: self.keep], *going_on, *in_flight)}
        kept |= {record.trial.id: record for record in _best_of_each(ranking, self.of_each)}
        twins = {record.best_checkpoint for record in kept.values()}
        refits = (number for number in alive if self._records[number].trial.twin in twins)
        return frozenset((*kept, *refits))

    def _put(self, record: TrialRecord) -> None:
        """Take a record in, in the place of the trial's last one, and into what follows from the records."""
        number, before = record.trial.id, self._records.get(record.trial.id)
        if before is not None and before.score is not None:
            del self._ranked[bisect_left(self._ranked, rank(before), key=rank)]
        if record.score is not None:
            insort(self._ranked, record, key=rank)
        self._records[number] = record
        for numbers, belongs in ((self._in_flight, record.in_flight), (self._unborn, _is_unborn(record))):
            (numbers.add if belongs else numbers.discard)(number)

    def _queue(self, event: Queued) -> None:
        trial = event.slice.trial
        known = self._records.get(event.trial)
        is_again = known is not None and (known.trial, known.slices[-1].start) == (trial, event.slice.start)
        if known is not None and known.in_flight and is_again:  # the same slice, with the deadline that it has now
            slices, started = (*known.slices[:-1], event.slice), known.started - {len(known.slices) - 1}
            self._put(replace(known, slices=slices, started=started, stopped=False))
            self._elapsed = max(self._elapsed, event.clock.elapsed)
            return
        if known is None and event.trial != len(self._records):
            raise ValueError(f"trial {event.trial} is asked for, but the next new one is {len(self._records)}")
        if known is not None and known.state != "paused":
            raise ValueError(f"trial {event.trial} is asked for, but it is {known.state}")
        if known is not None and known.trial != trial:
            raise ValueError(f"trial {event.trial} goes on, but as another trial than it was")
        if trial.twin is not None and trial.twin.trial not in self._records:
            raise ValueError(f"trial {event.trial} is the refit of trial {trial.twin.trial}, which there is not")
        if event.slice.start != (known.step if known else 0.0):
            start, reached = passes(event.slice.start, 6), known.step if known else 0.0
            raise ValueError(f"trial {event.trial} starts from {start}, but it is at {reached:g}")
        before = known or TrialRecord(trial, (), ())
        self._put(replace(before, slices=(*before.slices, event.slice), lost=(), stopped=False))
        self._elapsed = max(self._elapsed, event.clock.elapsed)

    def _start(self, event: Started) -> None:
        known = self._open(event.trial, "started")
        self._put(replace(known, started=known.started | {len(known.slices) - 1}, stopped=False))
        self._elapsed = max(self._elapsed, event.elapsed)

    def _lose(self, event: Lost) -> None:
        known = self._open(event.trial, "lost")
        started = known.started - {len(known.slices) - 1}
        self._put(replace(known, started=started, lost=(*known.lost, event), stopped=False))
        self._elapsed = max(self._elapsed, event.elapsed)

    def _stop(self, event: Stopped) -> None:
        for record in [self._records[number] for number in self._in_flight]:
            if record.state == "running":
                self._put(replace(record, stopped=True))
        self._elapsed = max(self._elapsed, event.elapsed)

    def _report(self, report: Report) -> None:
        known = self._open(report.trial, report.event)
        self._put(replace(known, reports=(*known.reports, report)))
        self._elapsed = max(self._elapsed, report.elapsed)
        images, device = report.facts.get("images_at_once"), report.facts.get("device")
        sure = all(one.why == "memory" for one in known.lost)  # halved on suspicion says nothing of others
        if isinstance(images, int) and isinstance(device, str) and sure:
            held = self._held.setdefault(known.trial.network, {})
            held[device] = min(images, held.get(device, images))

    def _open(self, number: int, event: str) -> TrialRecord:
        """The record of a trial with a slice in flight. Raises `ValueError` where there is none."""
        known = self._records.get(number)
        if known is None or not known.in_flight:
            raise ValueError(f"trial {number} is {event}, but no slice of it is in flight")
        return known


def _is_unborn(record: TrialRecord) -> bool:
    """Whether a trial still needs its parents: until it has weights of its own, or never will."""
    return bool(record.trial.parents) and not record.has_weights and record.state not in ("failed", "left out")
