"""What heads read of every stage: what the stages gave, in a network that is cut, adapted and exported as any other."""

from __future__ import annotations

import copy

import pytest
import torch
from parts.halves import images, require_exact_halves, timm_network
from torch import nn

from autoft.parts.network import Network
from autoft.parts.taps import Tap, Taps, untapped
from autoft.train import heads
from autoft.train.classifier import Classifier
from autoft.train.folding import fold_norms
from autoft.train.heads import seen_by_heads, taps_of
from autoft.values.backbone import InputSpec
from autoft.values.plan import GradientHead, Plan, Recipe

# what a place of each gives: channels first, tokens, channels first, channels first, channels last
FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_mambaout")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tapped(network: Network) -> Network:
    return seen_by_heads(network, "every stage")


def given_by(network: Network, place: str, given: torch.Tensor) -> torch.Tensor:
    """What the place gives, found without hooks of ours."""
    gave = []
    copied = copy.deepcopy(network.module)
    part = copied.get_submodule(place)
    forward = part.forward
    part.forward = lambda *args, **named: gave.append(forward(*args, **named)) or gave[-1]
    copied(given)
    return gave[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_features_are_followed_by_what_the_stages_gave(family):
    network, given = timm_network(family), images()
    taps, read = taps_of(network), tapped(network)
    assert set(taps.places) <= {stage.name for stage in network.stages}
    assert len(taps.places) >= 2
    features = read.features(given)
    assert features.shape == (len(given), read.dim) == (len(given), network.dim + taps.width)
    torch.testing.assert_close(features[:, : network.dim], network.features(given), rtol=0, atol=0)
    parts = features[:, network.dim :].split([tap.channels for tap in taps.taps], dim=1)
    for tap, part in zip(taps.taps, parts, strict=True):
        channels_last = given_by(network, tap.place, given)
        channels_last = channels_last.movedim(1, -1) if tap.axes == (2, 3) else channels_last
        pixels = channels_last.reshape(len(given), -1, tap.channels)
        torch.testing.assert_close(part, pixels.mean(1) if tap.of == "mean" else pixels.max(1).values)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_stays_in_its_stage(family):
    network = timm_network(family)
    read = tapped(network)
    assert read.stages == network.stages
    assert read.module.state_dict().keys() == network.module.state_dict().keys()
    assert isinstance(read.module, type(network.module))


def test_finding_them_changes_nothing():
    network = timm_network("test_resnet")
    before, state = copy.deepcopy(network.module.state_dict()), torch.get_rng_state()
    assert taps_of(network) == taps_of(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.module.state_dict().items())
    assert not any(part._forward_hooks for part in network.module.modules())
    tapped(network).features(images())
    assert not any(part._forward_hooks for part in network.module.modules())


class Stages(nn.Module):
    """Three stages, of 4, 8 and 16 channels, and what `way` makes of them."""

    def __init__(self, way=lambda m, x: m.three(m.two(m.one(x))).mean((2, 3))) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(n, m, 3, padding=1) for n, m in ((3, 4), (4, 8), (8, 16)))
        self.way = way

    def forward(self, given):
        return self.way(self, given)


def own(way=None) -> Network:
    return Network.of(Stages(way) if way else Stages(), InputSpec(8))


def test_a_mean_that_is_the_features_is_not_read_again():
    assert [(tap.place, tap.of) for tap in taps_of(own()).taps] == [
        ("one", "max"),
        ("one", "mean"),
        ("two", "max"),
        ("two", "mean"),
        ("three", "max"),
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (16, []),
        (16 + 8, [("two", "mean")]),
        (16 + 12, [("one", "mean"), ("two", "mean")]),
        (16 + 16, [("one", "max"), ("one", "mean"), ("two", "mean")]),
        (16 + 28, [("one", "mean"), ("two", "mean"), ("three", "max")]),
    ],
)
def test_too_wide_means_come_before_maxima_and_last_stages_before_first(monkeypatch, width, expected):
    monkeypatch.setattr(heads, "MOST_WIDTH", width)
    taps = taps_of(own())
    assert [(tap.place, tap.of) for tap in taps.taps] == expected
    assert tapped(own()).dim <= width


@pytest.mark.parametrize(
    ("way", "places"),
    [
        (
            lambda m, x: m.three(m.two(m.one(m.one(x).repeat(1, 1, 1, 1)[:, :3]))).mean((2, 3)),
            {"two", "three"},
        ),  # twice
        (
            lambda m, x: m.three(m.two(m.one(x[..., :5, :3]))).mean((2, 3)),
            set(),
        ),  # not square: what is it of the image?
        (lambda m, x: m.two(m.one(x)).mean((2, 3)), {"one", "two"}),  # never comes to the third
        (lambda m, x: torch.cat([m.three(m.two(m.one(one[None]))).mean((2, 3)) for one in x]), set()),  # one by one
    ],
)
def test_only_what_is_told_apart_from_everything_else_is_read(way, places):
    network = own(way)
    assert set(taps_of(network).places) == places
    assert tapped(network).features(torch.randn(5, 3, 8, 8)).shape[0] == 5


