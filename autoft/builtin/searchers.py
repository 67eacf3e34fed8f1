"""The searchers autoft comes with: `random`, the floor, and `halving`, the default."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autoft import (
    DONE,
    WAIT,
    Candidate,
    Clock,
    Done,
    Ledger,
    Params,
    Problem,
    Report,
    Searcher,
    Slice,
    Trial,
    TrialRecord,
    Wait,
    hookimpl,
)

RANDOM_PASSES = 9.0
RUNGS = (1.0, 3.0, 9.0, 27.0)
# A rung-1 order is noisy (a high learning rate ranks last after one pass and first after three), so half of it goes on.
KEEP = (0.5, 1 / 3, 1 / 3)
RACED_BACKBONES = 3
# Of the time left when a probe starts, for all that wait; one that takes longer ends on a part of the images.
PROBE_SHARE = 0.5
MIN_PROBE_SECONDS = 10.0  # a worker's first slice begins with seconds of imports
AGAIN = 3.0  # times the time it had: then a probe that was not done with all images is worth another try
# Share of the time after the probes in which new trials may start; the rest belongs to the best ones.
RACE_SHARE = 0.4
MIN_SLICE_SECONDS = 2.0
TOO_LATE_SECONDS = 5.0
WORTH_PASSES = 0.25  # less of a pass is not worth starting a slice for
# Slices that must have ended before one says what they cost besides their passes: the first build and load.
SLICES_TO_JUDGE_BY = 2
EPSILON = 1e-6
FAILURES_BORNE = 2


class Random(Searcher):
    """Random candidates with random hyperparameters, each trained for `RANDOM_PASSES`."""

    name = "random"
    summary = "random trials, nine passes each"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """More of a trial that was cut short, or a new one while there is time and `trials` allows."""
        offered = set(map(_address, problem.candidates))
        begun = (record for record in ledger.trials.values() if _address(record.trial) in offered)
        cut_short = (record for record in begun if _is_cut_short(record, ledger, clock))
        if (again := next(cut_short, None)) is not None:
            return Slice(again.trial, again.step, again.slices[-1].until, clock.deadline)
        number = len(ledger.trials)
        open_to_all = _promising(problem.candidates, ledger)
        if _exhausted(problem, ledger) or clock.remaining <= 0 or not open_to_all:
            return WAIT if ledger.in_flight else DONE
        rng = random.Random(f"{problem.seed}/{number}")
        candidate = rng.choice(open_to_all)
        trial = candidate.trial(number, candidate.space.sample(rng), problem.seed + number)
        return Slice(trial, 0.0, 1.0 if candidate.fit == "closed_form" else RANDOM_PASSES, clock.deadline)


class Halving(Searcher):
    """A probe of every backbone, then asynchronous successive halving in passes, which goes on with the best.

    ASHA (Li et al. 2020, arXiv 1810.05934) in its promoting form: trials pause at a rung and the best of those that
    reached it go on, from their checkpoints, never waiting for a rung to fill. New trials start while the race lasts;
    then the time left belongs to the best trials.
    """

    name = "halving"
    summary = "probe every backbone, then go on with the best of short fine-tunes"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The first of: an open probe, a promotion, a new trial while the race lasts, more of the best, a new trial."""
        race = _Race(problem, ledger, clock)
        steps = (race.probe, race.promotion, race.entry, race.more_of_the_best, race.late_entry)
        for step in steps if clock.remaining > 0 else ():
            if (found := step()) is not None:
                return found
        return WAIT if ledger.in_flight else DONE


