"""`Forward`: in which numbers features of training images are computed, found out on some of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoft.media.image.batches import Images
from autoft.parts.network import Network
from autoft.system.parallel import Check, never_stop
from autoft.system.signals import Cancelled
from autoft.train.arithmetic import Numbers
from autoft.train.features import FeatureCache, FeaturePass
from autoft.train.measurements import Measurements
from autoft.train.precision import SECONDS_OF_WARM_UP, SHARE, device_name, numbers_of
from autoft.train.step_timing import cut_short

CLEARLY: Final = 1.2
"""How many times as fast as fp32 bf16 must be to be used."""
FARTHEST: Final = 0.1
"""How far features in bf16 may be from those in fp32 (`distance`). Those of EfficientNet-Lite are off by .07 to .16: at
the lower end heads do not notice, at the upper one on some data they do (`benchmarks/forward.py`)."""

WORTH_SECONDS: Final = 1.5
"""What fp32 must have left to do, and the time that there must be, for finding out to pay."""
PART_SECONDS: Final = 0.15
FEWEST_IMAGES: Final = 4
"""Of each of the two parts that are computed in both."""
LOADING_SECONDS: Final = {"cpu": 0.0, "cuda": 1.0}
"""Of the first pass of a process, for libraries and kernels, which says nothing of those that follow."""


@dataclass(frozen=True)
class Setting:
    """All that a comparison depends on; `features` names weights, pixels and what is made of them."""

    device: str
    threads: int
    torch: str
    features: str


@dataclass(frozen=True)
class Comparison:
    """Seconds an image, None where it failed or was cut short; how far bf16 is off (`distance`)."""

    setting: Setting
    fp32: float
    bf16: float | None = None
    error: float | None = None
    format: Literal[1] = 1

    @property
    def says_all(self) -> bool:
        """It does."""
        return True

    @property
    def choice(self) -> ForwardChoice:
        """bf16 where it is clearly faster and near enough."""
        if self.bf16 is None or self.fp32 < CLEARLY * self.bf16:
            return ForwardChoice("fp32", f"bf16 is not {CLEARLY:g} times as fast")
        off = "off beyond measure" if self.error is None else f"off by {self.error:.3f} of what images differ by"
        if self.error is None or self.error > FARTHEST:
            return ForwardChoice("fp32", f"bf16 is {off}")
        return ForwardChoice("bf16", f"{self.fp32 / self.bf16:.2f} times as fast, {off}")


@dataclass(frozen=True)
class ForwardChoice:
    """The numbers of features of training images, and the reason."""

    numbers: Numbers
    why: str

    @property
    def facts(self) -> dict[str, str]:
        """What a report says of it."""
        return {"features_precision": self.numbers, "features_precision_why": self.why}


class Forward:
    """In which numbers features of training images are: those `asked` for, unless that is "auto"; else what `folder`
    keeps; else what is measured.

    A head is fitted on them. What it is scored on, and so what ranks and what the exported float32 file is held
    against, is never asked for here and always fp32.
    """

    def __init__(self, folder: Path, asked: str, cache: FeatureCache) -> None:
        self._asked, self._cache = numbers_of(asked), cache
        self._measurements = Measurements(folder, Comparison)

    def choice(
        self, network: Network, images: Images, rows: NDArray[np.int64], seconds_left: float, check: Check = never_stop
    ) -> ForwardChoice:
        """For features of these rows, in a slice with so much time left.

        The same for all who ask, in this process and others, once it was found out. What is computed in fp32 to do so
        is kept in the cache.
        """
        if self._asked is not None:
            return ForwardChoice(self._asked, "asked for")
        one = self._cache.passing(network, images, rows)
        setting = Setting(device_name(images.device), torch.get_num_threads(), torch.__version__, one.path.stem)
        found = self._measurements.known(setting)
        if found is None and seconds_left < WORTH_SECONDS:
            return ForwardChoice("fp32", "there was no time to try bf16")
        until = time.monotonic() + seconds_left
        found = found or self._measurements.measured(setting, lambda: compare(setting, one, until, check), check, until)
        return found.choice if found else ForwardChoice("fp32", "there is too little to compute, or time, to try bf16")


def compare(setting: Setting, one: FeaturePass, until: float, check: Check = never_stop) -> Comparison | None:
    """fp32 and bf16 on the same images, of those whose features are not kept yet, as long as it is before `until`.

    On two parts, behind some warm-up. What is computed in fp32 is kept. None where finding out does not pay.
    """
    timed = _Timed(one, clock_of(one.images.device), until, check)
    with one.alone(timed.is_late, check):
        one.recall(check)
        if not (size := timed.worthwhile_size()):
            return None
        parts = np.split(timed.missing[: 2 * size], 2)
        exact = [timed.exact(part) for part in parts]
        warm_up = SECONDS_OF_WARM_UP[one.images.device.type]
        rough = timed.rough(parts, 2 * max(exact[-1].seconds * size, warm_up))
    if not rough:
        return None if timed.is_late() else Comparison(setting, exact[-1].seconds)
    error = distance(*(np.concatenate([part.features for part in found]) for found in (exact, rough)))
    return Comparison(setting, exact[-1].seconds, rough[-1].seconds, error)


def clock_of(device: torch.device) -> Callable[[], float]:
    """On cores the processor's seconds of all threads, which wait asleep: what else runs must not decide for good."""
    return time.perf_counter if device.type == "cuda" else time.process_time


