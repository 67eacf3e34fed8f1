"""Closed-form heads for classes, labels and numbers: a whole ridge path with exact leave-one-out, from one
eigendecomposition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from autoft.parts.linear_head import LinearHead
from autoft.system.parallel import Check, in_thread, never_stop
from autoft.values.space import Scalar

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

LENT = 10
"""Images of a label that one scale for all labels counts for; see `_sigmoids`."""

MOST_STEPS, STILL = 100, 1e-3
"""Newton steps, and the change of a logit after which another one would hardly move it."""

Alike = Literal["images", "classes"]
"""What counts alike."""

_ACCURACIES: Mapping[Alike, str] = {"images": "loo_accuracy", "classes": "loo_balanced_accuracy"}
_FACTS: Mapping[Alike, dict[str, Scalar]] = {"images": {}, "classes": {"balance": "weights"}}

CONSTANT = 1e-12
"""A column that deviates by no more than this part of its mean is constant: rounding leaves a thousandth of that."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Features of training images, standardised and in double precision a block at a time; `check` is asked before
    each.

    `roots` `(n, 1)` of what each image counts for, on average 1: least squares of rows times these are weighted ones.
    """

    features: Tensor
    roots: Tensor
    mean: Tensor
    deviation: Tensor
    rounding: Tensor  # of a standardised feature, (dim,)
    check: Check

    @classmethod
    def of(cls, features: Tensor, check: Check, weights: Tensor | None = None) -> _Rows:
        """Standardise, in two passes; `weights` `(n,)` are what each image counts for, None all the same.

        Raises `FloatingPointError` when something is not finite.
        """
        weights = torch.ones(len(features), dtype=torch.double) if weights is None else weights
        mean = _mean(features, lambda block: block, check, weights)
        if not torch.isfinite(mean).all():
            _require_finite(features, "features", check)
        variance = _mean(features, lambda block: (block - mean).square(), check, weights)
        squares = variance + mean.square()
        rounding = ROUNDING**2 * (squares + squares.mean())
        deviation = (variance + DEVIATION_FLOOR**2 * variance.mean() + rounding).sqrt()
        deviation = deviation.clamp_min(torch.finfo(torch.double).tiny)
        return cls(features, weights.sqrt()[:, None], mean, deviation, rounding.sqrt() / deviation, check)

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Where each block is, and its standardised features `(rows, dim)`, times their roots."""
        for at in _slices(len(self)):
            self.check()
            yield at, (self.features[at].double() - self.mean) / self.deviation * self.roots[at]


class _Targets(ABC):
    """What is fitted, `(n, outputs)`: never held whole in double precision. `at` are the rows of a block."""

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """What each image `(n,)` counts for, on average 1."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Of each output `(outputs,)`, by weights."""

    @abstractmethod
    def add(self, predictions: Tensor, weight: Tensor, at: slice) -> Tensor:
        """Add `weight` `(rows, 1)` times the targets to `predictions` `(rows, outputs)`, in place."""

    @abstractmethod
    def add_products(self, products: Tensor, block: Tensor, at: slice) -> Tensor:
        """Add targets.T @ block to `products` `(outputs, dim)`, in place."""

    @abstractmethod
    def judge(self, predictions: Tensor, at: slice) -> Tensor:
        """What leave-one-out predictions `(rows, outputs)` add to the totals `(criteria,)`; may overwrite them."""

    @abstractmethod
    def losses(self, totals: Tensor) -> list[float]:
        """How bad each strength is, by its totals `(strengths, criteria)`."""


