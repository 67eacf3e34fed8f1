"""`Network`: a backbone's module together with what training and export need to know of it."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from autoft.values.backbone import InputSpec, ParameterInfo, Stage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from autoft.parts.cut import Cut

Role = Literal["weight", "bias", "norm"]
Rule = tuple[str, tuple[float, ...] | None]
Matcher = Callable[[str], float | Iterable[float]] | Mapping[str, str | Sequence[Rule] | None]
"""What a timm model's `group_matcher` gives: patterns of parameter names by group, or a function of the name."""

_WITH_PREVIOUS = 99999
"""timm's mark at the end of a place: no group of its own."""


@dataclass(frozen=True, eq=False)
class Network:
    """A built backbone. `module(x)` maps images `(batch, 3, size, size)` to features `(batch, dim)`.

    `stages` hold every parameter once, ordered from input to head. The last `tapped` of the features are those that
    `Taps` read on the way.
    """

    module: nn.Module
    input: InputSpec
    stages: tuple[Stage, ...]
    dim: int
    tapped: int = 0

    @classmethod
    def of(cls, module: nn.Module, spec: InputSpec, stages: Mapping[str, Sequence[str]] | None = None) -> Network:
        """A network from any module whose forward gives features `(batch, dim)`.

        `stages` maps a stage's name to its parameters' names, from input to head. Without it the module's own
        `group_matcher` says (every timm model has one). Where the module mostly consists of blocks that repeat, as
        transformers do, each block is a stage, with what comes after it, and what comes before the first is the stem.
        Otherwise every direct child that holds parameters is a stage. Raises `ValueError` when the output is not
        `(batch, dim)` or the stages do not hold every parameter exactly once.
        """
        import torch

        module.eval()
        with torch.inference_mode():
            features = module(torch.zeros(2, 3, spec.size, spec.size))
        if features.ndim != 2:
            raise ValueError(f"a backbone gives features (batch, dim), this one gives {tuple(features.shape)}")
        names = stages if stages is not None else _own_stages(module)
        return cls(module, spec, _stages(module, names), int(features.shape[1]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash in hex of the pretrained weights, buffers included; to be asked for before anything changes them."""
        import torch

        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def layout(self, device: torch.device) -> torch.memory_format:
        """The memory format that weights and images have on a device: channels last, but for one case.

        cuDNN has no good kernels for depthwise convolutions of channels-last images: on an H200 the first step of an
        EfficientNet-Lite0 took 14.7 s, the next 33 ms, of contiguous ones 0.6 s and 16 ms (benchmarks/first_steps.py).
        """
        import torch

        kernels = (module for module in self.module.modules() if isinstance(module, torch.nn.Conv2d))
        depthwise = any(kernel.groups == kernel.in_channels > 1 for kernel in kernels)
        return torch.contiguous_format if depthwise and device.type == "cuda" else torch.channels_last

    def split(self, depth: int, size: int | None = None) -> Cut | None:
        """Where the network can be cut so that all of its stages from number `depth` on lie behind; None if nowhere.

        For images of `size` pixels, its own by default. See `Cut`: what is before it and what is after it give in turn
        what the network gives, in evaluation and when only the stages behind it train.
        """
        from autoft.parts.cut import Cut
        from autoft.parts.taps import Tapped, TappedCut

        behind = {parameter.name for stage in self.stages[depth:] for parameter in stage.parameters}
        size = size or self.input.size
        kind = TappedCut if isinstance(self.module, Tapped) else Cut
        return kind.of(self.module, behind, size)

    def adapted(self, module: nn.Module) -> Network:
        """It, made of a module that has other parameters: each in the stage of what they were put into.

        That is the first stage with anything in the innermost module that both networks have.
        """
        stage_of: dict[str, str] = {}
        for stage in self.stages:
            for place in (place for info in stage.parameters for place in _around(info.name)):
                stage_of.setdefault(place, stage.name)
        groups: dict[str, list[str]] = {stage.name: [] for stage in self.stages}
        for name, _ in module.named_parameters():
            groups[next(stage_of[place] for place in _around(name) if place in stage_of)].append(name)
        return Network(module, self.input, _stages(module, groups), self.dim, self.tapped)

    @property
    def own_dim(self) -> int:
        """How many features are those of the last layer: the first ones."""
        return self.dim - self.tapped

    def features(self, images: Tensor) -> Tensor:
        """Features `(batch, dim)` of normalised images `(batch, 3, size, size)`."""
        features: Tensor = self.module(images)
        return features


def _around(name: str) -> list[str]:
    """A parameter and the modules that hold it, from the inside; last the whole, which is called ""."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _own_stages(module: nn.Module) -> dict[str, list[str]]:
    """The stages that the module declares itself; what its `group_matcher` does not match comes last, as the head."""
    matcher = getattr(module, "group_matcher", None)
    if matcher is None:
        return _repeated(module) or _children(module)
    try:
        patterns = matcher(coarse=True)
    except AssertionError:  # timm's RDNet knows its fine groups only
        patterns = matcher(coarse=False)
    places: dict[tuple[float, ...], list[str]] = {}
    for name, _ in module.named_parameters():
        places.setdefault(_place(name, patterns), []).append(name)
    groups: dict[str, list[str]] = {}
    for place in sorted(places):
        joins = groups and place[-1] == _WITH_PREVIOUS
        stage = next(reversed(groups)) if joins else _stage_name(places[place], groups)
        groups.setdefault(stage, []).extend(places[place])
    return groups


def _place(name: str, patterns: Matcher) -> tuple[float, ...]:
    """Where a parameter stands from input to head, by timm's convention (timm/models/_manipulate.py)."""
    if callable(patterns):
        place = patterns(name)
        return tuple(place) if isinstance(place, Iterable) else (place,)
    for number, rules in enumerate(patterns.values()):
        for pattern, suffix in [(rules, None)] if isinstance(rules, str) else rules or ():
            if match := re.match(pattern, name):
                return (number, *map(float, match.groups()), *(suffix or ()))
    return (math.inf,)


def _stage_name(names: Sequence[str], taken: Collection[str]) -> str:
    """The module that these parameters share (`blocks.3`), else what their first one lies in; never one taken."""
    paths = [name.split(".")[:-1] or [name] for name in names]
    shared = [parts[0] for parts in itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))]
    first = paths[0]
    numbered = next((depth for depth, part in enumerate(first, 1) if part.isdigit()), 1)
    candidates = [
        shared[:numbered] or ([] if taken else ["stem"]),
        *(first[:n] for n in range(numbered, len(first) + 1)),
    ]
    free = (name for name in map(".".join, candidates) if name and name not in taken)
    return next(free, f"{'.'.join(first)}#{len(taken)}")


