"""`random`, the floor."""

from __future__ import annotations

import random

from autoft import DONE, WAIT, Clock, Done, Ledger, Problem, Searcher, Slice, Wait
from autoft.builtin.searchers.standing import address_of, is_cut_short, is_used_up, promising

RANDOM_PASSES = 9.0


class Random(Searcher):
    """Random candidates with random hyperparameters, each trained for `RANDOM_PASSES`."""

    name = "random"
    summary = "random trials, nine passes each"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """More of a trial that was cut short, or a new one while there is time and `trials` allows."""
        offered = set(map(address_of, problem.candidates))
        begun = (record for record in ledger.trials.values() if address_of(record.trial) in offered)
        cut_short = (record for record in begun if is_cut_short(record, ledger, clock))
        if (again := next(cut_short, None)) is not None:
            return Slice(again.trial, again.step, again.slices[-1].until, clock.deadline)
        number = len(ledger.trials)
        open_to_all = promising(problem.candidates, ledger)
        if is_used_up(problem, ledger) or clock.remaining <= 0 or not open_to_all:
            return WAIT if ledger.in_flight else DONE
        rng = random.Random(f"{problem.seed}/{number}")
        candidate = rng.choice(open_to_all)
        trial = candidate.trial(number, candidate.space.sample(rng), problem.seed + number)
        return Slice(trial, 0.0, 1.0 if candidate.fit == "closed_form" else RANDOM_PASSES, clock.deadline)
