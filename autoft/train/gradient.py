"""Gradient training of one trial: steps, averaged weights, and what it takes to go on later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from autoft.media.image.batches import TrainingStream
from autoft.parts.base import Task
from autoft.train.classifier import Classifier
from autoft.train.prefix import Entrance
from autoft.values.plan import ParameterGroup, Plan

GRADIENT_CLIP = 1.0


@dataclass(frozen=True)
class StepTaken:
    """One optimiser step: its loss, the greatest learning rate of all groups, and the norm of all gradients unclipped.

    The norm is a scalar on the device, so that nobody has to wait for the step's end to go on.
    """

    loss: float
    learning_rate: float
    gradient_norm: Tensor


class GradientRun:
    """One trial's classifier under training; `step` counts optimiser steps from 0."""

    def __init__(self, classifier: Classifier, plan: Plan, stream: TrainingStream, task: Task) -> None:
        self.classifier, self.plan, self.stream = classifier, plan, stream
        self.step = 0
        classifier.prepare(plan)
        self._task = task
        self._optimizer = classifier.optimizer(plan)
        names = {parameter: name for name, parameter in classifier.named_parameters()}
        self._names = [[names[parameter] for parameter in group["params"]] for group in self._optimizer.param_groups]
        self.without_moments: tuple[str, ...] = ()
        """Parameters of which `go_on` found no moments, although they had trained."""
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._begins = [*(round(group.from_pass * stream.steps_per_pass) for group in plan.groups), 0]  # and the head
        self._average = _average(classifier, plan.recipe.ema_passes * stream.steps_per_pass)
        self._forward: nn.Module = classifier

    def enter(self, entrance: Entrance) -> None:
        """From now on, train from what comes in there."""
        self.stream, self._forward = entrance.stream(self.stream), entrance.rest(self.classifier)

    @property
    def begun(self) -> list[ParameterGroup]:
        """The groups that have taken a step."""
        begins = self._begins[: len(self.plan.groups)]
        return [group for group, begin in zip(self.plan.groups, begins, strict=True) if begin < self.step]

    @property
    def passes(self) -> float:
        """Passes over the training images so far."""
        return self.step / self.stream.steps_per_pass

    def advance(self) -> StepTaken:
        """One optimiser step. Raises `FloatingPointError` when the loss is not finite."""
        images, targets = self.stream.batch(self.step)
        self._begin_groups()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate(images, targets)
        norm = nn.utils.clip_grad_norm_(self.classifier.parameters(), GRADIENT_CLIP)
        self._optimizer.step()
        self.step += 1
        self._average.update(self.classifier, step=self.step)
        return StepTaken(loss, max(group["lr"] for group in self._optimizer.param_groups), norm)

    def _begin_groups(self) -> None:
        """Set rates, and freeze the groups whose time has not come: a function of the step, so that a trial can go on.

        What has no gradient AdamW leaves alone, its weight decay included, and keeps no moments of.
        """
        for group, peak, begins in zip(self._optimizer.param_groups, self._peaks, self._begins, strict=True):
            group["lr"] = peak * self._rate(self.step - begins)
            for parameter in group["params"]:
                parameter.requires_grad_(self.step >= begins)

    def _accumulate(self, images: Tensor, targets: Tensor) -> float:
        """Gradients of the batch's mean loss, part by part; BatchNorm that trains needs the batch whole."""
        whole = self.plan.batch_norm == "train"
        size = len(images) if whole else min(len(images), self.stream.images.at_once)
        total = 0.0
        for part, wanted in zip(torch.split(images, size), torch.split(targets, size), strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
                loss = self._task.loss(self._forward(part), wanted, self.plan.recipe)
            loss = loss * (len(part) / len(images))
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss became {loss.item()} at step {self.step}")
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def scored(self) -> Classifier:
        """The classifier that is scored and exported: averaged weights, eval mode."""
        averaged: Classifier = self._average.module
        return averaged.eval()

    def model_tensors(self) -> dict[str, Tensor]:
        """What exporting needs: the averaged tensors that training changed."""
        return self.scored().changed(self.plan)

    def training_tensors(self) -> dict[str, Tensor]:
        """What going on needs besides: the raw weights and AdamW's moments."""
        raw = {f"raw.{name}": tensor for name, tensor in self.classifier.trained(self.plan).items()}
        names = [*chain.from_iterable(self._names)]
        moments = {
            f"moment.{names[index]}.{kind}": tensor
            for index, state in self._optimizer.state_dict()["state"].items()
            for kind, tensor in state.items()
        }
        return {**raw, **moments}

    def go_on(self, passes: float, model: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint taken after `passes`; its `model` tensors are the averaged ones.

        Moments go by the names of their parameters, whatever groups those are in now. What has lost them begins anew,
        and is in `without_moments`: it did not train before, or the checkpoint is of a version that kept moments by
        number, which says nothing of a parameter once groups have changed.
        """
        self.step = round(passes * self.stream.steps_per_pass)
        self._average.module.restore(model)
        self.classifier.restore(model)  # what a parent trained and this trial does not
        raw = _with_prefix(training, "raw.")
        self.classifier.restore(raw)
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in _with_prefix(training, "moment.").items():
            name, _, kind = key.rpartition(".")
            found.setdefault(name, {})[kind] = tensor
        state = {index: found[name] for index, name in enumerate(chain.from_iterable(self._names)) if name in found}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        begun = (names for names, begins in zip(self._names, self._begins, strict=True) if self.step > begins)
        went_on = set() if any(map(str.isdigit, found)) else raw.keys()
        self.without_moments = tuple(name for name in chain.from_iterable(begun) if name not in went_on)

    def _rate(self, steps: int) -> float:
        """The factor of the learning rate of a group that began so many steps ago: 0 before that.

        Linear warm-up, then constant or cosine to the horizon.
        """
        recipe = self.plan.recipe
        begun = max(0, steps + 1) / self.stream.steps_per_pass
        warm = begun / recipe.warmup_passes if begun < recipe.warmup_passes else float(steps >= 0)
        if recipe.schedule == "constant":
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.passes / recipe.passes)))


def _average(classifier: Classifier, steps: float) -> ModelEmaV3:
    """Averaged weights with a memory of `steps`; short at first, so that the start is forgotten."""
    decay = math.exp(-1.0 / steps) if steps > 0 else 0.0
    return ModelEmaV3(classifier, decay=decay, use_warmup=True)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
