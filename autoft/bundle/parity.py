"""Parity: how far the exported files are from torch, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.onnx_runtime import CoreModel, Images, Optimisations, PixelModel
from autoft.media.image.decode import Pixels
from autoft.tasks.forms.base import Answering
from autoft.tasks.statistics import Logits
from autoft.values.bundle import (
    ANSWER_TOLERANCE,
    CLEAR_MARGIN,
    CORE,
    MODEL,
    CoreParity,
    Difference,
    ImageDelta,
    PixelParity,
)
from autoft.values.counts import counted

WORST: Final = 5

LEAST_SENSITIVE: Final = 0.05
"""A limit is at most this part of how far the images' answers are apart: else a constant would agree with them."""

ROUNDING: Final = 1e-6
"""No limit is below this part of the scale; a float32 holds no more."""


@dataclass(frozen=True)
class Tolerance:
    """Largest difference of a logit, as a part of the logit scale: `logits`, or `unfelt` where no answer feels it.

    `answers` is the largest difference that nobody feels, of a probability or of a number in deviations of its column.
    """

    logits: float
    unfelt: float
    answers: float


ON_CPU: Final = Tolerance(1e-4, 1e-3, 1e-3)
"""Between torch and onnxruntime on a CPU. Rounding alone is up to 1e-5 of the logit scale in deep networks, and more
where a head amplifies it, which is not the file's fault."""

ON_GPU: Final = Tolerance(2e-2, 2e-2, 2e-2)
"""Between a GPU, whose convolutions round to ten bits (TF32), and a CPU."""


@dataclass(frozen=True)
class Setting:
    """How onnxruntime runs the core: images a call, and its graph optimisations."""

    batch: int
    optimisations: Optimisations


@dataclass(frozen=True)
class Gate:
    """How much is compared: the core under each of the `settings`, on at most `images` validation images.

    Fewer, but never below `LEAST_IMAGES`, where so many would take longer than `seconds`.
    """

    images: int
    settings: tuple[Setting, ...]
    seconds: float

    @property
    def passes(self) -> int:
        """How often an image goes through the network: under every setting, from its pixels, and perhaps in torch."""
        return len(self.settings) + 2

    def affordable(self, a_pass: float) -> int:
        """How many images there is time for, when one goes through the network in `a_pass` seconds."""
        affordable = self.seconds / (max(a_pass, 1e-6) * self.passes)
        return int(min(self.images, max(LEAST_IMAGES, affordable)))

    def takes(self, images: int, a_pass: float) -> float:
        """Seconds for so many validation images, or as many of them as are compared."""
        return min(images, self.affordable(a_pass)) * self.passes * a_pass


LEAST_IMAGES: Final = 8
QUICK: Final = Gate(64, (Setting(1, "all"), Setting(8, "all")), 1.5)
FULL: Final = Gate(512, (Setting(1, "all"), Setting(8, "all"), Setting(1, "none"), Setting(8, "none")), math.inf)


def difference(
    found: Logits, expected: Logits, names: Sequence[str], answering: Answering, tolerance: Tolerance = ON_CPU
) -> Difference:
    """How far `found` `(n, outputs)` are from `expected`, and how far they may be."""
    scale = max(1.0, float(np.abs(expected).max()))  # probabilities feel absolute differences
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity is NaN, and that is refused
        answers, wanted = (answering.in_units(answering.answers(outputs)) for outputs in (found, expected))
        answer_limit = _limit(tolerance.answers, wanted, ROUNDING)
        answer_delta = float(_deltas(answers, wanted).max())
        allowed = tolerance.unfelt if _near(answer_delta, answer_limit) else tolerance.logits
        limit = _limit(allowed * scale, expected, ROUNDING * scale)
    deltas = _deltas(found, expected)
    return Difference(
        n=len(expected),
        scale=scale,
        max_delta=float(deltas.max()),
        mean_delta=float(deltas.mean()),
        limit=limit,
        answer_delta=answer_delta,
        answer_limit=answer_limit,
        flips=answering.flips(answers, wanted, answer_limit),
        worst=_worst(names, deltas),
    )


