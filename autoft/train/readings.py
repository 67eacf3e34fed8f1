"""`Readings`: what steps came to, read some steps later, so that nobody waits for a device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, Self

import torch
from torch import Tensor

STEPS_BEHIND: Final = {"cuda": 8, "cpu": 0}


@dataclass(frozen=True)
class StepTaken:
    """Optimiser step number `step`, from 1: its loss, the greatest learning rate of all groups, the norm of all
    gradients of the loss before L2-SP pulls and they are clipped, and the seconds from the end of the step before it
    (or its own beginning, where none was under way) to its end on the device; with the norm of each stage's gradients,
    NaN before it begins.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float
    stage_norms: tuple[float, ...] = ()


class _Moment(Protocol):
    """When the device has done what was asked of it so far."""

    def wait(self) -> None:
        """Until then."""

    def seconds_since(self, earlier: Self) -> float:
        """Between two that have come."""


class _HostMoment:
    """Of a device that has done everything when it is asked for the next."""

    def __init__(self) -> None:
        self._now = time.monotonic()

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Self) -> float:
        return self._now - earlier._now


class _GpuMoment:
    """In the current stream. The host's clock would say when it was queued, or read."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Self) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000


@dataclass(frozen=True, eq=False)
class _Pending:
    """A step whose loss and norms are on their way to `values` `(2 + stages,)` between two moments."""

    step: int
    learning_rate: float
    values: Tensor
    began: _Moment
    arrived: _Moment

    def read(self) -> StepTaken:
        """Wait for them. Raises `FloatingPointError` when the loss is not finite."""
        self.arrived.wait()
        loss, norm, *stages = self.values.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {self.step}")
        seconds = self.arrived.seconds_since(self.began)
        return StepTaken(self.step, loss, self.learning_rate, norm, seconds, tuple(stages))


class Readings:
    """Losses and norms of steps: at once where they are made, on a GPU when `STEPS_BEHIND` more steps are under way.

    So a GPU always has work, and its queue is never longer than that.
    """

    def __init__(self, device: torch.device) -> None:
        self._behind = STEPS_BEHIND[device.type]
        self._moment: Callable[[], _Moment] = _GpuMoment if device.type == "cuda" else _HostMoment
        self._last: _Moment | None = None
        self._pending: deque[_Pending] = deque()

    def __len__(self) -> int:
        """Steps that are under way."""
        return len(self._pending)

    def begin(self) -> None:
        """A step is about to be taken: where none is under way, its time begins now."""
        self._last = self._last or self._moment()

    def put(self, step: int, learning_rate: float, loss: Tensor, norms: Tensor) -> tuple[StepTaken, ...]:
        """Note a step that has begun, its norms those of all gradients and of each stage's.

        The steps that are far enough back to be read come back, oldest first.
        """
        values = torch.cat([loss.float().view(1), norms.float().view(-1)])
        if values.is_cuda:
            values = torch.empty(len(values), pin_memory=True).copy_(values, non_blocking=True)
        began, self._last = self._last, self._moment()
        assert began is not None
        self._pending.append(_Pending(step, learning_rate, values, began, self._last))
        return self._read(self._behind)

    def rest(self) -> tuple[StepTaken, ...]:
        """All others, which waits for the device; what comes before the next step is no part of it."""
        self._last = None
        return self._read(0)

    def _read(self, leave: int) -> tuple[StepTaken, ...]:
        return tuple(self._pending.popleft().read() for _ in range(len(self._pending) - leave))
