"""What a runner is told: where the run lies, and how much of the machine it may use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from autoft.asking import Search


@dataclass(frozen=True)
class Site:
    """Where and how slices run. `origin` is the wall-clock time of run time 0; `gpus` a worker's share of them."""

    run: Path
    workers: int
    threads: int
    device: Literal["cpu", "cuda"]
    gpus: float
    origin: float


class Runner(ABC):
    """Executes what a search asks for until it is done or stopped. A context: leaving it frees what it held."""

    @abstractmethod
    def warm_up(self, cores: int) -> None:
        """Begin, without waiting for it, whatever takes long before the first slice; `cores` is the most ever used."""

    @abstractmethod
    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        """Returns when the search is done, or soon after `stopped()` turns true; slices then stay open."""

    @abstractmethod
    def close(self) -> None:
        """Free what the runner holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
