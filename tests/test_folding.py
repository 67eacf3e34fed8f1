"""Norms folded into convolutions: the same outputs and gradients, or nothing is folded."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from autoft.parts.cut import hold_norms
from autoft.train.folding import fold_norms

WITH_NORMS = ("test_resnet", "test_efficientnet", "test_byobnet")
WITHOUT = ("test_vit", "test_convnext")


def folded_in(module: nn.Module, images: Tensor) -> int:
    """How many norms are folded."""
    return len(fold_norms(module, images))


def held(module: nn.Module) -> nn.Module:
    """With statistics and weights that are no identity, in train mode with norms held."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
            if norm.affine:
                nn.init.normal_(norm.weight, 1.0, 0.2)
                nn.init.normal_(norm.bias)
    module.train()
    hold_norms(module)
    return module


def assert_same(one: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Outputs, and gradients of all parameters, by name."""
    outputs = []
    for module in (one, other):
        module.zero_grad()
        torch.manual_seed(3)
        given = module(images)
        outputs.append(given.detach())
        (given * torch.linspace(-1, 1, given.shape[1])).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)
    for (name, parameter), (same, twin) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        if parameter.grad is None or twin.grad is None:
            assert parameter.grad is None and twin.grad is None, name
            continue
        scale = parameter.grad.abs().max().clamp(min=1e-3)
        assert bool((parameter.grad - twin.grad).abs().max() <= 1e-2 * scale), name


@pytest.mark.parametrize("family", [*WITH_NORMS, *WITHOUT])
def test_a_folded_network_is_the_same_network(family: str) -> None:
    plain = held(timm.create_model(family, num_classes=0))
    folded, images = copy.deepcopy(plain), torch.randn(3, 3, 160, 160)
    norms = sum(isinstance(child, nn.BatchNorm2d) for child in plain.modules())
    assert folded_in(folded, images) == norms
    assert (norms > 0) == (family in WITH_NORMS)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert_same(plain, folded, images)


class Shared(nn.Module):
    """What the convolution gives goes past the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        given = self.kernel(images)
        return (self.norm(given) + given).mean((2, 3))


class Twice(nn.Module):
    """The norm is used for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return (self.norm(self.one(images)) + self.norm(self.other(images))).mean((2, 3))


class Own(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(min=0.0)


def plain_norm(**options: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    "module",
    [
        Shared(),
        Twice(),
        nn.Sequential(Own(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        plain_norm(affine=False),
        plain_norm(track_running_stats=False),
    ],
    ids=["shared", "twice", "own", "no weights", "no statistics"],
)
def test_what_is_no_plain_pair_stays_as_it_is(module: nn.Module) -> None:
    plain = held(module)
    tried, images = copy.deepcopy(plain), torch.randn(3, 3, 16, 16)
    assert folded_in(tried, images) == 0
    assert_same(plain, tried, images)


def test_norms_that_train_their_statistics_are_not_folded() -> None:
    module = plain_norm().train()
    assert folded_in(module, torch.randn(3, 3, 16, 16)) == 0


def test_a_kernel_that_stands_still_needs_no_gradient_for_its_norm() -> None:
    module = held(plain_norm())
    module[0].weight.requires_grad_(False)
    assert folded_in(module, torch.randn(3, 3, 16, 16)) == 0
    module[1].weight.requires_grad_(False)
    assert folded_in(module, torch.randn(3, 3, 16, 16)) == 1


def test_dropout_is_no_difference_and_random_numbers_are_left_as_they_were() -> None:
    module = held(nn.Sequential(plain_norm(), nn.Dropout(0.5)))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    assert folded_in(module, torch.randn(4, 3, 16, 16, generator=torch.Generator())) == 1
    assert torch.equal(torch.rand(3), wanted)


def test_unfolded_it_is_as_it_was_and_nothing_holds_it() -> None:
    module, images = held(plain_norm()), torch.randn(3, 3, 16, 16)
    before = module(images)
    (pair,) = fold_norms(module, images)
    assert "forward" in vars(module[0])
    pair.unfold()
    assert "forward" not in vars(module[0]) and "forward" not in vars(module[1])
    assert torch.equal(module(images), before)


class ThirdTimeUnlucky(nn.Module):
    """Breaks when a folded network is tried."""

    calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no memory")
        return values


def test_a_network_that_breaks_when_it_is_tried_is_not_left_folded() -> None:
    network = held(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), ThirdTimeUnlucky()))
    with pytest.raises(RuntimeError, match="no memory"):
        fold_norms(network, torch.rand(2, 3, 8, 8))
    assert not any("forward" in vars(layer) for layer in network.modules())
