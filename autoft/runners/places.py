"""Where the slices in flight are: any worker, or a GPU that several share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from autoft.runners.sharing import Footprint, Occupancy, Pace, Sharing, Span
from autoft.study.record import Machine
from autoft.train.pace import RECENT, WARM_UP_STEPS
from autoft.values.trial import Report, Slice


@dataclass(frozen=True)
class Where:
    """The process that had a slice: its GPU among those that are shared, whether it had been started for it, and when
    it was done, in seconds of run time.
    """

    gpu: int | None = None
    is_first: bool = False
    ended: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a slice ended and where it was; `now` the driver knows of it."""

    report: Report
    now: float
    where: Where = Where()

    @property
    def at(self) -> float:
        """When it ended."""
        return self.now if self.where.ended is None else self.where.ended


class Places:
    """Room for as many slices as there are workers. Times are seconds of run time."""

    def __init__(self, machine: Machine) -> None:
        self._workers = machine.workers
        self._taken: dict[str, tuple[Slice, float]] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more slice may be in flight."""
        return len(self._taken) < self._workers

    def take(self, name: str, slice_: Slice, now: float) -> None:
        """The slice is in flight, by this name."""
        self._taken[name] = slice_, now

    def leave(self, name: str, ended: Ended | None) -> None:
        """The slice of that name is in flight no more; it has ended so, or no worker has taken it."""
        self._taken.pop(name)


class SharedGpus(Places):
    """As many slices on each GPU at a time as `Sharing` allows; which one it is, workers decide."""

    def __init__(self, machine: Machine, note: Callable[[str], None]) -> None:
        super().__init__(machine)
        self._gpus = machine.measured
        self._occupancy = Occupancy()
        self._sharing = Sharing(math.ceil(machine.workers / machine.measured), machine.measured)
        self._allowed: dict[str, int] = {}
        self._note = note
        self._told = self._sharing.standing

    @property
    def has_room(self) -> bool:
        """Whether one more slice may be in flight."""
        return super().has_room and len(self._taken) < self._gpus * self._sharing.allowed

    def take(self, name: str, slice_: Slice, now: float) -> None:
        """The slice is in flight, by this name."""
        super().take(name, slice_, now)
        self._allowed[name] = self._sharing.allowed
        self._occupancy.began(name, now)

    def leave(self, name: str, ended: Ended | None) -> None:
        """What the slice has measured may change how many share a GPU, and then is said."""
        slice_, taken = self._taken[name]
        allowed = self._allowed.pop(name)
        super().leave(name, ended)
        if ended is None:
            self._occupancy.left(name)
            return
        if "out of memory" in (ended.report.error or ""):
            self._sharing.ran_out(allowed)
        if memory := footprint(ended.report):
            self._sharing.occupied(memory)
        for shared in self._occupancy.ended(name, there(slice_, ended, taken), pace(slice_, ended)):
            self._sharing.measured(shared)
        # Of those in flight: the most that were ever allowed beside each of them.
        self._allowed = {other: max(most, self._sharing.allowed) for other, most in self._allowed.items()}
        if self._sharing.standing != self._told:
            self._told = self._sharing.standing
            self._note(_news(self._told, self._sharing.together))


def there(slice_: Slice, ended: Ended, taken: float) -> Span:
    """When and where a slice that was handed out at `taken` shared a GPU.

    Always, unless it was the first of its worker: then only what its steps took, and what followed them.
    """
    report, costs, where = ended.report, ended.report.costs, ended.where
    if not where.is_first:
        return Span(taken, ended.at, where.gpu)
    busy = report.seconds
    if costs.a_pass:
        busy = min(busy, (report.step - slice_.start) * costs.a_pass + costs.scoring + costs.saving)
    return Span(ended.at - busy, ended.at, where.gpu)


def pace(slice_: Slice, ended: Ended) -> Pace | None:
    """What a slice that trained has measured in its last steps; None for one that did not, or too few of them."""
    costs, trial = ended.report.costs, slice_.trial
    if not costs.step:
        return None
    steady = (ended.report.step - slice_.start) * costs.steps_a_pass - WARM_UP_STEPS["cuda"]
    steps = min(steady, RECENT)
    last = ended.at - costs.scoring - costs.saving
    # Numbers with a fraction, such as rates, change no step's length.
    choices = frozenset((name, value) for name, value in trial.params.items() if not isinstance(value, float))
    kind = (trial.backbone, trial.freeze, trial.image_size, choices)
    return Pace(Span(last - steps * costs.step, last, ended.where.gpu), kind, costs.step)


def footprint(report: Report) -> Footprint | None:
    """What the worker saw of its GPU's memory; None where it saw none."""
    facts = (report.facts.get(name) for name in ("reserved_gpu_mib", "others_gpu_mib", "card_gpu_mib"))
    seen = [float(fact) for fact in facts if isinstance(fact, int | float)]
    return Footprint(*seen) if len(seen) == 3 else None


def _news(number: int, together: float) -> str:
    if number == 1:
        return "each trial has a GPU to itself again: more together are no faster, or do not fit"
    return f"{number} trials share each GPU: together {together:.1f} times one alone"
