"""The logit from which each label is said to be there, kept only where it finds a label better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from autoft.parts.metric import Floats
from autoft.system.lazy import Lazy
from autoft.tasks.statistics import Hits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

MIN_IMAGES: Final = 10
"""With fewer validation images that have a label, or that have it not, its threshold stays .5."""

SHRINKAGE: Final = 10
"""Images at which a threshold goes half the way from .5, in logits. Of made-up sets of 100 to 1,000 images with 12
labels each, macro F1 on new images was up to .002 below that of .5 without it; with it at most .0006 below, up to .19
above."""

FOLDS: Final = 5
BOUNDS: Final = (0.02, 0.98)
"""As probabilities. The best threshold of good probabilities is half the best F1 (Lipton et al. 2014): below the first,
no threshold is worth it; above the second, float32 could not tell probabilities apart."""


def fit_thresholds(logits: NDArray[Any], marks: NDArray[Any], seed: int = 0) -> tuple[float, ...]:
    """The probability from which each label is said to be there, of validation images' logits and marks `(n, labels)`.

    It is the middle of five thresholds, each of the best F1 on four fifths of the images and drawn towards .5, where
    these have a greater F1 on the fifths they were not fitted on than .5 has; else .5. `seed` decides which images make
    up a fold.
    """
    from scipy.special import expit

    cuts = [_cut(column, mark > 0, seed) for column, mark in zip(logits.T.astype(np.float64), marks.T, strict=True)]
    return tuple(float(expit(cut)) for cut in cuts)


def _cut(logits: Floats, has: Hits, seed: int) -> float:
    """The logit from which one label is said to be there."""
    from sklearn.model_selection import StratifiedKFold

    rarer = min(int(has.sum()), int((~has).sum()))
    if rarer < MIN_IMAGES:
        return 0.0
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(logits, has))
    cuts = [_best(logits[others], has[others]) * rarer / (rarer + SHRINKAGE) for others, _ in folds]
    found = np.empty(len(has), np.bool_)
    for cut, (_, held) in zip(cuts, folds, strict=True):
        found[held] = logits[held] >= cut
    return float(np.median(cuts)) if _f1(found, has) > _f1(logits >= 0, has) else 0.0


def _best(logits: Floats, has: Hits) -> float:
    """The logit of the best F1, half way between two images' logits and within `BOUNDS`."""
    from scipy.special import logit

    order = np.argsort(-logits, kind="stable")
    falling = logits[order]
    f1 = 2 * has[order].cumsum() / (np.arange(1, len(has) + 1) + has.sum())
    last_of_ties = np.append(falling[1:] < falling[:-1], True)
    best = int(np.where(last_of_ties, f1, -1).argmax())
    below = falling[best + 1] if best + 1 < len(falling) else falling[best]
    return float(np.clip((falling[best] + below) / 2, *logit(BOUNDS)))


def _f1(found: Hits, has: Hits) -> float:
    return float(2 * (found & has).sum() / max(int(found.sum() + has.sum()), 1))
