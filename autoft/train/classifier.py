"""`Classifier`: a backbone with a linear head, and the tensors of it that training changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn

from autoft.parts.cut import hold_norms
from autoft.parts.linear_head import LinearHead
from autoft.parts.network import Network
from autoft.parts.taps import untapped
from autoft.train.dropout import Draws, Dropout
from autoft.train.standard import Standard, StandardisedHead
from autoft.train.stochastic_depth import drop_blocks
from autoft.values.plan import Plan


class Classifier(nn.Module):
    """Maps normalised images `(batch, 3, size, size)` to outputs `(batch, outputs)`: of classes, logits."""

    def __init__(self, backbone: nn.Module, dim: int, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout: nn.Module = nn.Identity()
        self.head: nn.Linear = nn.Linear(dim, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._restored: frozenset[str] = frozenset()
        self.droppable = 0
        """Blocks that training may leave out, under a plan that asks for it."""
        self.draws = Draws()
        """What a plan leaves out of a batch."""

    @classmethod
    def of(cls, network: Network, outputs: int) -> Classifier:
        """A classifier over a copy of the network's module; the pristine weights stay for the next trial."""
        return cls(copy.deepcopy(network.module), network.dim, outputs).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `(batch, outputs)`."""
        logits: Tensor = self.head(self.dropout(self.backbone(images)))
        return logits

    def with_head(self, head: LinearHead) -> Classifier:
        """Itself, with that head in place of its own."""
        with torch.no_grad():
            self.head.weight.copy_(head.weight)
            self.head.bias.copy_(head.bias)
        return self

    def standardise(self, standard: Standard) -> None:
        """From now on, train the head on features as the standard has them; outputs stay what they are."""
        self.head = StandardisedHead(self.head, standard)

    def plain(self) -> Classifier:
        """What gives the same with a plain linear head, over the same backbone, in eval mode; itself if it has one."""
        if not isinstance(self.head, StandardisedHead):
            return self
        plain = Classifier(self.backbone, self.head.in_features, self.head.out_features).eval()
        plain.head, plain._restored = self.head.plain(), self._restored
        return plain

    def over(self, backbone: nn.Module, pristine: nn.Module) -> Classifier:
        """Itself, over another backbone, of which counts as restored what is not as in the `pristine` one."""
        self.backbone, before = backbone, pristine.state_dict()
        tensors = backbone.state_dict().items()
        differing = {name for name, one in tensors if not torch.equal(one, before[name].to(one.device))}
        self._restored = frozenset(f"backbone.{name}" for name in differing)
        return self

    def prepare(self, plan: Plan, size: int) -> None:
        """Freeze and thaw as the plan says for images of that size, put in what drops out, and set train mode."""
        trained = {name for group in plan.groups for name in group.names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)
        if plan.recipe.dropout:
            self.dropout = Dropout(plan.recipe.dropout, self.draws)
        if plan.recipe.drop_path:
            own = torch.Generator().manual_seed(0)  # the trial's random numbers stay what they are
            images = torch.randn(2, 3, size, size, generator=own).to(self.head.weight.device)
            self.droppable = drop_blocks(untapped(self.backbone), plan.recipe.drop_path, images, self.draws)
        self.train()
        if plan.batch_norm == "frozen":
            hold_norms(self.backbone)

    def trained(self, plan: Plan) -> dict[str, Tensor]:
        """The tensors that training under `plan` moves, by state-dict name."""
        names = {f"backbone.{name}" for group in plan.groups for name in group.names}
        if plan.batch_norm == "train":
            names |= {f"backbone.{name}" for name, _ in self.backbone.named_buffers()}
        return self._named(names)

    def changed(self, plan: Plan) -> dict[str, Tensor]:
        """Everything that may differ from the pristine backbone: what a checkpoint has to hold.

        That is what trains under `plan`, and what was restored: a parent may have trained more than its child does.
        """
        return self._named(self.trained(plan).keys() | self._restored)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put checkpointed tensors back. Raises `ValueError` for one this classifier does not have."""
        unexpected = self.load_state_dict(dict(tensors), strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"the checkpoint holds {unexpected[:3]}, which this backbone does not have")
        self._restored = self._restored.union(tensors)

    def _named(self, names: Set[str]) -> dict[str, Tensor]:
        return {name: t for name, t in self.state_dict().items() if name in names or name.startswith("head.")}
