"""Stages that nobody wrote down: the blocks of a network that repeats them, else its children."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

import autoft
from autoft.builtin.freeze import LastStages

SPEC = autoft.InputSpec(32)


class Block(nn.Module):
    """Attention and a perceptron, with a list of layers that are alike inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.inside = nn.Sequential(nn.Sequential(nn.Linear(width, width)), nn.Sequential(nn.Linear(width, width)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.inside(self.attention(tokens, tokens, tokens, need_weights=False)[0])


class Transformer(nn.Module):
    """As somebody writes one by hand."""

    def __init__(self, blocks: int = 4, width: int = 8) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


def stages(module: nn.Module, size: int = 32) -> dict[str, list[str]]:
    found = autoft.Network.of(module, autoft.InputSpec(size)).stages
    return {stage.name: [parameter.name for parameter in stage.parameters] for stage in found}


def test_a_transformer_of_ones_own_has_its_blocks_as_stages() -> None:
    module = Transformer()
    found = stages(module)
    assert list(found) == ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert found["stem"] == ["token", "patches.weight", "patches.bias"]
    assert found["blocks.3"][-2:] == ["norm.weight", "norm.bias"]  # what comes after a block is worth no stage
    assert {name for names in found.values() for name in names} == {name for name, _ in module.named_parameters()}


def test_its_last_block_can_be_trained_alone() -> None:
    network = autoft.Network.of(Transformer(), SPEC)
    strategy = LastStages()
    plan = strategy.plan(network.stages, {**strategy.space().starts[0], "stages": 1})
    assert all(name.startswith(("blocks.3.", "norm.")) for group in plan.groups for name in group.names)


def test_layers_of_torch_are_blocks_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    tokens = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Flatten(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.encoder = tokens, encoder

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.encoder(self.tokens(images).transpose(1, 2)).mean(dim=1)
            return found

    assert list(stages(Net())) == ["stem", "encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]


def test_transformers_of_torchvision_have_theirs() -> None:
    vit = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    assert list(stages(vit)) == ["stem", *(f"encoder.layers.encoder_layer_{number}" for number in range(3))]
    swin = models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)
    assert list(stages(swin)) == ["stem", "features.1.0", "features.1.1", "features.3.0", "features.3.1"]


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.features(images))
        return found


@pytest.mark.parametrize(
    ("module", "children"),
    [
        (Plain(), ["features", "head"]),
        (models.resnet18(), ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        (models.squeezenet1_1(), ["features", "classifier"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 8)), ["1", "2"]),
    ],
)
def test_a_network_whose_blocks_differ_or_are_few_of_its_parameters_keeps_its_children(
    module: nn.Module, children: list[str]
) -> None:
    assert list(stages(module, 64 if children != ["1", "2"] else 32)) == children


def test_shared_weights_are_in_one_stage() -> None:
    module = Transformer()
    module.blocks[2] = module.blocks[1]
    assert list(stages(module)) == ["stem", "blocks.0", "blocks.1", "blocks.3"]
