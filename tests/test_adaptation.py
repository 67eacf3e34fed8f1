"""Parameters that a strategy puts into a network: they train, and nobody after training sees them."""

from __future__ import annotations

import re
import time
from functools import partial

import numpy as np
import pytest
import torch
from parts.gains import Gain, Gained, Gains
from parts.small_run import ZOO, small_run
from parts.small_zoo import SmallZoo
from torch import nn

from autoft.store import Checkpoint
from autoft.testing import FreezeStrategyConformance
from autoft.train.adaptation import Adaptation
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.trial import Parent, Slice, Trial

GAINS = ZOO.replace("small_zoo", "gains")
FAMILIES = ("test_resnet", "test_vit")


class TestGains(FreezeStrategyConformance):
    def part(self):
        return Gains()


@pytest.fixture
def run(tiny_images, tmp_path):
    return small_run(tiny_images, tmp_path / "run", plugins=(ZOO, GAINS), freeze=("full", "gains"))


def worker(run) -> Worker:
    return Worker(Workshop(run, run.host()))


def trial(run, number: int, family: str, freeze: str, parents: tuple[Parent, ...] = ()) -> Trial:
    (found,) = [one for one in run.record.candidates if (one.backbone, one.freeze) == (f"small/{family}", freeze)]
    return found.trial(number, found.space.starts[0], seed=5, parents=parents)


def execute(worker: Worker, of: Trial, *stops: float) -> Checkpoint:
    """The checkpoint behind the last of the slices that end there."""
    for start, until in zip((0.0, *stops), stops, strict=False):
        report = worker.run(Job(Slice(of, start, until, 1e12), origin=time.time()))
        assert report.error is None, report.error
        assert report.step == until
    found = worker.shop.checkpoints.load(Parent(of.id, stops[-1]))
    assert found is not None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_and_scored_is_the_plain_network(run, family):
    one = worker(run)
    network = one.shop.network(f"small/{family}")
    pristine = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    checkpoint = execute(one, trial(run, 0, family, "gains"), 2.0)
    assert {name.removeprefix("backbone.") for name in checkpoint.model} <= pristine.keys() | {
        "head.weight",
        "head.bias",
    }
    assert checkpoint.weights == worker(run).shop.network(f"small/{family}").fingerprint
    assert all(torch.equal(tensor, pristine[name]) for name, tensor in network.module.state_dict().items())
    restored = one.shop.restored(checkpoint)
    moved = {n for n, t in restored.backbone.state_dict().items() if not torch.equal(t, pristine[n])}
    assert {f"backbone.{name}" for name in moved} == checkpoint.model.keys() - {"head.weight", "head.bias"}
    assert moved
    images = one.shop.images(checkpoint.trial).batches(one.shop.dataset.rows("val"))
    np.testing.assert_allclose(one.shop.outputs(restored, images), checkpoint.logits, rtol=1e-5, atol=1e-5)


