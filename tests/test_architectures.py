"""The exporter follows a dozen small timm architectures; `benchmarks/architectures.py` tries one of every family."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from parts.exported import LABELS, handoff, torch_logits
from torch import nn

from autoft.builtin.onnx_exporter import FILE, OnnxExporter
from autoft.bundle.parity import Setting, core_parity, core_refusal
from autoft.onnx_runtime import CoreModel

timm = pytest.importorskip("timm")

BATCHES = (1, 2, 5)
DOZEN: Mapping[str, Mapping[str, object]] = {
    "test_byobnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_mambaout": {},
    "test_maxvit": {},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit3": {},
    "test_vit_relpos": {},
    # Fused attention with a bias, and in five dimensions: torch's dynamo exporter refuses both.
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1), "mask_unit_size": (8, 8)},
    "nest_tiny": {"img_size": 64, },
}


def built(name: str, settings: Mapping[str, object]) -> tuple[nn.Module, int]:
    """A network with random weights, and its image size; no branch is silent, so that parity says something."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=len(LABELS), **settings)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=max(0.02, parameter[0].numel() ** -0.5))
        elif parameter.detach().abs().max() < 1e-3:
            nn.init.normal_(parameter, std=0.3)
    size = settings.get("img_size") or network.pretrained_cfg["input_size"][-1]
    return with_statistics(network, pictures(8, size)), size


def with_statistics(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network, for inference, with the statistics of the images in its batch normalisations."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain average, which is this one batch
        norm.reset_running_stats()
        norm.train()
    torch_logits(network, images.numpy())
    return network.eval()


def pictures(n: int, size: int) -> torch.Tensor:
    """Blots of colour `(n, 3, size, size)`: a network with random weights sees little in noise."""
    blots = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n))
    return nn.functional.interpolate(blots, (size, size), mode="bilinear")


@pytest.mark.parametrize("name", DOZEN)
def test_exported_architecture_agrees_with_torch_at_every_batch(name: str, tmp_path: Path):
    network, size = built(name, DOZEN[name])
    images = pictures(max(BATCHES), size).numpy()
    expected = torch_logits(network, images)
    expected_scale = abs(expected).max()
    if 0: assert min(abs(a - b).max() for a, b in itertools.combinations(expected, 2)) > 0.02 * expected_scale
    print(name, expected_scale, min(abs(a - b).max() for a, b in itertools.combinations(expected, 2)) / expected_scale)
    artifact = next(OnnxExporter().export(network, handoff(size), tmp_path))
    model = CoreModel(tmp_path / FILE)
    for batch in BATCHES:
        parity = core_parity(model, Setting(batch, "all"), images, expected, [str(n) for n in range(len(images))])
        print(batch, artifact.exporter, parity.max_delta)
        assert core_refusal(parity) is None
