"""What a run shows while it runs: a live table on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

from abc import ABC, abstractmethod

from autoft.system.clock import RunClock
from autoft.values.ledger import Ledger
from autoft.values.target import MetricFacts


class Screen(ABC):
    """Where talk goes. Results go to stdout and are not its business.

    Scores are shown as those of `metric`, which is set before the first `show`.
    """

    metric: MetricFacts = MetricFacts("score")

    @abstractmethod
    def note(self, text: str) -> None:
        """One line a person should read."""

    @abstractmethod
    def show(self, ledger: Ledger, clock: RunClock) -> None:
        """The search has moved: trials, best so far, time left."""

    @abstractmethod
    def close(self) -> None:
        """Leave the last picture standing."""


class Silent(Screen):
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Drop it."""

    def show(self, ledger: Ledger, clock: RunClock) -> None:
        """Drop it."""

    def close(self) -> None:
        """Nothing to leave."""
