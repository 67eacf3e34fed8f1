"""The frozen beginning of a network: what it makes of each image is computed once and kept on disk for every trial."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.cut import Cut
from autoft.system.disk_cache import alone, cache_limit
from autoft.train.classifier import Classifier
from autoft.train.row_table import RowTable
from autoft.train.workshop import Bench
from autoft.values.space import Scalar

LARGEST_SHARE: Final = 0.25
"""Of the cache's limit, that the activations behind one prefix may take."""

FEWEST_TIMED: Final = 64
"""Images whose pace says something."""


class Entrance(Protocol):
    """Where in the network the images of a slice come in."""

    @property
    def filling(self) -> float:
        """Seconds that computing what is kept has taken so far: not the pace of steps, nor of scoring."""

    @property
    def image_seconds(self) -> float | None:
        """Seconds in which the network before here runs on an image; None if that is not known."""

    @property
    def facts(self) -> Mapping[str, Scalar]:
        """What a report says of it."""

    def stream(self, stream: TrainingStream) -> TrainingStream:
        """The stream, of what comes in here."""

    def batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        """All `rows` in order as they come in here, without augmentation."""

    def rest(self, classifier: Classifier) -> nn.Module:
        """From what comes in here to outputs `(batch, outputs)`, over the classifier's own tensors and in its mode.

        That is the classifier, or a sequence whose first member gives the features.
        """


@contextmanager
def entrance(bench: Bench, classifier: Classifier) -> Iterator[Entrance]:
    """Behind the stages that the plan freezes, where that is exact; else the beginning, and the facts say why.

    The classifier has its weights, and was prepared for the plan.
    """
    with ExitStack() as stack:
        try:
            found: Entrance = _prefix(bench, classifier, stack)
        except _NotKept as reason:
            found = Beginning(bench.images, str(reason))
        yield found


@dataclass(frozen=True, eq=False)
class Beginning:
    """The images themselves come in: all of the network runs at every step, because of `why`."""

    images: Images
    why: str
    filling: float = field(default=0.0, init=False)
    image_seconds: float | None = field(default=0.0, init=False)

    @property
    def facts(self) -> Mapping[str, Scalar]:
        """Why no prefix is kept."""
        return {"prefix": f"not kept: {self.why}"}

    def stream(self, stream: TrainingStream) -> TrainingStream:
        """The stream as it is."""
        return stream

    def batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        """The images, normalised."""
        return self.images.batches(rows)

    def rest(self, classifier: Classifier) -> nn.Module:
        """All of the classifier."""
        return classifier


