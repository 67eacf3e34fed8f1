"""The closed-form head: a whole ridge path with exact leave-one-out scores, from one eigendecomposition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**exponent for exponent in torch.linspace(-2.0, 6.0, 33).tolist())


@dataclass(frozen=True, eq=False)
class RidgeHead:
    """A linear head on raw features: logits = features @ weight.T + bias; weight `(classes, dim)`, bias `(classes,)`.

    `strength` is the ridge penalty that leave-one-out chose, `loo_accuracy` its accuracy in [0, 1].
    """

    weight: Tensor
    bias: Tensor
    strength: float
    loo_accuracy: float


@dataclass(frozen=True, eq=False)
class _Path:
    """The eigenbasis in which every strength is a division: `scores(n, k)`, `values(k,)`, `axes(dim, k)`."""

    scores: Tensor
    values: Tensor
    axes: Tensor
    projected: Tensor  # scores.T @ targets, (k, classes)

    def leave_one_out(self, strength: float, targets: Tensor) -> Tensor:
        """Predictions `(n, classes)` for each row by the model fitted without it.

        The intercept is not penalised; it adds 1/n to every leverage (Hastie et al., ESL 2009, section 7.10).
        """
        shrunk = self.scores / (self.values + strength)
        fitted = shrunk @ self.projected
        leverage = (shrunk * self.scores).sum(dim=1, keepdim=True) + 1.0 / len(targets)
        return targets - (targets - fitted) / (1.0 - leverage).clamp_min(1e-6)

    def weights(self, strength: float) -> Tensor:
        """Coefficients `(dim, classes)` on the standardised features."""
        return self.axes @ (self.projected / (self.values + strength)[:, None])


def fit_ridge(features: Tensor, labels: Tensor, classes: int) -> RidgeHead:
    """The best head of the path by leave-one-out accuracy, the mean squared error deciding ties.

    `features` `(n, dim)`, `labels` `(n,)` class indices. Features are standardised first (Marks et al. 2025,
    arXiv 2407.12210); the standardisation is folded into the head. Its scores are scaled to be logits: one factor,
    chosen by the log-loss of the leave-one-out predictions.
    """
    x = features.double()
    mean, deviation = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp_min(1e-6)
    x = (x - mean) / deviation
    targets = torch.nn.functional.one_hot(labels, classes).double() * 2.0 - 1.0
    centre = targets.mean(dim=0)
    path = _decompose(x, targets - centre)

    def judge(strength: float) -> tuple[float, float]:
        predicted = path.leave_one_out(strength, targets - centre) + centre
        accuracy = (predicted.argmax(dim=1) == labels).double().mean().item()
        return accuracy, -(predicted - targets).square().mean().item()

    best = max(STRENGTHS, key=judge)
    scale = _logit_scale(path.leave_one_out(best, targets - centre) + centre, labels)
    weight = path.weights(best) / deviation[:, None]
    bias = centre - mean @ weight
    return RidgeHead((weight.T * scale).float(), (bias * scale).float(), best, judge(best)[0])


def _decompose(x: Tensor, targets: Tensor) -> _Path:
    """Eigendecomposition of the smaller of x.T @ x and x @ x.T; directions of no variance are dropped."""
    n, dim = x.shape
    values, vectors = torch.linalg.eigh(x.T @ x if dim <= n else x @ x.T)
    kept = values > values[-1].clamp_min(1e-12) * 1e-10
    values, vectors = values[kept], vectors[:, kept]
    axes = vectors if dim <= n else x.T @ vectors / values.sqrt()
    scores = x @ axes
    return _Path(scores, values, axes, scores.T @ targets)


def _logit_scale(scores: Tensor, labels: Tensor) -> float:
    """The factor that makes `scores` `(n, classes)` logits of least log-loss."""
    from scipy.optimize import minimize_scalar

    def loss(log_scale: float) -> float:
        return torch.nn.functional.cross_entropy(scores * torch.e**log_scale, labels).item()

    return float(torch.e ** float(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x))