@dataclass(frozen=True, eq=False)
class _Classes(_Targets):
    """One of so many classes an image: 1 for its class, 0 for the others. The best strength is the most accurate one,
    the mean squared error deciding ties, both by weights.

    Of the only image of a class leave-one-out can say nothing: it counts as an error whatever the strength.
    """

    labels: Tensor
    sizes: Tensor  # images of each class, (classes,)
    judged: Tensor  # which images (n,) have company in their class
    importance: Tensor  # of an image of each class, (classes,)

    @classmethod
    def of(cls, labels: Tensor, classes: int, check: Check, alike: Alike = "images") -> _Classes:
        """Raises `FloatingPointError` when something is not finite."""
        _require_finite(labels[:, None], "labels", check)
        labels = labels.long()
        sizes = torch.bincount(labels, minlength=classes)
        importance = torch.ones(classes, dtype=torch.double) if alike == "images" else _importance(sizes)
        return cls(labels, sizes, sizes[labels] > 1, importance)

    @property
    def weights(self) -> Tensor:
        return self.importance[self.labels]

    @property
    def mean(self) -> Tensor:
        """The share of each class."""
        return self.sizes.double() * self.importance / len(self.labels)

    def add(self, predictions: Tensor, weight: Tensor, at: slice) -> Tensor:
        return predictions.scatter_add_(1, self.labels[at, None], weight)

    def add_products(self, products: Tensor, block: Tensor, at: slice) -> Tensor:
        return products.index_add_(0, self.labels[at], block)

    def judge(self, predictions: Tensor, at: slice) -> Tensor:
        """How many are right, and the squared error, both by weights."""
        own, counted = self.labels[at, None], self.judged[at] * self.importance[self.labels[at]]
        right = predictions.gather(1, own)[:, 0]
        error = torch.linalg.vector_norm(predictions, dim=1).square() - 2 * right + 1
        others = predictions.scatter_(1, own, -torch.inf).amax(dim=1)
        return torch.stack([((right > others) * counted).sum(), (error * counted).sum()])

    def losses(self, totals: Tensor) -> list[float]:
        accuracies = totals[:, 0] / len(self.labels)
        best = float(accuracies.max())
        # Unequal weights tell as much as fewer equal ones (Kish 1965).
        images = len(self.labels) ** 2 / float(self.sizes.double() @ self.importance.square())
        least = best - TIE * math.sqrt(max(0.0, best * (1 - best)) / images)
        return totals[:, 1].where(accuracies >= least, torch.inf).tolist()


@dataclass(frozen=True, eq=False)
class _Columns(_Targets):
    """Several numbers an image, standardised. The best strength has the least squared error of all columns together,
    so that a column's unit decides nothing. Images count by their weights throughout.

    Of a column that is constant but for one image leave-one-out can say nothing: without that image nothing varies.
    """

    values: Tensor
    centre: Tensor
    deviation: Tensor  # 1 for a constant column
    judged: Tensor  # which columns (outputs,) vary without any one of the images
    counted: Tensor  # what each image (n,) counts for

    @classmethod
    def of(cls, values: Tensor, noun: str, check: Check, weights: Tensor | None = None) -> _Columns:
        """By `weights` `(n,)`, which mean 1; None is all alike.

        Raises `FloatingPointError` when something is not finite; the `noun` says what.
        """
        _require_finite(values, noun, check)
        n = len(values)
        weights = torch.ones(n, dtype=torch.double) if weights is None else weights
        centre = _mean(values, lambda block: block, check, weights)
        deviation = _mean(values, lambda block: (block - centre).square(), check, weights).sqrt()
        constant = deviation <= CONSTANT * centre.abs()
        deviation = deviation.masked_fill(constant, 1.0)
        standardised = cls(values, centre, deviation, ~constant, weights)
        most = torch.zeros_like(centre)  # of what may be 1 where an image alone makes the column vary
        for at in _slices(n):
            check()
            of_all = (weights[at] / (n - weights[at]))[:, None]
            most = most.maximum((standardised.block(at).square() * of_all).amax(dim=0))
        return replace(standardised, judged=~constant & (most < 1 - 1e-9))

    @property
    def weights(self) -> Tensor:
        return self.counted

    @property
    def mean(self) -> Tensor:
        """0 each."""
        return torch.zeros_like(self.centre)

    def block(self, at: slice) -> Tensor:
        """The targets `(rows, outputs)`."""
        return (self.values[at].double() - self.centre) / self.deviation

    def add(self, predictions: Tensor, weight: Tensor, at: slice) -> Tensor:
        return predictions.addcmul_(weight, self.block(at))

    def add_products(self, products: Tensor, block: Tensor, at: slice) -> Tensor:
        return products.addmm_(self.block(at).T, block)

    def judge(self, predictions: Tensor, at: slice) -> Tensor:
        """The squared error of each column, by weights."""
        return predictions.sub_(self.block(at)).square_().mul_(self.counted[at, None]).sum(dim=0)

    def losses(self, totals: Tensor) -> list[float]:
        return totals[:, self.judged].sum(dim=1).tolist()

    def r2(self, totals: Tensor) -> float:
        """The mean R2 of the columns with these squared errors `(outputs,)`; 0 when they say nothing."""
        judged = totals[self.judged]
        return 1 - float(judged.mean()) / len(self.values) if len(judged) else 0.0


