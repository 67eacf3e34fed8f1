"""Figures with their uncertainty: 95 % intervals, by Wilson for proportions and their means, else by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from autoft.parts.metric import Bootstrap, ByClass
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
_Z: Final = 1.959963984540054  # of 95 %

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


def mean_of_proportions(by_class: ByClass) -> Interval:
    """That of a mean over classes: how far each end of each class's Wilson interval is from its figure, in quadrature.

    MOVER of Zou and Donner (2008), with a count that need not be whole. The bootstrap knows nothing of a class of which
    all images at hand are right: 2 of 2 are taken for certain, as are 5 of 5. Coverage in % and mean width by the
    bootstrap alone, by this alone and by the wider end of each, which is what figures take (300 sets, classes of 10:2
    and 100:5 images, errors to the other class; the first recall is that of the large class):

        recalls               10:2 balanced_accuracy              100:5 balanced_accuracy            100:5 macro_f1
        1, 1        100 .24   100 .36   100 .36     100 .04   100 .22   100 .22     100 .04   100 .22   100 .22
        .95, .95    100 .30    96 .38   100 .39      56 .14    94 .25   100 .29      96 .42   100 .28   100 .42
        .95, .8     100 .39    92 .41   100 .45      65 .42    92 .28    99 .49      98 .43    99 .29    99 .43
        .8, .95      99 .40    92 .43    99 .47      93 .16    94 .27   100 .29     100 .25   100 .23   100 .26
        .8, .8       99 .45    95 .44    99 .51      66 .34    96 .30   100 .39      99 .24    99 .22   100 .26

    Of balanced accuracy over 2 to 100 classes, even (3, 4, 10 and 20 images each) and uneven (10:2, 100:5, 300:30:5,
    ten of 2 to 40), with recalls alike and unlike, .68 to .99 in the mean, the wider end covers 96 to 100 %. Wilson's
    interval at an effective size (the number of classes times the harmonic mean of their images) is narrower, by a half
    for ten uneven classes, and covers 86 to 98.

    Alone it does not do: of hard labels in 60 images, of which some are in none, it covers 61 % where the bootstrap in
    log odds has 94 (map), and 86 % for ten classes (balanced_accuracy, 96).
    """
    figures, sizes = by_class
    if not len(figures):
        return 0.0, 1.0
    spread, all_of = _Z * _Z / sizes, 1 + _Z * _Z / sizes
    centres = (figures + spread / 2) / all_of
    halves = _Z * np.sqrt(figures * (1 - figures) / sizes + spread / (4 * sizes)) / all_of
    below, above = (
        float(np.sqrt((side**2).sum())) for side in (centres - halves - figures, centres + halves - figures)
    )
    mean, classes = float(figures.mean()), len(figures)
    return max(0.0, mean - below / classes), min(1.0, mean + above / classes)


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


def recalls(labels: Labels, predicted: Labels) -> ByClass:
    """Those whose mean is the balanced accuracy."""
    images = np.bincount(labels)
    occurs, hits = images > 0, np.bincount(labels[labels == predicted], minlength=len(images))
    return hits[occurs] / images[occurs], images[occurs].astype(np.float64)


def f1s(labels: Labels, predicted: Labels) -> ByClass:
    """Those whose mean is macro F1; an F1 is a part of the mean of the images that are and that are called so."""
    classes = np.unique(labels)
    true, called, hits = (
        np.bincount(of, minlength=classes[-1] + 1)[classes] for of in (labels, predicted, labels[labels == predicted])
    )
    sizes = (true + called) / 2
    return hits / sizes, sizes


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
