"""`Curve`: notes on each step of a slice, gathered into lines of the trial's curve file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from autoft.store.curves import CurveFile, CurvePoint, has_point
from autoft.train.gradient import GradientRun, StepTaken

SECONDS_BETWEEN_WRITES: Final = 1.0


class Curve:
    """The curve of a trial during one slice; a context manager that writes what is left in the end, however that comes.

    A curve that cannot be written, on a full disk for example, ends there and says nothing: it is worth no trial.
    """

    def __init__(self, path: Path, run: GradientRun) -> None:
        self._path, self._run = path, run
        self._file: CurveFile | None = None
        self._lost = False
        self._since: list[tuple[StepTaken, float]] = []
        self._ready: list[tuple[CurvePoint, torch.Tensor]] = []
        self._written = time.monotonic()

    def step_done(self, step: StepTaken, seconds: float) -> None:
        """Note the step that the run has just taken, in so many seconds."""
        self._since.append((step, seconds))
        if has_point(self._run.step):
            self._ready.append(self._point())
            self._since = []
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Bring the lines that are ready to the file."""
        ready, self._ready, self._written = self._ready, [], time.monotonic()
        if self._lost or not ready:
            return
        norms = torch.stack([norm for _, norm in ready]).tolist()  # the first to wait for the device
        points = [replace(point, gradient_norm=norm) for (point, _), norm in zip(ready, norms, strict=True)]
        try:
            self._file = self._file or CurveFile(self._path)
            self._file.append(points)
        except (OSError, ValueError):
            self._lost = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.write()

    def _point(self) -> tuple[CurvePoint, torch.Tensor]:
        """The line of the steps since the last one; its norm still on the device, which is not waited for."""
        steps, run = [step for step, _ in self._since], self._run
        seconds = sum(seconds for _, seconds in self._since)
        point = CurvePoint(
            step=run.step,
            passes=run.passes,
            loss=sum(step.loss for step in steps) / len(steps),
            learning_rate=steps[-1].learning_rate,
            gradient_norm=0.0,
            images_per_second=len(steps) * run.stream.batch_size / seconds,
        )
        return point, torch.stack([step.gradient_norm for step in steps]).mean()
