"""What a step's loss is asked of, where training does something for rare classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoft.values.plan import Balance

Balanced = Callable[[Tensor, Tensor], Tensor]
"""From outputs `(batch, outputs)` and targets `(batch,)` to the outputs that the task's loss is asked of."""


def balanced(balance: Balance, classes: Tensor, outputs: int) -> Balanced:
    """What is done to so many outputs, for training images of these `classes` `(n,)`; nothing for one without any.

    "auto", which a workshop has settled by then, is "none" here.

    It goes for whatever loss a task has. Weights are on the gradient, as what comes back has the values of the outputs:
    that is the same for a loss which is the mean of what the images have each, and its figure stays comparable.
    """
    if balance == "logits":
        shift = _shares(classes, outputs).log()
        return lambda found, targets: found + shift
    if balance == "weights":
        weights = 1 / (_shares(classes, outputs) * (torch.bincount(classes) > 0).sum())
        return lambda found, targets: _weighted(found, weights[targets][:, None])
    return lambda found, targets: found


def _shares(classes: Tensor, fewest: int) -> Tensor:
    """Of each class, at least so many of them; 1 for one without images."""
    sizes = torch.bincount(classes, minlength=fewest)
    return sizes.where(sizes > 0, len(classes)) / len(classes)


def _weighted(outputs: Tensor, weights: Tensor) -> Tensor:
    fixed = outputs.detach()
    return fixed + weights * (outputs - fixed)
