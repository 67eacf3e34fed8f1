"""What a runner is told: where the run lies, and how much of the machine it may use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from autoft.runners.search import Search
from autoft.study.machine import Resources, share_out
from autoft.study.record import Machine, RunnerName
from autoft.study.study import Study
from autoft.system.screen import Screen
from autoft.system.signals import StopFlag


@dataclass(frozen=True)
class Site:
    """Where and how slices run. `origin` is the wall-clock time of run time 0."""

    run: Path
    machine: Machine
    origin: float


class Runner(ABC):
    """Executes what a search asks for until it is done or stopped. A context: leaving it frees what it held."""

    name: ClassVar[RunnerName]
    starting: ClassVar[float] = 0.0
    """Seconds from handing out the first slice of a worker until it begins, where `start_slowness` is 1."""

    @abstractmethod
    def warm_up(self, cores: int) -> None:
        """Begin whatever takes long before the first slice, for workers that use `cores` cores of this machine.

        Raises `StudyError`, with a reason and a remedy, where this runner does not work.
        """

    @abstractmethod
    def nodes(self) -> tuple[Resources, ...]:
        """What each machine that it runs workers on has free; to be asked after `warm_up`."""

    def capacity(self, study: Study, need: int, screen: Screen) -> Machine:
        """How many workers a study gets, with which threads and device, when one needs `need` bytes of memory.

        To be asked after `warm_up`. What limits it is said on the screen. Raises `StudyError` when not one worker fits.
        """
        return share_out(study, self.name, self.nodes(), need, screen)

    @abstractmethod
    def run(self, search: Search, site: Site, stopped: StopFlag) -> None:
        """Returns when the search is done, or soon after `stopped()` turns true; slices then stay open."""

    @abstractmethod
    def close(self) -> None:
        """Free what the runner holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
