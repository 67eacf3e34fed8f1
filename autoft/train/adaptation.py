"""`Adaptation`: a network into which a strategy has put parameters of its own, and the way back to the plain one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoft.parts.base import Adapter
from autoft.parts.network import Network
from autoft.train.classifier import Classifier
from autoft.values.plan import Plan

NUDGE = 0.01
"""Standard deviation of what parameters are moved by to try the way back: no network comes apart of it."""
TOLERANCE = 1e-4
"""Of the greatest feature. In fp32 the features of adapted and merged networks are 3e-7 to 2.4e-6 apart in thirteen of
timm; where one single layer of them is not merged, most often 1e-3 to 3e-2."""


@dataclass(frozen=True, eq=False)
class Adaptation:
    """`plain` is the network as it came; `network` is what trains instead: a copy, with what the adapter has put in."""

    plain: Network
    network: Network
    adapter: Adapter
    seed: int

    @classmethod
    def of(cls, plain: Network, adapter: Adapter, seed: int) -> Adaptation:
        """Adapt a copy of the network. A function of the seed, so that a trial that goes on finds it as it was."""
        return cls(plain, plain.adapted(_adapted(copy.deepcopy(plain.module), adapter, seed)), adapter, seed)

    def problem(self, plan: Plan, images: Tensor) -> str | None:
        """Why what the plan trains would not come out again; None when it does.

        Found out on normalised images `(n, 3, size, size)` on the CPU, in eval mode, before anything trains: with the
        parameters moved a little, features are those of the merged network, which is scored, and of the plain one with
        its tensors, which are all that is kept. So they are as before at first, where nothing is added yet. Raises what
        `merged` does, and whatever the adapter or its network raise.
        """
        draws, moved = torch.Generator().manual_seed(0), Classifier.of(self.network, 1)
        images.requires_grad_()  # else torch's transformers take a fast path, past what is put into them
        with torch.no_grad():
            for name in (name for group in plan.groups for name in group.names):
                parameter = moved.backbone.get_parameter(name)
                parameter.add_(NUDGE * torch.randn(parameter.shape, generator=draws))
        merged, features = self.merged(moved), moved.backbone(images)
        if apart := self._apart(features, merged.backbone(images)):
            return f"merge() changes the features by {apart:.2g}"
        kept = Classifier.of(self.plain, 1)
        kept.restore(merged.state_dict())
        if apart := self._apart(features, kept.backbone(images)):
            return f"the tensors that merge() gives make other features of the plain network, by {apart:.2g}"
        return None

    def _apart(self, one: Tensor, two: Tensor) -> float:
        """By how much features differ, those of the last stage and of the others each held against its own greatest."""
        parts = [self.plain.own_dim, self.plain.tapped]
        split = zip(torch.split(one, parts, dim=1), torch.split(two, parts, dim=1), strict=True)
        return max(_apart(*both) for both in split if both[0].numel())

    def begin(self, classifier: Classifier) -> Classifier:
        """A plain classifier, adapted in place: where a trial begins that has a parent."""
        backbone = _adapted(classifier.backbone, self.adapter, self.seed)
        return classifier.over(backbone, self.network.module)

    def merged(self, classifier: Classifier) -> Classifier:
        """The plain classifier that computes what an adapted one does, in eval mode; that one stays as it is.

        Raises `ValueError` when its tensors are not those of the plain network.
        """
        merged = copy.deepcopy(classifier)
        backbone = self.adapter.merge(merged.backbone)
        found, wanted = (_shapes(module) for module in (backbone, self.plain.module))
        if found != wanted:
            named = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise ValueError(f"merge() leaves other tensors than the network came with; look at {named[:3]}")
        return merged.over(backbone, self.plain.module).eval()


def _adapted(module: nn.Module, adapter: Adapter, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return adapter.adapt(module)


def _apart(one: Tensor, two: Tensor) -> float:
    """By how much of the greatest of them features differ, 0 for what arithmetic makes of it, and of no finite ones."""
    apart = float((one - two).detach().abs().max() / one.detach().abs().max().clamp_min(torch.finfo(one.dtype).tiny))
    return 0.0 if apart <= TOLERANCE or not one.isfinite().all() else apart


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    tensors: dict[str, Tensor] = module.state_dict()
    return {name: tensor.shape for name, tensor in tensors.items()}
