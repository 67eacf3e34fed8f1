"""Training steps on a few made-up images: what a search does with a network and a plan, in a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoft.parts.network import Network
from autoft.tasks.single_label import SingleLabel
from autoft.values.backbone import InputSpec
from autoft.values.plan import GradientHead, ParameterGroup, Plan, Recipe
from autoft.values.target import Targets

if TYPE_CHECKING:
    from torch import Tensor

IMAGES, CLASSES, STEPS = 8, 2, 2


def everything(network: Network) -> Plan:
    """A plan that trains the whole network, in batches of four."""
    names = tuple(parameter.name for stage in network.stages for parameter in stage.parameters)
    return Plan((ParameterGroup(names, 1e-3),), GradientHead(1e-3), recipe=Recipe(batch_size=4))


@dataclass(frozen=True, eq=False)
class Trained:
    """The backbone's `tensors` by name, and the names of the parameters whose groups have begun."""

    tensors: Mapping[str, Tensor]
    begun: frozenset[str]


def train(network: Network, plan: Plan, size: int, passes: float = 0.0) -> Trained:
    """What comes of two steps of the plan, after so many passes over eight noise images of `size` pixels.

    `network` stays as it is. Raises what a trial would fail of; `plan` trains by gradient.
    """
    import torch

    from autoft.media.image.batches import Images, TrainingStream
    from autoft.train.classifier import Classifier
    from autoft.train.gradient import GradientRun

    assert isinstance(plan.head, GradientHead), "a closed-form head takes no step"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % CLASSES
    task = SingleLabel().on(Targets("single_label", "one_of", ("a", "b")))
    with torch.random.fork_rng(devices=[]):
        images = Images(pixels, network.input, torch.device("cpu"))  # type: ignore[arg-type]  # an array will do
        stream = TrainingStream(images, np.arange(IMAGES), labels, plan.recipe, 0)
        run = GradientRun(Classifier.of(network, task.outputs), plan, stream, task, network=network)
        for _ in range(round(passes * stream.steps_per_pass) + STEPS):
            run.advance()
        with torch.inference_mode():
            logits = run.scored()(images.normalised(images.raw(np.arange(IMAGES))))
    assert bool(logits.isfinite().all()), "after two steps the logits are not finite"
    begun = frozenset(name for group in run.begun for name in group.names)
    return Trained(run.classifier.backbone.state_dict(), begun)


def small_network() -> Network:
    """Three stages with BatchNorm and biases, 32 pixels; seeded."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        body = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.LayerNorm(8))
        return Network.of(nn.Sequential(stem, body, neck), InputSpec(32))