@dataclass(frozen=True, eq=False)
class _Path:
    """The eigenbasis in which every strength is a division: `values (k,)`, `axes (dim, k)`, and the targets on its
    axes, `projected (k, outputs)`; `roots (n, 1)` are those of the rows.
    """

    n: int
    roots: Tensor
    values: Tensor
    axes: Tensor
    projected: Tensor
    targets: _Targets

    @classmethod
    def of(cls, rows: _Rows, targets: _Targets) -> _Path:
        """Decompose the smaller of x.T @ x and x @ x.T; directions of no more variance than rounding are dropped."""
        n, dim = rows.features.shape
        wide = torch.cat([block for _, block in rows.blocks()]).T if n < dim else None
        values, vectors = _eigh(_gram(rows) if wide is None else _products(wide.T, rows.check), rows.check)
        # Of noise alone the largest eigenvalue comes to this (Marchenko and Pastur 1967).
        noise = float(rows.rounding.square().mean()) * (math.sqrt(n) + math.sqrt(dim)) ** 2
        kept = values > max(float(values[-1]) * 1e-10, noise)
        values, vectors = values[kept], vectors[:, kept]
        axes = vectors if wide is None else wide @ vectors / values.sqrt()
        products = torch.zeros(len(targets.mean), dim, dtype=torch.double)
        for at, block in rows.blocks():
            targets.add_products(products, block * rows.roots[at], at)
        return cls(n, rows.roots, values, axes, (products @ axes).T, targets)

    @property
    def mean_eigenvalue(self) -> float:
        """Of the directions that are kept; 1 when there is none."""
        return float(self.values.mean()) if len(self.values) else 1.0

    @property
    def strengths(self) -> tuple[float, ...]:
        """The penalties of the path, ascending."""
        return tuple(relative * self.mean_eigenvalue for relative in RELATIVE_STRENGTHS)

    def coefficients(self, strength: float) -> Tensor:
        """On the axes, `(k, outputs)`."""
        return self.projected / (self.values + strength)[:, None]

    def amplification(self, strength: float, rounding: Tensor) -> float:
        """What features unsure by `rounding` `(dim,)` make of the predictions, as a part of their spread."""
        coefficients = self.coefficients(strength)
        spread = (self.values @ coefficients.square()).sum() / self.n
        unsure = (rounding[:, None] * (self.axes @ coefficients)).square().sum()
        return float((unsure / spread.clamp_min(torch.finfo(torch.double).tiny)).sqrt())

    def leave_one_out(self, scores: Tensor, at: slice, strength: float) -> Tensor:
        """Predictions `(rows, outputs)` for each row by the model fitted without it; `scores (rows, k)` on the axes.

        The intercept is not penalised; it adds 1/n to every leverage (Hastie et al., ESL 2009, section 7.10), times
        what the row counts for.
        """
        roots = self.roots[at]
        leverage = (scores.square() @ (1 / (self.values + strength)))[:, None] + roots.square() / self.n
        rest = (1 - leverage).clamp_min(1e-9)
        fitted = torch.addmm(self.targets.mean, scores / roots, self.coefficients(strength))
        return self.targets.add(fitted.div_(rest), -leverage / rest, at)


@dataclass(frozen=True, eq=False)
class _Ridge:
    """The solution of the path that leave-one-out prefers, and the `totals` `(criteria,)` it was preferred by."""

    rows: _Rows
    path: _Path
    strength: float
    totals: Tensor

    @classmethod
    def of(cls, features: Tensor, targets: _Targets, check: Check) -> _Ridge:
        """The strength nearest to the mean eigenvalue where leave-one-out can say nothing."""
        rows = _Rows.of(features, check, targets.weights)
        path = _Path.of(rows, targets)
        strengths = _steady(path, rows)
        totals = torch.zeros((), dtype=torch.double)
        for at, block in rows.blocks():
            scores, parts = block @ path.axes, []
            for strength in strengths:
                check()
                parts.append(targets.judge(path.leave_one_out(scores, at, strength), at))
            totals = totals + torch.stack(parts)
        away = [abs(math.log(strength / path.mean_eigenvalue)) for strength in strengths]
        place = min(range(len(strengths)), key=list(zip(targets.losses(totals), away, strict=True)).__getitem__)
        return cls(rows, path, strengths[place], totals[place])

    def left_out(self) -> Iterator[tuple[slice, Tensor]]:
        """Where each block is, and its leave-one-out predictions `(rows, outputs)`."""
        for at, block in self.rows.blocks():
            yield at, self.path.leave_one_out(block @ self.path.axes, at, self.strength)

    def head(self, scale: Tensor | float, offset: Tensor, facts: Mapping[str, Scalar]) -> LinearHead:
        """Predictions less their mean, times `scale`, plus `offset` `(outputs,)`, as a head on raw features.

        Raises `FloatingPointError` when it is beyond single precision.
        """
        path, rows = self.path, self.rows
        weight = scale * (path.axes @ path.coefficients(self.strength)) / rows.deviation[:, None]
        bias = offset - rows.mean @ weight
        head = LinearHead(weight.T.float(), bias.float(), {"ridge_strength": self.strength, **facts})
        if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
            raise FloatingPointError("the closed-form head does not fit into single precision")
        return head


