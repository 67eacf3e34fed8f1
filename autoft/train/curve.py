"""`Curve`: notes on each step of a slice, gathered into lines of the trial's curve file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from autoft.store.curves import CurveFile, CurvePoint, has_point
from autoft.train.gradient import GradientRun
from autoft.train.readings import StepTaken

SECONDS_BETWEEN_WRITES: Final = 1.0


class Curve:
    """The curve of a trial during one slice; a context manager that writes what is left in the end, however that comes.

    A curve that cannot be written, on a full disk for example, ends there and says nothing: it is worth no trial.
    """

    def __init__(self, path: Path, run: GradientRun) -> None:
        self._path, self._run = path, run
        self._file: CurveFile | None = None
        self._lost = False
        self.last_loss = math.nan
        """Of the last step that is known."""
        self._since: list[StepTaken] = []
        self._ready: list[CurvePoint] = []
        self._written = time.monotonic()

    def known(self, steps: Iterable[StepTaken]) -> None:
        """Note what steps came to, in the order in which they were taken."""
        for step in steps:
            self.last_loss = step.loss
            self._since.append(step)
            if has_point(step.step):
                self._ready.append(self._point())
                self._since = []
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Bring the lines that are ready to the file."""
        ready, self._ready, self._written = self._ready, [], time.monotonic()
        if self._lost or not ready:
            return
        try:
            self._file = self._file or CurveFile(self._path)
            self._file.append(ready)
        except (OSError, ValueError):
            self._lost = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.write()

    def _point(self) -> CurvePoint:
        """The line of the steps since the last one."""
        steps, stream = self._since, self._run.stream
        return CurvePoint(
            step=steps[-1].step,
            passes=steps[-1].step / stream.steps_per_pass,
            loss=sum(step.loss for step in steps) / len(steps),
            learning_rate=steps[-1].learning_rate,
            gradient_norm=sum(step.gradient_norm for step in steps) / len(steps),
            images_per_second=len(steps) * stream.batch_size / sum(step.seconds for step in steps),
        )
