"""`one_epoch`: a pass of everything, then the best: what many do by hand."""

from __future__ import annotations

import random
from collections import Counter

from autoft import DONE, WAIT, Clock, Done, Ledger, Problem, Searcher, Slice, TrialRecord, Wait
from autoft.builtin.searchers.standing import Standing, address_of, score_at

RUNGS = (3.0, 9.0, 27.0)


class OneEpoch(Searcher):
    """One pass of every pair of backbone and strategy with its usual parameters, then all the time to the best of them.

    The best after that pass, as many as there are workers; who is through makes room for the next. Nothing is ranked
    before all pairs have had their pass, and nothing again after it.
    """

    name = "one_epoch"
    summary = "one pass of every backbone and strategy, then the rest of the time to the best"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The first of: what was interrupted, a pair that had no pass, the best."""
        standing = Standing(problem, ledger, clock)
        if clock.remaining <= 0:
            return WAIT if ledger.in_flight else DONE
        if slice_ := standing.interrupted() or _first_pass(standing):
            return slice_
        if any(slice_.start == 0.0 for slice_ in ledger.in_flight):
            return WAIT
        best = next((record for record in _by_first_pass(standing) if standing.is_worth_going_on(record)), None)
        if best is not None:
            return standing.further(best, RUNGS)
        return WAIT if ledger.in_flight else DONE


def _first_pass(standing: Standing) -> Slice | None:
    """The next pair without one; where it failed a second time with other parameters."""
    tried = Counter(address_of(record.trial) for record in standing.own())
    failed = Counter(address_of(record.trial) for record in standing.own() if record.state == "failed")
    for candidate in standing.startable():
        turn = failed[address_of(candidate)]
        if tried[address_of(candidate)] > turn:
            continue
        rng = random.Random(f"{standing.problem.seed}/{len(standing.ledger.trials)}")
        starts = candidate.space.starts
        return standing.next_trial(candidate, starts[turn] if turn < len(starts) else candidate.space.sample(rng), 1.0)
    return None


def _by_first_pass(standing: Standing) -> list[TrialRecord]:
    """Trials with a score by what they were after their first pass, best first."""
    scored = [record for record in standing.own() if record.score is not None]
    return sorted(scored, key=lambda record: (-score_at(record, 1.0), record.trial.id))
