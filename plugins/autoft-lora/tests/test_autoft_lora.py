from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("peft")
lora = pytest.importorskip("autoft_lora")

from autoft import InputSpec, Network  # noqa: E402
from autoft.testing import FreezeStrategyConformance  # noqa: E402
from autoft.train.adaptation import Adaptation  # noqa: E402
from autoft.train.classifier import Classifier  # noqa: E402

timm = pytest.importorskip("timm")


class TestLora(FreezeStrategyConformance):
    def part(self):
        return lora.Lora()


def network(name: str) -> Network:
    options = {"img_size": 64} if "vit" in name else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, num_classes=0, **options)
    return Network.of(module, InputSpec(64))


def adapted(of: Network, rank: int = 4) -> Adaptation:
    return Adaptation.of(of, lora.LowRank(rank), 0)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_what_has_trained_is_a_product_of_that_rank_in_the_plain_network(name):
    plain = network(name)
    start, adaptation = lora.Lora().space().starts[0], adapted(plain)
    plan = lora.Lora().plan(adaptation.network.stages, start)
    (group,) = plan.groups
    assert all(".lora_" in one for one in group.names)
    with torch.no_grad():
        for one in group.names:
            adaptation.network.module.get_parameter(one).normal_(std=0.1)
    merged = adaptation.merged(Classifier.of(adaptation.network, 2)).backbone
    before = plain.module.state_dict()
    assert [*merged.state_dict()] == [*before]
    assert not any(type(one).__module__.startswith("peft") for one in merged.modules())
    differing = [(key, tensor - before[key]) for key, tensor in merged.state_dict().items()]
    differing = [(key, change) for key, change in differing if change.abs().max() > 0]
    assert len(differing) == len(group.names) / 2  # one layer for two matrices
    for key, change in differing:
        values = np.linalg.svd(change.flatten(1).numpy(), compute_uv=False)
        assert (values[4:] < 1e-4 * values[0]).all(), key


def test_of_a_transformer_each_linear_layer_is_adapted():
    plain = network("test_vit")
    layers = {name for name, one in plain.module.named_modules() if type(one) is nn.Linear}
    added = {name for name, _ in adapted(plain).network.module.named_parameters() if ".lora_" in name}
    assert {name.split(".lora_")[0] for name in added} == layers


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256"])
def test_attention_that_multiplies_by_a_weight_itself_is_left_alone(name):
    """The layers beside it are not."""
    few = {"depths": (1, 1, 1, 1), "embed_dim": 24} if "swin" in name else {"depth": 1, "embed_dim": 48}
    module = timm.create_model(name, num_classes=0, img_size=64, **few)
    for zero in (one for one in module.parameters() if not one.any()):  # else Swin's blocks add nothing at first
        nn.init.normal_(zero, std=0.1)
    adaptation = adapted(Network.of(module, InputSpec(64)))
    added = [name for name, _ in adaptation.network.module.named_parameters() if ".lora_" in name]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in added} >= {"proj", "fc2"}
    adapted_module, images = adaptation.network.module.eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for one in added:
            adapted_module.get_parameter(one).normal_(std=0.1)
        merged = adaptation.merged(Classifier.of(adaptation.network, 2)).backbone
        torch.testing.assert_close(merged(images), adapted_module(images), rtol=1e-3, atol=1e-3)


def test_convolutions_of_groups_and_of_several_pixels_stay_as_they_are():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.deep, self.point = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 1)

        def forward(self, images):
            return self.point(self.deep(self.wide(images))).mean((2, 3))

    names = dict(adapted(Network.of(Own(), InputSpec(32))).network.module.named_parameters())
    assert {name.split(".")[0] for name in names if ".lora_" in name} == {"point"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # that such norms have newer ways
@pytest.mark.parametrize(
    "odd",
    [
        lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 1)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
        lambda: nn.Conv2d(8, 8, 1, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(8, 8, 1, padding=1, padding_mode="circular"),
    ],
    ids=["weight_norm", "spectral_norm", "new weight_norm", "new spectral_norm", "reflect", "circular"],
)
def test_layers_that_a_product_cannot_be_added_to_stay_as_they_are(odd):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.odd, self.point = nn.Conv2d(3, 8, 3), odd(), nn.Conv2d(8, 8, 1, padding=1)

        def forward(self, images):
            return self.point(self.odd(self.wide(images))).mean((2, 3))

    plain = Network.of(Own().eval(), InputSpec(32))
    adaptation = adapted(plain)
    names = [name for name, _ in adaptation.network.module.named_parameters() if ".lora_" in name]
    assert {name.split(".")[0] for name in names} == {"point"}
    module, images = adaptation.network.module.eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for name in names:
            module.get_parameter(name).normal_(std=0.1)
        trained = module(images)
        merged = adaptation.merged(Classifier.of(adaptation.network, 2)).backbone
        torch.testing.assert_close(merged(images), trained, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(plain.module(images), trained, atol=1e-3)


def test_it_is_searched_when_it_is_named():
    assert not lora.Lora().by_default
