"""`Optimizer`: what moves the weights of a trial, and what it remembers, by the names of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn

from autoft.parts.optimizers import USUAL
from autoft.train.classifier import Classifier
from autoft.values.plan import GradientHead, ParameterGroup, Plan

_SGD: Final = frozenset({"sgd", "momentum", "nesterov"})
_FUSED: Final = _SGD | {USUAL, "adam"}
"""One kernel for all weights, that reads rates from the device; any other reads them, and counts steps, in Python."""

_BUFFER: Final = "momentum_buffer"
"""What torch calls the moments of SGD."""

_MOMENT: Final = "moment."
_NAME: Final = "optimizer"
"""Of the optimiser, as bytes."""

_NUMBER: Final = ":number"
"""Ends the name of what is a number of Python's, in a tensor only to be kept."""

_OF_GROUP: Final = "[group]"
"""Ends the name of a group's first parameter, under which stands what the group remembers."""


class Optimizer:
    """Over the groups of a plan and then the head, by `recipe.optimizer`, as timm makes it.

    The usual one is AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). `peaks` are the rates of the groups.
    """

    def __init__(self, classifier: Classifier, plan: Plan) -> None:
        self._name, device = plan.recipe.optimizer, classifier.head.weight.device
        self._names = {parameter: name for name, parameter in classifier.named_parameters()}
        groups = _groups(classifier, plan)
        self.peaks = [float(group["lr"]) for group in groups]
        self.obstacle = "" if self._name in _FUSED else f"the optimiser {self._name!r} counts and computes in Python"
        """Why its steps cannot be part of a CUDA graph; "" when they can."""
        how = {} if self.obstacle else {"fused": True}
        if self._name in (USUAL, "adam"):
            how["capturable"] = device.type == "cuda"
        momentum = plan.recipe.momentum
        self._torch = create_optimizer_v2(groups, self._name, lr=max(self.peaks), momentum=momentum, **how)  # type: ignore[arg-type]
        self._given = frozenset(self._torch.param_groups[0])

    @property
    def groups(self) -> Sequence[list[Tensor]]:
        """The parameters of each group, the head's last."""
        return [group["params"] for group in self._torch.param_groups]

    def names(self, parameters: Sequence[Tensor]) -> list[str]:
        """What the classifier calls them."""
        return [self._names[parameter] for parameter in parameters]  # type: ignore[index]

    def take_rates_from(self, rates: Tensor) -> None:
        """Read the rates of the groups there, `(groups,)`, at every step."""
        for group, rate in zip(self._torch.param_groups, rates, strict=True):
            group["lr"] = rate

    def set_rates(self, rates: Sequence[float]) -> None:
        """The rates of the groups for the next step, for an optimiser that reads them in Python."""
        for group, rate in zip(self._torch.param_groups, rates, strict=True):
            group["lr"] = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._torch.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Move what has a gradient."""
        if self._name in _SGD:
            self._join_momenta()
        self._torch.step()

    def _join_momenta(self) -> None:
        """Let what has its first gradient later than others of its group begin with them.

        torch's fused SGD takes all buffers of a group or none. From zeros it begins just as from none, as nothing is
        dampened.
        """
        for group in self._torch.param_groups:
            moving = [one for one in group["params"] if one.grad is not None]
            without = [one for one in moving if self._torch.state[one].get(_BUFFER) is None]
            for one in without if len(without) < len(moving) else ():
                self._torch.state[one][_BUFFER] = torch.zeros_like(one, requires_grad=False)

    def memory(self) -> dict[str, Tensor]:
        """What it has to know to go on just as it would have: `moment.PARAMETER.KIND`, and its name."""
        return {
            _NAME: torch.tensor(list(self._name.encode()), dtype=torch.uint8),
            **self._moments(),
        }

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{_MOMENT}{name}.{kind}{'' if isinstance(value, Tensor) else _NUMBER}": _kept(value)
            for name, kept in self._memories()
            for kind, value in kept.items()
            if value is not None
        }

    def remember(self, tensors: Mapping[str, Tensor]) -> set[str] | None:
        """Take up what `memory` gave, whatever groups there are now; of which parameters there was something.

        None when it is another optimiser's, of which nothing is taken up.
        """
        # Checkpoints of older versions have no name: there was one optimiser.
        if bytes(tensors[_NAME].tolist()).decode() != self._name if _NAME in tensors else self._name != USUAL:
            return None
        found: dict[str, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith(_MOMENT):
                name, _, kind = key.removeprefix(_MOMENT).rpartition(".")
                number = kind.endswith(_NUMBER)
                found.setdefault(name, {})[kind.removesuffix(_NUMBER)] = tensor.item() if number else tensor
        for parameter, name in self._names.items():
            if name in found:
                self._torch.state[parameter] = {k: self._laid_out(k, v, parameter) for k, v in found[name].items()}
        for group in self._torch.param_groups:
            group.update(found.get(f"{self._names[group['params'][0]]}{_OF_GROUP}", {}))
        return {*found}

    def _memories(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Of each parameter, by name, and of groups that have counted something for all of theirs."""
        for parameter, name in self._names.items():
            yield name, self._torch.state.get(parameter, {})
        for group in self._torch.param_groups:
            counted = {key: value for key, value in group.items() if key not in self._given}
            yield f"{self._names[group['params'][0]]}{_OF_GROUP}", counted

    def _laid_out(self, kind: str, value: Any, parameter: Tensor) -> Any:
        """A moment where and as its parameter lies in memory: a fused optimiser goes through both side by side.

        Steps that are counted in Python stay there.
        """
        if not isinstance(value, Tensor) or (kind == "step" and self.obstacle):
            return value
        if value.shape != parameter.shape:  # a number of steps, or a moment of rows
            return value.to(parameter.device)
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _kept(value: Any) -> Tensor:
    """A number of Python's without loss."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)


def _groups(classifier: Classifier, plan: Plan) -> list[dict[str, Any]]:
    head = plan.head
    if not isinstance(head, GradientHead):
        raise TypeError(f"a head fitted by {plan.fit} takes no step")
    parameter = classifier.backbone.get_parameter
    groups: list[tuple[ParameterGroup | GradientHead, list[nn.Parameter]]] = [
        *((group, [parameter(name) for name in group.names]) for group in plan.groups),
        (head, [*classifier.head.parameters()]),
    ]
    return [{"params": params, "lr": one.learning_rate, "weight_decay": one.weight_decay} for one, params in groups]
