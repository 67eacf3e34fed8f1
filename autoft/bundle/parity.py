"""Parity: how far the exported files are from torch, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.values import (
    CLEAR_MARGIN,
    CORE,
    MODEL,
    PROBABILITY_TOLERANCE,
    CoreParity,
    ImageDelta,
    PixelParity,
)
from autoft.onnx_runtime import CoreModel, Images, Logits, Optimisations, PixelModel, Pixels, Probabilities

LOGIT_TOLERANCE: Final = 1e-4
"""Largest difference of a logit, as a part of the logit scale."""

WORST: Final = 5


@dataclass(frozen=True)
class Setting:
    """How onnxruntime runs the core: images a call, and its graph optimisations."""

    batch: int
    optimisations: Optimisations


@dataclass(frozen=True)
class Gate:
    """How much is compared: at most `images` validation images, the core under each of the `settings`."""

    images: int
    settings: tuple[Setting, ...]


QUICK: Final = Gate(64, (Setting(1, "all"), Setting(8, "all")))
FULL: Final = Gate(512, (Setting(1, "all"), Setting(8, "all"), Setting(1, "none"), Setting(8, "none")))


def core_parity(
    model: CoreModel, setting: Setting, images: Images, expected: Logits, names: Sequence[str]
) -> CoreParity:
    """How far the file's logits are from `expected` `(n, classes)`, torch's, on normalised `(n, 3, size, size)`.

    Raises `UserError` when the file does not run, `ValueError` without images.
    """
    if len(images) == 0 or len(images) != len(expected):
        raise ValueError(f"parity needs logits for each image, got {len(expected)} for {len(images)} images")
    # Few images are shown more than once, for a whole batch.
    shown = images if len(images) >= setting.batch else np.resize(images, (setting.batch, *images.shape[1:]))
    logits = model.logits(shown, setting.batch)[: len(images)]
    scale = max(1.0, float(np.abs(expected).max()))  # softmax feels absolute differences
    limit = LOGIT_TOLERANCE * scale
    deltas = _deltas(logits, expected)
    return CoreParity(
        n=len(images),
        batch=setting.batch,
        optimised=setting.optimisations == "all",
        scale=scale,
        max_delta=float(deltas.max()),
        mean_delta=float(deltas.mean()),
        limit=limit,
        flips=_flips(logits, expected, limit),
        worst=_worst(names, deltas),
    )


def pixel_parity(
    model: PixelModel, pixels: Iterable[Pixels], expected: Probabilities, names: Sequence[str]
) -> PixelParity:
    """How far the file's probabilities of `pixels`, each `(height, width, 3)`, are from `expected` `(n, classes)`."""
    found = np.stack([model.probabilities(image) for image in pixels])
    deltas = _deltas(found, expected)
    return PixelParity(
        n=len(found),
        max_delta=float(deltas.max()),
        mean_delta=float(deltas.mean()),
        limit=PROBABILITY_TOLERANCE,
        clear_margin=CLEAR_MARGIN,
        flips=_flips(found, expected, CLEAR_MARGIN),
        worst=_worst(names, deltas),
    )


def core_refusal(parity: CoreParity) -> str | None:
    """Why the core may not be handed over, in one line with the numbers; None when it may. NaN never passes."""
    if _near(parity.max_delta, parity.limit) and parity.flips == 0:
        return None
    optimisations = "on" if parity.optimised else "off"
    return (
        f"{CORE} is refused: on {parity.n} images at batch {parity.batch}, onnxruntime's optimisations {optimisations},"
        f" its logits differ from torch by up to {parity.max_delta:.3g}, the limit is {parity.limit:.3g} (1e-4 of the "
        f"logit scale {parity.scale:.3g}), and {parity.flips} clear top-1 answers change; worst: {_named(parity.worst)}"
    )


def pixel_refusal(parity: PixelParity) -> str | None:
    """Why model.onnx may not be handed over, in one line with the numbers; None when it may. NaN never passes."""
    if _near(parity.max_delta, parity.limit) and parity.flips == 0:
        return None
    return (
        f"{MODEL} is refused: from the pixels of {parity.n} images its probabilities differ from Pillow and torch by "
        f"up to {parity.max_delta:.3g}, the limit is {parity.limit:g}, and {parity.flips} top-1 answers with a margin "
        f"above {parity.clear_margin:g} change; worst: {_named(parity.worst)}"
    )


def _near(delta: float, limit: float) -> bool:
    return math.isfinite(delta) and delta <= limit


def _deltas(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest |difference| of each row `(n,)`."""
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and that is refused
        deltas: NDArray[np.float32] = np.abs(found - expected).max(axis=1)
    return deltas


def _flips(found: NDArray[np.float32], expected: NDArray[np.float32], margin: float) -> int:
    """How many rows have another top-1 than expected although the expected one is clear."""
    second, first = np.sort(expected, axis=1)[:, -2:].T
    return int(((first - second > margin) & (found.argmax(axis=1) != expected.argmax(axis=1))).sum())


def _worst(names: Sequence[str], deltas: NDArray[np.float32]) -> tuple[ImageDelta, ...]:
    order = np.argsort(-np.nan_to_num(deltas, nan=np.inf), kind="stable")[:WORST]
    return tuple(ImageDelta(names[row], float(deltas[row])) for row in order)


def _named(worst: Sequence[ImageDelta]) -> str:
    return ", ".join(f"{image.image} ({image.delta:.3g})" for image in worst)
