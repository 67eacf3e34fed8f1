"""timm's tiny architectures with seeded weights, for tests: every family's shape, none of its cost."""

from __future__ import annotations

import os
from pathlib import Path

from autoft import Backbone, InputSpec, Network, Zoo, hookimpl

ARCHITECTURES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")


class SmallZoo(Zoo):
    name = "small"

    def backbones(self):
        return [Backbone(f"small/{name}", 400_000, InputSpec(160), license="mit") for name in ARCHITECTURES]

    def build(self, backbone):
        import timm
        import torch

        if folder := os.environ.get("AUTOFT_TEST_GPU_LOG"):
            Path(folder, str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        options = {"img_size": 64} if "vit" in backbone.name else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = timm.create_model(backbone.name.removeprefix("small/"), num_classes=0, **options)
        return Network.of(module, InputSpec(64))


@hookimpl
def autoft_zoos():
    return [SmallZoo()]
