"""Tasks: what is predicted. Single-label classification is the first and, so far, the only one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from autoft.parts import Task
from autoft.types import Output

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """One figure of a task. `score` gives it of logits `(n, classes)` and class indices `(n,)`.

    Of scores greater is better, always: of a metric that `is_loss` it is the negative. A metric that `weighs_classes`
    alike gets worse when a rare class is never found. The figures it is `shown` as lie between 0 and `greatest`.
    """

    score: Callable[[np.ndarray, np.ndarray], float]
    is_loss: bool = False
    weighs_classes: bool = False
    greatest: float = 1.0

    def shown(self, score: float) -> float:
        """The figure that people and files get to see: of a loss the loss itself, positive, smaller is better."""
        return 0.0 - score if self.is_loss else score


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def _balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import recall_score

    # The mean recall over the classes that occur; sklearn's balanced_accuracy_score warns about the others.
    return float(recall_score(labels, logits.argmax(axis=1), labels=_present(labels), average="macro"))


def _macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, logits.argmax(axis=1), labels=_present(labels), average="macro", zero_division=0))


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    from scipy.special import log_softmax

    return float(log_softmax(logits.astype("float64"), axis=1)[range(len(labels)), labels].mean())


def _present(labels: np.ndarray) -> list[int]:
    return sorted(set(labels.tolist()))


METRICS: Final[Mapping[str, Metric]] = {
    "accuracy": Metric(_accuracy),
    "balanced_accuracy": Metric(_balanced_accuracy, weighs_classes=True),
    "macro_f1": Metric(_macro_f1, weighs_classes=True),
    "log_loss": Metric(_log_loss, is_loss=True, greatest=math.inf),
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

    def score(self, metric: str, logits: np.ndarray, labels: np.ndarray) -> float:
        """The metric over logits `(n, classes)` and class indices `(n,)`; greater is better."""
        return METRICS[metric].score(logits, labels)
