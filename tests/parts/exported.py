"""Small networks and what goes with them, for tests of the exported files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from autoft import Backbone, Handoff, InputSpec, Preprocess, Trial
from autoft.tasks.forms.base import Answering
from autoft.tasks.forms.table import answering
from autoft.tasks.single_label import SingleLabel
from autoft.values.bundle import Calibration
from autoft.values.target import Targets

SIZE = 32
LABELS = ("red", "gr\u00fcn", "blue \U0001f535", "1")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Tiny(nn.Module):
    """Logits that depend on mean colour alone: red, green or blue wins."""

    def __init__(self, classes: int = len(LABELS)) -> None:
        super().__init__()
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(3, classes)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(images + 3).mean((2, 3)) * 4)


class Undecided(Tiny):
    """Takes a turn that depends on the pixels: the dynamo exporter cannot follow it, tracing can."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.sum() > -1e9 else -images)


class Outside(Tiny):
    """Uses an operator that ONNX does not have."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.linalg.eigvals(images[:, 0, :4, :4]).real


class OneBatch(Tiny):
    """Works on the example batch alone once it is traced, and the dynamo exporter refuses it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if images.sum() > -1e9 else -images).reshape(len(images.tolist()), len(LABELS))


class Mutating(Tiny):
    """Reads its input after the activation changed it: not the same without in-place."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shown = images * 4
        self.act(shown)
        return self.head(shown.mean((2, 3)))


def handoff(size: int = SIZE, labels: tuple[str, ...] = LABELS, source: str = "https://example.org/w") -> Handoff:
    backbone = Backbone("test/tiny", 15, InputSpec(size), license="apache-2.0", source=source)
    trial = Trial(3, backbone.name, "probe", size, {"ridge": 0.5, "head": "ridge"}, seed=7)
    return Handoff(one_of(labels), Preprocess(size, MEAN, STD), backbone, trial, "accuracy", 0.75, "abc123")


def one_of(labels: Sequence[str] = LABELS) -> Targets:
    return Targets("single_label", "one_of", tuple(labels))


def how(labels: Sequence[str] = LABELS, temperature: float = 1.0) -> Answering:
    """How the outputs of a classifier become answers."""
    return answering(SingleLabel().on(one_of(labels)), Calibration(temperature, 500, 0.5, 0.4, "For a test."))


def images(n: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, 3, size, size)).astype(np.float32)


def torch_logits(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels.copy())).numpy()
