"""`Classifier`: a backbone with a linear head, and the tensors of it that training changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autoft.network import Network
from autoft.types import GradientHead, Plan

FROZEN_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Classifier(nn.Module):
    """Maps normalised images `(batch, 3, size, size)` to logits `(batch, classes)`."""

    def __init__(self, backbone: nn.Module, dim: int, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(dim, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def of(cls, network: Network, outputs: int) -> Classifier:
        """A classifier over a copy of the network's module; the pristine weights stay for the next trial."""
        return cls(copy.deepcopy(network.module), network.dim, outputs).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def prepare(self, plan: Plan) -> None:
        """Freeze and thaw as the plan says, and set train mode."""
        trained = {name for group in plan.groups for name in group.names}
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)
        self.train()
        if plan.batch_norm == "frozen":
            for module in self.backbone.modules():
                if isinstance(module, FROZEN_NORMS):
                    module.eval()

    def optimizer(self, plan: Plan, head: GradientHead) -> torch.optim.Optimizer:
        """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over the plan's groups and the head."""
        parameters = dict(self.backbone.named_parameters())
        groups = [
            ([parameters[name] for name in group.names], group.learning_rate, group.weight_decay)
            for group in plan.groups
        ]
        groups.append((list(self.head.parameters()), head.learning_rate, head.weight_decay))
        return torch.optim.AdamW(
            [{"params": tensors, "lr": rate, "weight_decay": decay} for tensors, rate, decay in groups]
        )

    def changed(self, plan: Plan) -> dict[str, Tensor]:
        """The tensors that training under `plan` changes, by state-dict name: what a checkpoint has to hold."""
        trained = {f"backbone.{name}" for group in plan.groups for name in group.names}
        if plan.batch_norm == "train":
            trained |= {f"backbone.{name}" for name, _ in self.backbone.named_buffers()}
        return {
            name: tensor for name, tensor in self.state_dict().items() if name in trained or name.startswith("head.")
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put checkpointed tensors back. Raises `ValueError` for one this classifier does not have."""
        unexpected = self.load_state_dict(dict(tensors), strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"the checkpoint holds {unexpected[:3]}, which this backbone does not have")
