"""The closed-form head: a whole ridge path with exact leave-one-out scores, from one eigendecomposition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from autoft.system.parallel import Check, in_thread, never_stop

RELATIVE_STRENGTHS = tuple(10.0 ** (step / 4) for step in range(-20, 5))
"""Ridge penalties by the mean eigenvalue. Far above it every direction is shrunk alike: the intercept alone answers."""

ROWS_AT_ONCE = 2048

DEVIATION_FLOOR = 0.3
"""By the root mean square of all deviations. Features that are zero for nearly every training image would otherwise
weigh as much as the others and throw the logits of a new image that has them far off."""

ROUNDING = 1e-6
"""What float32 arithmetic leaves unsure of a feature, as a part of its size and that of the others."""

AMPLIFICATION = 1e-5
"""Of that, what may be left in the head's answers, as a part of their spread. Exported files may differ by ten times
as much; usual features come to a fifth of it."""

TIE = 0.25
"""Accuracies nearer than this part of their standard error are equal. With Lite0's features of digits, fashion and 50
classes, whole and with 1 to 20 images a class, accuracy on new images was up to .003 above that of exact ties, and at
most .001 below."""


@dataclass(frozen=True, eq=False)
class RidgeHead:
    """A linear head on raw features: logits = features @ weight.T + bias; weight `(classes, dim)`, bias `(classes,)`.

    The logits of an image add up to zero. `strength` is the ridge penalty on the standardised features that
    leave-one-out chose, `loo_accuracy` its accuracy in [0, 1]; the only image of a class counts as an error.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    loo_accuracy: float


@dataclass(frozen=True, eq=False)
class _Rows:
    """Training images, standardised and in double precision a block at a time; `check` is asked before each."""

    features: Tensor
    labels: Tensor
    sizes: Tensor  # images of each class, (classes,)
    mean: Tensor
    deviation: Tensor
    rounding: Tensor  # of a standardised feature, (dim,)
    check: Check

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, check: Check) -> _Rows:
        """Standardise, in two passes. Raises `FloatingPointError` when something is not finite."""
        _require_finite(labels[:, None], "labels")
        labels = labels.long()

        def mean_of(function: Callable[[Tensor], Tensor]) -> Tensor:
            total = torch.zeros(features.shape[1], dtype=torch.double)
            for block in torch.split(features, ROWS_AT_ONCE):
                check()
                total += function(block.double()).sum(dim=0)
            return total / len(features)

        mean = mean_of(lambda block: block)
        if not torch.isfinite(mean).all():
            _require_finite(features, "features")
        variance = mean_of(lambda block: (block - mean).square())
        squares = variance + mean.square()
        rounding = ROUNDING**2 * (squares + squares.mean())
        deviation = (variance + DEVIATION_FLOOR**2 * variance.mean() + rounding).sqrt()
        deviation = deviation.clamp_min(torch.finfo(torch.double).tiny)
        sizes = torch.bincount(labels, minlength=classes)
        return cls(features, labels, sizes, mean, deviation, rounding.sqrt() / deviation, check)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def frequencies(self) -> Tensor:
        """The share of each class `(classes,)`."""
        return self.sizes.double() / len(self)

    @property
    def judged(self) -> Tensor:
        """Which images `(n,)` have company in their class: of the others leave-one-out can say nothing."""
        return self.sizes[self.labels] > 1

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised features `(rows, dim)` and labels `(rows,)`."""
        for features, labels in zip(
            torch.split(self.features, ROWS_AT_ONCE), torch.split(self.labels, ROWS_AT_ONCE), strict=True
        ):
            self.check()
            yield (features.double() - self.mean) / self.deviation, labels

    def class_sums(self) -> Tensor:
        """The sum of each class's standardised features `(classes, dim)`: targets, projected without being held."""
        sums = torch.zeros(len(self.sizes), self.features.shape[1], dtype=torch.double)
        for block, labels in self.blocks():
            sums.index_add_(0, labels, block)
        return sums


