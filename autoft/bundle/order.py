"""`Order`: what a bundle is to be made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.onnx_runtime import Images
from autoft.bundle.parity import ON_CPU, ON_GPU, Gate, difference, too_different
from autoft.data.dataset import Dataset
from autoft.errors import DataError, GateFailed, UnreadableImage
from autoft.media.image.decode import Pixels, decode, normalise
from autoft.parts.base import Task
from autoft.system.parallel import ordered_map
from autoft.tasks.forms.table import answering
from autoft.tasks.statistics import Logits
from autoft.values.dataset import Sample, SplitName, ValueRange
from autoft.values.handoff import Artifact, Handoff, Layout

Reference = Callable[[Images], Logits]
"""torch: normalised images `(n, 3, size, size)` to logits `(n, outputs)`."""

Export = Callable[[Path], Iterator[Artifact]]
"""An exporter at work: it writes into a folder, in one way after another."""

_DECODERS = 2
_FEW = 4


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
    `layout` what model.onnx takes, `versions` what made it. `scored` are the logits `(n, outputs)` of the validation
    split, in the order of its rows, that the trial's score was computed from; None when nobody kept them. Those of a
    refit, which has seen these images, say only that it is the same model; figures and calibration are of `twin`, the
    logits of the trial that it repeats. `beside` are the exporters, by name, whose files stand beside the model.
    `known` are all images of the run, to be recognised. `open_test` is called before the test images are scored, and
    says how often they have been with this time. `test_images_seen` of them the run had seen that this one began with.
    `max_latency` is what the core may take for one image here, in milliseconds. `seconds_left` says what there is for
    what a bundle can do without: further exporters, and timing the model.
    """

    handoff: Handoff
    reference: Reference
    dataset: Dataset
    reported: SplitName
    gate: Gate
    layout: Layout
    versions: Mapping[str, str]
    scored: Logits | None = None
    twin: Logits | None = None
    known: tuple[Sample, ...] = ()
    beside: Mapping[str, Export] = field(default_factory=dict)
    open_test: Callable[[], int] = lambda: 1
    test_images_seen: int = 0
    max_latency: float | None = None
    seconds_left: Callable[[], float] = lambda: math.inf

    @property
    def task(self) -> Task:
        """What the network was trained by, bound to its targets."""
        return self.dataset.task

    def inputs(self, rows: np.ndarray) -> Images:
        """The network's input `(n, 3, size, size)` for rows of the pixel cache."""
        recipe = self.handoff.preprocess
        return normalise(self.dataset.pixels(recipe.size, recipe.interpolation, recipe.view)[rows], recipe)

    @cached_property
    def compared(self) -> Compared:
        """The validation images of the gate, evenly over the labels, and what torch says of them.

        As many as the gate has time for, judged by how long torch takes for a few of them. Raises `GateFailed` when
        those few show that the classifier is not the one that was scored.
        """
        samples = [sample for sample in self.dataset.samples if sample.split == "val"]
        few, seconds = self._timed(samples)
        chosen = spread(len(samples), self.gate.affordable(seconds))
        images = self._images(samples, chosen)
        shown = [samples[n] for n in chosen]
        return Compared(shown, images, self.reference(images) if (kept := self._kept(few)) is None else kept[chosen])

    def _timed(self, samples: Sequence[Sample]) -> tuple[Compared, float]:
        """What torch says of a few samples, and the seconds it takes for one."""
        chosen = spread(len(samples), _FEW)
        images = self._images(samples, chosen)
        self.reference(images[:1])  # the first call is slower
        began = time.perf_counter()
        logits = self.reference(images)
        seconds = (time.perf_counter() - began) / len(chosen)
        return Compared([samples[n] for n in chosen], images, logits), seconds

    def _kept(self, few: Compared) -> Logits | None:
        """What was scored, if torch says the same here, to rounding.

        On a GPU, or on another machine, it was not the same to rounding: None, so that torch is asked. Raises
        `GateFailed` when it is so different that the score is not this classifier's.
        """
        if self.scored is None:
            return None
        then = self.scored[spread(len(self.scored), _FEW)]
        plain = answering(self.task)
        if too_different(difference(few.logits, then, few.names, plain, ON_CPU)) is None:
            return self.scored
        if reason := too_different(difference(few.logits, then, few.names, plain, ON_GPU)):
            raise GateFailed(
                f"the weights are not those that were scored: on {len(then)} validation images torch's logits now "
                f"differ {reason}"
            )
        return None

    def _images(self, samples: Sequence[Sample], chosen: NDArray[np.int64]) -> Images:
        return self.inputs(np.array([samples[n].row for n in chosen]))

    def decoded(self, samples: Sequence[Sample]) -> Iterator[Pixels]:
        """The images `(height, width, 3)` in full size, one by one. Raises `DataError` for one that is gone."""
        return ordered_map(
            partial(_decoded, self.dataset.info.value_range),
            [self.dataset.file(sample) for sample in samples],
            _DECODERS,
        )


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many of the samples, evenly over the labels as samples stand in the order of paths."""
    return [samples[n] for n in spread(len(samples), most)]


def spread(n: int, most: int) -> NDArray[np.int64]:
    """At most so many of the numbers below `n`, evenly."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)


def _decoded(value_range: ValueRange | None, path: Path) -> Pixels:
    try:
        return decode(path, value_range)
    except UnreadableImage as error:
        raise DataError(
            f"{path}: {error}; the exported file is checked on this image as it was, so restore it"
        ) from error
