"""Figures of labels of which an image may have any number, as statistics of resamples.

`marks` `(n, labels)` are 1 where an image has a label. Macro means are over the labels that occur; 0 where none does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from autoft.parts.metric import ByClass, Counts, Floats, Statistic
from autoft.system.lazy import Lazy
from autoft.tasks.statistics import Hits, mean, mean_over_classes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

Marks: TypeAlias = "NDArray[Any]"


def macro_f1(marks: Marks, predicted: Hits) -> Statistic:
    """The mean F1 over the labels that occur."""
    true, hit, either = _parts(marks, predicted)
    return lambda counts: mean_over_classes(2 * (counts @ hit), counts @ either, counts @ true > 0)


def f1s(marks: Marks, predicted: Hits) -> ByClass:
    """Those whose mean is macro F1, of the labels that occur; see `statistics.f1s`."""
    true, hit, either = (part.sum(axis=0) for part in _parts(marks, predicted))
    occurs = true > 0
    return 2 * hit[occurs] / either[occurs], either[occurs] / 2


def micro_f1(marks: Marks, predicted: Hits) -> Statistic:
    """F1 of all pairs of image and label alike; 0 where no label occurs and none is predicted."""
    _, hit, either = (part.sum(axis=1) for part in _parts(marks, predicted))
    return lambda counts: 2 * (counts @ hit) / np.maximum(counts @ either, 1)


def subset_accuracy(marks: Marks, predicted: Hits) -> Statistic:
    """The part of the images of which every label is right."""
    return mean((predicted == (marks > 0)).all(axis=1))


def mean_average_precision(marks: Marks, scores: NDArray[Any]) -> Statistic:
    """The mean over the labels that occur of the average precision of `scores` `(n, labels)`.

    That of a label is the mean over its images of the precision among all that score as high or higher, so images that
    score alike count alike, in whatever order (as scikit-learn has it; no interpolation).
    """
    labels = _rankings(marks, scores)

    def statistic(counts: Counts) -> Floats:
        sums = np.stack([ranking.precisions(counts) for ranking in labels], axis=1)
        images = np.stack([ranking.images(counts) for ranking in labels], axis=1)
        return mean_over_classes(sums, images, images > 0)

    return statistic


def average_precisions(marks: Marks, scores: NDArray[Any]) -> ByClass:
    """Those of the labels that occur, each of as many images as have it."""
    once = np.ones((1, len(marks)), np.int64)
    found = [(label.precisions(once)[0], label.images(once)[0]) for label in _rankings(marks, scores)]
    sums, images = np.array([pair for pair in found if pair[1]], np.float64).reshape(-1, 2).T
    return np.minimum(sums / images, 1.0), images


class _Ranking:
    """The images of one label in falling order of score: all, those that have it, and where their ties end."""

    def __init__(self, order: Counts, has: Counts, ends: Counts, hits: Counts) -> None:
        self._order, self._has, self._ends, self._hits = order, has, ends, hits

    @classmethod
    def of(cls, mark: Hits, score: NDArray[Any]) -> _Ranking:
        """The ranking of images by `score` `(n,)`."""
        order = np.argsort(-score, kind="stable")
        falling = -score[order]
        has = np.flatnonzero(mark[order])
        ends = np.searchsorted(falling, falling[has], side="right") - 1
        return cls(order, has, ends, np.searchsorted(has, ends, side="right") - 1)

    def images(self, counts: Counts) -> Counts:
        """How many of each resample have the label, `(resamples,)`."""
        found: Counts = counts[:, self._order[self._has]].sum(axis=1)
        return found

    def precisions(self, counts: Counts) -> Floats:
        """The sum over those of the precision among all that score as high or higher, `(resamples,)`."""
        weights = counts[:, self._order[self._has]]
        above = counts[:, self._order].cumsum(axis=1)[:, self._ends]
        right = weights.cumsum(axis=1)[:, self._hits]
        sums: Floats = (weights * (right / np.maximum(above, 1))).sum(axis=1)
        return sums


def _rankings(marks: Marks, scores: NDArray[Any]) -> list[_Ranking]:
    return [_Ranking.of(mark > 0, score) for mark, score in zip(marks.T, scores.T, strict=True)]


def _parts(marks: Marks, predicted: Hits) -> tuple[Floats, Floats, Floats]:
    """Of each image and label, `(n, labels)`: whether it has it, has and is said to have it, and the sum of both.

    Counts, in the numbers that NumPy multiplies fast.
    """
    true = (marks > 0).astype(np.float64)
    return true, true * predicted, true + predicted