def ridge_of_classes(
    features: Tensor, labels: Tensor, classes: int, check: Check = never_stop, alike: Alike = "images"
) -> LinearHead:
    """The head whose leave-one-out accuracy is best, for one class an image; the mean squared error decides ties.

    With `alike` "classes" an image counts for the inverse of its class's share throughout: the accuracy is the balanced
    one, and the logits are those of classes that are equally frequent.

    `features` `(n, dim)`, `labels` `(n,)` class indices, both on the CPU. Its outputs are logits: the scores of the
    ridge times one factor, chosen by the log-loss of the leave-one-out predictions; those of an image add up to zero.
    Facts: `ridge_strength`, the penalty on the standardised features, and `loo_accuracy`, or `loo_balanced_accuracy`,
    in [0, 1], where the only image of a class counts as an error.

    Features are standardised first (Marks et al. 2025, arXiv 2407.12210); the standardisation is folded into the head.
    Everything is in double precision: where the path nearly interpolates, single precision is off by .03 in the
    predictions, for half the time. Beyond the features this holds `(n, classes)` once, in single precision, and a few
    `(min(n, dim), dim)` and `(dim, classes)`. `check` is asked every second or so and may raise to give up. Raises
    `FloatingPointError` when features or labels are not finite. All this goes for the other heads too.
    """
    targets = _Classes.of(labels, classes, check, alike)
    ridge = _Ridge.of(features, targets, check)
    scores = torch.empty(len(labels), classes)
    for at, predictions in ridge.left_out():
        scores[at] = predictions - predictions.mean(dim=1, keepdim=True)
    scale = _logit_scale(scores, targets, check)
    facts = _FACTS[alike] | {_ACCURACIES[alike]: float(ridge.totals[0]) / len(labels)}
    return ridge.head(scale, scale * (targets.mean - 1 / classes), facts)


def ridge_of_values(features: Tensor, values: Tensor, check: Check = never_stop) -> LinearHead:
    """The head of least leave-one-out squared error, for several numbers an image, on features `(n, dim)`.

    `values` `(n, outputs)` may have any unit: each column is standardised within, and its outputs are in its unit.
    Facts: `ridge_strength`, and `loo_r2`, the mean of the columns' R2; one that is constant, or would be without one of
    the images, has none, and it is 0 when none has.

    One strength serves all columns. One each had a greater R2 on new images where some columns were nearly free of
    noise and others nearly nothing else (by .01 with 3,000 images, .1 with 50), where they were alike a smaller one (by
    .05 with 30 images, .01 with 100).
    """
    targets = _Columns.of(values, "values", check)
    ridge = _Ridge.of(features, targets, check)
    return ridge.head(targets.deviation, targets.centre, {"loo_r2": targets.r2(ridge.totals)})


def ridge_of_labels(
    features: Tensor, marks: Tensor, check: Check = never_stop, classes: Tensor | None = None
) -> LinearHead:
    """The head for any number of labels an image: `marks` `(n, labels)` are 1 where it has the label, 0 elsewhere.

    A ridge on the marks, each label standardised; its outputs are logits for a sigmoid, a scale and an offset a label
    (see `_sigmoids`). Facts: `ridge_strength`, and `loo_log_loss`, the mean of all images and labels. With `classes`
    `(n,)` an image counts for the inverse of its class's share throughout, and the fact `balance` says so.

    One strength serves all labels, that of least leave-one-out squared error when labels are standardised. On 15 sets
    (composites of up to ten kinds of garment, 60 to 2,000 of them, Lite0's features; made-up ones of 100 to 3,000
    images with 30 to 100 labels, most of them rare) its log-loss on new images was above that of the best strength by
    .0007, its macro average precision below by .0024, on average; squared error of plain marks came to .0016 and .0040,
    log-loss, with a calibration for each strength, to .0020 and .0020 (with 60 images .016 and .015), macro average
    precision to .0043 and .0057. A strength for each label cost .0035.
    """
    weights = None if classes is None else _importance(torch.bincount(classes))[classes]
    targets = _Columns.of(marks, "labels", check, weights)
    ridge = _Ridge.of(features, targets, check)
    scores = torch.empty(marks.shape)
    for at, predictions in ridge.left_out():
        scores[at] = predictions
    sigmoids = _sigmoids(scores, targets, check)
    loss = _LogLoss(scores, lambda at: marks[at], targets.weights, check).mean(sigmoids)
    facts = _FACTS["images" if classes is None else "classes"] | {"loo_log_loss": loss}
    return ridge.head(sigmoids.scale, sigmoids.offset, facts)