def test_of_a_stage_that_a_pass_in_training_leaves_out_zeros_are_read():
    """As networks do that leave out layers at random."""

    def way(m, x):
        one = m.one(x)
        left_out = torch.cat([one, one], dim=1) if m.training else m.two(one)
        return m.three(left_out).mean((2, 3))

    read, given = tapped(own(way)), torch.randn(5, 3, 8, 8)
    places, width = read.module.head_taps.places, read.dim
    assert places == ("one", "two", "three")
    in_training = read.module.train()(given)
    assert in_training.shape == (5, width) == read.features(given).shape
    start = 16
    for tap in read.module.head_taps.taps:
        part = in_training[:, start : start + tap.channels]
        assert part.any().item() is (tap.place != "two")
        start += tap.channels


def test_a_network_keeps_what_plugins_know_of_it():
    """Its class and attributes, for an adapter that reaches into it; without taps it is as it was."""
    network, given = timm_network("test_efficientnet"), images()
    read = tapped(network)
    assert read.module.blocks is network.module.blocks and type(read.module).__name__ == type(network.module).__name__
    for again in (copy.deepcopy(read.module), read.module):
        torch.testing.assert_close(again(given), read.features(given), rtol=0, atol=0)
    plain = untapped(read.module)
    assert type(plain) is type(network.module)
    assert torch.equal(plain(given), network.features(given))
    assert untapped(plain) is plain


def test_a_forward_of_the_instance_stays():
    network = own()
    network.module.forward = network.module.forward
    assert tapped(network) is network


def test_norms_fold_only_where_nobody_reads_what_the_convolution_gives():
    """The first stage's convolution is read, the second's is not: its norm is a part of the stage."""

    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.block = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, given):
            return self.block(self.norm(self.conv(given))).mean((2, 3))

    module = Folding()
    for norm in (module.norm, module.block[1]):
        nn.init.uniform_(norm.running_var, 0.5, 9.0)
    network = tapped(Network.of(module, InputSpec(16)))
    assert "conv" in taps_of(Network.of(module, InputSpec(16))).places
    given = torch.randn(4, 3, 16, 16)
    before = network.features(given).detach()
    pairs = fold_norms(network.module, given)
    assert [pair.kernel for pair in pairs] == [module.block[0]]
    torch.testing.assert_close(network.features(given), before, rtol=1e-3, atol=1e-3)
    for pair in pairs:
        pair.unfold()


def test_blocks_without_a_shortcut_are_not_left_out_because_others_are_read():
    """Early stages tell images apart whatever the last blocks let through."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop_path = nn.Conv2d(4, 4, 3, padding=1), nn.Identity()

        def forward(self, given):
            return self.drop_path(self.conv(given))

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(Block(), Block())

        def forward(self, given):
            return self.blocks(self.stem(given)).mean((2, 3))

    network = tapped(Network.of(Blocks(), InputSpec(8)))
    assert network.tapped
    classifier = Classifier.of(network, 2)
    plan = Plan((), GradientHead(1e-3), recipe=Recipe(drop_path=0.9))
    classifier.prepare(plan, 8)
    assert classifier.droppable == 0


def test_a_network_without_places_stays_itself():
    flat = Network.of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)), InputSpec(8))
    assert taps_of(flat) == Taps(())
    assert tapped(flat) is flat


def test_a_network_that_cannot_be_followed_stays_itself():
    network = own()
    network.module.way = lambda m, x: 1 / 0
    assert tapped(network) is network


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_give_the_features_and_gradients_of_the_whole(family):
    network = tapped(timm_network(family))
    for depth in range(1, len(network.stages) + 1):
        require_exact_halves(network, depth)


def test_what_lies_before_a_cut_is_read_before_it():
    network = tapped(own(lambda m, x: m.three(m.two(m.one(x))).mean((2, 3))))
    cut = network.split(2)
    assert cut is not None
    assert cut.early.places == ("one", "two") and cut.late.places == ("three",)


def test_what_is_read_has_one_number_a_channel():
    tap = Tap("any", 2, (2, 3), "max")
    assert tap.read(torch.arange(16.0).reshape(1, 2, 2, 4)).tolist() == [[7.0, 15.0]]
    assert Tap("any", 4, (1,), "mean").read(torch.arange(8.0).reshape(1, 2, 4)).tolist() == [[2.0, 3.0, 4.0, 5.0]]
