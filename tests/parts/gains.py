"""A strategy that puts parameters into a network: a gain for each output of its layers, merged into their weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch import ones as new_ones

from autoft import Adapter, Float, FreezeStrategy, GradientHead, ParameterGroup, Plan, Recipe, Space, hookimpl


class Gained(nn.Module):
    def __init__(self, base: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.gain = nn.Parameter(new_ones(len(base.weight), device=base.weight.device))

    @property
    def weight(self) -> Tensor:
        """Which torch's transformers ask their layers for, where they take no fast path too."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.base(inputs)
        return outputs * (self.gain[:, None, None] if isinstance(self.base, nn.Conv2d) else self.gain)


class Gain(Adapter):
    def adapt(self, module):
        layers = dict(module.named_modules(remove_duplicate=False))
        found = [(name, one) for name, one in layers.items() if type(one) in (nn.Conv2d, nn.Linear)]
        for name, layer in found:
            if [*layers.values()].count(layer) == 1:
                module.set_submodule(name, Gained(layer))
        return module

    def merge(self, adapted):
        for name, layer in [*adapted.named_modules()]:
            if isinstance(layer, Gained):
                gain = layer.gain.detach()
                layer.base.weight.data *= gain.view(-1, *[1] * (layer.base.weight.ndim - 1))
                if layer.base.bias is not None:
                    layer.base.bias.data *= gain
                adapted.set_submodule(name, layer.base)
        return adapted


class Gains(FreezeStrategy):
    name = "gains"
    by_default = False

    def space(self):
        return Space({"learning_rate": Float(1e-3, 1e-1, log=True)}, ({"learning_rate": 1e-2},))

    def adapter(self, params):
        return Gain()

    def plan(self, stages, params):
        names = tuple(one.name for stage in stages for one in stage.parameters if one.name.endswith("gain"))
        groups = (ParameterGroup(names, params["learning_rate"]),) if names else ()
        return Plan(groups, GradientHead(1e-2), recipe=Recipe(passes=4.0, batch_size=8, augment="none"))


@hookimpl
def autoft_freeze_strategies():
    return [Gains()]