def core_parity(
    model: CoreModel, setting: Setting, images: Images, expected: Logits, names: Sequence[str], answering: Answering
) -> CoreParity:
    """How far the file's logits are from `expected` `(n, outputs)`, torch's, on normalised `(n, 3, size, size)`.

    Raises `UserError` when the file does not run, `ValueError` without images.
    """
    if len(images) == 0 or len(images) != len(expected):
        raise ValueError(f"parity needs logits for each image, got {len(expected)} for {len(images)} images")
    # Few images are shown more than once, for a whole batch.
    shown = images if len(images) >= setting.batch else np.resize(images, (setting.batch, *images.shape[1:]))
    logits = model.logits(shown, setting.batch)[: len(images)]
    if logits.shape != expected.shape:
        raise ValueError(f"{CORE} gives {logits.shape[1]} numbers for an image, torch gives {expected.shape[1]}")
    found = difference(logits, expected, names, answering)
    return CoreParity(**vars(found), batch=setting.batch, optimised=setting.optimisations == "all")


def pixel_parity(
    model: PixelModel, pixels: Iterable[Pixels], logits: Logits, names: Sequence[str], answering: Answering
) -> PixelParity:
    """How far the file's answers of `pixels`, each `(height, width, 3)`, are from those of torch's `logits`.

    That holds the tail in the file against the task's own `answers` as well. `logits` are `(n, outputs)`.
    """
    found = answering.in_units(np.stack([model.answers(image) for image in pixels]))
    expected = answering.in_units(answering.answers(logits))
    deltas = _deltas(found, expected)
    return PixelParity(
        n=len(found),
        max_delta=float(deltas.max()),
        mean_delta=float(deltas.mean()),
        limit=ANSWER_TOLERANCE,
        clear_margin=CLEAR_MARGIN,
        flips=answering.flips(found, expected, CLEAR_MARGIN / 2),
        worst=_worst(names, deltas),
    )


def core_refusal(parity: CoreParity) -> str | None:
    """Why the core may not be handed over, in one line with the numbers; None when it may. NaN never passes."""
    if not (reason := too_different(parity)):
        return None
    optimisations = "on" if parity.optimised else "off"
    return (
        f"{CORE} is refused: on {counted(parity.n, 'image')} at batch {parity.batch}, onnxruntime's optimisations "
        f"{optimisations}, its logits differ from torch {reason}"
    )


def too_different(found: Difference) -> str | None:
    """By how much, and where, when it is more than may be; None otherwise."""
    if _near(found.max_delta, found.limit) and found.flips == 0:
        return None
    return (
        f"by up to {found.max_delta:.3g}, the limit is {found.limit:.3g} ({found.limit / found.scale:.2g} of the logit "
        f"scale {found.scale:.3g}), answers by up to {found.answer_delta:.3g}, and {found.flips} clear "
        f"decisions change; worst: {_named(found.worst)}"
    )


def pixel_refusal(parity: PixelParity) -> str | None:
    """Why model.onnx may not be handed over, in one line with the numbers; None when it may. NaN never passes."""
    if _near(parity.max_delta, parity.limit) and parity.flips == 0:
        return None
    return (
        f"{MODEL} is refused: from the pixels of {counted(parity.n, 'image')} its answers differ from Pillow and torch "
        f"by up to {parity.max_delta:.3g}, the limit is {parity.limit:g}, and clear decisions that change are "
        f"{parity.flips}; worst: {_named(parity.worst)}"
    )


def _limit(most: float, expected: NDArray[np.float32], least: float) -> float:
    """The limit for one quantity `(n, ...)`: tighter than `most` where its rows hardly differ."""
    apart = np.ptp(expected, axis=0).max() if len(expected) > 1 else math.inf
    return max(least, min(most, LEAST_SENSITIVE * float(apart)))


def _near(delta: float, limit: float) -> bool:
    return math.isfinite(delta) and delta <= limit


def _deltas(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest |difference| of each row `(n,)`."""
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and that is refused
        deltas: NDArray[np.float32] = np.abs(found - expected).max(axis=1)
    return deltas


def _worst(names: Sequence[str], deltas: NDArray[np.float32]) -> tuple[ImageDelta, ...]:
    order = np.argsort(-np.nan_to_num(deltas, nan=np.inf), kind="stable")[:WORST]
    return tuple(ImageDelta(names[row], float(deltas[row])) for row in order)


def _named(worst: Sequence[ImageDelta]) -> str:
    return ", ".join(f"{image.image} ({image.delta:.3g})" for image in worst)
