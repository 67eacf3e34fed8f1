"""`Precision`: which arithmetic trials train in, found out by a few steps of each and kept for whoever comes later."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from autoft.system.parallel import Check, never_stop
from autoft.system.processor import processor
from autoft.system.signals import Cancelled
from autoft.train.arithmetic import Arithmetic, Numbers, candidates, usual
from autoft.train.measurements import Measurements
from autoft.train.step_timing import Rehearsal, Subject, TooSlow
from autoft.values.space import Scalar

CLEARLY: Final = 1.15
"""How many times as fast as the usual one an arithmetic must be to be used in its place."""

SECONDS: Final = 1.5
"""What finding out may take after a first step, in the seconds of `Rehearsal.clock`."""
SHARE: Final = 0.05
"""Of the time a slice has left, on the wall: what finding out may take; where that is not `FEWEST_SECONDS`, it does not
begin."""
FEWEST_SECONDS: Final = 0.5

REPEATS: Final = 3
HOPELESS: Final = 1.3
"""How many times as slow as the fastest so far is not worth a second look."""
SLOWEST: Final = 4.0
"""How many times as slow as the usual one a step is cut short, warm-up too, but not before `SECONDS_OF_WARM_UP`."""
SECONDS_OF_WARM_UP: Final = {"cpu": 0.3, "cuda": 1.0}  # a GPU loads kernels then
STEPS: Final = 12
"""What there is to be time for: a warm-up and two steps of four candidates."""

ATTEMPTS: Final = 3
"""How often a process tries in vain: where it is not for want of time, a network cannot be timed at all."""

NO_TIME: Final = "the usual: there was no time to try others"

Step = Callable[[Arithmetic, float], float]
"""Takes a step in an arithmetic and gives its seconds; raises `TooSlow` past so many seconds, or what went wrong."""


@dataclass(frozen=True)
class Timing:
    """What a step took at best; None when it failed, or was cut short before there was one."""

    arithmetic: Arithmetic
    seconds: float | None


@dataclass(frozen=True)
class Choice:
    """The arithmetic of a trial, and the reason."""

    arithmetic: Arithmetic
    why: str

    @property
    def facts(self) -> dict[str, Scalar]:
        """What a report says of it."""
        return {"precision": str(self.arithmetic), "precision_why": self.why}


@dataclass(frozen=True)
class Setting:
    """All that a measurement depends on: `device` by name, and the network without its weights."""

    device: str
    threads: int
    torch: str
    backbone: str
    architecture: str
    size: int
    batch: int


@dataclass(frozen=True)
class Timings:
    """The cache file: what was measured in a setting."""

    setting: Setting
    timings: tuple[Timing, ...]
    format: Literal[1] = 1

    @property
    def says_all(self) -> bool:
        """Whether there was something to time."""
        return bool(self.timings)

    def choice(self, usual: Arithmetic) -> Choice:
        """The usual one, unless another is clearly faster; a third one must be clearly faster than that in turn."""
        seconds = {one.arithmetic: one.seconds for one in self.timings if one.seconds is not None}
        if usual not in seconds or len(self.timings) == 1:
            return Choice(usual, NO_TIME)
        chosen = usual
        for one, its in seconds.items():
            if seconds[chosen] >= CLEARLY * its:
                chosen = one
        if chosen == usual:
            return Choice(usual, f"the usual: nothing else is {CLEARLY:g} times as fast")
        return Choice(chosen, f"{seconds[usual] / seconds[chosen]:.2f} times as fast as {usual}")


def device_name(device: torch.device) -> str:
    """Of which kind the device is: what was measured on one says nothing of another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def setting_of(subject: Subject) -> Setting:
    """Where and what."""
    module, device = subject.network.module, device_name(subject.device)
    shapes = [f"{name} {tuple(one.shape)} {one.dtype}" for name, one in module.state_dict().items()]
    digest = hashlib.blake2b("\n".join([str(module), *shapes]).encode(), digest_size=16)
    threads, version = torch.get_num_threads(), torch.__version__
    return Setting(device, threads, version, subject.backbone, digest.hexdigest(), subject.size, subject.batch)


