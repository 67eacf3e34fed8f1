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
"""Ends the name of a parameter, under which stands what its group remembers for all of them."""


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

    def remember(self, tensors: Mapping[str, Tensor]) -> frozenset[str]:
        """Take up what `memory` gave, whatever groups there are now; the parameters come back that begin anew for all.

        Those are all, where it is another optimiser's, or of a version that kept moments by number: that says nothing
        of a parameter once groups have changed. And those of a group whose parameters were counted differently, where
        an optimiser counts for a group: moments that do not go with the count would be corrected as if they were new.
        """
        # Checkpoints of older versions have no name: there was one optimiser.
        of = bytes(tensors[_NAME].tolist()).decode() if _NAME in tensors else USUAL
        found = _by_parameter(tensors)
        if of != self._name or any(map(str.isdigit, found)):
            return frozenset(self._names.values())
        anew: set[str] = set()
        for group in self._torch.param_groups:
            names = self.names(group["params"])
            counted = [found.get(f"{name}{_OF_GROUP}", {}) for name in names]
            if any(count != counted[0] for count in counted):
                anew.update(names)
                continue
            group.update(counted[0])
            for parameter, name in zip(group["params"], names, strict=True):
                if name in found:
                    kept = found[name].items()
                    self._torch.state[parameter] = {kind: self._laid_out(kind, one, parameter) for kind, one in kept}
        return frozenset(anew)

    def _memories(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Of each parameter, by name, and what its group has counted for it."""
        for parameter, name in self._names.items():
            yield name, self._torch.state.get(parameter, {})
        for group in self._torch.param_groups:
            counted = {key: value for key, value in group.items() if key not in self._given}
            for name in self.names(group["params"]):
                yield f"{name}{_OF_GROUP}", counted

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


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What `memory` gave, by parameter and kind."""
    found: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith(_MOMENT):
            name, _, kind = key.removeprefix(_MOMENT).rpartition(".")
            number = kind.endswith(_NUMBER)
            found.setdefault(name, {})[kind.removesuffix(_NUMBER)] = tensor.item() if number else tensor
    return found


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
