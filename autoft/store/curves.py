"""`CurveFile`: how a trial's training went, RUN/curves/00007.csv, for people and their tools; nothing is read from it.

A line stands for the steps since the line before it. Which steps have one depends on the step alone, so a step that is
trained once more after a kill has its line already, and gets no second.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

FINE: Final = 1000


@dataclass(frozen=True)
class CurvePoint:
    """A line: the optimiser step counted from 1, and means over the steps since the line before.

    `learning_rate` is the greatest of all parameter groups at that step, `gradient_norm` that of all gradients together
    before they are clipped.
    """

    step: int
    passes: float
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_second: float


def has_point(step: int) -> bool:
    """Whether a step has a line: each up to `2 * FINE`, then every 2nd up to twice as many, every 4th, and so on.

    So a file grows by `FINE` lines whenever a trial gets twice as long: ten million steps are 15,000 lines.
    """
    spacing: int = 1 << max(0, (step // FINE).bit_length() - 1)
    return step % spacing == 0


class CurveFile:
    """The file of one trial, open to append to from some slice on; what a kill left torn at its end is cut off.

    Raises `OSError` when it cannot be written, and `ValueError` for a file of something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        head, *lines = whole.splitlines() or [b""]
        self._is_new = not head
        self._last = int(lines[-1].partition(b",")[0]) if lines else 0

    def append(self, points: Sequence[CurvePoint]) -> None:
        """Add the lines that are not there yet, in one write."""
        lines = [",".join(f"{value:.7g}" for value in astuple(one)) for one in points if one.step > self._last]
        if not lines:
            return
        if self._is_new:
            lines.insert(0, ",".join(field.name for field in fields(CurvePoint)))
        with self._path.open("ab", buffering=0) as file:
            text = "".join(f"{line}\n" for line in lines).encode()
            if file.write(text) != len(text):  # the disk took a part; what is torn is cut off by who opens it next
                raise OSError(f"{self._path} took a part of what was written")
        self._is_new, self._last = False, points[-1].step
