"""A backbone of one's own as an autoft plugin: one zoo with one small convolutional network."""

from __future__ import annotations

from collections.abc import Iterable

from autoft import Backbone, BackboneUnavailable, InputSpec, Network, Zoo, hookimpl


class MyZoo(Zoo):
    """The backbones called `mine/...`."""

    name = "mine"
    summary = "a small convolutional network, as an example"

    def backbones(self) -> Iterable[Backbone]:
        """What is on offer; cheap, so torch is not imported here."""
        return [Backbone("mine/tiny", parameters=7_296, input=InputSpec(64), license="cc0-1.0")]

    def build(self, backbone: Backbone) -> Network:
        """The network: images `(batch, 3, size, size)` to features `(batch, 64)`."""
        import torch
        from torch import nn

        if backbone.name != "mine/tiny":
            raise BackboneUnavailable(f"{backbone.name}: there is only mine/tiny")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every worker builds the same network; yours would load its weights here
            stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            body = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64), nn.ReLU())
        return Network.of(nn.Sequential(stem, body, pool), backbone.input)


@hookimpl
def autoft_zoos() -> Iterable[Zoo]:
    """Tells autoft about the zoo."""
    return [MyZoo()]
