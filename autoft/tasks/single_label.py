"""Single-label classification: one class an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED, Task
from autoft.parts.metric import Metric
from autoft.system.lazy import Lazy
from autoft.tasks.calibration import calibrated, fit_temperature
from autoft.tasks.lookalikes import printed, refuse_lookalikes
from autoft.tasks.statistics import Labels, Logits, balanced_accuracy, f1s, log_losses, macro_f1, mean, recalls
from autoft.values.bundle import Calibration
from autoft.values.counts import counted
from autoft.values.dataset import Imbalance
from autoft.values.plan import Balance, Recipe
from autoft.values.target import MetricFacts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from autoft.parts.linear_head import LinearHead
    from autoft.tasks.ridge import Alike
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

SEPARATOR: Final = "|"
"""Between labels in one cell of a manifest."""

IMBALANCED: Final = 3.0
"""Images of the largest class for one of the smallest. From here on accuracy is the worse goal; see ARCHITECTURE.md."""

METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        MetricFacts("accuracy"),
        lambda logits, classes: mean(logits.argmax(axis=1) == classes),
        is_proportion=True,
    ),
    Metric(
        MetricFacts("balanced_accuracy", weighs_classes=True),
        lambda logits, classes: balanced_accuracy(classes, logits.argmax(axis=1)),
        bootstrap="log_odds",
        by_class=lambda logits, classes: recalls(classes, logits.argmax(axis=1)),
    ),
    Metric(
        MetricFacts("macro_f1", weighs_classes=True),
        lambda logits, classes: macro_f1(classes, logits.argmax(axis=1)),
        bootstrap="log_odds",
        by_class=lambda logits, classes: f1s(classes, logits.argmax(axis=1)),
    ),
    Metric(
        MetricFacts("log_loss", is_loss=True, greatest=None),
        lambda logits, classes: mean(-log_losses(logits, classes)),
    ),
)


def focal(losses: Tensor, found: Tensor) -> Tensor:
    """The mean of cross entropies, each the less the greater the probability `found` of what is true; gamma is 2."""
    return ((1 - found).square() * losses).mean()


class SingleLabel(Task):
    """One class an image."""

    name = "single_label"
    summary = "one class an image"
    form = "one_of"
    metrics: Sequence[Metric] = METRICS
    balances: Sequence[Balance] = ("sampling", "logits", "weights")

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """The classes. Raises `DataError` for fewer than two, two that are printed alike, or several columns."""
        if len(columns) > 1:
            raise DataError(f"there is one class an image, and {len(columns)} columns: {', '.join(columns)}")
        if len(labels) < 2:
            raise DataError(f"only one class, {labels[0]!r}; a classifier needs two or more")
        refuse_lookalikes(labels, printed)
        return tuple(labels)

    def problem(self, label: str) -> str | None:
        """An image without a label cannot be used."""
        return None if label else "it has no label"

    def encode(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Class indices `(n,)`."""
        index = {name: number for number, name in enumerate(self.targets.names)}
        return np.array([index[label] for label in labels], np.int64)

    def strata(self, labels: Sequence[str]) -> Sequence[Hashable]:
        """The classes."""
        return labels

    def too_few(self, sizes: Mapping[Hashable, int], needed: int) -> str | None:
        """A class needs an image to train on, and one for each split."""
        small = [(name, size) for name, size in sizes.items() if size < needed]
        if not small:
            return None
        shown = ", ".join(f"{name!r} has {size}" for name, size in small[:5])
        more = f" and {counted(len(small) - 5, 'more class')} with too few" if len(small) > 5 else ""
        several = any(SEPARATOR in str(name) for name, _ in small)
        hint = f" (if {SEPARATOR} parts several labels, say --task multi_label)" if several else ""
        return f"class {shown}{more}{hint}: each class needs"

    def imbalance(self, labels: Sequence[str]) -> Imbalance | None:
        """The classes of most and fewest images, from `IMBALANCED` times as many on; one without images has no part."""
        sizes = Counter(labels).most_common()
        if not sizes or sizes[0][1] < IMBALANCED * sizes[-1][1]:
            return None
        (common, most), *_, (rare, fewest) = sizes
        return Imbalance(common, most, rare, fewest)

    def loss(self, outputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
        """Mean cross entropy of logits `(batch, classes)` against class indices `(batch,)`, or mean focal loss."""
        from torch.nn.functional import cross_entropy

        if recipe.loss == "focal":
            losses = cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing, reduction="none")
            return focal(losses, outputs.softmax(dim=1).gather(1, targets[:, None])[:, 0])
        return cross_entropy(outputs, targets, label_smoothing=recipe.label_smoothing)

    def closed_form(self, features: Tensor, targets: Tensor, check: Callable[[], None]) -> LinearHead | None:
        """The best of a ridge path by leave-one-out accuracy; the balanced one where the goal weighs classes alike."""
        from autoft.tasks.ridge import ridge_of_classes

        alike: Alike = "classes" if self.weighs_classes else "images"
        return ridge_of_classes(features, targets, self.outputs, check, alike)

    def judged(self, outputs: Logits, calibration: Calibration = UNCALIBRATED) -> NDArray[Any]:
        """Logits `(n, classes)` at the temperature."""
        cooled: NDArray[np.float64] = outputs.astype(np.float64) / calibration.temperature
        return cooled

    def calibrate(self, outputs: Logits, targets: Labels) -> Calibration:
        """A temperature, where it helps."""
        return fit_temperature(outputs, targets, weighs_classes=self.weighs_classes)

    def answers(self, outputs: Logits, calibration: Calibration) -> NDArray[np.float32]:
        """Probabilities `(n, classes)`, which add up to 1."""
        return calibrated(outputs, calibration.temperature)

    def tail(self, calibration: Calibration) -> str:
        """Softmax at the temperature."""
        return f"""
            temperature = Constant <value = float {{{calibration.temperature!r}}}> ()
            cooled = Div (outputs, temperature)
            answers = Softmax <axis = -1> (cooled)"""
