"""`Pace`: how fast the steps of a slice go, told apart from what its first steps pay for."""

from __future__ import annotations

import statistics

WARM_UP_STEPS = {"cuda": 4, "cpu": 2}  # on a GPU the fourth is captured
FIRST_GUESS_SECONDS = 1.0
RECENT = 32


class Pace:
    """The steps of one slice on a kind of device ("cuda", "cpu").

    By the first ones alone a step is not taken to cost more than `longest_guess` seconds.
    """

    def __init__(self, device: str, longest_guess: float) -> None:
        self._longest_guess, self._warm_up = longest_guess, WARM_UP_STEPS[device]
        self._seconds: list[float] = []
        self._besides = 0.0

    def step_done(self, seconds: float, besides: float = 0.0) -> None:
        """A step took so long, and in it once and for all `besides`, spent on filling a cache."""
        self._seconds.append(seconds)
        self._besides = besides

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