@dataclass(frozen=True, eq=False)
class _Path:
    """The eigenbasis in which every strength is a division: `values (k,)`, `axes (dim, k)`.

    The targets are 1 for an image's class and 0 for the others; `projected (k, classes)` are they on the axes.
    """

    n: int
    values: Tensor
    axes: Tensor
    projected: Tensor
    frequencies: Tensor

    @classmethod
    def of(cls, rows: _Rows) -> _Path:
        """Decompose the smaller of x.T @ x and x @ x.T; directions of no more variance than rounding are dropped."""
        n, dim = rows.features.shape
        wide = torch.cat([block for block, _ in rows.blocks()]).T if n < dim else None
        values, vectors = _eigh(_gram(rows) if wide is None else _products(wide.T, rows.check), rows.check)
        # Of noise alone the largest eigenvalue comes to this (Marchenko and Pastur 1967).
        noise = float(rows.rounding.square().mean()) * (math.sqrt(n) + math.sqrt(dim)) ** 2
        kept = values > max(float(values[-1]) * 1e-10, noise)
        values, vectors = values[kept], vectors[:, kept]
        axes = vectors if wide is None else wide @ vectors / values.sqrt()
        return cls(n, values, axes, (rows.class_sums() @ axes).T, rows.frequencies)

    @property
    def mean_eigenvalue(self) -> float:
        """Of the directions that are kept; 1 when there is none."""
        return float(self.values.mean()) if len(self.values) else 1.0

    @property
    def strengths(self) -> tuple[float, ...]:
        """The penalties of the path, ascending."""
        return tuple(relative * self.mean_eigenvalue for relative in RELATIVE_STRENGTHS)

    def coefficients(self, strength: float) -> Tensor:
        """On the axes, `(k, classes)`."""
        return self.projected / (self.values + strength)[:, None]

    def amplification(self, strength: float, rounding: Tensor) -> float:
        """What features unsure by `rounding` `(dim,)` make of the predictions, as a part of their spread."""
        coefficients = self.coefficients(strength)
        spread = (self.values @ coefficients.square()).sum() / self.n
        unsure = (rounding[:, None] * (self.axes @ coefficients)).square().sum()
        return float((unsure / spread.clamp_min(torch.finfo(torch.double).tiny)).sqrt())

    def leave_one_out(self, scores: Tensor, labels: Tensor, strength: float) -> Tensor:
        """Predictions `(rows, classes)` for each row by the model fitted without it; `scores (rows, k)` on the axes.

        The intercept is not penalised; it adds 1/n to every leverage (Hastie et al., ESL 2009, section 7.10).
        """
        leverage = (scores.square() @ (1 / (self.values + strength)) + 1 / self.n)[:, None]
        rest = (1 - leverage).clamp_min(1e-9)
        fitted = torch.addmm(self.frequencies, scores, self.coefficients(strength))
        return fitted.div_(rest).scatter_add_(1, labels[:, None], -leverage / rest)


def fit_ridge(features: Tensor, labels: Tensor, classes: int, check: Check = never_stop) -> RidgeHead:
    """The best head of the path by leave-one-out accuracy, the mean squared error deciding ties.

    `features` `(n, dim)`, `labels` `(n,)` class indices, both on the CPU. Features are standardised first (Marks et
    al. 2025, arXiv 2407.12210); the standardisation is folded into the head. Its scores are scaled to be logits: one
    factor, chosen by the log-loss of the leave-one-out predictions. Everything is in double precision: where the path
    nearly interpolates, single precision is off by .03 in the predictions, for half the time. Beyond the features it
    holds `(n, classes)` once, in single precision, and a few `(min(n, dim), dim)` and `(dim, classes)`. `check` is
    asked every second or so and may raise to give up. Raises `FloatingPointError` when features or
    labels are not finite.
    """
    rows = _Rows.of(features, labels, classes, check)
    path = _Path.of(rows)
    strength, accuracy = _choose(path, rows)
    scale = _logit_scale(_left_out(path, rows, strength), rows)
    weight = scale * (path.axes @ path.coefficients(strength)) / rows.deviation[:, None]
    bias = scale * (rows.frequencies - 1 / classes) - rows.mean @ weight
    head = RidgeHead(weight.T.float(), bias.float(), strength, accuracy)
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise FloatingPointError("the closed-form head does not fit into single precision")
    return head


