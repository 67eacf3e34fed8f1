"""`Pace`: how fast the steps of a slice go, told apart from what its first steps pay for."""

from __future__ import annotations

import statistics
import time

WARM_UP_STEPS = 2
FIRST_GUESS_SECONDS = 1.0
RECENT = 32


class Pace:
    """The steps of one slice; it begins when it is made.

    By the first ones alone a step is not taken to cost more than `longest_guess` seconds. Steps are queued on a device
    that is so many `behind`: until the queue is full they seem to take next to no time.
    """

    def __init__(self, longest_guess: float, behind: int = 0) -> None:
        self._longest_guess, self._warm_up = longest_guess, WARM_UP_STEPS + behind
        self._seconds: list[float] = []
        self._last = time.monotonic()
        self._besides = 0.0

    def step_done(self, besides: float = 0.0) -> float:
        """A step has just ended; its seconds, but for `besides`, spent in it once and for all on filling a cache."""
        now = time.monotonic()
        self._seconds.append(now - self._last - besides)
        self._last, self._besides = now, besides
        return self._seconds[-1]

    def paused(self) -> None:
        """What came since the last step (a checkpoint) was none."""
        self._last = time.monotonic()

    @property
    def steady(self) -> float | None:
        """Median seconds of the recent steps; None before there was one beyond the warm-up."""
        beyond = self._seconds[self._warm_up :][-RECENT:]
        return statistics.median(beyond) if beyond else None

    @property
    def expected(self) -> float:
        """Seconds the next step is likely to take: what the last one filled, the next one may fill too."""
        if self.steady is not None:
            return self.steady + self._besides
        return min(self._longest_guess, min(self._seconds, default=FIRST_GUESS_SECONDS) + self._besides)