@dataclass(frozen=True)
class _Race:
    """What `Halving` reads out of the ledger; each method gives the next slice of its kind, or None."""

    problem: Problem
    ledger: Ledger
    clock: Clock

    def probe(self) -> Slice | None:
        """A closed-form candidate that was not tried yet, the best prior first; one given back is the same trial."""
        tried = {_address(record.trial) for record in self._own() if not self._worth_again(record)}
        open_ = [candidate for candidate in self._closed_form() if _address(candidate) not in tried]
        begun = {_address(record.trial): record for record in self._probes() if record.given_back}
        exhausted = _exhausted(self.problem, self.ledger)
        waiting = [candidate for candidate in open_ if not exhausted or _address(candidate) in begun]
        waiting = [candidate for candidate in waiting if self._can_be_probed(candidate)]
        if not waiting:
            return None
        chosen = max(waiting, key=lambda candidate: candidate.prior or 0.0)
        known = begun.get(_address(chosen))
        probe = self._go_on(known) if known else self._start(chosen, {})
        return replace(probe, deadline=min(probe.deadline, self.clock.elapsed + self._probe_seconds(len(waiting))))

    def _probe_seconds(self, waiting: int) -> float:
        """What each of so many probes may take."""
        share = PROBE_SHARE * self.clock.remaining * min(1.0, self.problem.workers / waiting)
        return max(MIN_PROBE_SECONDS, share)

    def _can_be_probed(self, candidate: Candidate) -> bool:
        """Whether its validation images can be scored in time, by what that took others; without a model, always."""
        costs = {one.backbone: one.cost for one in self.problem.candidates}
        scored = [record for record in self._own() if record.score is not None]
        rates = [r.costs.scoring / costs[r.trial.backbone] for r in scored if r.trial.backbone in costs]
        least = max(MIN_SLICE_SECONDS, min(rates, default=0.0) * candidate.cost)
        return not scored or self.clock.remaining >= least

    def _worth_again(self, record: TrialRecord) -> bool:
        """Whether a probe got no time, or had enough for a part only, and could now have a multiple of it."""
        if record.share == 1.0 and not record.given_back:
            return False
        return min(self._probe_seconds(1), self.clock.remaining) > AGAIN * record.seconds

    @cached_property
    def _too_late(self) -> frozenset[str]:
        """Backbones of which a worker has just given a slice back: there was no time for a step and its score.

        Others may be quicker, or their graphs prepared. A probe has a part of the time only, so one that is given back
        says nothing of the rest.
        """
        raced = (record for record in self._own() if record.reports and self._is_raced(record))
        given_back = (r for r in raced if r.reports[-1].event == "paused" and r.reports[-1].score is None)
        just_now = self.clock.elapsed - TOO_LATE_SECONDS
        return frozenset(record.trial.backbone for record in given_back if record.reports[-1].elapsed > just_now)

    def promotion(self) -> Slice | None:
        """The best trial among the top of its rung that has not gone on, from the highest rung down."""
        for rung in reversed(range(len(KEEP))):
            reached = [record for record in self._raced if record.step >= RUNGS[rung] - EPSILON]
            reached.sort(key=lambda record: -_score_at(record, RUNGS[rung]))
            top = reached[: math.floor(len(reached) * KEEP[rung])]
            short = [record for record in reached if rung < self._first_rung(record.trial.backbone)]
            for record in (*top, *short):
                if record.step < RUNGS[rung + 1] - EPSILON and self._can_go_on(record):
                    return self._go_on(record)
        return None

    def entry(self) -> Slice | None:
        """The next trial of the portfolio, while the race lasts."""
        began = max((report.elapsed for report in self._probe_reports()), default=0.0)
        over = self.clock.elapsed > began + RACE_SHARE * (self.clock.deadline - began)
        return None if over and self._raced else self.late_entry()

    def late_entry(self) -> Slice | None:
        """The next trial of the portfolio, as long as a good part of a first rung still fits.

        One that was given back before its first step and has more time now is the same trial.
        """
        lanes = [lane for lane in self._lanes() if self._fits(lane)]
        for record in self.ledger.trials.values():
            waiting = record.given_back and self._is_raced(record) and _has_more_time(record, self.clock)
            if waiting and any(_address(lane) == _address(record.trial) for lane in lanes):
                return self._go_on(record)
        if not lanes or _exhausted(self.problem, self.ledger):
            return None
        entered = Counter(_address(record.trial) for record in self.ledger.trials.values())
        candidate = min(lanes, key=lambda lane: entered[_address(lane)])  # the first of those that had the fewest turns
        lap = entered[_address(candidate)]
        number = len(self.ledger.trials)
        rng = random.Random(f"{self.problem.seed}/{number}")
        starts = candidate.space.starts
        return self._start(candidate, starts[lap] if lap < len(starts) else candidate.space.sample(rng))

    def more_of_the_best(self) -> Slice | None:
        """The best paused trial of which a good part of a pass still fits."""
        for record in self.ledger.ranking():
            least = max(MIN_SLICE_SECONDS, WORTH_PASSES * _pass_seconds(record)) + record.costs.scoring
            worth_it = self.clock.remaining > least
            if self._is_raced(record) and self._can_go_on(record) and worth_it:
                return self._go_on(record)
        return None

    def _lanes(self) -> list[Candidate]:
        """The gradient candidates of the best backbones; strategies in their listed order, backbones by their probe."""
        order = self._backbones_by_promise()[:RACED_BACKBONES]
        promising = _promising(self.problem.candidates, self.ledger)
        raced = [candidate for candidate in promising if candidate.fit == "gradient"]
        strategies = list(dict.fromkeys(candidate.freeze for candidate in raced))
        lanes = [candidate for candidate in raced if candidate.backbone in order]
        lanes = [candidate for candidate in lanes if candidate.backbone not in self._too_late]
        return sorted(lanes, key=lambda c: (strategies.index(c.freeze) + order.index(c.backbone), c.backbone, c.freeze))

    def _backbones_by_promise(self) -> list[str]:
        """Backbones by what their probe ranks by, then by their prior."""
        scored = [record for record in self._probes() if record.score is not None]
        probed = {record.trial.backbone: self.ledger.estimate(record) for record in scored}
        priors = {candidate.backbone: candidate.prior or 0.0 for candidate in self.problem.candidates}
        worst = min(probed.values(), default=0.0)
        return sorted(priors, key=lambda name: (-probed.get(name, worst - 1.0), -priors[name], name))

    def _fits(self, candidate: Candidate) -> bool:
        """Whether there is time for a good part of a pass and its score."""
        part = WORTH_PASSES * self._pass_seconds(candidate.backbone, candidate.cost)
        least = max(MIN_SLICE_SECONDS, part + self._scoring_seconds(candidate.backbone))
        return self.clock.remaining >= least

    def _pass_seconds(self, backbone: str, cost: float) -> float:
        """Seconds one pass is expected to take, from what was measured on this backbone, or on others by their cost."""
        costs = {candidate.backbone: candidate.cost for candidate in self.problem.candidates}
        measured = [backbone] if backbone in self._least_pass_seconds else self._least_pass_seconds
        return min((self._least_pass_seconds[one] / costs.get(one, cost) for one in measured), default=0.0) * cost

    @cached_property
    def _least_pass_seconds(self) -> dict[str, float]:
        """The shortest that a pass was measured to take, by backbone."""
        least: dict[str, float] = {}
        for record in self._raced:
            if (seconds := _pass_seconds(record)) > 0:
                least[record.trial.backbone] = min(seconds, least.get(record.trial.backbone, math.inf))
        return least

    def _scoring_seconds(self, backbone: str) -> float:
        """What scoring the validation images was measured to take with this backbone."""
        records = (record for record in self.ledger.trials.values() if record.trial.backbone == backbone)
        return max((record.costs.scoring for record in records), default=0.0)

    def _first_rung(self, backbone: str) -> int:
        """The number of the first rung whose passes take as long as all else in a slice, the last one at most.

        On a GPU a pass over few images takes some hundredths of a second, and building, loading, scoring and saving one
        whole: then a slice of one pass is time thrown away, and whatever stands below that rung goes on to it.
        """
        return self._first_rungs.get(backbone, 0)

    @cached_property
    def _first_rungs(self) -> dict[str, int]:
        rungs = {}
        for backbone, cost in {one.backbone: one.cost for one in self.problem.candidates}.items():
            a_pass = self._pass_seconds(backbone, cost)
            own = [record for record in self._raced if record.trial.backbone == backbone]
            besides = [seconds for record in own for seconds in _seconds_besides(record, a_pass)]
            if a_pass > 0.0 and len(besides) >= SLICES_TO_JUDGE_BY:
                enough = (number for number, rung in enumerate(RUNGS) if rung * a_pass >= min(besides))
                rungs[backbone] = next(enough, len(RUNGS) - 1)
        return rungs

    def _start(self, candidate: Candidate, params: Params) -> Slice:
        number = len(self.ledger.trials)
        trial = candidate.trial(number, params, self.problem.seed + number)
        until = 1.0 if candidate.fit == "closed_form" else RUNGS[self._first_rung(candidate.backbone)]
        return Slice(trial, 0.0, until, self.clock.deadline)

    def _go_on(self, record: TrialRecord) -> Slice:
        least = RUNGS[self._first_rung(record.trial.backbone)]
        until = next((rung for rung in RUNGS if rung > record.step + EPSILON and rung >= least), 2 * record.step)
        return Slice(record.trial, record.step, until, self.clock.deadline)

    def _can_go_on(self, record: TrialRecord) -> bool:
        open_to_all = _address(record.trial) in self._addresses and record.trial.backbone not in self._too_late
        return record.state == "paused" and open_to_all and record.trial.id in self.ledger.with_checkpoint()

    @cached_property
    def _addresses(self) -> frozenset[tuple[str, str, int]]:
        return frozenset(map(_address, self.problem.candidates))

    def _closed_form(self) -> list[Candidate]:
        return [candidate for candidate in self.problem.candidates if candidate.fit == "closed_form"]

    def _is_probe(self, record: TrialRecord) -> bool:
        """By its strategy, as its backbone may not be offered any more."""
        return record.trial.freeze in self._probing

    @cached_property
    def _probing(self) -> frozenset[str]:
        """The strategies that probes are of."""
        return frozenset(candidate.freeze for candidate in self._closed_form())

    def _is_raced(self, record: TrialRecord) -> bool:
        return not self._is_probe(record)

    def _probes(self) -> Iterator[TrialRecord]:
        return (record for record in self._own() if self._is_probe(record))

    def _own(self) -> Iterator[TrialRecord]:
        """What was asked for here; refits, which were not, say nothing of what is worth a try."""
        return (record for record in self.ledger.trials.values() if not record.is_refit)

    def _probe_reports(self) -> Iterator[Report]:
        return (report for record in self._probes() for report in record.reports)

    @cached_property
    def _raced(self) -> tuple[TrialRecord, ...]:
        """Gradient trials with a score."""
        scored = (record for record in self.ledger.trials.values() if record.score is not None)
        return tuple(record for record in scored if self._is_raced(record))


