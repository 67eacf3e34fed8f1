"""Tasks: what is predicted. Single-label classification is the first and, so far, the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoft.parts import Task
from autoft.types import Output

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")


class SingleLabel(Task):
    """One class an image. `log_loss` is negated, so that greater is better for every metric."""

    name = "single_label"
    metrics = METRICS
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
        return _SCORERS[metric](logits, labels)


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


_SCORERS = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "log_loss": _log_loss,
}
