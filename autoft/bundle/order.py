"""`Order`: what a bundle is to be made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from autoft.bundle.parity import Gate
from autoft.bundle.raw_pixels import Layout
from autoft.data.dataset import Dataset
from autoft.data.decode import decode, normalise
from autoft.data.parallel import ordered_map
from autoft.errors import DataError, UnreadableImage
from autoft.onnx_runtime import Images, Logits, Pixels
from autoft.types import Handoff, Sample, SplitName

Reference = Callable[[Images], Logits]
"""torch: normalised images `(n, 3, size, size)` to logits `(n, classes)`."""

_DECODERS = 2


@dataclass(frozen=True, eq=False)
class Compared:
    """Validation images: their samples, the network's input `(n, 3, size, size)`, and torch's logits of it."""

    samples: Sequence[Sample]
    images: Images
    logits: Logits

    @property
    def names(self) -> list[str]:
        """Paths within the data."""
        return [sample.path for sample in self.samples]


@dataclass(frozen=True)
class Order:
    """What a bundle is made of: the classifier (`reference`), what goes with it, and the images it is held against.

    `reported` is the split whose figures are reported; "test" opens the test split. `gate` says how much is compared,
    `layout` what model.onnx takes, `versions` what made it.
    """

    handoff: Handoff
    reference: Reference
    dataset: Dataset
    reported: SplitName
    gate: Gate
    layout: Layout
    versions: Mapping[str, str]

    def inputs(self, rows: np.ndarray) -> Images:
        """The network's input `(n, 3, size, size)` for rows of the pixel cache."""
        recipe = self.handoff.preprocess
        return normalise(self.dataset.pixels(recipe.size, recipe.interpolation, recipe.view)[rows], recipe)

    @cached_property
    def compared(self) -> Compared:
        """The validation images of the gate, evenly over the classes, and what torch says of them."""
        samples = evenly([sample for sample in self.dataset.samples if sample.split == "val"], self.gate.images)
        images = self.inputs(np.array([sample.row for sample in samples]))
        return Compared(samples, images, self.reference(images))

    def decoded(self, samples: Sequence[Sample]) -> Iterator[Pixels]:
        """The images `(height, width, 3)` in full size, one by one. Raises `DataError` for one that is gone."""
        root = Path(self.dataset.info.root)
        return ordered_map(_decoded, [root / sample.path for sample in samples], _DECODERS)


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of the samples, evenly over the classes as samples stand in the order of paths."""
    return [samples[row] for row in np.linspace(0, len(samples) - 1, min(len(samples), most)).astype(int)]


def _decoded(path: Path) -> Pixels:
    try:
        return decode(path)
    except UnreadableImage as error:
        raise DataError(
            f"{path}: {error}; the exported file is checked on this image as it was, so restore it"
        ) from error
