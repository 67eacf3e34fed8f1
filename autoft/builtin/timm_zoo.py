"""The timm zoo: every backbone timm has pretrained weights for, from this machine or from the Hugging Face Hub."""

from __future__ import annotations

import csv
import functools
import importlib.resources
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from autoft import Backbone, BackboneUnavailable, InputSpec, Network, Zoo, hookimpl

HUB = (
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "mobilenetv3_large_100.miil_in21k_ft_in1k",
    "efficientnet_b0.ra4_e3600_r224_in1k",
    "mobilenetv4_conv_medium.e500_r256_in1k",
    "repvit_m1_1.dist_450e_in1k",
    "convnext_nano.in12k_ft_in1k",
    "hgnetv2_b4.ssld_stage2_ft_in1k",
    "tiny_vit_21m_224.dist_in22k_ft_in1k",
    "vit_base_patch32_clip_224.laion2b_ft_in12k_in1k",
    "convnext_tiny.in12k_ft_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "nextvit_small.bd_ssld_6m_in1k",
    "vit_little_patch16_reg1_gap_256.sbb_in12k_ft_in1k",
    "hgnetv2_b5.ssld_stage2_ft_in1k",
    "convnext_small.in12k_ft_in1k",
    "beitv2_base_patch16_224.in1k_ft_in22k_in1k",
    "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k",
    "vit_mediumd_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k",
    "convnext_base.clip_laion2b_augreg_ft_in12k_in1k",
    "vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k",
    "eva_large_patch14_196.in22k_ft_in22k_in1k",
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
)
"""What is searched unasked, the cheapest first: eleven families, costs from 1 to 1,900, permissive licences.

Each is within two points of the front of `timm_results.csv`, which `benchmarks/make_timm_results.py` shows.
"""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm looks for in a Hub repository, in this order."""

ANSWER_SECONDS = 5.0
"""How long a server may take to say that it has the weights, before they are given up."""


class TimmZoo(Zoo):
    """Every pretrained tag of timm, as `timm/<architecture>.<tag>`."""

    name = "timm"
    summary = "timm's pretrained backbones, cached on this machine or downloaded"

    def backbones(self) -> Iterable[Backbone]:
        """Every pretrained tag timm knows, in timm's order; looks into this machine's caches, never at a network."""
        import timm

        return [_backbone(tag, timm.get_pretrained_cfg(tag)) for tag in timm.list_pretrained()]

    def build(self, backbone: Backbone) -> Network:
        """The backbone without its classifier, as timm pools its features; stages come from its `group_matcher`.

        Position embeddings and the like are resampled, by timm, where `input.size` is not what they were trained on.

        Raises `BackboneUnavailable` when this timm does not know it, its weights are not here and cannot be
        downloaded or not be read, its images are no squares, or it gives no features `(batch, dim)`.
        """
        import timm

        tag = backbone.name.removeprefix("timm/")
        cfg = timm.get_pretrained_cfg(tag) if tag in timm.list_pretrained() else None
        if cfg is None:
            raise BackboneUnavailable(f"{backbone.name}: timm {timm.__version__} has no such weights; try another timm")
        if len(set(cfg.input_size[1:])) > 1:
            raise BackboneUnavailable(f"{backbone.name}: takes no square images; choose another backbone")
        weights = _here(cfg) or _download(backbone.name, cfg)
        sized: dict[str, Any] = {"img_size": backbone.input.size} if backbone.input.size_step else {}
        try:
            module = timm.create_model(
                tag, pretrained=True, num_classes=0, pretrained_cfg_overlay=weights.overlay, **sized
            )
        except _unreadable() as error:
            raise BackboneUnavailable(
                f"{backbone.name}: cannot load {weights.path} ({_line(error)}); delete that file and get it again"
            ) from error
        try:
            return Network.of(module, backbone.input)
        except ValueError as error:  # timm's encoders of language models give tokens
            raise BackboneUnavailable(f"{backbone.name}: {error}; choose another backbone") from error


def _backbone(tag: str, cfg: Any) -> Backbone:
    known, published = _architecture(cfg.architecture), _results().get(tag, _Published())
    return Backbone(
        name=f"timm/{tag}",
        parameters=known.parameters,
        input=InputSpec(
            size=max(cfg.input_size[1:]),
            mean=tuple(cfg.mean),
            std=tuple(cfg.std),
            interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
            fixed_size=cfg.fixed_input_size,
            size_step=known.size_step,
        ),
        license=(cfg.license or "unknown").lower(),
        weights="local" if _here(cfg) else "download",
        source=f"hf-hub:{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url or "",
        prior=published.top1,
        gmacs=published.gmacs,
        by_default=tag in HUB,
    )


@dataclass(frozen=True)
class _Architecture:
    """What is known of an architecture: scalars of the headless network, and `InputSpec.size_step`."""

    parameters: int
    size_step: int


def _architecture(name: str) -> _Architecture:
    """As the table has it; where timm is newer than that, counted without memory, and of one size."""
    return _table().get(name) or _Architecture(_count(name), 0)


@functools.cache
def _table() -> Mapping[str, _Architecture]:
    """What `benchmarks/make_timm_parameters.py` found, by architecture."""
    rows = _rows("timm_parameters.csv")
    return {row["arch"]: _Architecture(int(row["parameters"]), int(row["size_step"])) for row in rows}


def _rows(table: str) -> Iterable[dict[str, str]]:
    """Of a table beside this module, whose first lines may say where it comes from."""
    text = importlib.resources.files("autoft.builtin").joinpath(table).read_text(encoding="utf-8")
    return csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


@dataclass(frozen=True)
class _Published:
    """ImageNet-1k top-1 from 0 to 1, and multiply-adds in 1e9, of a tag at its own size; None is unknown."""

    top1: float | None = None
    gmacs: float | None = None


@functools.cache
def _results() -> Mapping[str, _Published]:
    """What `benchmarks/make_timm_results.py` took from timm's published results, by tag."""
    return {
        row["tag"]: _Published(
            top1=round(float(row["top1"]) / 100, 4) if row["top1"] else None,
            gmacs=float(row["gmacs"]) if row["gmacs"] else None,
        )
        for row in _rows("timm_results.csv")
    }


