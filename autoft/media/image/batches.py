"""From rows of the pixel cache to batches on a device: order, augmentation, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from autoft.media.image.pixel_cache import take
from autoft.values.backbone import InputSpec
from autoft.values.plan import Recipe

Augmentation = Callable[[Tensor], Tensor]

_AUGMENTATIONS: dict[str, Callable[[int], Augmentation]] = {
    "none": lambda size: v2.Identity(),
    "crop": lambda size: _crop(size),
    "crop_flip": lambda size: v2.Compose([_crop(size), v2.RandomHorizontalFlip()]),
}

# Activations kept for the backward pass are most of a worker's memory: about 80 MB an image of 224 px for an
# EfficientNet-Lite0. Larger batches go through in parts that add up to the same gradient.
PIXELS_AT_ONCE = {"cpu": 8 * 224**2, "cuda": 256 * 224**2}


def _crop(size: int) -> Augmentation:
    # Gentler than the usual (0.08, 1.0): short fine-tunes of pretrained weights are hurt by losing most of the object.
    crop: Augmentation = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.85, 1.18), antialias=True)
    return crop


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of a pixel cache `(n, size, size, 3)` uint8, seen through a backbone's normalisation."""

    pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]]
    spec: InputSpec
    device: torch.device
    layout: torch.memory_format = torch.channels_last

    def raw(self, rows: np.ndarray) -> Tensor:
        """uint8 images `(batch, 3, size, size)` on the CPU."""
        return torch.from_numpy(take(self.pixels, rows)).permute(0, 3, 1, 2)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images `(batch, 3, size, size)` as the network wants them, float32, in `layout`, on the device."""
        images = images.to(self.device, non_blocking=True)
        mean = torch.tensor(self.spec.mean, device=self.device).view(3, 1, 1)
        deviation = torch.tensor(self.spec.std, device=self.device).view(3, 1, 1)
        scaled = (images.float() / 255.0 - mean) / deviation
        return scaled.contiguous(memory_format=self.layout)

    @property
    def at_once(self) -> int:
        """How many images a training step may hold activations of at a time."""
        return max(1, PIXELS_AT_ONCE[self.device.type] // self.pixels.shape[1] ** 2)

    @property
    def forward_size(self) -> int:
        """How many images may go forward at a time: without gradients nothing is held but the layer at hand."""
        return min(64, 4 * self.at_once)

    def batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        """All `rows` in order, normalised, without augmentation."""
        size = self.forward_size
        for start in range(0, len(rows), size):
            yield self.normalised(self.raw(rows[start : start + size]))


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
        """Augmented images `(batch, 3, size, size)` and their targets `(batch, ...)`, on the device."""
        chosen = self._order(step // self.steps_per_pass)[step % self.steps_per_pass]
        torch.manual_seed(hash((self.seed, step)) % 2**63)
        return self._inputs(self.rows[chosen]), torch.from_numpy(self.targets[chosen]).to(self.images.device)

    def _inputs(self, rows: np.ndarray) -> Tensor:
        augment = _AUGMENTATIONS[self.recipe.augment](self.images.pixels.shape[1])
        return self.images.normalised(torch.stack([augment(image) for image in self.images.raw(rows)]))

    def _order(self, number: int) -> np.ndarray:
        """Indices `(steps, batch)` of pass `number`, shuffled by (seed, number)."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
        return order[: self.steps_per_pass * self.batch_size].reshape(self.steps_per_pass, self.batch_size)
