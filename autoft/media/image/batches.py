"""From rows of the pixel cache to batches on a device: order, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autoft.media.image.augment import MAPS, warped
from autoft.media.image.mix import Mix
from autoft.media.image.pixel_cache import take
from autoft.values.backbone import InputSpec
from autoft.values.plan import Recipe

# Activations kept for the backward pass are most of a worker's memory: about 80 MB an image of 224 px for an
# EfficientNet-Lite0. Larger batches go through in parts that add up to the same gradient.
PIXELS_AT_ONCE = {"cpu": 8 * 224**2, "cuda": 256 * 224**2}
FORWARD_SIZE = {"cpu": 64, "cuda": 512}
FORWARD_TIMES = 4  # as many images as in a step: without gradients nothing is held but the layer at hand


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of a pixel cache `(n, size, size, 3)` uint8, seen through a backbone's normalisation.

    `resident` is the same pixels on the device, where they fit. `most` is how many images may go through at a time,
    where that is known to be fewer than usual.
    """

    pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    spec: InputSpec
    device: torch.device
    layout: torch.memory_format = torch.channels_last
    resident: Tensor | None = None
    most: int | None = None

    def raw(self, rows: np.ndarray) -> Tensor:
        """uint8 images `(batch, 3, size, size)`: on the device if they are resident, else ready to be copied there."""
        if self.resident is not None:
            return self.resident[_sent(torch.from_numpy(rows), self.device)].permute(0, 3, 1, 2)
        taken = torch.from_numpy(take(self.pixels, rows))
        return (taken.pin_memory() if self.device.type == "cuda" else taken).permute(0, 3, 1, 2)

    def normalised(self, images: Tensor, maps: Tensor | None = None) -> Tensor:
        """uint8 images `(batch, 3, size, size)` as the network wants them, float32, in `layout`, on the device.

        Each is seen through its map `(batch, 2, 3)` first, if there are any.
        """
        values = _sent(images, self.device).float()
        if maps is not None:
            values = warped(values, _sent(maps, self.device))
        mean, deviation = self._statistics
        return ((values / 255.0 - mean) / deviation).contiguous(memory_format=self.layout)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (self.spec.mean, self.spec.std))
        return mean.to(self.device), deviation.to(self.device)

    @property
    def usually_at_once(self) -> int:
        """How many images a device of this kind is taken to hold activations of."""
        return max(1, PIXELS_AT_ONCE[self.device.type] // self.pixels.shape[1] ** 2)

    @property
    def at_once(self) -> int:
        """How many images a training step may hold activations of at a time."""
        return self.usually_at_once if self.most is None else min(self.usually_at_once, self.most)

    @property
    def forward_size(self) -> int:
        """How many images may go forward at a time, without gradients."""
        return min(FORWARD_SIZE[self.device.type], FORWARD_TIMES * self.at_once)

    def batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        """All `rows` in order, normalised, without augmentation."""
        size = self.forward_size
        for start in range(0, len(rows), size):
            yield self.normalised(self.raw(rows[start : start + size]))


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; nobody waits for the copy."""
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class TrainingStream:
    """Training batches by step number. A batch depends on (seed, step) alone, so that a trial can stop anywhere."""

    images: Images
    rows: np.ndarray
    targets: np.ndarray
    recipe: Recipe
    seed: int

    @property
    def batch_size(self) -> int:
        """Images a step; all of them when there are fewer than the recipe asks for."""
        return min(self.recipe.batch_size, len(self.rows))

    @property
    def steps_per_pass(self) -> int:
        """Steps in one pass; what does not fill the last batch is left for another pass."""
        return len(self.rows) // self.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented and mixed images `(batch, 3, size, size)` and their own targets `(batch, ...)`, on the device.

        Whatever a network then draws itself, as dropout does, depends on (seed, step) too; where it draws for the
        images at hand, and not for all as what a recipe leaves out (`train/dropout`), on the parts they go through in.
        """
        torch.manual_seed(self._seed(step))
        chosen = _sent(torch.from_numpy(self._chosen(step)), self.images.device)
        return self._inputs(step), self._targets[chosen]

    def mix(self, step: int) -> Mix:
        """How the images of a step are mixed."""
        if not self.recipe.is_mixing:
            return Mix()
        seed = self._seed(step)
        return Mix.drawn(self.recipe, self.images.pixels.shape[1], np.random.RandomState([seed >> 32, seed % 2**32]))

    def _inputs(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed(step))
        maps = MAPS[self.recipe.augment](self.batch_size, generator)
        images = self.images.normalised(self._raw(step), maps)
        return self.mix(step).of(images).contiguous(memory_format=self.images.layout)

    def _raw(self, step: int) -> Tensor:
        """Pixels of a step; where they come from a file, a thread reads those of the next meanwhile."""
        if self.images.resident is not None:
            return self.images.raw(self._rows_of(step))
        ready = self._ahead.pop(step, None)
        self._ahead.clear()
        raw = ready.result() if ready else self.images.raw(self._rows_of(step))
        self._ahead[step + 1] = self._reader.submit(self.images.raw, self._rows_of(step + 1))
        return raw

    @cached_property
    def _ahead(self) -> dict[int, Future[Tensor]]:
        return {}

    @cached_property
    def _reader(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "autoft-read-ahead")

    @cached_property
    def _targets(self) -> Tensor:
        return torch.from_numpy(self.targets).to(self.images.device)

    def _seed(self, step: int) -> int:
        return hash((self.seed, step)) % 2**63

    def _rows_of(self, step: int) -> np.ndarray:
        rows: np.ndarray = self.rows[self._chosen(step)]
        return rows

    def _chosen(self, step: int) -> np.ndarray:
        """Indices `(batch,)` of a step."""
        indices: np.ndarray = self._order(step // self.steps_per_pass)[step % self.steps_per_pass]
        return indices

    def _order(self, number: int) -> np.ndarray:
        """Indices `(steps, batch)` of pass `number`, shuffled by (seed, number)."""
        if number not in self._orders:
            rng, images = np.random.default_rng((self.seed, number)), self.steps_per_pass * self.batch_size
            sampling = self.recipe.balance == "sampling"
            whole = _of_all_alike(self.targets, images, rng) if sampling else rng.permutation(len(self.rows))[:images]
            self._orders.clear()
            self._orders[number] = whole.reshape(self.steps_per_pass, self.batch_size)
        return self._orders[number]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """The order of the pass at hand: drawing it takes longer than a step may, of very many images."""
        return {}


def _of_all_alike(classes: np.ndarray, images: int, rng: np.random.Generator) -> np.ndarray:
    """So many places in `classes` `(n,)`, in random order, as many of each class; of a large one none comes twice."""
    members = [np.flatnonzero(classes == one) for one in rng.permutation(np.unique(classes))]
    shares = [len(part) for part in np.array_split(np.arange(images), len(members))]
    drawn = [_drawn(places, share, rng) for places, share in zip(members, shares, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _drawn(places: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of the places, each as often as any other but for one time."""
    rounds = -(-count // len(places))
    return np.concatenate([places[:0], *(rng.permutation(places) for _ in range(rounds))])[:count]
