"""The parity gate: an exported file must say what torch says, or it is not handed over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoft.errors import GateFailed, UserError
from autoft.onnx_runtime import Images, Logits, OnnxClassifier

TOLERANCE = 1e-4
"""Largest difference of a logit, as a part of the logit scale."""

BATCH = 8


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime and torch are apart on `n` images.

    `scale` is the logit scale, max |torch logit| and at least 1 (softmax feels absolute differences); `limit` what
    `max_delta`, the largest |difference| of a logit, may be; `flips` counts images with another top-1 although torch's
    margin between first and second exceeds `limit`.
    """

    n: int
    scale: float
    max_delta: float
    limit: float
    flips: int

    @property
    def passed(self) -> bool:
        """Whether the file may be handed over; NaN and infinity never pass."""
        return math.isfinite(self.max_delta) and self.max_delta <= self.limit and self.flips == 0


def check_parity(torch_logits: Logits, onnx_path: Path, images: Images, threads: int = 0) -> Parity:
    """How far the file's logits are from `torch_logits` `(n, classes)` on normalised `images` `(n, 3, size, size)`.

    The file runs on all images in batches of more than one, and on the first few one by one. Raises `GateFailed` with
    the numbers when it is too far off, does not load or does not run; `ValueError` without images.
    """
    if len(images) == 0 or len(images) != len(torch_logits):
        raise ValueError(f"parity needs logits for each image, got {len(torch_logits)} for {len(images)} images")
    try:
        model = OnnxClassifier(onnx_path, threads)
        parity = _compare(torch_logits, images, model.logits)
    except UserError as error:
        raise GateFailed(f"the export is refused: {error}") from error
    if not parity.passed:
        raise GateFailed(
            f"the export {onnx_path} is refused: on {parity.n} images its logits differ from torch by up to "
            f"{parity.max_delta:.3g}, the limit is {parity.limit:.3g} (1e-4 of the logit scale {parity.scale:.3g}), "
            f"and {parity.flips} clear top-1 answers change"
        )
    return parity


def _compare(expected: Logits, images: Images, run: Callable[[Images, int], Logits]) -> Parity:
    # A single image is shown twice, for a batch of more than one.
    together = run(images if len(images) > 1 else np.repeat(images, 2, axis=0), BATCH)[: len(images)]
    singly = run(images[:BATCH], 1)
    scale = max(1.0, float(np.abs(expected).max()))
    limit = TOLERANCE * scale
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and that is refused
        deltas = np.abs(np.concatenate([together - expected, singly - expected[:BATCH]]))
    flipped = _flipped(together, expected, limit)
    flipped[:BATCH] |= _flipped(singly, expected[:BATCH], limit)
    return Parity(len(images), scale, float(deltas.max()), limit, int(flipped.sum()))


def _flipped(logits: Logits, expected: Logits, limit: float) -> NDArray[np.bool_]:
    """Which images `(n,)` have another top-1 than expected although the expected one is clear."""
    second, first = np.sort(expected, axis=1)[:, -2:].T
    flipped: NDArray[np.bool_] = (first - second > limit) & (logits.argmax(axis=1) != expected.argmax(axis=1))
    return flipped
