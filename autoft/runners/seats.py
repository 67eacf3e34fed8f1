"""Which GPU a worker process takes where several share one: each time the one with the fewest workers.

A seat is a file that its worker holds locked, so it is free again whatever ends the process.
"""

from __future__ import annotations

import fcntl
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Seat:
    """The `row`th worker's place on a GPU, from 0, as long as the file is open."""

    gpu: int
    row: int
    held: IO[bytes]


def take_seat(folder: Path, gpus: int) -> Seat:
    """A free seat of the first row that has one: no GPU gets a second worker before each has one."""
    for row in itertools.count():
        for gpu in range(gpus):
            if held := _locked(folder / f"{row}-{gpu}"):
                return Seat(gpu, row, held)
    raise AssertionError


def is_better_free(seat: Seat, folder: Path, gpus: int) -> bool:
    """Whether there is a free seat in a row before this one, on a GPU that then has fewer workers."""
    for row, gpu in itertools.product(range(seat.row), range(gpus)):
        if held := _locked(folder / f"{row}-{gpu}"):
            held.close()
            return True
    return False


def _locked(path: Path) -> IO[bytes] | None:
    """The file, open and locked; None where somebody else has it."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
