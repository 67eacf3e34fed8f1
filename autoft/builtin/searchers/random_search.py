"""`random`, the floor."""

from __future__ import annotations

import random

from autoft import DONE, WAIT, Clock, Done, Ledger, Problem, Searcher, Slice, Wait
from autoft.builtin.searchers.standing import Standing

RANDOM_PASSES = 9.0


class Random(Searcher):
    """Random candidates with random hyperparameters, each trained for `RANDOM_PASSES`."""

    name = "random"
    summary = "random trials, nine passes each"
    tries_starts = False

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """More of a trial that was cut short, or a new one while there is time and `trials` allows."""
        standing = Standing(problem, ledger, clock)
        if (again := standing.interrupted()) is not None:
            return again
        startable = standing.startable()
        if not startable or clock.remaining <= 0:
            return WAIT if ledger.in_flight else DONE
        rng = random.Random(f"{problem.seed}/{len(ledger.trials)}")
        candidate = rng.choice(startable)
        return standing.next_trial(candidate, candidate.space.sample(rng), RANDOM_PASSES)
