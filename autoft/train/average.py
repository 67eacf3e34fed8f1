"""`Average`: the weights that are scored and exported, a moving average of those under training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from autoft.train.classifier import Classifier


class Average:
    """An exponential moving average of a classifier, over the tensors that training moves and no others.

    It remembers about `steps` steps, fewer at first, so that the start is forgotten: after n steps at most n^(2/3) of
    them, as timm's `ModelEmaV3` with warm-up has it. `steps` 0 is no average.
    """

    def __init__(self, classifier: Classifier, moved: Sequence[str], steps: float) -> None:
        self.classifier = copy.deepcopy(classifier).eval()
        self._decay = math.exp(-1.0 / steps) if steps > 0 else 0.0
        averaged, current = (each.state_dict() for each in (self.classifier, classifier))
        floating = [name for name in moved if current[name].is_floating_point()]
        self._averaged, self._current = ([each[name] for name in floating] for each in (averaged, current))
        others = [name for name in moved if name not in set(floating)]
        self._counters = [(averaged[name], current[name]) for name in others]

    def weight(self, step: int) -> float:
        """The share of the newest weights after that many steps."""
        return 1.0 - min(self._decay, 1.0 - math.pow(max(1, step), -2 / 3))

    @torch.no_grad()
    def update(self, weight: Tensor) -> None:
        """Take the newest weights in; `weight` is a scalar on their device."""
        change = torch._foreach_sub(self._current, self._averaged)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(self._averaged, change)
        for averaged, current in self._counters:
            averaged.copy_(current)
