"""What a freeze strategy decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Fit = Literal["closed_form", "gradient"]
"""How a head is fitted, and with it how a slice is executed."""


Balance = Literal["auto", "none", "sampling", "logits", "weights"]
"""What training does for rare classes; see `Recipe`."""

Loss = Literal["cross_entropy", "focal"]


@dataclass(frozen=True)
class ParameterGroup:
    """Backbone parameters that train together, by name; `learning_rate` and `weight_decay` as the optimiser takes them.

    They are frozen until so many passes over the training images are done, `from_pass`; gradual unfreezing is groups
    that begin one after the other.
    """

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float = 0.0
    from_pass: float = 0.0


@dataclass(frozen=True)
class ClosedFormHead:
    """The head is the task's closed form on cached features; nothing trains by gradient."""

    fit: ClassVar[Fit] = "closed_form"


@dataclass(frozen=True)
class GradientHead:
    """The head trains by gradient, from zeros or from the closed form on the untouched features."""

    fit: ClassVar[Fit] = "gradient"
    learning_rate: float
    weight_decay: float = 0.0
    init: Literal["zero", "ridge"] = "zero"

    def __post_init__(self) -> None:
        if self.init not in ("zero", "ridge"):
            raise ValueError(f'the init of a head is "zero" or "ridge", not {self.init!r}')


@dataclass(frozen=True)
class Recipe:
    """How gradient training runs: the part of a plan that is the same for every parameter group.

    `passes` is the horizon: the trial is finished when it has seen the training images that often.
    `warmup_passes` raises the learning rate of a group linearly from zero when it begins. With `schedule` "constant" it
    then stays, so that a trial can stop or go on anywhere; with "cosine" it falls to zero at the horizon, with
    "one_cycle" it rises for 30 % of the passes and falls. `optimizer` is a name of `timm.optim`, as "sgd" (Nesterov's),
    "momentum", "lion"; `momentum` is for those that have one.
    `ema_passes` is the averaging time of the weights that are scored and exported; 0 switches it off.
    Regularisers, each off at 0: `dropout` of features before the head; `drop_path`, how often a network that has such
    places leaves out its last block (those before it less often); `l2_sp`, the pull back to the pretrained weights;
    `mixup` and `cutmix`, the alphas of both ways to mix images, where answers are no numbers.
    `balance` is what is done for rare classes, where answers are classes. "auto": the first remedy of the task where
    classes are uneven and the metric weighs them alike, else "none". "logits": the loss is that of logits plus the
    logarithms of the classes' shares, which the scored model leaves out (Menon et al. 2021, arXiv 2007.07314); labels
    are not smoothed, as that would give rare classes more than their share. "weights": an image counts by the inverse
    of its class's share. "sampling": all classes are drawn from alike.
    `loss` "focal" is the focal loss (Lin et al. 2017, arXiv 1708.02002) of tasks with classes or labels, gamma 2.
    """

    passes: float = 27.0
    batch_size: int = 32
    warmup_passes: float = 0.5
    schedule: str = "constant"
    label_smoothing: float = 0.1
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    ema_passes: float = 1.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    dropout: float = 0.0
    drop_path: float = 0.0
    l2_sp: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    balance: Balance = "auto"
    loss: Loss = "cross_entropy"

    @property
    def is_mixing(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Plan:
    """What trains, at which rate, and how; `groups` empty means a frozen backbone.

    With `GradientHead(rate)` the head trains beside the groups, or alone; with `ClosedFormHead()` there are no groups.
    `batch_norm` "frozen" keeps the pretrained running statistics, the safe choice on small data. Raises `TypeError` for
    another head.
    """

    groups: tuple[ParameterGroup, ...]
    head: ClosedFormHead | GradientHead
    batch_norm: Literal["frozen", "train"] = "frozen"
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if not isinstance(self.head, ClosedFormHead | GradientHead):
            raise TypeError(f"the head of a plan is ClosedFormHead() or GradientHead(learning_rate), not {self.head!r}")

    @property
    def fit(self) -> Fit:
        """How a slice of it is executed."""
        return self.head.fit
