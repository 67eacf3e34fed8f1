"""`Prediction`: what a deployed model says about one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image; which fields are filled goes by the form of its answers.

    One class an image: the likeliest `label`, its `probability`, and the `probabilities` of all. Any of the labels: in
    `labels` those that are there by their thresholds, and the `probabilities` of all. Numbers: the `values` by column.
    An image that cannot be read has an `error`, the reason, and nothing else.
    """

    image: str
    label: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    labels: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
