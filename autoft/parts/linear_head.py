"""`LinearHead`: what a task's closed form gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoft.values.space import Scalar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A head on raw features: outputs = features @ weight.T + bias. `weight` `(outputs, dim)` and `bias` `(outputs,)`
    are float32.

    `facts` say how it was found, for the report: the strength of its penalty, what leave-one-out makes of it.
    """

    weight: Tensor
    bias: Tensor
    facts: Mapping[str, Scalar]