def same(one: Checkpoint, two: Checkpoint) -> None:
    assert one.model.keys() == two.model.keys()
    assert one.training.keys() == two.training.keys()
    for name, tensor in {**one.model, **one.training}.items():
        torch.testing.assert_close({**two.model, **two.training}[name], tensor, rtol=0, atol=0)
    assert one.logits is not None and two.logits is not None
    assert np.array_equal(one.logits, two.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pause_changes_nothing(run, tiny_images, tmp_path, family):
    whole = execute(worker(run), trial(run, 0, family, "gains"), 2.0)
    other = small_run(tiny_images, tmp_path / "other", plugins=(ZOO, GAINS), freeze=("full", "gains"))
    execute(worker(other), trial(other, 0, family, "gains"), 1.0)
    report = worker(other).run(Job(Slice(trial(other, 0, family, "gains"), 1.0, 2.0, 1e12), origin=time.time()))
    assert report.error is None
    found = other.checkpoints.load(Parent(0, 2.0))
    assert found is not None
    same(whole, found)


def test_a_child_begins_with_what_its_parent_trained_and_a_pause_changes_nothing(run):
    one = worker(run)
    parent = execute(one, trial(run, 0, "test_resnet", "full"), 3.0)  # the head is zero in the first
    parents = (Parent(0, 3.0),)
    whole = execute(one, trial(run, 1, "test_resnet", "gains", parents), 2.0)
    pristine = one.shop.network("small/test_resnet").module.state_dict()
    backbone = {name: tensor for name, tensor in parent.model.items() if name.startswith("backbone.")}
    moved = {name for name, one in backbone.items() if not torch.equal(one, pristine[name.removeprefix("backbone.")])}
    norms = {name for name in moved if ".bn" in name}  # which have no gain
    assert norms and moved <= whole.model.keys()
    assert all(torch.equal(whole.model[name], parent.model[name]) for name in norms)
    paused = execute(worker(run), trial(run, 2, "test_resnet", "gains", parents), 1.0, 2.0)
    same(whole, paused)
    grandchild = execute(one, trial(run, 3, "test_resnet", "full", (Parent(1, 2.0),)), 1.0)
    assert whole.model.keys() <= grandchild.model.keys()


def test_added_parameters_are_in_the_stages_that_they_were_put_into():
    zoo = SmallZoo()
    for backbone in zoo.backbones():
        network = zoo.build(backbone)
        adapted = Adaptation.of(network, Gain(), 0).network
        where = {info.name: stage.name for stage in network.stages for info in stage.parameters}
        added = [(stage.name, info.name) for stage in adapted.stages for info in stage.parameters]
        assert any(name.endswith(".gain") for _, name in added)
        for stage, name in added:
            plain = name.removesuffix(".gain") + ".weight" if name.endswith(".gain") else name.replace(".base.", ".")
            assert where[plain] == stage, f"{backbone.name}: {name}"


class Forgetful(Gain):
    """Takes its parameters out and adds nothing to the weights."""

    def merge(self, adapted):
        for name, layer in [*adapted.named_modules()]:
            if hasattr(layer, "gain"):
                adapted.set_submodule(name, layer.base)
        return adapted


class Stubborn(Gain):
    """Leaves everything in the network."""

    def merge(self, adapted):
        return adapted


class Hiding(Gain):
    """Leaves the gains in the network, where no tensor that is kept has them."""

    def merge(self, adapted):
        for name, layer in [*adapted.named_modules()]:
            if isinstance(layer, Gained):
                gain, dim = layer.gain.detach(), -3 if isinstance(layer.base, nn.Conv2d) else -1
                scaled = partial(_scale, gain.view(-1, *[1] * (-1 - dim)))
                layer.base.register_forward_hook(scaled)
                adapted.set_submodule(name, layer.base)
        return adapted


def _scale(gain, module, inputs, outputs):
    return outputs * gain


class Amid(Gained):
    """Gives an image more the more it differs from the mean of its batch."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs + (self.gain - 1).mean() * (outputs - outputs.mean(0))


class Batchwise(Gain):
    """Makes of a batch what no weights make of one image."""

    def adapt(self, module):
        for name, layer in [*super().adapt(module).named_modules()]:
            if isinstance(layer, Gained):
                module.set_submodule(name, Amid(layer.base))
        return module


class Unsteady(Gain):
    """Puts in something else than nothing."""

    def adapt(self, module):
        for layer in super().adapt(module).modules():
            if hasattr(layer, "gain"):
                nn.init.normal_(layer.gain, 1.0, 0.1)
        return module


class Beside(nn.Module):
    """A convolution with another beside it, which knows of strides, but not of groups."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.gain = nn.Parameter(torch.zeros(base.out_channels, base.in_channels, *base.kernel_size))

    def forward(self, inputs):
        base = self.base
        return base(inputs) + nn.functional.conv2d(inputs, self.gain, None, base.stride, base.padding, base.dilation)


class Ungrouped(Gain):
    """Adds to the weights what has their shape, and loses the rest."""

    def adapt(self, module):
        layers = dict(module.named_modules(remove_duplicate=False))
        for name, layer in layers.items():
            if type(layer) is nn.Conv2d and [*layers.values()].count(layer) == 1:
                module.set_submodule(name, Beside(layer))
        return module

    def merge(self, adapted):
        for name, layer in [*adapted.named_modules()]:
            if isinstance(layer, Beside):
                if layer.gain.shape == layer.base.weight.shape:
                    layer.base.weight.data += layer.gain.detach()
                adapted.set_submodule(name, layer.base)
        return adapted


@pytest.mark.parametrize(
    ("adapter", "error", "says"),
    [
        (Ungrouped, AssertionError, r"merge\(\) changes the features"),
        (Forgetful, AssertionError, r"merge\(\) changes the features"),
        (Stubborn, ValueError, r"merge\(\) leaves other tensors than the network came with"),
        (Batchwise, AssertionError, r"merge\(\) changes the features"),
        (Hiding, AssertionError, r"the tensors that merge\(\) gives make other features of the plain network"),
    ],
)
def test_a_wrong_adapter_is_told_what_is_wrong(adapter, error, says):
    with pytest.raises(error, match=says):
        conformance(adapter).test_what_it_puts_into_a_network_comes_out_again()


def test_an_adapter_may_add_something_from_the_start():
    conformance(Unsteady).test_what_it_puts_into_a_network_comes_out_again()


def conformance(adapter) -> FreezeStrategyConformance:
    class Strategy(Gains):
        def adapter(self, params):
            return adapter()

    class Suite(FreezeStrategyConformance):
        def part(self):
            return Strategy()

    return Suite()


WRONG = """
from parts.gains import Gain, Gains
from autoft import hookimpl

class Wrong(Gain):
    def merge(self, adapted):
        {merge}

class Strategy(Gains):
    def adapter(self, params):
        return Wrong()

@hookimpl
def autoft_freeze_strategies():
    return [Strategy()]
"""


@pytest.mark.parametrize(
    ("merge", "says"),
    [
        (
            "[layer.gain.data.fill_(1.0) for layer in adapted.modules() if hasattr(layer, 'gain')]; "
            "return super().merge(adapted)",
            r"in adapter\(\) of freeze strategy 'gains': ValueError: merge\(\) changes the features",
        ),
        ("return adapted", r"in adapter\(\) of .*: ValueError: merge\(\) leaves other tensors"),
        ("return adapted.missing", r"in merge\(\) of .*: AttributeError"),
    ],
)
def test_a_network_that_does_not_come_out_again_costs_no_training(tiny_images, tmp_path, monkeypatch, merge, says):
    (tmp_path / "wrong.py").write_text(WRONG.format(merge=merge))
    wrong = small_run(tiny_images, tmp_path / "run", (ZOO, str(tmp_path / "wrong.py")), freeze=("gains",))
    monkeypatch.setattr(GradientRun, "advance", lambda self: pytest.fail("it has trained"))
    one = worker(wrong)
    report = one.run(Job(Slice(trial(wrong, 0, "test_resnet", "gains"), 0.0, 1.0, 1e12), origin=time.time()))
    assert (report.event, report.step) == ("failed", 0.0)
    assert re.search(rf"plugin 'wrong' .* failed {says}.*traceback in .*-p no:wrong", report.error), report.error


def test_an_adapted_classifier_is_left_as_it_is_when_a_copy_is_merged():
    backbone = SmallZoo().backbones()[0]
    adaptation = Adaptation.of(SmallZoo().build(backbone), Gain(), 0)
    classifier = Classifier.of(adaptation.network, 2)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    adaptation.merged(classifier)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
