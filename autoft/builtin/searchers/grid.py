"""`grid`: every point of a grid over all candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator

from autoft import (
    DONE,
    WAIT,
    Candidate,
    Choice,
    Clock,
    Dimension,
    Done,
    Int,
    Ledger,
    Params,
    Problem,
    Scalar,
    Searcher,
    Slice,
    Space,
    Wait,
)
from autoft.builtin.searchers.standing import Standing, address_of

POINTS = 3
"""Of a range: the middles of as many equal parts, so that none is an end, where hardly anything does well."""
PASSES = 9.0
GOLDEN = (math.sqrt(5) - 1) / 2


class Grid(Searcher):
    """Every option of a choice with `POINTS` of each range, of each candidate, for `PASSES`; then more of the best.

    Points are taken in steps of the golden section of their number, coprime to it, from a place that the seed decides:
    so each comes once, and those that there was time for lie evenly among all.
    """

    name = "grid"
    summary = f"every choice, with {POINTS} points of each range; {PASSES:g} passes each, then more of the best"
    tries_starts = False

    def remark(self, problem: Problem) -> str:
        """How many points there are."""
        size = sum(_size(candidate.space) for candidate in problem.candidates)
        too_few = problem.trials is not None and problem.trials < size
        tried = f", of which {problem.trials} {'is' if problem.trials == 1 else 'are'} tried" if too_few else ""
        return f"the grid has {size:,} point{'s' * (size != 1)}{tried}"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """The first of: what was interrupted, the next point for which there is time, more of the best."""
        standing = Standing(problem, ledger, clock)
        if clock.remaining <= 0:
            return WAIT if ledger.in_flight else DONE
        if slice_ := standing.interrupted() or self._next_point(standing):
            return slice_
        if best := standing.best_paused():
            return standing.further(best, (PASSES, 3 * PASSES))
        return WAIT if ledger.in_flight else DONE

    def _next_point(self, standing: Standing) -> Slice | None:
        open_to_all = {address_of(candidate) for candidate in standing.startable()}
        if not open_to_all:
            return None
        taken = {(address_of(record.trial), _key(record.trial.params)) for record in standing.own()}
        for candidate, params in _points(standing.problem):
            address = address_of(candidate)
            if address in open_to_all and (address, _key(params)) not in taken:
                return standing.next_trial(candidate, params, PASSES)
        return None


def _points(problem: Problem) -> Iterator[tuple[Candidate, Params]]:
    """All points in the order in which they are tried."""
    sizes = [_size(candidate.space) for candidate in problem.candidates]
    size = sum(sizes)
    step = next(number for number in range(max(1, round(GOLDEN * size)), size + 2) if math.gcd(number, size) == 1)
    for number in range(size):
        index = (problem.seed + number * step) % size
        for candidate, own in zip(problem.candidates, sizes, strict=True):
            if index < own:
                yield candidate, _point(candidate.space, index)
                break
            index -= own


def _point(space: Space, index: int) -> dict[str, Scalar]:
    """The point of that number: a digit of it for each dimension."""
    point = {}
    for name, dimension in space.dimensions.items():
        values = _values(dimension)
        index, digit = divmod(index, len(values))
        point[name] = values[digit]
    return point


def _size(space: Space) -> int:
    return math.prod(len(_values(dimension)) for dimension in space.dimensions.values())


def _values(dimension: Dimension) -> list[Scalar]:
    """Its options, or a few distinct values of its range, all of a whole one that has no more."""
    if isinstance(dimension, Choice):
        return list(dimension.options)
    if isinstance(dimension, Int) and dimension.high - dimension.low < POINTS:
        return list(range(dimension.low, dimension.high + 1))
    shares = [(number + 0.5) / POINTS for number in range(POINTS)]
    values = [_at(share, dimension.low, dimension.high, dimension.log) for share in shares]
    return list(dict.fromkeys(map(round, values) if isinstance(dimension, Int) else values))


def _at(share: float, low: float, high: float, log: bool) -> float:
    """The value at a share of the way from low to high."""
    value = low * (high / low) ** share if log else low + share * (high - low)
    return min(max(value, low), high)


def _key(params: Params) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(params.items()))
