"""`Network`: a backbone's module together with what training and export need to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoft.types import InputSpec, ParameterInfo, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Network:
    """A built backbone. `module(x)` maps images `(batch, 3, size, size)` to features `(batch, dim)`.

    `stages` hold every parameter once, ordered from input to head.
    """

    module: nn.Module
    input: InputSpec
    stages: tuple[Stage, ...]
    dim: int

    @classmethod
    def of(cls, module: nn.Module, spec: InputSpec, stages: Mapping[str, Sequence[str]] | None = None) -> Network:
        """A network from any module whose forward gives features `(batch, dim)`.

        `stages` maps a stage's name to its parameters' names, from input to head; without it every direct
        child that holds parameters is a stage. Raises `ValueError` when the output is not `(batch, dim)` or the
        stages do not hold every parameter exactly once.
        """
        import torch

        module.eval()
        with torch.inference_mode():
            features = module(torch.zeros(2, 3, spec.size, spec.size))
        if features.ndim != 2:
            raise ValueError(f"a backbone gives features (batch, dim), this one gives {tuple(features.shape)}")
        names = stages if stages is not None else _children(module)
        return cls(module, spec, _stages(module, names), int(features.shape[1]))

    def features(self, images: Tensor) -> Tensor:
        """Features `(batch, dim)` of normalised images `(batch, 3, size, size)`."""
        features: Tensor = self.module(images)
        return features


def _children(module: nn.Module) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        groups.setdefault(name.split(".")[0], []).append(name)
    return groups


def _stages(module: nn.Module, groups: Mapping[str, Sequence[str]]) -> tuple[Stage, ...]:
    infos = {info.name: info for info in _parameter_infos(module)}
    listed = [name for names in groups.values() for name in names]
    if sorted(listed) != sorted(infos):
        wrong = sorted(set(listed) ^ set(infos)) or "a parameter stands twice"
        raise ValueError(f"stages must hold every parameter exactly once; look at {wrong}")
    return tuple(Stage(stage, tuple(infos[name] for name in names)) for stage, names in groups.items() if names)


def _parameter_infos(module: nn.Module) -> list[ParameterInfo]:
    """Name, size and role of every parameter; a one-dimensional one that is no bias belongs to a norm or a scale."""
    from torch import nn

    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    in_norm = {
        f"{prefix}.{name}" if prefix else name
        for prefix, child in module.named_modules()
        if isinstance(child, norms)
        for name, _ in child.named_parameters(recurse=False)
    }
    infos = []
    for name, parameter in module.named_parameters():
        bias = name.endswith("bias") and parameter.ndim <= 1
        role = "norm" if name in in_norm else "bias" if bias else "norm" if parameter.ndim <= 1 else "weight"
        infos.append(ParameterInfo(name, parameter.numel(), role))
    return infos
