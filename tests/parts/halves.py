"""A network and its two halves: whether they give what the whole gives, and train as it does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import timm
import torch
from torch import nn

from autoft.parts.network import Network
from autoft.values.backbone import InputSpec

SIZE = 64


def timm_network(name: str) -> Network:
    module = timm.create_model(name, num_classes=0, **({"img_size": SIZE} if "vit" in name else {}))
    return Network.of(module.to(memory_format=torch.channels_last), InputSpec(SIZE))


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


def gradients(
    module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.zero_grad()
    features = forward(given)
    features.square().sum().backward()
    found = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
    return features.detach(), found


def require_exact_halves(network: Network, depth: int) -> None:
    """Cut before the stage of that number, both halves give and train what the whole does."""
    given, cut = images(), network.split(depth)
    assert cut is not None, depth
    module = copy.deepcopy(network.module)
    behind = {parameter.name for stage in network.stages[depth:] for parameter in stage.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in behind)
    with torch.no_grad():
        activations = cut.before(module)(given)
    assert tuple(activations.shape) == (len(given), *cut.shape)
    if not behind:
        assert torch.equal(cut.after(module)(activations), module(given))
        return
    halves, own = gradients(module, cut.after(module), activations)
    whole, wanted = gradients(module, module, given)
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-6)
    assert own.keys() == wanted.keys() != set()
    for name, gradient in wanted.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-5)
