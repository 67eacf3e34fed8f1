"""A searcher plugin that asks for many probes of one backbone: slices that take next to no time on cached features.

autoft search examples/fashion -p benchmarks/many_probes.py --searcher many_probes --trials 40
"""

from __future__ import annotations

from autoft import DONE, WAIT, Clock, Done, Ledger, Problem, Searcher, Slice, Wait, hookimpl

MOST = 64


class ManyProbes(Searcher):
    """The first closed-form candidate again and again, each time with another seed."""

    name = "many_probes"
    summary = "the same probe many times; for benchmarks/runner_overhead.py"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The next probe, until there are `trials` of them."""
        number = len(ledger.trials)
        if number >= (problem.trials or MOST) or clock.remaining <= 0:
            return WAIT if ledger.in_flight else DONE
        candidate = next(candidate for candidate in problem.candidates if candidate.fit == "closed_form")
        return Slice(candidate.trial(number, {}, problem.seed + number), 0.0, 1.0, clock.deadline)


@hookimpl
def autoft_searchers() -> list[Searcher]:
    """The one searcher."""
    return [ManyProbes()]