def _repeated(module: nn.Module) -> dict[str, list[str]]:
    """The blocks of a module as stages, with its stem; nothing where they hold less than half of its parameters."""
    blocks, stage, in_blocks, all_of_them = _blocks(module), "stem", 0, 0
    groups: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters():
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        stage = block or stage
        groups.setdefault(stage, []).append(name)
        in_blocks += parameter.numel() if block else 0
        all_of_them += parameter.numel()
    return groups if 2 * in_blocks >= all_of_them > 0 else {}


def _blocks(module: nn.Module) -> list[str]:
    """The members of lists of modules that are alike, by name; a list inside a block is a part of the block."""
    from torch import nn

    found: list[str] = []
    for name, inner in module.named_modules():
        inside_a_block = any(f"{name}.".startswith(f"{block}.") for block in found)
        if isinstance(inner, nn.Sequential | nn.ModuleList) and not inside_a_block and _are_alike([*inner.children()]):
            found += [f"{name}.{key}".lstrip(".") for key, _ in inner.named_children()]
    return found


def _are_alike(modules: Sequence[nn.Module]) -> bool:
    """Whether they are several, of one class, made of other modules, with parameters of the same shapes."""
    kinds = {(type(one), *(tuple(parameter.shape) for parameter in one.parameters())) for one in modules}
    composite = all([*one.children()] and [*one.parameters()] for one in modules)
    return len(modules) > 1 and len(kinds) == 1 and composite


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
        role: Role = "norm" if name in in_norm else "bias" if bias else "norm" if parameter.ndim <= 1 else "weight"
        infos.append(ParameterInfo(name, parameter.numel(), role))
    return infos
