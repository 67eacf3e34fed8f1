"""Tasks: what is predicted. Single-label classification is the first and, so far, the only one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from autoft.parts.base import Task
from autoft.tasks.statistics import (
    Labels,
    Logits,
    Statistic,
    balanced_accuracy,
    bootstrap,
    log_losses,
    macro_f1,
    mean,
    percentiles,
    proportion,
    value_of,
)
from autoft.values.handoff import Output
from autoft.values.summary import Scores

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """One figure of a task, by what it is a `statistic` of: logits `(n, classes)` and class indices `(n,)`.

    Of scores greater is better, always: of a metric that `is_loss` it is the negative. A metric that `weighs_classes`
    alike gets worse when a rare class is never found. The figures it is `shown` as lie between 0 and `greatest`.
    """

    statistic: Callable[[Logits, Labels], Statistic]
    is_loss: bool = False
    weighs_classes: bool = False
    greatest: float = 1.0

    def score(self, logits: Logits, labels: Labels) -> float:
        """The score of logits `(n, classes)` for class indices `(n,)`."""
        return value_of(self.statistic(logits, labels), len(labels))

    def shown(self, score: float) -> float:
        """The figure that people and files get to see: of a loss the loss itself, positive, smaller is better."""
        return 0.0 - score if self.is_loss else score


METRICS: Final[Mapping[str, Metric]] = {
    "accuracy": Metric(lambda logits, labels: mean(logits.argmax(axis=1) == labels)),
    "balanced_accuracy": Metric(
        lambda logits, labels: balanced_accuracy(labels, logits.argmax(axis=1)), weighs_classes=True
    ),
    "macro_f1": Metric(lambda logits, labels: macro_f1(labels, logits.argmax(axis=1)), weighs_classes=True),
    "log_loss": Metric(lambda logits, labels: mean(-log_losses(logits, labels)), is_loss=True, greatest=math.inf),
}


class SingleLabel(Task):
    """One class an image."""

    name = "single_label"
    metrics = tuple(METRICS)
    outputs = (Output("probabilities", "softmax"), Output("logits", "logits"), Output("top_k", "ranking"))

    def head_size(self, classes: int) -> int:
        """One output a class."""
        return classes

    def loss(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Mean cross entropy of logits `(batch, classes)` against class indices `(batch,)`."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def score(self, metric: str, logits: Logits, labels: Labels) -> float:
        """The metric over logits `(n, classes)` and class indices `(n,)`; greater is better."""
        return METRICS[metric].score(logits, labels)


def scores(task: SingleLabel, primary: str, logits: Logits, labels: Labels) -> Scores:
    """Every metric of the task over logits `(n, classes)`, with a 95 % interval for the primary one.

    That of accuracy is Wilson's; the others are bootstraps over images.
    """
    metrics = {name: task.score(name, logits, labels) for name in task.metrics}
    correct = int((logits.argmax(axis=1) == labels).sum())
    if primary == "accuracy":
        interval = proportion(correct, len(labels))
    else:
        drawn = bootstrap({primary: METRICS[primary].statistic(logits, labels)}, len(labels))
        interval = percentiles(metrics[primary], drawn[primary], len(labels))
    low, high = sorted(map(METRICS[primary].shown, interval))
    figures = {name: METRICS[name].shown(score) for name, score in metrics.items()}
    return Scores(n=len(labels), correct=correct, metrics=figures, ci95=(low, high))