def measure(subject: Subject, most: float, check: Check = never_stop) -> tuple[Timing, ...]:
    """What steps in each arithmetic take, as `race` says, found out in at most so many seconds on the wall.

    Of fewer images than go through at a time where a core would take too long for them; that is hard on bf16 only,
    whose weights are cast once for all of them.
    """
    contenders, gpu = candidates(subject.network, subject.device), subject.device.type == "cuda"
    until = math.inf if gpu else time.monotonic() + most  # see `_affordable`
    with ExitStack() as stack:
        try:
            rehearsal = stack.enter_context(closing(Rehearsal(subject, until)))
            count = _affordable(rehearsal, subject, contenders[0])
        except Exception:  # too slow, or something that will end the trial, which says it
            return ()
        clock, end, wall_end = rehearsal.clock, rehearsal.clock() + SECONDS, min(until, time.monotonic() + most)

        def left() -> float:
            check()
            return min(end - clock(), wall_end - time.monotonic())

        warm_up = SECONDS_OF_WARM_UP[subject.device.type]
        return race(contenders, lambda one, limit: rehearsal.step(one, count, limit), left, warm_up)


def _affordable(rehearsal: Rehearsal, subject: Subject, arithmetic: Arithmetic) -> int:
    """How many images a step can have; on a GPU few take as long as many.

    What the first step of a process pays for there, libraries and kernels, is the trial's to pay in any case. Raises
    `TooSlow` when a core has not enough time for one.
    """
    if subject.device.type == "cuda":
        rehearsal.step(arithmetic, subject.batch, math.inf)
        return subject.batch
    one = rehearsal.step(arithmetic, 1, SECONDS)
    return min(subject.batch, max(1, int(SECONDS / 2 / STEPS / one)))


class _OutOfTime(Exception):
    """There is no time left to find out."""


def race(contenders: Sequence[Arithmetic], step: Step, left: Callable[[], float], warm_up: float) -> tuple[Timing, ...]:
    """What a step takes at best in each, in their order; those for which there was no time are not among them.

    `left` gives the seconds that may still be spent. Who takes `SLOWEST` times as long as the first, and longer than
    `warm_up`, or fails, has no seconds; where that is the first, there is nothing to compare with.
    """
    timings: list[Timing] = []
    usually = fastest = math.inf
    for one in contenders:
        seconds: float | None = None
        try:
            own = max(SLOWEST * usually, warm_up)
            seconds = _best(partial(step, one), own, left, HOPELESS * fastest)
        except Cancelled:
            raise
        except _OutOfTime:
            break
        except Exception:  # of whatever kind: what cannot be computed so is no candidate
            if not timings:
                break
        timings.append(Timing(one, seconds))
        taken = [timing.seconds for timing in timings if timing.seconds is not None]
        usually, fastest = taken[0], min(taken)
    return tuple(timings)


def _best(step: Callable[[float], float], own: float, left: Callable[[], float], hopeless: float) -> float:
    """The least seconds of some steps, of one where they are long or it is hopeless.

    Raises `TooSlow` when the first takes longer than its `own` limit, `_OutOfTime` when there is less time than that.
    """
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and min(taken) <= hopeless and min(taken) * STEPS <= left()):
        limit = min(own, left())
        try:
            taken.append(step(limit))
        except TooSlow:
            if taken:
                break
            if limit < own or left() <= 0:
                raise _OutOfTime from None
            raise
    return min(taken)


class Precision:
    """Which arithmetic trials train in: the one `asked` for, unless that is "auto"; else what `folder` keeps; else what
    is measured.
    """

    def __init__(self, folder: Path, asked: str) -> None:
        self._asked = numbers_of(asked)
        self._measurements = Measurements(folder, Timings)
        self._in_vain: Counter[Setting] = Counter()

    def choice(self, subject: Subject, seconds_left: float, check: Check = never_stop) -> Choice:
        """The arithmetic for steps of the subject, in a slice with so much time left.

        The same for all who ask in this process, and in others as long as the folder can be written. `check` is called
        while another measures the same, and between steps.
        """
        first = usual(subject.network, subject.device)
        if self._asked is not None:
            return Choice(replace(first, numbers=self._asked), "asked for")
        setting, until = setting_of(subject), time.monotonic() + seconds_left
        found = self._measurements.known(setting)
        if found is None and SHARE * seconds_left >= FEWEST_SECONDS:
            timings = partial(self._timings, subject, setting, until, check)
            found = self._measurements.measured(setting, timings, check, until)
        return found.choice(first) if found else Choice(first, NO_TIME)

    def _timings(self, subject: Subject, setting: Setting, until: float, check: Check) -> Timings | None:
        """None where there was no time for two: another slice may have more. After `ATTEMPTS` nothing is to be had."""
        found = measure(subject, SHARE * (until - time.monotonic()), check)
        if len(found) > 1:
            return Timings(setting, found)
        self._in_vain[setting] += 1
        return Timings(setting, ()) if self._in_vain[setting] >= ATTEMPTS else None


def numbers_of(asked: str) -> Numbers | None:
    """What a study asks for; None for "auto"."""
    return next((numbers for numbers in get_args(Numbers) if numbers == asked), None)
