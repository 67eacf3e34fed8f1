"""`halving`, the default: probes, then successive halving in passes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
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
    TrialRecord,
    Wait,
)
from autoft.builtin.searchers.standing import (
    EPSILON,
    Standing,
    address_of,
    has_more_time,
    is_used_up,
    promising,
    score_at,
)

RUNGS = (1.0, 3.0, 9.0, 27.0)
# A rung-1 order is noisy (a high learning rate ranks last after one pass and first after three), so half of it goes on.
KEEP = (0.5, 1 / 3, 1 / 3)
RACED_BACKBONES = 3
# Of the time left when a probe starts, for all that wait; one that takes longer ends on a part of the images.
PROBE_SHARE = 0.5
MIN_PROBE_SECONDS = 10.0  # a worker's first slice begins with seconds of imports
# A probe that was not done with all images is worth another try with so many times the time it had, or once if what was
# left fits, with a margin: the features that it had computed are kept.
AGAIN, REST_MARGIN = 3.0, 1.5
# Share of the time after the probes in which new trials may start; the rest belongs to the best ones.
RACE_SHARE = 0.4
# Slices that must have ended before one says what they cost besides their passes: the first build and load.
SLICES_TO_JUDGE_BY = 2


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
class _Race(Standing):
    """What `Halving` reads out of the ledger; each method gives the next slice of its kind, or None."""

    def probe(self) -> Slice | None:
        """A closed-form candidate that was not tried yet, the best prior first; one given back is the same trial."""
        tried = {address_of(record.trial) for record in self.own() if not self._worth_again(record)}
        open_ = [candidate for candidate in self.closed_form() if address_of(candidate) not in tried]
        begun = {address_of(record.trial): record for record in self._probes() if record.given_back}
        used_up = is_used_up(self.problem, self.ledger)
        waiting = [candidate for candidate in open_ if not used_up or address_of(candidate) in begun]
        waiting = [candidate for candidate in waiting if self.can_be_probed(candidate)]
        probed = {address_of(record.trial) for record in self._probes() if record.score is not None}
        untried = [candidate for candidate in waiting if address_of(candidate) not in probed]
        if not waiting:
            return None
        chosen = max(untried or waiting, key=lambda candidate: candidate.prior or 0.0)
        known = begun.get(address_of(chosen))
        probe = self._go_on(known) if known else self._start(chosen, {})
        if not untried:  # nobody waits for it
            return probe
        return replace(probe, deadline=min(probe.deadline, self.clock.elapsed + self._probe_seconds(len(untried))))

    def _probe_seconds(self, waiting: int) -> float:
        """What each of so many probes may take."""
        share = PROBE_SHARE * self.clock.remaining * min(1.0, self.problem.workers / waiting)
        return max(MIN_PROBE_SECONDS, share)

    def _worth_again(self, record: TrialRecord) -> bool:
        """Whether a probe got no time, or enough for a part only, and could now have a multiple of it, or the rest."""
        if record.share == 1.0 and not record.given_back:
            return False
        if min(self._probe_seconds(1), self.clock.remaining) > AGAIN * record.seconds:
            return record.given_back or not self._is_last_trial()
        if record.given_back or self._is_last_trial() or self._is_probed_again(record):
            return False
        return self.clock.remaining > REST_MARGIN * _rest_seconds(record)

    def _is_probed_again(self, record: TrialRecord) -> bool:
        """Whether another probe of the same has had its time."""
        address, others = address_of(record.trial), (one for one in self._probes() if one.trial.id != record.trial.id)
        return any(address_of(one.trial) == address and not one.given_back for one in others)

    def _is_last_trial(self) -> bool:
        """Whether the next new one is the last that there may be; it is worth more to what was not tried."""
        return self.problem.trials is not None and len(self.ledger.trials) + 1 >= self.problem.trials

    def promotion(self) -> Slice | None:
        """The best trial among the top of its rung that has not gone on, from the highest rung down."""
        for rung in reversed(range(len(KEEP))):
            reached = [record for record in self.raced if record.step >= RUNGS[rung] - EPSILON]
            reached.sort(key=lambda record: -score_at(record, RUNGS[rung]))
            top = reached[: math.floor(len(reached) * KEEP[rung])]
            short = [record for record in reached if rung < self._first_rung(record.trial.backbone)]
            for record in (*top, *short):
                if record.step < RUNGS[rung + 1] - EPSILON and self.can_go_on(record):
                    return self._go_on(record)
        return None

    def entry(self) -> Slice | None:
        """The next trial of the portfolio, while the race lasts."""
        began = max((report.elapsed for report in self._probe_reports()), default=0.0)
        over = self.clock.elapsed > began + RACE_SHARE * (self.clock.deadline - began)
        return None if over and self.raced else self.late_entry()

    def late_entry(self) -> Slice | None:
        """The next trial of the portfolio, as long as a good part of a first rung still fits.

        One that was given back before its first step and has more time now is the same trial.
        """
        lanes = [lane for lane in self._lanes() if self.fits(lane)]
        for record in self.ledger.trials.values():
            waiting = record.given_back and self.is_raced(record) and has_more_time(record, self.clock)
            if waiting and any(address_of(lane) == address_of(record.trial) for lane in lanes):
                return self._go_on(record)
        if not lanes or is_used_up(self.problem, self.ledger):
            return None
        entered = Counter(address_of(record.trial) for record in self.ledger.trials.values())
        candidate = min(
            lanes, key=lambda lane: entered[address_of(lane)]
        )  # the first of those that had the fewest turns
        lap = entered[address_of(candidate)]
        number = len(self.ledger.trials)
        rng = random.Random(f"{self.problem.seed}/{number}")
        starts = candidate.space.starts
        return self._start(candidate, starts[lap] if lap < len(starts) else candidate.space.sample(rng))

    def more_of_the_best(self) -> Slice | None:
        """The best paused trial that is worth going on with."""
        record = self.best_paused()
        return self._go_on(record) if record else None

    def _lanes(self) -> list[Candidate]:
        """The gradient candidates of the best backbones; strategies in their listed order, backbones by their probe."""
        order = self._backbones_by_promise()[:RACED_BACKBONES]
        open_to_all = promising(self.problem.candidates, self.ledger)
        raced = [candidate for candidate in open_to_all if candidate.fit == "gradient"]
        strategies = list(dict.fromkeys(candidate.freeze for candidate in raced))
        lanes = [candidate for candidate in raced if candidate.backbone in order]
        lanes = [candidate for candidate in lanes if candidate.backbone not in self.too_late]
        return sorted(lanes, key=lambda c: (strategies.index(c.freeze) + order.index(c.backbone), c.backbone, c.freeze))

    def _backbones_by_promise(self) -> list[str]:
        """Backbones by the score of their probe, then by their prior; out of fold where all probes were judged so."""
        scored = [record for record in self._probes() if record.score is not None]
        folds = {record.trial.backbone: record.folds for record in scored if record.folds is not None}
        scores = {record.trial.backbone: record.score or 0.0 for record in scored}
        probed = folds if len(folds) == len(scores) else scores
        priors = {candidate.backbone: candidate.prior or 0.0 for candidate in self.problem.candidates}
        worst = min(probed.values(), default=0.0)
        return sorted(priors, key=lambda name: (-probed.get(name, worst - 1.0), -priors[name], name))

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
            a_pass = self.pass_seconds(backbone, cost)
            own = [record for record in self.raced if record.trial.backbone == backbone]
            besides = [seconds for record in own for seconds in _seconds_besides(record, a_pass)]
            if a_pass > 0.0 and len(besides) >= SLICES_TO_JUDGE_BY:
                enough = (number for number, rung in enumerate(RUNGS) if rung * a_pass >= min(besides))
                rungs[backbone] = next(enough, len(RUNGS) - 1)
        return rungs

    def _start(self, candidate: Candidate, params: Params) -> Slice:
        return self.next_trial(candidate, params, RUNGS[self._first_rung(candidate.backbone)])

    def _go_on(self, record: TrialRecord) -> Slice:
        least = RUNGS[self._first_rung(record.trial.backbone)]
        until = next((rung for rung in RUNGS if rung > record.step + EPSILON and rung >= least), 2 * record.step)
        return Slice(record.trial, record.step, until, self.clock.deadline)

    def _probes(self) -> Iterator[TrialRecord]:
        return (record for record in self.own() if self.is_probe(record))

    def _probe_reports(self) -> Iterator[Report]:
        return (report for record in self._probes() for report in record.reports)


def _rest_seconds(record: TrialRecord) -> float:
    """What a probe on a part of the images still takes for all: the features of the others, and another fit."""
    costs, share = record.costs, record.share
    forward = max(0.0, record.seconds - costs.scoring - costs.solving)
    return forward * (1.0 - share) / share + costs.solving / share


def _seconds_besides(record: TrialRecord, a_pass: float) -> Iterator[float]:
    """What each slice of a trial took besides its passes."""
    for slice_, report in zip(record.slices, record.reports, strict=False):
        if report.score is not None:
            yield max(0.0, report.seconds - a_pass * (report.step - slice_.start))