def _promising(candidates: Sequence[Candidate], ledger: Ledger) -> list[Candidate]:
    """Candidates worth a new trial: not those that only ever failed, nor closed-form ones already tried.

    One that failed is tried once more with other parameters, if it has any.
    """
    records = ledger.trials.values()
    tried = {_address(record.trial) for record in records}
    scored = {_address(record.trial) for record in records if record.score is not None}
    failures = Counter(_address(record.trial) for record in records if record.state == "failed")

    def promising(candidate: Candidate) -> bool:
        address = _address(candidate)
        if candidate.fit == "closed_form":
            return address not in tried
        return address in scored or failures[address] < (FAILURES_BORNE if candidate.space.dimensions else 1)

    return [candidate for candidate in candidates if promising(candidate)]


def _address(of: Candidate | Trial) -> tuple[str, str, int]:
    return of.backbone, of.freeze, of.image_size


def _score_at(record: TrialRecord, rung: float) -> float:
    """The score when the trial first stood at the rung."""
    scores = [report.score for report in record.reports if report.step >= rung - EPSILON and report.score is not None]
    return scores[0] if scores else -math.inf


def _pass_seconds(record: TrialRecord) -> float:
    """Seconds of one pass at the pace of steady steps; where no slice was long enough to tell, 0: worth another try."""
    return record.costs.a_pass or 0.0


