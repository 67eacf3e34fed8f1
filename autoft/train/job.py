"""`Job`: a slice on its way to a worker."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from autoft.values.trial import NOTHING_KNOWN, Allowance, Slice

CHECKED_IMAGES: Final = 200
"""Training images on which a refit is held against its twin."""


class TooLate(Exception):
    """The slice's deadline leaves no time for what it must do, which the message says; it is given back."""


@dataclass(frozen=True)
class Job:
    """A slice on its way to a worker. `origin` is the wall-clock time (`time.time()`) of run time 0."""

    slice: Slice
    origin: float
    allowance: Allowance = NOTHING_KNOWN

    @property
    def seconds_left(self) -> float:
        """Seconds until the slice's deadline; negative past it."""
        return self.slice.deadline - (time.time() - self.origin)
