"""A network in two: exact to the bit, or not cut."""

from __future__ import annotations

import pytest
import torch
from parts.halves import images, require_exact_halves, timm_network
from torch import nn

from autoft.parts.cut import Cut
from autoft.parts.network import Network
from autoft.values.backbone import InputSpec

FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet", "test_mambaout")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_give_the_features_and_gradients_of_the_whole(family):
    network = timm_network(family)
    for depth in range(1, len(network.stages)):
        require_exact_halves(network, depth)


def test_finding_a_cut_changes_nothing():
    network = timm_network("test_resnet")
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    features, state = network.features(given := images()), torch.get_rng_state()
    assert network.split(2) == network.split(2) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.module.parameters())
    assert torch.equal(network.features(given), features)


def test_with_everything_frozen_the_cut_is_at_the_end():
    network = timm_network("test_efficientnet")
    cut = network.split(len(network.stages))
    assert cut is not None and cut.place == "" and cut.shape == (network.dim,)
    assert torch.equal(
        cut.after(network.module)(cut.before(network.module)(given := images())), network.features(given)
    )


class Own(nn.Module):
    """Three convolutions, and a way from one to the next."""

    def __init__(self, way, dropout: float = 0.0) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in "ab")
        self.act, self.drop, self.token = nn.ReLU(), nn.Dropout(dropout), nn.Parameter(torch.randn(4, 1, 1))
        self.way = way

    def forward(self, images):
        return self.way(self, images).mean((2, 3))


def place(way, trained=("three",), **options) -> str | None:
    cut = Cut.of(
        module := Own(way, **options).eval(), {n for n, _ in module.named_parameters() if n.startswith(trained)}, 8
    )
    return None if cut is None else cut.place


def test_a_sequence_of_stages_is_cut_by_itself():
    module = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(n, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU()) for n in (3, 4)), nn.Flatten()
    )
    cut = Network.of(module, InputSpec(32)).split(1)
    assert cut is not None and (cut.place, cut.shape, set(cut.idle)) == ("0", (4, 15, 15), set())


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda m, x: m.three(m.two(m.one(x))), "two"),
        (lambda m, x: m.three(m.act(m.two(m.act(m.one(x))))), "two"),  # one module called twice
        (lambda m, x: m.three(m.two(m.one(x)) + m.token), "two"),
        (lambda m, x: (lambda y: m.three(m.two(y)) + y)(m.one(x)), "one"),  # a shortcut: cut before it begins
        (lambda m, x: m.three(m.two(m.one(x))) + x[:, :1], None),  # a shortcut from the images
        (lambda m, x: m.three(m.two(m.one(x)).detach()), "two"),
        (lambda m, x: m.two(m.one(m.three.weight[:1, :3].mean() + x)), None),  # a trained tensor at the beginning
    ],
)
def test_a_cut_is_where_one_tensor_is_all_that_the_rest_needs(way, expected):
    assert place(way) == expected


def test_what_is_trained_by_the_network_itself_counts():
    assert place(lambda m, x: m.three(m.two(m.one(x) + m.token)), trained=("token", "three")) == "one"


def test_dropout_before_a_cut_makes_it_none_and_behind_it_draws_the_same():
    assert place(lambda m, x: m.three(m.two(m.one(m.drop(x)))), dropout=0.5) is None
    assert place(lambda m, x: m.three(m.two(m.drop(m.one(x)))), dropout=0.5) == "one"
    assert place(lambda m, x: m.three(m.drop(m.two(m.one(x)))), dropout=0.5) == "two"
    assert place(lambda m, x: m.three(m.two(m.drop(m.one(x))))) == "two"


def test_what_cannot_be_copied_over_the_same_tensors_is_not_cut():
    module = torch.jit.script(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    assert Cut.of(module, {"1.weight", "1.bias"}, 8) is None
