"""`Vanishing`: which stages train without anything reaching them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from autoft.train.readings import StepTaken

FAINT: Final = 1e-6
"""Of the norm of all gradients; no stage of a sound network of a hundred layers has so little."""

MANY: Final = 30
"""Successive steps: a head of zeros lets nothing through at its first."""


class Vanishing:
    """Watches the gradient norms of `stages` over the steps of a slice."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = stages
        self._faint = [0] * len(stages)

    def note(self, steps: Sequence[StepTaken]) -> None:
        """Steps in the order in which they were taken."""
        for step in steps:
            for number, norm in enumerate(step.stage_norms):
                if math.isfinite(norm):  # else it has not begun
                    self._faint[number] = self._faint[number] + 1 if norm <= FAINT * step.gradient_norm else 0

    @property
    def stages(self) -> tuple[str, ...]:
        """Those whose norm has been next to nothing for `MANY` steps."""
        return tuple(stage for stage, steps in zip(self._stages, self._faint, strict=True) if steps >= MANY)
