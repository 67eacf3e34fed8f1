"""`Sitting`: what one command works on a run with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoft.parts.host import Host
from autoft.runners.base import Runner
from autoft.system.clock import RunClock
from autoft.system.screen import Screen
from autoft.system.stopwatch import Stopwatch


@dataclass(frozen=True)
class Sitting:
    """What one command works on a run with: plugins, a runner that is warm, where talk and seconds go.

    `clock` counts the budget of the run, all sittings together.
    """

    host: Host
    runner: Runner
    screen: Screen
    watch: Stopwatch
    clock: RunClock

    def going_on_after(self, seconds: float) -> Sitting:
        """The sitting of a run that had used no less than so many seconds when the command began."""
        origin = min(self.clock.origin, self.watch.began - seconds)
        return replace(self, clock=replace(self.clock, origin=origin))
