"""The exporter follows small timm architectures; `benchmarks/architectures.py` tries one of every family."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from parts.exported import LABELS, handoff, how, torch_logits
from torch import nn

from autoft.builtin.onnx_exporter import FILE, OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel
from autoft.bundle.parity import Setting, core_parity, core_refusal
from autoft.parts.network import Network
from autoft.train.classifier import Classifier
from autoft.train.heads import seen_by_heads
from autoft.values.backbone import InputSpec

timm = pytest.importorskip("timm")

BATCHES = (1, 2, 5)
# What a runtime has to know to load the core of a convolutional network, OpenCV's or a vendor's. A new one needs a
# reason: OpenCV 4.10 fails on Shape, on Range and Gather where a Flatten belongs (they came of channels-last strides).
OPERATORS = {
    *("Conv", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization"),
    *("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Erf", "Tanh", "Pow", "Sqrt", "Add", "Sub", "Mul", "Div"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "Pad"),
    *("Flatten", "Reshape", "Transpose", "Concat", "Split", "Identity"),
}
CONVOLUTIONAL = ("byobnet", "convnext", "efficientnet", "mambaout", "nfnet", "resnet")
SMALL: Mapping[str, Mapping[str, object]] = {
    "test_byobnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_efficientnet_gn": {},
    "test_mambaout": {},
    "test_maxvit": {},
    "test_nfnet": {},
    "test_resnet": {},
    "test_vit": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 16, "depths": (2, 1), "num_heads": (1, 2)},
    # Attention with a bias, and in five dimensions: torch's dynamo exporter refuses these two where it is fused.
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)},
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


def least_apart(logits: np.ndarray) -> float:
    """How far the logits of the two most similar images are apart, as a part of the logit scale."""
    return min(np.abs(one - other).max() for one, other in itertools.combinations(logits, 2)) / np.abs(logits).max()


def crashing_opencv(graph: onnx.GraphProto) -> list[str]:
    """Outputs of what OpenCV 4.10 crashes on: computing with weights alone; GELU whose half is not its last factor."""
    made_of = {output: node for node in graph.node for output in node.output}
    constant = {tensor.name for tensor in graph.initializer}

    def is_half_of_gelu(node: onnx.NodeProto) -> bool:
        before = [made_of[name] for name in node.input if name not in constant and name in made_of]
        one_more = len(before) == 1 and before[0].op_type == "Add"
        return (
            node.op_type == "Mul"
            and one_more
            and any(made_of[name].op_type == "Erf" for name in before[0].input if name in made_of)
        )

    found = [node for node in graph.node if {*filter(None, node.input)} <= constant or is_half_of_gelu(node)]
    return [node.output[0] for node in found]


def test_what_crashes_opencv_is_noticed() -> None:
    gelu = onnx.parser.parse_graph("""
        g (float[n] x) => (float[n] y) <float half = {0.5}, float one = {1.0}, float root = {1.414}>
        { a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(half, c) y = Mul(x, d) }""")
    assert crashing_opencv(gelu) == ["d"]


def with_a_head_on_every_stage(network: nn.Module, size: int) -> nn.Module:
    """The network as a search with few images has it, in place of its own head."""
    network.reset_classifier(0)
    seen = seen_by_heads(Network.of(network, InputSpec(size)), "every stage")
    assert seen.tapped
    classifier = Classifier.of(seen, len(LABELS))
    nn.init.normal_(classifier.head.weight, std=seen.dim**-0.5)
    return classifier


@pytest.mark.parametrize("name", SMALL)
def test_exported_architecture_agrees_with_torch_at_every_batch(name: str, tmp_path: Path):
    exported_agrees(name, *built(name, SMALL[name]), tmp_path)


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_a_head_on_every_stage_agrees_with_torch_at_every_batch(name: str, tmp_path: Path):
    network, size = built(name, SMALL[name])
    exported_agrees(name, with_a_head_on_every_stage(network, size), size, tmp_path)


def exported_agrees(name: str, network: nn.Module, size: int, tmp_path: Path) -> None:
    images = pictures(max(BATCHES), size).numpy()
    expected = torch_logits(network, images)
    assert least_apart(expected) > 0.02
    next(OnnxExporter().export(network.to(memory_format=torch.channels_last), handoff(size), tmp_path))
    graph = onnx.load(tmp_path / FILE).graph
    assert not crashing_opencv(graph)
    operators = {node.op_type for node in graph.node}
    assert not any(family in name for family in CONVOLUTIONAL) or operators <= OPERATORS
    model = CoreModel(tmp_path / FILE, threads=1)
    for batch in BATCHES:
        names = [str(n) for n in range(len(images))]
        parity = core_parity(model, Setting(batch, "all"), images, expected, names, how())
        assert core_refusal(parity) is None