@functools.cache
def _count(arch: str) -> int:
    import timm
    import torch

    with torch.device("meta"):
        module = timm.create_model(arch, num_classes=0)
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- where weights lie


@dataclass(frozen=True)
class _Weights:
    """A file on this machine, and timm's overlay of a pretrained cfg that loads it without asking a server."""

    path: Path
    overlay: dict[str, Any]

    @classmethod
    def from_hub(cls, path: str) -> _Weights:
        return cls(Path(path), {"file": path})

    @classmethod
    def from_url(cls, path: Path) -> _Weights:
        # timm finds it in torch's folder by itself, and knows the foreign formats by the URL, not by a file
        return cls(path, {"hf_hub_id": None})


def _here(cfg: Any) -> _Weights | None:
    """The weights in the caches of this machine: the Hub's first, as timm does, then torch's."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = _repository(cfg)
    for filename in HUB_FILES if repository else ():
        path = try_to_load_from_cache(repository, filename, revision=revision)
        if isinstance(path, str):
            return _Weights.from_hub(path)
    checkpoint = _checkpoint(cfg)
    return _Weights.from_url(checkpoint) if checkpoint and checkpoint.is_file() else None


def _repository(cfg: Any) -> tuple[str, str | None]:
    """Hub repository and revision, written `repository@revision`; an empty name when the weights are not there."""
    repository, _, revision = (cfg.hf_hub_id or "").partition("@")
    return repository, revision or None


def _checkpoint(cfg: Any) -> Path | None:
    """Where torch keeps what it downloads from the URL of these weights."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(cfg.url).name) if cfg.url else None


def _download(name: str, cfg: Any) -> _Weights:
    if _offline():
        raise BackboneUnavailable(
            f"{name}: its weights are not on this machine; run once without --offline (and HF_HUB_OFFLINE) to get them"
        )
    try:
        return _download_from_hub(cfg) if cfg.hf_hub_id else _download_from_url(cfg)
    except Exception as error:  # which classes a transport raises differs between versions of huggingface_hub
        raise BackboneUnavailable(
            f"{name}: its weights cannot be downloaded ({_line(error)}); "
            "try again with a network, or search with --offline for the backbones that are here"
        ) from error


def _offline() -> bool:
    """Whether to leave the network alone; huggingface_hub reads the variable when imported, which may be too early."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _download_from_hub(cfg: Any) -> _Weights:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    repository, revision = _repository(cfg)
    for filename in HUB_FILES:
        try:
            # asked once and briefly: the download itself goes on trying for a minute where there is no network
            get_hf_file_metadata(hf_hub_url(repository, filename, revision=revision), timeout=ANSWER_SECONDS)
        except EntryNotFoundError:
            continue
        return _Weights.from_hub(hf_hub_download(repository, filename, revision=revision))
    raise FileNotFoundError(f"{repository} holds neither of {', '.join(HUB_FILES)}")


def _download_from_url(cfg: Any) -> _Weights:
    from urllib.request import Request, urlopen

    import torch

    with urlopen(Request(cfg.url, method="HEAD"), timeout=ANSWER_SECONDS):
        pass  # torch's download waits for an answer without end
    path = _checkpoint(cfg)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(cfg.url, str(path))
    return _Weights.from_url(path)


def _unreadable() -> tuple[type[Exception], ...]:
    """What a damaged or foreign weights file raises when it is loaded."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    return (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError, SafetensorError)


def _line(error: Exception) -> str:
    """The cause in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@hookimpl
def autoft_zoos() -> Iterable[Zoo]:
    """The timm zoo."""
    return [TimmZoo()]