def _choose(path: _Path, rows: _Rows) -> tuple[float, float]:
    """The strength that leave-one-out prefers, the mean eigenvalue when it can say nothing, and its accuracy."""
    strengths = _steady(path, rows)
    correct = torch.zeros(len(strengths), dtype=torch.double)
    errors = torch.zeros_like(correct)
    for (block, labels), judged in zip(rows.blocks(), torch.split(rows.judged, ROWS_AT_ONCE), strict=True):
        scores, own = block @ path.axes, labels[:, None]
        for place, strength in enumerate(strengths):
            rows.check()
            predicted = path.leave_one_out(scores, labels, strength)
            right = predicted.gather(1, own)[:, 0]
            error = torch.linalg.vector_norm(predicted, dim=1).square() - 2 * right + 1
            others = predicted.scatter_(1, own, -torch.inf).amax(dim=1)
            correct[place] += ((right > others) & judged).sum()
            errors[place] += error[judged].sum()
    accuracies = (correct / len(rows)).tolist()
    best = max(accuracies)
    least = best - TIE * math.sqrt(best * (1 - best) / len(rows))
    tied = [place for place, accuracy in enumerate(accuracies) if accuracy >= least]
    place = min(tied, key=lambda at: (float(errors[at]), abs(math.log(strengths[at] / path.mean_eigenvalue))))
    return strengths[place], accuracies[place]


def _steady(path: _Path, rows: _Rows) -> tuple[float, ...]:
    """The strengths that do not amplify rounding; when all do, the strongest."""
    steady = []
    for strength in path.strengths:
        rows.check()
        if path.amplification(strength, rows.rounding) <= AMPLIFICATION:
            steady.append(strength)
    return tuple(steady) or path.strengths[-1:]


def _left_out(path: _Path, rows: _Rows, strength: float) -> Tensor:
    """Leave-one-out predictions `(n, classes)`, each row less its mean, in single precision."""
    predictions = torch.empty(len(rows), len(rows.sizes))
    for (block, labels), part in zip(rows.blocks(), torch.split(predictions, ROWS_AT_ONCE), strict=True):
        predicted = path.leave_one_out(block @ path.axes, labels, strength)
        part.copy_(predicted - predicted.mean(dim=1, keepdim=True))
    return predictions


def _logit_scale(scores: Tensor, rows: _Rows) -> float:
    """The factor that makes `scores` `(n, classes)`, whose rows add up to zero, logits of least log-loss.

    Two images more are counted, one whose top answer is right and one that may be anything, as in Laplace's rule of
    succession: without them scores that are always right want an endless factor, and images that leave-one-out can say
    nothing of none at all.
    """
    from scipy.optimize import minimize_scalar

    unit = float(torch.linalg.vector_norm(scores)) / math.sqrt(scores.numel())
    if unit == 0:
        return 1.0
    own = scores.gather(1, rows.labels[:, None])[:, 0].double()
    gain = float(own[rows.judged].sum() + scores.amax(dim=1).double().mean())
    weights = torch.split(rows.judged + 2 / len(rows), ROWS_AT_ONCE)

    def loss(log_spread: float) -> float:
        scale, total = math.exp(log_spread) / unit, 0.0
        for part, weight in zip(torch.split(scores, ROWS_AT_ONCE), weights, strict=True):
            rows.check()
            total += float(torch.logsumexp(part.double() * scale, dim=1) @ weight.double())
        return total - scale * gain

    bounds = (math.log(0.01), math.log(100.0))  # of the logits' root mean square
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x)) / unit


def _gram(rows: _Rows) -> Tensor:
    """x.T @ x `(dim, dim)` of the standardised features."""
    gram = torch.zeros(rows.features.shape[1], rows.features.shape[1], dtype=torch.double)
    for block, _ in rows.blocks():
        gram.addmm_(block.T, block)
    return gram


def _products(x: Tensor, check: Check) -> Tensor:
    """x @ x.T `(n, n)`."""
    parts = []
    for block in torch.split(x, ROWS_AT_ONCE):
        check()
        parts.append(block @ x.T)
    return torch.cat(parts)


def _eigh(matrix: Tensor, check: Check) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors. LAPACK cannot be stopped: when `check` raises it is left behind."""
    values, vectors = in_thread(partial(torch.linalg.eigh, matrix), check)
    return values, vectors


def _require_finite(values: Tensor, noun: str) -> None:
    broken = int((~torch.isfinite(values)).any(dim=1).sum())
    if broken:
        raise FloatingPointError(f"the {noun} of {broken} of {len(values)} images are not finite")