def _importance(sizes: Tensor) -> Tensor:
    """What an image of each class `(classes,)` of these sizes counts for, so that classes count alike; on average 1."""
    return sizes.sum() / (sizes.clamp_min(1).double() * (sizes > 0).sum())


def _steady(path: _Path, rows: _Rows) -> tuple[float, ...]:
    """The strengths that do not amplify rounding; when all do, the strongest."""
    steady = []
    for strength in path.strengths:
        rows.check()
        if path.amplification(strength, rows.rounding) <= AMPLIFICATION:
            steady.append(strength)
    return tuple(steady) or path.strengths[-1:]


def _logit_scale(scores: Tensor, targets: _Classes, check: Check) -> float:
    """The factor that makes `scores` `(n, classes)`, whose rows add up to zero, logits of least log-loss.

    Two images more are counted, one whose top answer is right and one that may be anything, as in Laplace's rule of
    succession: without them scores that are always right want an endless factor, and images that leave-one-out can say
    nothing of none at all.
    """
    from scipy.optimize import minimize_scalar

    unit = float(torch.linalg.vector_norm(scores)) / math.sqrt(scores.numel())
    if unit == 0:
        return 1.0
    own = scores.gather(1, targets.labels[:, None])[:, 0].double()
    counted = targets.judged * targets.weights
    gain = float((own * targets.weights)[targets.judged].sum() + scores.amax(dim=1).double().mean())
    weights = torch.split(counted.float() + 2 / len(scores), ROWS_AT_ONCE)

    def loss(log_spread: float) -> float:
        scale, total = math.exp(log_spread) / unit, 0.0
        for part, weight in zip(torch.split(scores, ROWS_AT_ONCE), weights, strict=True):
            check()
            total += float(torch.logsumexp(part.double() * scale, dim=1) @ weight.double())
        return total - scale * gain

    bounds = (math.log(0.01), math.log(100.0))  # of the logits' root mean square
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x)) / unit


@dataclass(frozen=True, eq=False)
class _Sigmoids:
    """From scores to logits, a label at a time: `scale` and `offset` `(labels,)`."""

    scale: Tensor
    offset: Tensor

    def logits(self, scores: Tensor) -> Tensor:
        """Of scores `(rows, labels)`, in double precision."""
        return torch.addcmul(self.offset, self.scale, scores.double())


