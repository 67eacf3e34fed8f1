"""A backbone whose process is killed, as for memory, when it trains on more than `MOST` images at a time."""

from __future__ import annotations

import os
import signal

from autoft import Backbone, InputSpec, Network, Zoo, hookimpl

MOST = 8


def eat(module, inputs):
    """Before a forward pass."""
    if module.training and len(inputs[0]) > MOST:
        os.kill(os.getpid(), signal.SIGKILL)


class HungryZoo(Zoo):
    name = "hungry"

    def backbones(self):
        return [Backbone("hungry/test_resnet", 400_000, InputSpec(160), license="mit")]

    def build(self, backbone):
        import timm
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = timm.create_model("test_resnet", num_classes=0)
        module.register_forward_pre_hook(eat)
        return Network.of(module, InputSpec(64))


@hookimpl
def autoft_zoos():
    return [HungryZoo()]
