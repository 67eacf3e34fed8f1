"""A head that trains on standardised features is the plain one in other coordinates, and comes out as a plain one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoft.train.classifier import Classifier
from autoft.train.standard import LEAST_SHARE, Standard, StandardisedHead

DIM, OUTPUTS = 12, 3
SPREAD = torch.logspace(-1, 2, DIM)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def features(count: int = 400) -> torch.Tensor:
    """Around 5, each wider than the one before."""
    return 5.0 + SPREAD * torch.randn(count, DIM)


def head() -> nn.Linear:
    return nn.Linear(DIM, OUTPUTS)


def test_features_have_one_deviation_and_no_more_of_it_together_than_those_of_the_last_layer():
    seen, own = features(), 4
    standard = Standard.of(seen, own)
    deviations = ((seen - standard.centre) * standard.scale).std(dim=0, correction=0)
    wide = LEAST_SHARE * SPREAD.median() < SPREAD
    torch.testing.assert_close(deviations[wide], deviations[-1].expand(int(wide.sum())))
    torch.testing.assert_close(deviations[-1] * DIM, seen[:, :own].std(dim=0, correction=0).sum())


def test_what_does_not_vary_is_not_blown_up():
    seen = features()
    seen[:, 3] = 7.0
    seen[0, 3] += 1e-6
    standard = Standard.of(seen, DIM)
    usual = seen.std(dim=0, correction=0)
    assert standard.scale[3] * LEAST_SHARE * usual.median() <= usual.mean() * 1.001


@pytest.mark.parametrize(
    "seen", [torch.ones(1, DIM), torch.zeros(5, DIM), torch.arange(5.0)[:, None] * (torch.arange(DIM) == 0)]
)
def test_features_that_hardly_differ_give_a_standard_that_can_be_undone(seen):
    standard, plain = Standard.of(seen, DIM), head()
    assert standard.scale.isfinite().all() and (standard.scale > 0).all()
    torch.testing.assert_close(StandardisedHead(plain, standard).plain().weight, plain.weight)


def test_outputs_stay_what_they_were_and_come_back():
    plain, seen = head(), features()
    standardised = StandardisedHead(plain, Standard.of(seen, DIM))
    torch.testing.assert_close(standardised(seen), plain(seen), rtol=1e-4, atol=1e-4)
    again = standardised.plain()
    assert type(again) is nn.Linear
    torch.testing.assert_close(again.weight, plain.weight)
    torch.testing.assert_close(again(seen), plain(seen), rtol=1e-4, atol=1e-4)


def test_a_step_moves_outputs_alike_by_each_feature():
    """What the standard is for: one step of Adam, whose size does not go by a feature's."""
    seen, moved = features(), []
    targets = torch.randint(0, OUTPUTS, (len(seen),))
    for layer in (plain := head(), StandardisedHead(plain, Standard.of(seen, DIM))):
        layer = copy.deepcopy(layer)
        before = layer.plain().weight if isinstance(layer, StandardisedHead) else layer.weight.clone()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        nn.functional.cross_entropy(layer(seen), targets).backward()
        optimizer.step()
        after = layer.plain().weight if isinstance(layer, StandardisedHead) else layer.weight
        moved.append(((after - before) * SPREAD).abs().mean(dim=0).detach())
    of_plain, of_standardised = moved
    assert of_plain.max() > 100 * of_plain.min()
    assert of_standardised.max() < 12 * of_standardised.min()  # but for the one below the least share


def test_a_classifier_comes_out_plain_over_the_same_backbone():
    backbone = nn.Linear(5, DIM)
    classifier = Classifier(backbone, DIM, OUTPUTS).eval()
    nn.init.normal_(classifier.head.weight)
    images = torch.randn(7, 5)
    before = classifier(images)
    assert classifier.plain() is classifier
    names = classifier.state_dict().keys()
    classifier.standardise(Standard.of(backbone(images).detach(), DIM))
    assert classifier.state_dict().keys() == names
    plain = classifier.plain()
    assert plain.backbone is backbone and not plain.training
    torch.testing.assert_close(plain(images), before, rtol=1e-4, atol=1e-4)


def test_it_goes_with_a_checkpoint_and_an_older_one_has_none():
    standard = Standard.of(features(), DIM)
    found = Standard.remembered({"raw.head.weight": torch.ones(1), **standard.tensors()})
    assert found is not None
    assert torch.equal(found.centre, standard.centre) and torch.equal(found.scale, standard.scale)
    assert Standard.remembered({"raw.head.weight": torch.ones(1)}) is None
