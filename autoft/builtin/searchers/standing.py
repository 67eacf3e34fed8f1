"""`Standing`: what searchers read out of a ledger, and what of it the time still holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autoft import Candidate, Clock, Ledger, Params, Problem, Slice, Trial, TrialRecord

MIN_SLICE_SECONDS = 2.0
MORE_SECONDS = 1.0  # less is not more time: what is kept back for the end wavers
WORTH_PASSES = 0.25  # less of a pass is not worth starting a slice for,
WORTH_SCORING = 1.0  # nor is to train on for less than so many times what it takes to score that
EPSILON = 1e-6
FAILURES_BORNE = 2


@dataclass(frozen=True)
class Standing:
    """Where a search stands when its searcher is asked."""

    problem: Problem
    ledger: Ledger
    clock: Clock

    def next_trial(self, candidate: Candidate, params: Params, until: float) -> Slice:
        """The first slice of a new trial; of one in closed form the only one."""
        number = len(self.ledger.trials)
        trial = candidate.trial(number, params, self.problem.seed + number)
        return Slice(trial, 0.0, 1.0 if candidate.fit == "closed_form" else until, self.clock.deadline)

    def further(self, record: TrialRecord, rungs: Sequence[float]) -> Slice:
        """A paused trial's next slice, to the next rung; beyond the last as many passes again."""
        until = next((rung for rung in rungs if rung > record.step + EPSILON), 2 * record.step)
        return Slice(record.trial, record.step, until, self.clock.deadline)

    def interrupted(self) -> Slice | None:
        """The rest of a slice that had no time for all, or for any, of its passes and now has: as in a resumed run."""
        offered = {address_of(one) for one in self.problem.candidates if self.has_time_for(one)}
        for record in self.own():
            if not is_cut_short(record, self.ledger, self.clock):
                continue
            begun = record.given_back and address_of(record.trial) in offered
            if begun or self.is_worth_going_on(record):
                return Slice(record.trial, record.step, record.slices[-1].until, self.clock.deadline)
        return None

    def best_paused(self) -> TrialRecord | None:
        """The best trial that is worth going on with."""
        return next((record for record in self.ledger.ranking() if self.is_worth_going_on(record)), None)

    def startable(self) -> list[Candidate]:
        """Candidates worth a new trial for which there is time; none when `Problem.trials` is used up."""
        if is_used_up(self.problem, self.ledger):
            return []
        return [one for one in promising(self.problem.candidates, self.ledger) if self.has_time_for(one)]

    def has_time_for(self, candidate: Candidate) -> bool:
        """Whether a trial of it would come to a score."""
        if candidate.fit == "closed_form":
            return self.can_be_probed(candidate)
        return candidate.backbone not in self.too_late and self.fits(candidate)

    def is_worth_going_on(self, record: TrialRecord) -> bool:
        """Whether a trial is paused, can go on, and a good part of a pass, or of the time to score it, still fits."""
        costs = record.costs
        part = min(WORTH_PASSES * steady_pass_seconds(record), WORTH_SCORING * costs.scoring)
        least = max(MIN_SLICE_SECONDS, costs.step or 0.0, part) + costs.scoring + costs.saving
        return self.can_go_on(record) and self.clock.remaining > least

    def can_be_probed(self, candidate: Candidate) -> bool:
        """Whether its validation images can be scored in time, by what that took others; without a model, always."""
        costs = {one.backbone: one.cost for one in self.problem.candidates}
        scored = [record for record in self.own() if record.score is not None]
        told = [record for record in scored if record.trial.backbone in costs and record.costs.scoring > 0.0]
        rates = [record.costs.scoring / costs[record.trial.backbone] for record in told]
        least = max(MIN_SLICE_SECONDS, min(rates, default=0.0) * candidate.cost)
        return not scored or self.clock.remaining >= least

    @cached_property
    def too_late(self) -> frozenset[str]:
        """Backbones of which a worker gave a slice back that had no less time: there was none for a step and its score.

        Others may be quicker, or their graphs prepared. A probe has a part of the time only, so one that is given back
        says nothing of the rest.
        """
        raced = (record for record in self.own() if record.reports and self.is_raced(record))
        given_back = (r for r in raced if r.reports[-1].event == "paused" and r.reports[-1].score is None)
        return frozenset(r.trial.backbone for r in given_back if not has_more_time(r, self.clock))

    def fits(self, candidate: Candidate) -> bool:
        """Whether there is time for a good part of a pass and its score."""
        part = WORTH_PASSES * self.pass_seconds(candidate.backbone, candidate.cost)
        least = max(MIN_SLICE_SECONDS, part + self._scoring_seconds(candidate.backbone))
        return self.clock.remaining >= least

    def pass_seconds(self, backbone: str, cost: float) -> float:
        """Seconds one pass is expected to take, from what was measured on this backbone, or on others by their cost."""
        costs = {candidate.backbone: candidate.cost for candidate in self.problem.candidates}
        measured = [backbone] if backbone in self._least_pass_seconds else self._least_pass_seconds
        return min((self._least_pass_seconds[one] / costs.get(one, cost) for one in measured), default=0.0) * cost

    @cached_property
    def _least_pass_seconds(self) -> dict[str, float]:
        """The shortest that a pass was measured to take, by backbone."""
        least: dict[str, float] = {}
        for record in self.raced:
            if (seconds := steady_pass_seconds(record)) > 0:
                least[record.trial.backbone] = min(seconds, least.get(record.trial.backbone, math.inf))
        return least

    def _scoring_seconds(self, backbone: str) -> float:
        """What scoring the validation images was measured to take with this backbone."""
        return self._scoring.get(backbone, 0.0)

    @cached_property
    def _scoring(self) -> dict[str, float]:
        slowest: dict[str, float] = {}
        for record in self.ledger.trials.values():
            name = record.trial.backbone
            slowest[name] = max(record.costs.scoring, slowest.get(name, 0.0))
        return slowest

    def can_go_on(self, record: TrialRecord) -> bool:
        """Whether a trial is paused, has what it takes to go on, and is still a candidate."""
        open_to_all = address_of(record.trial) in self._addresses and record.trial.backbone not in self.too_late
        return record.state == "paused" and open_to_all and record.trial.id in self.ledger.with_checkpoint()

    @cached_property
    def _addresses(self) -> frozenset[tuple[str, str, int]]:
        return frozenset(map(address_of, self.problem.candidates))

    def closed_form(self) -> list[Candidate]:
        """The candidates whose heads are fitted in closed form."""
        return [candidate for candidate in self.problem.candidates if candidate.fit == "closed_form"]

    def is_probe(self, record: TrialRecord) -> bool:
        """Whether its head is fitted in closed form; by its strategy, as its backbone may not be offered any more."""
        return record.trial.freeze in self._probing

    @cached_property
    def _probing(self) -> frozenset[str]:
        return frozenset(candidate.freeze for candidate in self.closed_form())

    def is_raced(self, record: TrialRecord) -> bool:
        """Whether it trains by gradient."""
        return not self.is_probe(record)

    def own(self) -> Iterator[TrialRecord]:
        """What was asked for here; refits, which were not, say nothing of what is worth a try."""
        return (record for record in self.ledger.trials.values() if not record.is_refit)

    @cached_property
    def raced(self) -> tuple[TrialRecord, ...]:
        """Gradient trials with a score."""
        scored = (record for record in self.ledger.trials.values() if record.score is not None)
        return tuple(record for record in scored if self.is_raced(record))


