"""`Adaptation`: a network into which a strategy has put parameters of its own, and the way back to the plain one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoft.parts.base import Adapter
from autoft.parts.network import Network
from autoft.train.classifier import Classifier


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


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    tensors: dict[str, Tensor] = module.state_dict()
    return {name: tensor.shape for name, tensor in tensors.items()}
