"""LoRA as a freeze strategy: low-rank adapters train, and are merged into the weights before anybody sees them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoft import (
    Adapter,
    Choice,
    Dimension,
    Float,
    FreezeStrategy,
    GradientHead,
    ParameterGroup,
    Params,
    Plan,
    Recipe,
    Space,
    Stage,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Lora", "LowRank", "autoft_freeze_strategies"]

ADDED = ".lora_"
"""In the name of every parameter that peft adds."""

HEAD_SPEED_UP = 5.0
"""The head begins with zeros, and so does one matrix of each adapter, whose rates are as high as rates are."""


@dataclass(frozen=True)
class LowRank(Adapter):
    """Adapters of this rank beside linear layers and 1x1 convolutions."""

    rank: int

    def adapt(self, module: nn.Module) -> nn.Module:
        """The module itself, with adapters in it that add nothing yet."""
        from peft import LoraConfig, inject_adapter_in_model

        if not (names := _adaptable(module)):
            return module
        pattern = "|".join(map(re.escape, names))
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=pattern)
        adapted: nn.Module = inject_adapter_in_model(config, module)
        return adapted

    def merge(self, adapted: nn.Module) -> nn.Module:
        """The module itself, each adapter added to the weights that it stands beside."""
        from peft.tuners.lora import LoraLayer

        for name, layer in [*adapted.named_modules()]:
            if isinstance(layer, LoraLayer):
                layer.merge()
                adapted.set_submodule(name, layer.get_base_layer())
        return adapted


def _adaptable(module: nn.Module) -> list[str]:
    """Layers whose product of matrices an adapter can be added to, by name.

    A class of its own may not use its weights as the usual one does, nor one whose weights are made of others, as
    those of weight and spectral norms are; and what is used under two names would be adapted under one. Attention of
    timm that has biases of its own (BEiT, EVA, Swin v2) multiplies by the weight, past the layer.
    """
    from torch import nn

    layers = dict(module.named_modules(remove_duplicate=False))
    uses = Counter(id(one) for layer in layers.values() for one in layer.parameters(recurse=False))
    return [
        name
        for name, layer in layers.items()
        if name and (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and _is_linear(layer)))
        if all(uses[id(one)] == 1 for one in layer.parameters())
        if dict(layer.named_parameters()).keys() <= {"weight", "bias"} and not layer._forward_pre_hooks
        if not (name.endswith(".qkv") and getattr(layers[name.removesuffix(".qkv")], "q_bias", None) is not None)
    ]


def _is_linear(layer: nn.Conv2d) -> bool:
    """Whether it is a linear map of each pixel; padding other than zeros is made before the layer's own product."""
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"


class Lora(FreezeStrategy):
    """The adapters train and the head; all weights of the backbone stay (Hu et al. 2021, arXiv 2106.09685)."""

    name = "lora"
    summary = "low-rank adapters of linear layers and 1x1 convolutions train"
    by_default = False

    def space(self) -> Space:
        """The rank of the adapters, their learning rate, and how images are augmented."""
        dimensions: dict[str, Dimension] = {
            "rank": Choice((4, 8, 16)),
            "learning_rate": Float(2e-4, 5e-3, log=True),
            "augment": Choice(("none", "crop", "crop_flip")),
        }
        return Space(dimensions, starts=({"rank": 8, "learning_rate": 1e-3, "augment": "none"},))

    def adapter(self, params: Params) -> Adapter:
        """Of the rank that the parameters say."""
        return LowRank(int(params["rank"]))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """All adapters in one group; of a network that has none, the head alone."""
        rate = float(params["learning_rate"])
        names = tuple(one.name for stage in stages for one in stage.parameters if ADDED in one.name)
        groups = (ParameterGroup(names, rate),) if names else ()
        recipe = Recipe(augment=str(params["augment"]))  # type: ignore[arg-type]
        return Plan(groups, GradientHead(HEAD_SPEED_UP * rate), recipe=recipe)


@hookimpl
def autoft_freeze_strategies() -> list[FreezeStrategy]:
    """The one strategy."""
    return [Lora()]