def promising(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Candidates worth a new trial: not those that only ever failed, nor closed-form ones already tried.

    One that failed is tried once more with other parameters, if it has any.
    """
    records = ledger.trials.values()
    tried = {address_of(record.trial) for record in records}
    scored = {address_of(record.trial) for record in records if record.score is not None}
    failures = Counter(address_of(record.trial) for record in records if record.state == "failed")

    def is_promising(candidate: Candidate) -> bool:
        address = address_of(candidate)
        if candidate.fit == "closed_form":
            return address not in tried
        return address in scored or failures[address] < (FAILURES_BORNE if candidate.space.dimensions else 1)

    return [candidate for candidate in candidates if is_promising(candidate)]


def address_of(of: Candidate | Trial) -> tuple[str, str, int]:
    """Which candidate it is, or is of: backbone, strategy and input size."""
    return of.backbone, of.freeze, of.image_size


def score_at(record: TrialRecord, rung: float) -> float:
    """The score when the trial first stood at the rung."""
    scores = [report.score for report in record.reports if report.step >= rung - EPSILON and report.score is not None]
    return scores[0] if scores else -math.inf


def steady_pass_seconds(record: TrialRecord) -> float:
    """Seconds of one pass at the pace of steady steps; where no slice was long enough to tell, 0: worth another try."""
    return record.costs.a_pass or 0.0


def is_cut_short(record: TrialRecord, ledger: Ledger, clock: Clock) -> bool:
    """Whether a trial has not reached what was asked for, can go on, and has time for that now."""
    if record.state != "paused" or record.step > record.slices[-1].until - EPSILON:
        return False
    if record.step < record.slices[-1].start + EPSILON:  # not even a step: with less time it would be given back again
        has_time = has_more_time(record, clock)
    else:
        has_time = clock.remaining > MIN_SLICE_SECONDS
    return has_time and (record.given_back or record.trial.id in ledger.with_checkpoint())


def has_more_time(record: TrialRecord, clock: Clock) -> bool:
    """Whether the last slice of a trial would have more time now than it had then."""
    report = record.reports[-1]
    return clock.remaining > MORE_SECONDS + record.slices[-1].deadline - (report.elapsed - report.seconds)


def is_used_up(problem: Problem, ledger: Ledger) -> bool:
    """Whether no further trial may start."""
    return problem.trials is not None and len(ledger.trials) >= problem.trials