@dataclass(eq=False)
class Prefix:
    """Activations at a cut come in, of any rows in any order; those that the table does not know yet are computed."""

    images: Images
    cut: Cut
    before: nn.Module
    table: RowTable
    bytes: int
    filling: float = field(default=0.0, init=False)
    _computed: int = field(default=0, init=False)

    @property
    def image_seconds(self) -> float | None:
        """Measured on what was computed here, if that was enough."""
        return self.filling / self._computed if self._computed >= FEWEST_TIMED else None

    @property
    def facts(self) -> Mapping[str, Scalar]:
        """Where the cut is, and what the file takes."""
        return {"prefix": f"kept up to {self.cut.place or 'the end'}", "prefix_mib": round(self.bytes / 2**20, 1)}

    def stream(self, stream: TrainingStream) -> TrainingStream:
        """The same batches, as activations."""
        return _ActivationStream(stream.images, stream.rows, stream.targets, stream.recipe, stream.seed, self)

    def batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Activations."""
        for start in range(0, len(rows), self.images.forward_size):
            yield self.activations(rows[start : start + self.images.forward_size])

    def rest(self, classifier: Classifier) -> nn.Module:
        """What comes after the cut, and the head."""
        return nn.Sequential(self.cut.after(classifier.backbone), classifier.dropout, classifier.head)

    def activations(self, rows: np.ndarray) -> Tensor:
        """Activations `(len(rows), *cut.shape)` float32, on the device."""
        values, missing = np.empty((len(rows), math.prod(self.cut.shape)), np.float32), np.ones(len(rows), np.bool_)
        for place, row in self.table.read(rows):
            values[place], missing[place] = row, False
        began, places = time.monotonic(), np.flatnonzero(missing)
        size = min(self.images.at_once, self.images.forward_size)  # more at a time leave the processor's caches
        for some in (places[start : start + size] for start in range(0, len(places), size)):
            values[some] = self._compute(rows[some])
            self.table.write(rows[some], values[some])
        self.filling += time.monotonic() - began
        self._computed += len(places)
        return self._shaped(torch.from_numpy(values)).to(self.images.device)

    def _compute(self, rows: np.ndarray) -> np.ndarray:
        """Activations of these rows, each flat, in the order that they have in memory."""
        with torch.inference_mode():
            found: Tensor = self.before(self.images.normalised(self.images.raw(rows)))
            ordered = found.movedim(1, -1) if self.cut.channels_last else found
            flat: np.ndarray = ordered.flatten(1).cpu().numpy()
            return flat

    def _shaped(self, flat: Tensor) -> Tensor:
        if not self.cut.channels_last:
            return flat.view(-1, *self.cut.shape)
        channels, *places = self.cut.shape
        return flat.view(-1, *places, channels).movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class _ActivationStream(TrainingStream):
    prefix: Prefix

    def _inputs(self, step: int) -> Tensor:
        return self.prefix.activations(self._rows_of(step))


# ---------------------------------------------------------------- whether there is one


class _NotKept(Exception):
    """No prefix is kept, for the reason that the message gives."""


def _prefix(bench: Bench, classifier: Classifier, stack: ExitStack) -> Prefix:
    cut = _cut(bench, classifier)
    before = cut.before(classifier.backbone)
    path = _path(bench, before, classifier)
    count, dim = len(bench.images.pixels), math.prod(cut.shape)
    if (size := count * (dim + 1) * 4) > LARGEST_SHARE * cache_limit():
        raise _NotKept(f"it would take {size / 2**30:.1f} GiB, more than its share of the cache")
    with suppress(OSError), alone(path.with_suffix(".lock"), bench.shop.check):
        table = stack.enter_context(RowTable.open(path, count, dim, create=True))
        if table.is_kept:
            return Prefix(bench.images, cut, before, table, size)
    raise _NotKept("the cache folder has no room or cannot be written")


def _cut(bench: Bench, classifier: Classifier) -> Cut:
    """Where the plan's frozen stages end."""
    plan, shop = bench.plan, bench.shop
    if shop.device.type != "cpu":
        raise _NotKept("not on a GPU")
    if plan.recipe.augment != "none":
        raise _NotKept("images are augmented")  # a few fixed views of each could be kept, and are not yet
    if plan.recipe.is_mixing:
        raise _NotKept("images are mixed")
    if classifier.droppable:
        raise _NotKept("blocks are left out at random")
    if plan.batch_norm != "frozen":
        raise _NotKept("BatchNorm trains")
    if bench.adaptation is not None:
        raise _NotKept("the strategy puts parameters of its own into the network")
    if not (depth := _frozen_stages(bench)):
        raise _NotKept("the first stage trains")
    if (cut := shop.cut(bench.trial.backbone, depth, bench.trial.image_size)) is None:
        raise _NotKept(f"the network cannot be cut behind {bench.network.stages[depth - 1].name}")
    return cut


def _frozen_stages(bench: Bench) -> int:
    """How many stages come before the first one that trains."""
    trained = {name for group in bench.plan.groups for name in group.names}
    trains = [any(parameter.name in trained for parameter in stage.parameters) for stage in bench.network.stages]
    return [*trains, True].index(True)


def _path(bench: Bench, before: nn.Module, classifier: Classifier) -> Path:
    """The file for these frozen weights, of a parent perhaps, and all that comes before them."""
    shop, images = bench.shop, bench.images
    behind = bench.network.stages[_frozen_stages(bench) :]
    trains = {parameter.name for stage in behind for parameter in stage.parameters}
    frozen = {name: tensor for name, tensor in classifier.backbone.state_dict().items() if name not in trains}
    with torch.inference_mode():
        sample = before(images.normalised(images.raw(np.arange(min(2, len(images.pixels))))))
    return shop.prefixes / f"{shop.features.name(images, frozen, sample)}.npy"
