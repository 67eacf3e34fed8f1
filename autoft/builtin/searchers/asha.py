"""`asha`: plain asynchronous successive halving, to compare with."""

from __future__ import annotations

import math
import random
from itertools import pairwise

from autoft import DONE, WAIT, Candidate, Clock, Done, Ledger, Params, Problem, Searcher, Slice, Wait
from autoft.builtin.searchers.standing import EPSILON, Standing, score_at

REDUCTION = 3
"""One in so many of a rung goes on, over so many times the passes."""


class Asha(Searcher):
    """Plain ASHA over all candidates (Li et al. 2020, arXiv 1810.05934, algorithm 2), from one pass to 27, by thirds.

    Whoever asks gets the promotion of a trial among the best third of its rung, from the highest rung down, else a new
    trial. Where no new one may start, the time left belongs to the best ones. A subclass that `draw`s otherwise is
    another searcher with the same rungs.
    """

    name = "asha"
    summary = "plain ASHA: random trials, the best third of each rung goes on to three times the passes"
    tries_starts = False
    rungs: tuple[float, ...] = (1.0, 3.0, 9.0, 27.0)

    def draw(self, problem: Problem, ledger: Ledger, open_to_all: list[Candidate]) -> tuple[Candidate, Params]:
        """The next trial's candidate, one of those `open_to_all`, and its parameters; here by chance alone."""
        rng = random.Random(f"{problem.seed}/{len(ledger.trials)}")
        candidate = rng.choice(open_to_all)
        return candidate, candidate.space.sample(rng)

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The first of: what was interrupted, a promotion, a new trial, more of the best."""
        standing = Standing(problem, ledger, clock)
        if clock.remaining <= 0:
            return WAIT if ledger.in_flight else DONE
        if slice_ := standing.interrupted() or self._promotion(standing):
            return slice_
        if open_to_all := standing.startable():
            return standing.next_trial(*self.draw(problem, ledger, open_to_all), self.rungs[0])
        if best := standing.best_paused():
            return standing.further(best, self.rungs)
        return WAIT if ledger.in_flight else DONE

    def _promotion(self, standing: Standing) -> Slice | None:
        """The best trial in the top of its rung that has not gone on."""
        for rung, following in reversed(list(pairwise(self.rungs))):
            reached = [record for record in standing.raced if record.step >= rung - EPSILON]
            reached.sort(key=lambda record: (-score_at(record, rung), record.trial.id))
            for record in reached[: math.floor(len(reached) / REDUCTION)]:
                if record.step < following - EPSILON and standing.is_worth_going_on(record):
                    return standing.further(record, self.rungs)
        return None
