"""A task of one's own by its loss alone: one class an image by focal loss, which easy images hardly move.

    autoft search examples/fashion -p examples/focal_loss.py --task focal --time 2m

Lin et al. 2017, "Focal Loss for Dense Object Detection". All else is that of the built-in task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from autoft import Recipe, SingleLabel, Task, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = 2.0


class Focal(SingleLabel):
    """One class an image, by focal loss."""

    name = "focal"
    summary = "one class an image, by focal loss"

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Cross entropy of logits `(batch, classes)`, that of an image by (1 - its class's probability) ** GAMMA."""
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing, reduction="none")
        found = outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return ((1 - found) ** GAMMA * losses).mean()


@hookimpl
def autoft_tasks() -> Iterable[Task]:
    """Tells autoft about the task."""
    return [Focal()]