def _seconds_besides(record: TrialRecord, a_pass: float) -> Iterator[float]:
    """What each slice of a trial took besides its passes."""
    for slice_, report in zip(record.slices, record.reports, strict=False):
        if report.score is not None:
            yield max(0.0, report.seconds - a_pass * (report.step - slice_.start))


def _is_cut_short(record: TrialRecord, ledger: Ledger, clock: Clock) -> bool:
    """Whether a trial has not reached what was asked for, can go on, and has time for that now."""
    if record.state != "paused" or record.step > record.slices[-1].until - EPSILON:
        return False
    if record.step < record.slices[-1].start + EPSILON:  # not even a step: with less time it would be given back again
        has_time = _has_more_time(record, clock)
    else:
        has_time = clock.remaining > MIN_SLICE_SECONDS
    return has_time and (record.given_back or record.trial.id in ledger.with_checkpoint())


def _has_more_time(record: TrialRecord, clock: Clock) -> bool:
    """Whether the last slice of a trial would have more time now than it had then."""
    report = record.reports[-1]
    return clock.remaining > record.slices[-1].deadline - (report.elapsed - report.seconds)


def _exhausted(problem: Problem, ledger: Ledger) -> bool:
    return problem.trials is not None and len(ledger.trials) >= problem.trials


@hookimpl
def autoft_searchers() -> list[Searcher]:
    """The two built-in searchers."""
    return [Halving(), Random()]
