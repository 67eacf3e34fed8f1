"""How many slices share a GPU: as many as make more of it together. Pure logic: no process, no clock and no GPU.

`Occupancy` says by how many slices a GPU was shared when a pace was measured, `Sharing` how many may be in flight on
each.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

WORTH = 1.1  # what one slice more has to make of the pace of all together
MEMORY_SHARE = 0.9  # of a card, for all workers on it
ENOUGH, PATIENCE = 5, 24  # slices that a decision takes; after so many that cannot be compared there is none
FIRST_CHECK, LAST_CHECK = 24, 384  # slices until a decision is looked at again, each time after twice as many
REMEMBERED = 5
SEEN_A_GPU = 24  # slices whose memory counts
SURE = 0.1  # a pace counts when the number that shared the GPU meanwhile is as near as this to a whole one


@dataclass(frozen=True)
class Span:
    """From when to when on which GPU, in seconds of run time; None stands for one that nobody shared."""

    began: float
    ended: float
    gpu: int | None = 0

    def overlap(self, other: Span) -> float:
        """Seconds in both, on one GPU."""
        seconds = min(self.ended, other.ended) - max(self.began, other.began)
        return max(0.0, seconds) if self.gpu == other.gpu else 0.0


@dataclass(frozen=True)
class Pace:
    """`step` seconds for each step of a slice, as measured in `span`; `kind` is what steps of equal length share."""

    span: Span
    kind: Hashable
    step: float


@dataclass(frozen=True)
class Shared:
    """The seconds of a step of that kind when `number` slices shared the GPU."""

    kind: Hashable
    number: int
    step: float


@dataclass(frozen=True)
class Footprint:
    """GPU memory as a slice sees it, in MiB: the most that was reserved for it, all else that is used, and the whole
    card.
    """

    reserved: float
    others: float
    card: float


class Occupancy:
    """When and where the slices that have ended were, and those in flight by when they were handed out.

    On which GPU one is in flight is known when it has ended, and how long its worker was only starting and left the GPU
    to others. So a pace is given once all that may have had a part in it have ended.
    """

    def __init__(self) -> None:
        self._in_flight: dict[Hashable, float] = {}
        self._there: list[Span] = []
        self._waiting: list[Pace] = []

    def __len__(self) -> int:
        """Slices in flight."""
        return len(self._in_flight)

    def began(self, slice_: Hashable, now: float) -> None:
        """A slice is handed out."""
        self._in_flight[slice_] = now

    def left(self, slice_: Hashable) -> None:
        """A slice is in flight no more, and never was on a GPU."""
        del self._in_flight[slice_]

    def ended(self, slice_: Hashable, there: Span, pace: Pace | None) -> Iterator[Shared]:
        """A slice has ended that was there so long, and has measured its pace; all paces that are certain now."""
        self.left(slice_)
        self._there.append(there)
        self._waiting += [pace] if pace else []
        first = min(self._in_flight.values(), default=math.inf)
        certain = [one for one in self._waiting if one.span.ended <= first]
        self._waiting = [one for one in self._waiting if one.span.ended > first]
        for one in certain:
            length = one.span.ended - one.span.began
            number = sum(map(one.span.overlap, self._there)) / length if length > 0 else 0.0
            if round(number) >= 1 and abs(number - round(number)) <= SURE:
                yield Shared(one.kind, round(number), one.step)
        needed = min([first, *(one.span.began for one in self._waiting)])
        self._there = [one for one in self._there if one.ended > needed]


class Sharing:
    """The number of slices that share each GPU: it begins with one, and one more stays if it is worth it.

    What a number is worth goes by the paces of slices of a kind at that number and at one fewer. A decision is looked
    at again now and then, from above and from below in turn, ever more seldom; memory has the last word at any time.
    """

    def __init__(self, most: int, gpus: int = 1) -> None:
        self.standing = 1
        """The number that was decided on."""
        self._most, self._fits = most, 1
        self._number = 1
        self._together = {1: 1.0}
        self._steps: defaultdict[Hashable, dict[int, deque[float]]] = defaultdict(dict)
        self._reserved: deque[float] = deque(maxlen=SEEN_A_GPU * gpus)
        self._others, self._card = math.inf, math.inf
        self._seen = 0
        self._wait, self._check = ENOUGH, FIRST_CHECK
        self._looks_up = True

    @property
    def allowed(self) -> int:
        """How many slices may be in flight on each GPU: the number decided on, or the one that is being tried."""
        return self._number

    @property
    def together(self) -> float:
        """The pace of all slices on a GPU together at the number decided on, as a multiple of one alone."""
        return self._together[self.standing]

    def occupied(self, memory: Footprint) -> None:
        """Take in what a slice has reserved: the contexts of others are counted as what each of them takes.

        What counts is the most of the last slices: a large one of long ago says nothing of those that run now.
        """
        self._reserved.append(memory.reserved)
        self._others, self._card = min(self._others, memory.others), min(self._card, memory.card)
        needed = max(max(self._reserved) + self._others, 1.0)
        self._limit(min(self._most, int(MEMORY_SHARE * self._card / needed)))

    def ran_out(self, number: int) -> None:
        """Take in that memory did not suffice for a slice while so many were allowed: never again so many.

        Several that ran out of it together are one shortage; one alone on its GPU says nothing of sharing.
        """
        if number > 1:
            self._most = min(self._most, number - 1)
            self._limit(min(self._fits, self._most))

    def measured(self, shared: Shared) -> None:
        """Take in the pace of a slice, and decide."""
        by_number = self._steps[shared.kind]
        by_number.setdefault(shared.number, deque(maxlen=REMEMBERED)).append(shared.step)
        if shared.number == self._number:
            self._seen += 1
        if self._number != self.standing:
            self._judge()
        elif self._seen >= self._wait:
            self._look()

    def _judge(self) -> None:
        """Stay with the number on trial, or go back; where slices could not be compared, with the fewer."""
        tried = max(self._number, self.standing)
        gain = self._gain(tried)
        if gain is None and self._seen < PATIENCE:
            return
        is_worth_it = gain is not None and gain >= WORTH
        if gain is not None:
            self._together[tried] = self._together[tried - 1] * gain
        rises = self.standing < tried and is_worth_it
        self._settle(tried if is_worth_it else tried - 1)
        if rises and self._number < self._fits:
            self._wait = ENOUGH
        else:
            self._wait, self._check = self._check, min(2 * self._check, LAST_CHECK)
            self._looks_up = not self._looks_up

    def _look(self) -> None:
        """Try one more or one fewer, whichever's turn it is and is possible."""
        upwards, downwards = self.standing < self._fits, self.standing > 1
        if upwards and (self._looks_up or not downwards):
            self._try(self.standing + 1)
        elif downwards:
            self._try(self.standing - 1)

    def _try(self, number: int) -> None:
        """What was measured at that number before may be of another time."""
        for by_number in self._steps.values():
            by_number.pop(number, None)
        self._number, self._seen = number, 0

    def _settle(self, number: int) -> None:
        self.standing = self._number = number
        self._seen = 0

    def _limit(self, fits: int) -> None:
        self._fits = max(1, fits)
        if self._number > self._fits or self.standing > self._fits:
            self._settle(min(self.standing, self._fits))

    def _gain(self, number: int) -> float | None:
        """What so many come to together, as a multiple of one fewer; None until enough slices can be compared.

        The geometric mean over kinds, each by as many slices as it has at both numbers.
        """
        pairs = [(by.get(number - 1, ()), by.get(number, ())) for by in self._steps.values()]
        weights = [min(len(fewer), len(more)) for fewer, more in pairs]
        if sum(weights) < ENOUGH:
            return None
        slower = sum(
            weight * math.log(statistics.median(more) / statistics.median(fewer))
            for weight, (fewer, more) in zip(weights, pairs, strict=True)
            if weight
        )
        return number / (number - 1) * math.exp(-slower / sum(weights))
