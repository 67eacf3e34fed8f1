"""Training steps on a few made-up images: what a search does with a network and a plan, in a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

    from autoft.train.adaptation import Adaptation

IMAGES, CLASSES, STEPS = 8, 2, 2


def everything(network: Network) -> Plan:
    """A plan that trains the whole network, in batches of four."""
    names = tuple(parameter.name for stage in network.stages for parameter in stage.parameters)
    return Plan((ParameterGroup(names, 1e-3),), GradientHead(1e-3), recipe=Recipe(batch_size=4))


@dataclass(frozen=True, eq=False)
class Trained:
    """The backbone's `tensors` by name, behind a step, and the parameters that could train in it."""

    tensors: Mapping[str, Tensor]
    trainable: frozenset[str]


def train(
    network: Network, plan: Plan, size: int, steps: int = STEPS, adaptation: Adaptation | None = None
) -> Iterator[Trained]:
    """What the backbone is behind each of the first steps of the plan, on eight noise images of `size` pixels.

    The next step moves the tensors that are given; `network`, that of the `adaptation` if there is one, stays as it is.
    Raises what a trial would fail of; `plan` trains by gradient.
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
    images = Images(pixels, network.input, torch.device("cpu"))  # type: ignore[arg-type]  # an array will do
    stream = TrainingStream(images, np.arange(IMAGES), labels, plan.recipe, 0)
    with torch.random.fork_rng(devices=[]):
        classifier = Classifier.of(network, task.outputs)
        run = GradientRun(classifier, plan, stream, task, network=network, adaptation=adaptation)
    backbone = run.classifier.backbone
    for _ in range(steps):
        with torch.random.fork_rng(devices=[]):
            run.advance()
        trainable = frozenset(name for name, one in backbone.named_parameters() if one.requires_grad)
        yield Trained(backbone.state_dict(), trainable)
    with torch.inference_mode():
        logits = run.scored()(images.normalised(images.raw(np.arange(IMAGES))))
    assert bool(logits.isfinite().all()), f"after {steps} steps the logits are not finite"


def small_networks() -> dict[str, Network]:
    """One of each kind, 32 pixels, seeded: `small_network`, a transformer, a module of one stage."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"convolutional": small_network(), "transformer": _transformer(), "one's own": _own()}


def small_network() -> Network:
    """Three stages with BatchNorm and biases, 32 pixels, convolutions with strides, one of them in groups; seeded."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        body = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU())
        neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.LayerNorm(8))
        return Network.of(nn.Sequential(stem, body, neck), InputSpec(32))


def _transformer() -> Network:
    """Patches of 8 pixels, three blocks, each a stage."""
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, stride=8)
            blocks = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(3)]
            self.blocks = nn.Sequential(*blocks)
            self.norm = nn.LayerNorm(8)

        def forward(self, images: Tensor) -> Tensor:
            tokens: Tensor = self.norm(self.blocks(self.patches(images).flatten(2).transpose(1, 2)))
            return tokens.mean(1)

    return Network.of(Transformer(), InputSpec(32))


def _own() -> Network:
    """One stage, with a layer that is used twice, a depthwise one, and a parameter that lies in no layer."""
    import torch
    from torch import nn

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)
            self.again = self.layer
            self.depthwise = nn.Conv2d(3, 3, 3, stride=2, groups=3)
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            maps: Tensor = self.depthwise(self.again(self.layer(images).relu()).relu())
            return maps.mean((2, 3)) * self.scale

    module = Own()
    return Network.of(module, InputSpec(32), {"all": [name for name, _ in module.named_parameters()]})
