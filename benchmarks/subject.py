"""A network of random weights with noise to train on: they cost what others cost. Shared by what times training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import timm
import torch

from autoft.builtin.freeze import Full
from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.network import Network
from autoft.tasks.single_label import SingleLabel
from autoft.train.arithmetic import Arithmetic, usual
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.values.backbone import InputSpec
from autoft.values.target import Targets

CLASSES = 10
TASK = SingleLabel().on(Targets("single_label", "one_of", tuple(map(str, range(CLASSES)))))


def pixels_of(count: int, size: int) -> np.ndarray:
    """Noise `(count, size, size, 3)` uint8, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def waiting(device: torch.device) -> Callable[[], object]:
    """What waits until the device has done all that it was asked for."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@dataclass(frozen=True)
class Subject:
    """A network and the images that it trains on."""

    name: str
    network: Network
    images: Images

    @classmethod
    def of(cls, name: str, size: int, count: int, device: torch.device | None = None) -> Subject:
        """A timm architecture and noise."""
        torch.manual_seed(0)
        device = device or torch.device("cpu")
        fixed = {"img_size": size} if name.startswith("vit") else {}
        network = Network.of(timm.create_model(name, num_classes=0, **fixed), InputSpec(size))
        layout = network.layout(device)
        network.module.eval().to(memory_format=layout)
        pixels = pixels_of(count, size)
        resident = torch.from_numpy(pixels).to(device) if device.type == "cuda" else None
        return cls(name, network, Images(pixels, network.input, device, layout, resident))  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.images.pixels.shape[1]

    def run(
        self, depth: int = 0, batch: int = 32, augment: str = "none", arithmetic: Arithmetic | None = None
    ) -> GradientRun:
        """Training of the stages from number `depth` on, as the freeze strategy `full` trains them.

        In an arithmetic, or in what is usual on the device.
        """
        arithmetic = arithmetic or usual(self.network, self.images.device)
        count = len(self.images.pixels)
        (start, *_) = Full().space().starts
        params = {**start, "learning_rate": 1e-4, "batch_size": batch, "augment": augment}
        plan = Full().plan(self.network.stages[depth:], params)
        images = replace(self.images, layout=arithmetic.memory_format)
        stream = TrainingStream(images, np.arange(count), np.arange(count) % CLASSES, plan.recipe, 0)
        classifier = Classifier.of(self.network, CLASSES).to(images.device).to(memory_format=arithmetic.memory_format)
        return GradientRun(classifier, plan, stream, TASK, arithmetic)
