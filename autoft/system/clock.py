"""Time: when this process started, and the run clock that a budget is kept by."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from autoft.values.trial import Clock

_IMPORTED = time.time()


def process_started() -> float:
    """Wall-clock time (`time.time()`) at which this process started; where the system does not say, when autoft did."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, AttributeError):
        return _IMPORTED


@dataclass(frozen=True)
class RunClock:
    """Run time: seconds since `origin`, a wall-clock time. `budget` is all there is.

    A resumed run's origin lies as far back as its journal says it has run.
    """

    origin: float
    budget: float

    def now(self) -> float:
        """Run time in seconds."""
        return time.time() - self.origin

    def reading(self, reserve: float) -> Clock:
        """What a searcher may know, when `reserve` seconds of the budget are not for searching."""
        return Clock(self.now(), self.budget - reserve)
