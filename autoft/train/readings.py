"""`Readings`: what steps came to, read some steps later, so that nobody waits for a device."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

STEPS_BEHIND: Final = {"cuda": 8, "cpu": 0}


@dataclass(frozen=True)
class StepTaken:
    """Optimiser step number `step`, from 1: its loss, the greatest learning rate of all groups, and the norm of all
    gradients before they are clipped.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


@dataclass(frozen=True, eq=False)
class _Pending:
    """A step whose loss and norm are on their way to `values` `(2,)`; `arrived` tells when they are there."""

    step: int
    learning_rate: float
    values: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> StepTaken:
        """Wait for them. Raises `FloatingPointError` when the loss is not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, norm = self.values.tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss} at step {self.step}")
        return StepTaken(self.step, loss, self.learning_rate, norm)


class Readings:
    """Losses and norms of steps: at once where they are made, on a GPU when `STEPS_BEHIND` more steps are under way.

    So a GPU always has work, and its queue is never longer than that.
    """

    def __init__(self, device: torch.device) -> None:
        self._behind = STEPS_BEHIND[device.type]
        self._pending: deque[_Pending] = deque()

    def __len__(self) -> int:
        """Steps that are under way."""
        return len(self._pending)

    def put(self, step: int, learning_rate: float, loss: Tensor, norm: Tensor) -> tuple[StepTaken, ...]:
        """Note a step; what comes back is the steps that are far enough back to be read, oldest first."""
        values, arrived = torch.stack([loss.float(), norm.float()]), None
        if values.is_cuda:
            values = torch.empty(2, pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._pending.append(_Pending(step, learning_rate, values, arrived))
        return self._read(self._behind)

    def rest(self) -> tuple[StepTaken, ...]:
        """All others, which waits for the device."""
        return self._read(0)

    def _read(self, leave: int) -> tuple[StepTaken, ...]:
        return tuple(self._pending.popleft().read() for _ in range(len(self._pending) - leave))
