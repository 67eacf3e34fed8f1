"""Networks of timm with random weights: for measuring what time and memory they take, where no weights can be had."""

from __future__ import annotations

from collections.abc import Iterable

import timm
import torch

from autoft import Backbone, BackboneUnavailable, InputSpec, Network, Zoo, hookimpl

PARAMETERS = {"convnext_tiny": 27_820_128, "resnet50": 23_508_032, "efficientnet_lite0": 3_371_024}


class RandomZoo(Zoo):
    """`random/NAME`: the architecture NAME of timm with weights of a fixed seed."""

    name = "random"
    summary = "timm architectures with random weights"

    def backbones(self) -> Iterable[Backbone]:
        """A few usual ones; without a prior, so that they are searched only when asked for."""
        return [Backbone(f"random/{name}", count, InputSpec(224), "apache-2.0") for name, count in PARAMETERS.items()]

    def build(self, backbone: Backbone) -> Network:
        """The same weights every time. Raises `BackboneUnavailable` for a name it does not list."""
        name = backbone.name.removeprefix("random/")
        if name not in PARAMETERS:
            raise BackboneUnavailable(f"{backbone.name}: there are {', '.join(PARAMETERS)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Network.of(timm.create_model(name, num_classes=0), backbone.input)


@hookimpl
def autoft_zoos() -> list[Zoo]:
    """The one zoo."""
    return [RandomZoo()]