@dataclass(frozen=True, eq=False)
class _LogLoss:
    """Of sigmoids on `scores` `(n, labels)`, by the probabilities `(rows, labels)` that `wanted` gives for a block.

    Images count by `weights` `(n,)`, which mean 1.
    """

    scores: Tensor
    wanted: Callable[[slice], Tensor]
    weights: Tensor
    check: Check

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Scores, wanted probabilities, and weights `(rows, 1)`, in double precision."""
        for at in _slices(len(self.scores)):
            self.check()
            yield self.scores[at].double(), self.wanted(at).double(), self.weights[at, None]

    def mean(self, sigmoids: _Sigmoids) -> float:
        """Of all images and labels."""
        total = 0.0
        for scores, wanted, counted in self._blocks():
            logits = sigmoids.logits(scores)
            total += float(((softplus(logits) - wanted * logits) * counted).sum())
        return total / self.scores.numel()

    def derivatives(self, sigmoids: _Sigmoids) -> Tensor:
        """`(5, labels)`: by scale and by offset, then by scale twice, by both, by offset twice."""
        sums = torch.zeros(5, self.scores.shape[1], dtype=torch.double)
        for scores, wanted, counted in self._blocks():
            probability = sigmoids.logits(scores).sigmoid_()
            excess = (probability - wanted) * counted
            weight = (probability * (1 - probability)).clamp_min_(1e-12) * counted
            weighted = weight * scores
            sums[0] += (excess * scores).sum(dim=0)
            sums[1] += excess.sum(dim=0)
            sums[2] += (weighted * scores).sum(dim=0)
            sums[3] += weighted.sum(dim=0)
            sums[4] += weight.sum(dim=0)
        return sums

    def least(self, sigmoids: _Sigmoids, pool: Callable[[Tensor], Tensor]) -> _Sigmoids:
        """Where Newton's method gets from there, with no scale below 0: one scale for all labels where `pool` adds up
        the terms `(labels,)`, one each where it leaves them as they are.

        Damped so that the loss gets less with each step (Bach 2010, Electronic Journal of Statistics 4, proposition 1).
        """
        farthest = torch.linalg.vector_norm(self.scores, math.inf, dim=0).double()
        for _ in range(MOST_STEPS):
            g_scale, g_offset, h_scale, h_both, h_offset = self.derivatives(sigmoids)
            # Each offset follows its scale, which leaves one equation a scale: of scores that are all alike, rounding.
            slope, curvature = pool(g_scale - h_both * g_offset / h_offset), pool(h_scale - h_both.square() / h_offset)
            curvature = curvature.maximum(1e-12 * pool(h_scale)).clamp_min(torch.finfo(torch.double).tiny)
            scale = (-slope / curvature).maximum(-sigmoids.scale)
            offset = -(g_offset + h_both * scale) / h_offset
            change = float((scale.abs() * farthest + offset.abs()).max())
            damping = math.log1p(change) / change if change else 1.0
            sigmoids = _Sigmoids(sigmoids.scale + damping * scale, sigmoids.offset + damping * offset)
            if change < STILL:
                break
        return sigmoids


def _sigmoids(scores: Tensor, targets: _Columns, check: Check) -> _Sigmoids:
    """Of least log-loss on `scores` `(n, labels)`, each label's scale drawn to a common one as far as it is rare.

    Platt's rule (1999): as if each mark had been seen once more on either side, so that a label that is always right,
    or never there, gets no endless logit. Then `LENT` images that answer as one scale for all would: a label seen once
    has no scale of its own. On the sets of `ridge_of_labels` the log-loss on new images was less than with a common
    scale alone by up to .004, less than with each label's own by up to .002; 2 to 50 lent images were within .002.
    How rare a label is goes by its images, whatever they count for.
    """
    present = _mean(targets.values, lambda block: block, check) * len(scores)
    absent, share = len(scores) - present, targets.centre
    never, always = 1 / (absent + 2), (present + 1) / (present + 2)
    lent = LENT / (LENT + present.minimum(absent).where(targets.judged, 0.0))

    def smoothed(at: slice) -> Tensor:
        return torch.lerp(never, always, targets.values[at].double())

    def drawn(at: slice) -> Tensor:
        return torch.lerp(smoothed(at), common.logits(scores[at]).sigmoid_(), lent)

    start = _Sigmoids(torch.ones_like(present), torch.logit(share * always + (1 - share) * never))
    common = _LogLoss(scores, smoothed, targets.weights, check).least(start, lambda terms: terms[targets.judged].sum())
    return _LogLoss(scores, drawn, targets.weights, check).least(common, lambda terms: terms)


def _gram(rows: _Rows) -> Tensor:
    """x.T @ x `(dim, dim)` of the standardised features."""
    gram = torch.zeros(rows.features.shape[1], rows.features.shape[1], dtype=torch.double)
    for _, block in rows.blocks():
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


def _slices(n: int) -> Iterator[slice]:
    """The rows of each block."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE))


def _mean(rows: Tensor, function: Callable[[Tensor], Tensor], check: Check, weights: Tensor | None = None) -> Tensor:
    """The mean `(columns,)` of a function of `rows` `(n, columns)` that keeps their shape; `weights` `(n,)` mean 1."""
    total = torch.zeros(rows.shape[1], dtype=torch.double)
    for at in _slices(len(rows)):
        check()
        values = function(rows[at].double())
        total += (values if weights is None else values * weights[at, None]).sum(dim=0)
    return total / len(rows)


def _require_finite(rows: Tensor, noun: str, check: Check) -> None:
    broken = 0
    for at in _slices(len(rows)):
        check()
        broken += int((~torch.isfinite(rows[at])).any(dim=1).sum())
    if broken:
        raise FloatingPointError(f"the {noun} of {broken} of {len(rows)} images are not finite")
