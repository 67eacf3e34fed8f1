"""Figures with their uncertainty: 95 % intervals, by Wilson for a proportion and by the bootstrap for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from autoft.parts.metric import Bootstrap
from autoft.parts.metric import Counts as Counts
from autoft.parts.metric import Floats as Floats
from autoft.parts.metric import Statistic as Statistic
from autoft.system.lazy import Lazy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

RESAMPLES: Final = 1000
_NUMBERS_AT_ONCE: Final = 2**18
_NEAR: Final = 2
_TINY: Final = 1e-9

Logits: TypeAlias = "NDArray[np.float32]"
Probabilities: TypeAlias = "NDArray[np.float32]"
Labels: TypeAlias = "NDArray[np.integer[Any]]"
Hits: TypeAlias = "NDArray[np.bool_]"
Interval = tuple[float, float]
IntervalOf: TypeAlias = Callable[[float, "Floats", int], Interval]
"""The 95 % interval of a figure, from its value, its resamples and the number of images."""


def softmax(logits: Logits) -> Probabilities:
    """Probabilities of logits, over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Probabilities = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def proportion(hits: int, n: int) -> Interval:
    """Wilson's score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def percentiles(value: float, drawn: Floats, n: int) -> Interval:
    """The percentile bootstrap (Efron 1979) of a figure of `n` images; `value` lies in it.

    A resample lacks some classes and repeats images, which can push it past the figure. Of `n` right answers all
    resamples are alike, which does not make it certain: their interval is that of a proportion. Resamples without a
    figure, NaN, are left out.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return value, value
    if value == 1.0 and (drawn == 1.0).all():
        return proportion(n, n)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return min(float(low), value), max(float(high), value)


def log_odds(value: float, drawn: Floats, n: int) -> Interval:
    """Percentiles, and as far as the basic bootstrap (Davison and Hinkley 1997) in log odds goes beyond them.

    The latter takes off the bias of resampling. Mean average precision needs that: images that stand twice in a
    resample are found together, which makes it higher, as few images do by themselves. Means over classes gain by it
    where few images are of one. Nearer than `_NEAR / n` to 0 or
    1, where odds of resamples have no bounds, the deviation of these takes their place (the delta method).

    Coverage in % at 60, 200 and 1,000 images (`benchmarks/intervals.py`, 150 sets), in brackets by percentiles alone:

        map, hard labels      95 (29)  97 (83)  96 (85)      map, easy labels      96 (87)  99 (97)  94 (93)
        macro_f1, hard labels 97 (93)  96 (95)  91 (89)      macro_f1, easy labels 99 (98)  99 (99)  94 (92)
        macro_f1, classes     95 (94)  95 (93)  93 (91)      balanced_accuracy     94 (88)  97 (96)  95 (95)

    By percentiles, which the others take: micro_f1 95, 97, 95; log_loss 95, 97, 94; mae 96, 94, 93; r2 92, 94, 91; rmse
    87, 87, 93, as a few large errors decide it.
    """
    from scipy.special import expit, logit

    low, high = percentiles(value, drawn, n)
    drawn, least = drawn[np.isfinite(drawn)], _NEAR / n
    if not _TINY < value < 1 - _TINY or not len(drawn):
        return low, high
    if least < value < 1 - least:
        ends = 2 * logit(value) - np.percentile(logit(np.clip(drawn, least, 1 - least)), [97.5, 2.5])
    else:
        ends = logit(value) + np.array([-1.96, 1.96]) * (float(drawn.std()) / (value * (1 - value)))
    lower, upper = expit(ends)
    return min(low, float(lower)), max(high, float(upper))


INTERVALS: Final[Mapping[Bootstrap, IntervalOf]] = {"percentile": percentiles, "log_odds": log_odds}


def bootstrap(statistics: Mapping[str, Statistic], n: int) -> dict[str, Floats]:
    """Each statistic of the same `RESAMPLES` resamples of `n` images; seeded, so that a figure has one interval."""
    drawn = [[statistic(counts) for statistic in statistics.values()] for counts in _resamples(n)]
    return dict(zip(statistics, np.concatenate(drawn, axis=1), strict=True))


def value_of(statistic: Statistic, n: int) -> float:
    """The statistic with every image once."""
    return float(statistic(np.ones((1, n), np.int64))[0])


def _resamples(n: int) -> Iterator[Counts]:
    """How often each of `n` images is in a resample of `n`: `RESAMPLES` rows, a few at a time to bound memory."""
    rng = np.random.default_rng(0)
    step = max(1, _NUMBERS_AT_ONCE // max(n, 1))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        images = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(images.ravel(), minlength=rows * n).reshape(rows, n)


# ---------------------------------------------------------------- statistics


def mean(values: Floats | Hits) -> Statistic:
    """The mean of a value of each image, `(n,)`."""
    return lambda counts: counts @ values / len(values)


def balanced_accuracy(labels: Labels, predicted: Labels) -> Statistic:
    """The mean recall over the classes that occur."""
    true, hit = _by_class(labels, labels), _by_class(labels, labels, predicted == labels)
    return lambda counts: mean_over_classes(counts @ hit, counts @ true, counts @ true > 0)


def mean_by_class(labels: Labels, values: Floats) -> Statistic:
    """The mean over the classes that occur of the mean of a value of each image, `(n,)`."""
    true = _by_class(labels, labels)
    return lambda counts: mean_over_classes((counts * values) @ true, counts @ true, counts @ true > 0)


def macro_f1(labels: Labels, predicted: Labels) -> Statistic:
    """The mean F1 over the classes that occur."""
    true, hit = _by_class(labels, labels), _by_class(labels, labels, predicted == labels)
    either = true + _by_class(labels, predicted)
    return lambda counts: mean_over_classes(2 * (counts @ hit), counts @ either, counts @ true > 0)


def log_losses(logits: Logits, labels: Labels, temperature: float = 1.0) -> Floats:
    """Of each image the negative natural logarithm of its class's probability, `(n,)`."""
    losses = np.empty(len(labels))
    for rows, block in log_probabilities(logits, temperature):
        # Not the negative: that would turn 0 into -0.
        losses[rows] = 0.0 - np.take_along_axis(block, labels[rows, None], axis=1)[:, 0]
    return losses


def log_probabilities(logits: Logits, temperature: float) -> Iterator[tuple[slice, Floats]]:
    """Logarithms of probabilities in double precision, a block of rows at a time: which rows, and the block."""
    from scipy.special import log_softmax

    n, classes = logits.shape
    step = max(1, _NUMBERS_AT_ONCE // classes)
    for rows in (slice(start, start + step) for start in range(0, n, step)):
        yield rows, log_softmax(logits[rows].astype(np.float64) / temperature, axis=1)


def _by_class(labels: Labels, classes: Labels, counted: Hits | None = None) -> Any:
    """A sparse `(n, classes that occur)`: 1 where an image is `counted` and of that class in `classes`."""
    from scipy.sparse import csr_array

    n, size = len(labels), int(max(labels.max(), classes.max())) + 1
    ones = np.ones(n, np.int64) if counted is None else counted.astype(np.int64)
    return csr_array((ones, (np.arange(n), classes)), shape=(n, size))[:, np.unique(labels)]


def mean_over_classes(parts: Counts | Floats, wholes: Counts | Floats, occurs: Hits) -> Floats:
    """The mean ratio over the classes that occur, `(resamples,)` of `(resamples, classes)`; 0 where none does."""
    ratios = np.divide(parts, wholes, out=np.zeros(parts.shape), where=occurs)
    means: Floats = ratios.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return means
