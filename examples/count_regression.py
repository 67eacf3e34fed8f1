"""A task of one's own by its link: counts, which are never below zero and vary more where there are more.

    autoft search photos/data.csv -p examples/count_regression.py --task counts --time 2m

where data.csv has the columns image and label, a count. Poisson regression: the network gives the logarithm of a rate,
in units of the training images' mean. Loss, answers and the tail of the exported graph say so; all else is regression.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoft import Calibration, Recipe, Regression, Task, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Counts(Regression):
    """Counts, by Poisson regression."""

    name = "counts"
    summary = "counts, by Poisson regression"

    @property
    def units(self) -> list[float]:
        """About the mean of each column, and above zero: what an output of 0 stands for."""
        return [mean + 0.5 for mean in self.targets.mean]

    def claims(self, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """Never: `--task counts` asks for it."""
        return False

    def problem(self, label: str) -> str | None:
        """A count is a number that is not below 0."""
        below = f"{label!r} is below 0"
        return super().problem(label) or (below if min(map(float, label.split(","))) < 0 else None)

    def standardised(self, targets: Tensor) -> Tensor:
        """Logarithms, which the closed form fits."""
        return ((targets + 0.5) / targets.new_tensor(self.units)).log()

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """The negative log-likelihood of the counts `(batch, columns)`, in those units."""
        from torch.nn.functional import poisson_nll_loss

        return poisson_nll_loss(outputs, targets / targets.new_tensor(self.units))

    def judged(self, outputs: NDArray[Any], calibration: Calibration | None = None) -> NDArray[Any]:
        """Rates `(n, columns)`."""
        return np.exp(outputs.astype(np.float64)) * self.units

    def tail(self, calibration: Calibration) -> str:
        """The same, in the exported graph."""
        return f"""
            units = Constant <value = float[{len(self.units)}] {{{", ".join(map(repr, self.units))}}}> ()
            rates = Exp (outputs)
            answers = Mul (rates, units)"""


@hookimpl
def autoft_tasks() -> Iterable[Task]:
    """Tells autoft about the task."""
    return [Counts()]
