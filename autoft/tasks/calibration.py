"""One temperature for a classifier's logits, kept only when it makes probabilities better (Guo et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from autoft.parts.metric import Floats
from autoft.system.lazy import Lazy
from autoft.tasks.statistics import Labels, Logits, Probabilities, log_losses, softmax
from autoft.values.bundle import Calibration, PriorCorrection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Lazy("numpy")  # commands that only list tasks start without it

MIN_IMAGES: Final = 200
"""With fewer validation images the temperature stays 1."""

BOUNDS: Final = (1 / 20, 20.0)
FOLDS: Final = 5
_PRECISION: Final = 1e-4
_LEAST: Final = 1e-12  # that a logarithm is taken of

Losses = Callable[[Labels, float], Floats]
"""The negative log-likelihoods of some rows, `(rows,)`, at a temperature."""

_TOO_FEW = f"There are fewer than {MIN_IMAGES} validation images, too few to tell whether a temperature helps."
_HELPS = "It lowers the log loss of validation images that it was not fitted on."
_NO_HELP = "A fitted temperature does not lower the log loss of validation images that it was not fitted on."


def fit_temperature(logits: Logits, labels: Labels, seed: int = 0, weighs_classes: bool = False) -> Calibration:
    """The temperature for logits `(n, classes)` of validation images with class indices `(n,)`; see `cross_fitted`.

    For probabilities of classes that are equally frequent the log loss is one that weighs all of them alike.
    """
    weights = _even(labels) if weighs_classes else np.ones(len(labels))

    def losses(rows: Labels, temperature: float) -> Floats:
        return log_losses(logits[rows], labels[rows], temperature) * weights[rows]

    return cross_fitted(losses, labels, seed)


def cross_fitted(losses: Losses, strata: Labels, seed: int = 0) -> Calibration:
    """The temperature for the log `losses` of validation images of which each is in one of the `strata` `(n,)`.

    It is 1 unless cross-fitting says that another one lowers the mean log loss; then it is the one that minimises the
    log loss of all images, within `BOUNDS`. `seed` decides which images make up a fold.
    """
    n, rows = len(strata), np.arange(len(strata))
    if n < MIN_IMAGES:
        return Calibration(1.0, n, None, None, _TOO_FEW)
    before = float(losses(rows, 1.0).mean())
    after = float(_held_out(losses, strata, seed).mean())
    if after < before:
        return Calibration(_minimum(losses, rows), n, before, after, _HELPS)
    return Calibration(1.0, n, before, after, _NO_HELP)


def prior_correction(probabilities: Probabilities, labels: Labels, trained: Labels) -> PriorCorrection | None:
    """What the shares of the classes that `trained` do to probabilities `(n, classes)` of images of these `labels`.

    None where the classes have as many images as each other, or one more: a split rounds.
    """
    sizes = np.bincount(trained, minlength=probabilities.shape[1])
    if sizes.max() - sizes.min() <= 1:
        return None
    shares = sizes / sizes.sum()
    logits, log_shares = (np.log(np.maximum(one, _LEAST)) for one in (probabilities.astype(np.float64), shares))
    before, after = (float(log_losses(one, labels).mean()) for one in (logits, logits + log_shares))
    return PriorCorrection(len(labels), tuple(shares.tolist()), before, after)


def calibrated(logits: Logits, temperature: float) -> Logits:
    """Probabilities `(n, classes)` of logits at a temperature; computed in double precision."""
    scaled: NDArray[Any] = logits.astype(np.float64) / temperature
    return softmax(scaled).astype(np.float32)


def _held_out(losses: Losses, strata: Labels, seed: int) -> Floats:
    """The loss of each image at the temperature fitted on the other folds, `(n,)`."""
    from sklearn.model_selection import StratifiedKFold

    found = np.empty(len(strata))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for others, held in folds.split(found, _large(strata)):
        found[held] = losses(held, _minimum(losses, others))
    return found


def _even(labels: Labels) -> Floats:
    """What each image counts for when all classes count alike, `(n,)`, on average 1."""
    sizes = np.bincount(labels)
    weights: Floats = len(labels) / (np.count_nonzero(sizes) * sizes[labels])
    return weights


def _large(strata: Labels) -> Labels:
    """The strata, with those too small for every fold counted as the most frequent one."""
    counts = np.bincount(strata)
    return np.where(counts[strata] < FOLDS, counts.argmax(), strata)


def _minimum(losses: Losses, rows: Labels) -> float:
    """The temperature within `BOUNDS` of the smallest mean log loss, which has one minimum over it."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: float(losses(rows, math.exp(log)).mean()),
        bounds=tuple(map(math.log, BOUNDS)),
        method="bounded",
        options={"xatol": _PRECISION},
    )
    return math.exp(found.x)