class _Computed(NamedTuple):
    """Features `(n, dim)`, and the seconds that one image took."""

    features: NDArray[np.float32]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Timed:
    """Features of a pass, with the seconds of `clock` that they take; `until`, by `time.monotonic`, there is time."""

    one: FeaturePass
    clock: Callable[[], float]
    until: float
    check: Check

    @property
    def missing(self) -> NDArray[np.int64]:
        """The places of features that are not known."""
        return np.flatnonzero(~self.one.known)

    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.until

    def worthwhile_size(self) -> int:
        """How many images each of two parts has; 0 where these in bf16 take too much of the time, or save too little.

        Found by parts in fp32, each twice the one before, as a GPU takes no longer for some images than for one.
        """
        images, most = self.one.images, SHARE * (self.until - time.monotonic())
        size, loading = FEWEST_IMAGES, LOADING_SECONDS[images.device.type]
        while len(self.missing) >= 3 * size and not self.is_late():
            began = time.monotonic()
            seconds = self.exact(self.missing[:size]).seconds * size
            if 2 * (time.monotonic() - began - loading) > most:
                return 0
            is_largest = 2 * size > images.forward_size or len(self.missing) < 6 * size
            if is_largest or seconds - loading >= PART_SECONDS:
                return size if seconds / size * len(self.missing) >= WORTH_SECONDS else 0
            size, loading = 2 * size, 0.0
        return 0

    def exact(self, places: NDArray[np.int64]) -> _Computed:
        """In fp32; the pass keeps them."""
        found = self._computed(places, "fp32")
        self.one.keep(places, found.features)
        return found

    def rough(self, parts: Sequence[NDArray[np.int64]], limit: float) -> list[_Computed]:
        """In bf16, of all the parts; none where it fails, or has taken so many seconds, or the time is over."""
        end = self.clock() + limit
        try:
            with cut_short(self.one.network.module, lambda: self.clock() > end or self.is_late()):
                return [self._computed(part, "bf16") for part in parts]
        except Cancelled:
            raise
        except Exception:  # of whatever kind: what cannot be computed so is no candidate
            return []

    def _computed(self, places: NDArray[np.int64], numbers: Numbers) -> _Computed:
        self.check()
        began = self.clock()
        features = self.one.forward(places, numbers)
        return _Computed(features, (self.clock() - began) / len(places))


def distance(exact: NDArray[np.float32], rough: NDArray[np.float32]) -> float | None:
    """How far features `(n, dim)` are from the exact ones, as a share of what these differ by from image to image.

    The root of the mean square of each; None where that is no number.
    """
    apart = np.linalg.norm((rough - exact).astype(np.float64))
    spread = np.linalg.norm((exact - exact.mean(0)).astype(np.float64))
    with np.errstate(all="ignore"):
        found = float(apart / spread)
    return found if math.isfinite(found) else None
