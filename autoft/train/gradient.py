"""Gradient training of one trial: steps, averaged weights, and what it takes to go on later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from autoft.media.image.batches import TrainingStream
from autoft.parts.base import Task
from autoft.parts.network import Network
from autoft.train.adaptation import Adaptation
from autoft.train.arithmetic import Arithmetic
from autoft.train.average import Average
from autoft.train.balance import balanced
from autoft.train.captured import Captured
from autoft.train.classifier import Classifier
from autoft.train.folding import FOLDED_FROM_PIXELS, Pair, fold_norms
from autoft.train.optimizer import Optimizer
from autoft.train.prefix import Entrance
from autoft.train.readings import Readings, StepTaken
from autoft.train.standard import StandardisedHead
from autoft.train.starting_point import StartingPoint
from autoft.train.vanishing import Vanishing
from autoft.values.backbone import Stage
from autoft.values.plan import ParameterGroup, Plan
from autoft.values.schedule import share
from autoft.values.space import Scalar

GRADIENT_CLIP = 1.0


class GradientRun:
    """One trial's classifier under training; `step` counts optimiser steps from 0.

    On a GPU no step waits for the one before: steps are queued on a stream of the run's own, as a CUDA graph where that
    can be, and read some steps later.
    """

    def __init__(
        self,
        classifier: Classifier,
        plan: Plan,
        stream: TrainingStream,
        task: Task,
        arithmetic: Arithmetic = Arithmetic(),  # noqa: B008  frozen
        network: Network | None = None,
        adaptation: Adaptation | None = None,
    ) -> None:
        """`network` is what the classifier's backbone is a copy of: its stages are watched, and L2-SP pulls to it.

        Without it nothing is watched, and the weights that the classifier comes with are taken for the pretrained ones.
        Where the backbone is adapted, the `adaptation` says how.
        """
        self._adaptation = adaptation
        self.classifier, self.plan, self.stream, self.arithmetic = classifier, plan, stream, arithmetic
        self.step = 0
        self.at_once = stream.images.at_once
        """How many images go through at a time; halved when the memory of the device does not suffice."""
        classifier.prepare(plan, stream.images.pixels.shape[1])
        self.folded: tuple[Pair, ...] | None = None
        """Convolutions that do the part of held norms; None before the first step."""
        self._task = task
        device = classifier.head.weight.device
        classes = torch.from_numpy(stream.targets).to(device)
        self._balanced = balanced(plan.recipe.balance, classes, task.outputs)
        adjusted = plan.recipe.balance == "logits"
        self._recipe = replace(plan.recipe, label_smoothing=0.0) if adjusted else plan.recipe
        self._optimizer = Optimizer(classifier, plan)
        self.without_moments: tuple[str, ...] = ()
        """Parameters of which `go_on` found no moments, although they had trained."""
        self._begins = [*(round(group.from_pass * stream.steps_per_pass) for group in plan.groups), 0]  # and the head
        self._average = Average(classifier, [*classifier.trained(plan)], plan.recipe.ema_passes * stream.steps_per_pass)
        self._forward: nn.Module = classifier
        # What changes from step to step, where a graph can read it: the rates of the groups, the share of an image in
        # its mixture, and the average's weight.
        self._scalars = torch.zeros(len(self._begins) + 2, device=device)
        self._optimizer.take_rates_from(self._scalars[:-2])
        self._start = _starting_point(classifier, plan, network.module if network else classifier.backbone)
        self._stages = _stages(classifier, plan, network.stages if network else ())
        self._vanishing = Vanishing([*self._stages])
        self.captured = Captured(self._take, device, self._optimizer.obstacle)
        self._readings = Readings(device)
        self._queue = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

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

    @property
    def queued(self) -> int:
        """Steps taken that the device may not have done yet."""
        return len(self._readings)

    @property
    def facts(self) -> Mapping[str, Scalar]:
        """How the device takes its steps, where that is not as on a CPU; and in parts of how many images, if halved."""
        facts: dict[str, Scalar] = {"norms_folded": len(self.folded)} if self.folded else {}
        if self._queue is not None:
            why = self.captured.obstacle or "too few steps for a graph"
            facts["step"] = "a CUDA graph" if self.captured.is_replaying else f"eager: {why}"
        if self._vanishing.stages:
            facts["vanishing_gradients"] = ", ".join(self._vanishing.stages)
        if self.plan.recipe.balance not in ("auto", "none"):
            facts["balance"] = self.plan.recipe.balance
        if self.plan.recipe.drop_path and not self.classifier.droppable:
            facts["drop_path"] = "no block of this network can be left out"
        if self.at_once < self.stream.images.usually_at_once:
            facts["images_at_once"] = self.at_once
        return facts

    def advance(self) -> tuple[StepTaken, ...]:
        """One optimiser step; what comes back is the steps known by now, on a CPU this one, on a GPU earlier ones.

        Raises `FloatingPointError` when a loss is not finite.
        """
        with self._queued():
            self._readings.begin()
            images, targets = self.stream.batch(self.step)
            self._begin_groups()
            self._fold(images)
            rate = self._set_scalars()
            loss, norms = self.captured(images, targets)
            self.step += 1
            return self._noted(self._readings.put(self.step, rate, loss, norms))

    def settle(self) -> tuple[StepTaken, ...]:
        """The steps that `advance` has not given yet; afterwards the device has done them all."""
        with self._queued():
            rest = self._noted(self._readings.rest())
        if self._queue is not None:
            torch.cuda.current_stream().wait_stream(self._queue)
        return rest

    def _noted(self, steps: tuple[StepTaken, ...]) -> tuple[StepTaken, ...]:
        self._vanishing.note(steps)
        return steps

    def close(self) -> None:
        """Free what the device holds, now and not when cycles are collected: no step comes after this.

        Steps that are still queued, as after an error, would otherwise write where the next trial has its weights.
        """
        if self._queue is not None:
            self._queue.synchronize()
        for pair in self.folded or ():
            pair.unfold()
        self.folded = ()
        del self.captured

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """On the run's own stream, behind what was done before: a graph cannot be captured on the default one."""
        if self._queue is None:
            yield
            return
        self._queue.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._queue):
            yield

    def _begin_groups(self) -> None:
        """Freeze the groups whose time has not come: a function of the step, so that a trial can go on.

        What has no gradient an optimiser leaves alone, its weight decay included, and keeps no moments of.
        """
        for group, begins in zip(self._optimizer.groups, self._begins, strict=True):
            for parameter in group:
                if parameter.requires_grad != (self.step >= begins):
                    parameter.requires_grad_(self.step >= begins)
                    self.captured.begin_anew()

    def _fold(self, images: Tensor) -> None:
        """Before the first step: let convolutions do the held norms' part, where there are so many pixels that it pays.

        For few the products of weights take longer than what they save: benchmarks/folding.py. That stands when fewer
        go through at a time later, for lack of memory: what is computed is the same, norms of their own would keep more
        activations, and at a quarter of the pixels from which it pays, an H200 made 15 % fewer images a second.
        """
        if self.folded is not None:
            return
        # What an adapter has put beside a convolution does nothing yet, so that trying would not show it is in the way.
        held = self.plan.batch_norm == "frozen" and self._adaptation is None
        pixels = min(len(images), self.at_once) * images[0, 0].numel()
        pays = pixels >= FOLDED_FROM_PIXELS[images.device.type]
        # It is tried on features: a head of zeros gives the same whatever is done to them.
        forward = self._forward
        before_the_head = forward.backbone if isinstance(forward, Classifier) else forward.get_submodule("0")
        self.folded = fold_norms(before_the_head, images) if held and pays else ()

    def _set_scalars(self) -> float:
        """Bring what this step has of its own to the device; the greatest of its learning rates comes back."""
        recipe, a_pass = self.plan.recipe, self.stream.steps_per_pass
        rates = [
            peak * share(recipe, self.step, begins, a_pass)
            for peak, begins in zip(self._optimizer.peaks, self._begins, strict=True)
        ]
        if self._optimizer.obstacle:
            self._optimizer.set_rates(rates)
        scalars = torch.tensor([*rates, self.stream.mix(self.step).share, self._average.weight(self.step + 1)])
        self._scalars.copy_(scalars, non_blocking=True)
        return max(rates)

    def _take(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of a step and norms of its gradients, on the device; nothing in it waits for the device."""
        self._optimizer.zero_grad()
        with self.classifier.draws.batch(len(images)):
            loss = self._accumulate(images, targets)
        norms = self._norms()
        total = norms[0]
        if self._start is not None:  # whose pull reaches a stage that no gradient does
            self._start.pull()
            total = nn.utils.get_total_norm([one.grad for one in self._moving() if one.grad is not None])
        nn.utils.clip_grads_with_norm_(self._moving(), GRADIENT_CLIP, total)
        self._optimizer.step()
        self._average.update(self._scalars[-1])
        return loss, norms

    def _moving(self) -> list[nn.Parameter]:
        """What has a gradient."""
        return [parameter for parameter in self.classifier.parameters() if parameter.grad is not None]

    def _norms(self) -> Tensor:
        """The norms of the gradients, of all and of each stage `(1 + stages,)`."""
        moving = self._moving()
        each = torch._foreach_norm([parameter.grad for parameter in moving])  # type: ignore[misc]
        total = torch.linalg.vector_norm(torch.stack(each))
        by_parameter = dict(zip(moving, each, strict=True))
        return torch.stack([total, *(self._norm_of(stage, by_parameter) for stage in self._stages.values())])

    def _norm_of(self, stage: Sequence[nn.Parameter], norms: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """The norm of a stage's gradients, zero when none came; NaN before it begins."""
        found = [norms[parameter] for parameter in stage if parameter in norms]
        if found:
            norm: Tensor = torch.linalg.vector_norm(torch.stack(found))
            return norm
        begun = any(parameter.requires_grad for parameter in stage)
        return torch.full((), 0.0 if begun else torch.nan, device=self._scalars.device)

    def _accumulate(self, images: Tensor, targets: Tensor) -> Tensor:
        """Gradients of the batch's mean loss, which comes back, in parts that fit into the device's memory.

        BatchNorm that trains needs the batch whole.
        """
        while True:
            size = len(images) if self.plan.batch_norm == "train" else min(len(images), self.at_once)
            try:
                return self._in_parts(images, targets, size)
            except torch.OutOfMemoryError as error:
                if self.plan.batch_norm == "train":
                    error.add_note(needed_whole(len(images)))
                if size == 1 or self.plan.batch_norm == "train" or _is_capturing():
                    raise
                self.at_once = size // 2
            self._optimizer.zero_grad()
            torch.cuda.empty_cache()

    def _in_parts(self, images: Tensor, targets: Tensor, size: int) -> Tensor:
        total = torch.zeros((), device=images.device)
        others = targets.flip(0) if self.plan.recipe.is_mixing else targets  # as `Mix` takes them
        starts, splits = range(0, len(images), size), (torch.split(one, size) for one in (images, targets, others))
        for start, part, *wanted in zip(starts, *splits, strict=True):
            self.classifier.draws.part(start, len(part))
            with self.arithmetic.autocast(images.device):
                loss = self._loss(self._forward(part), *wanted)
            loss = loss * (len(part) / len(images))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, outputs: Tensor, targets: Tensor, others: Tensor) -> Tensor:
        """Of mixed images, by their shares the losses for the targets of both, as whatever task has them."""
        recipe = self._recipe
        loss = self._task.loss(self._balanced(outputs, targets), targets, recipe)
        if not recipe.is_mixing:
            return loss
        share = self._scalars[-2]
        return share * loss + (1.0 - share) * self._task.loss(self._balanced(outputs, others), others, recipe)

    def scored(self) -> Classifier:
        """The classifier that is scored and exported: averaged weights, eval mode, nothing in it that was put there."""
        averaged = self._average.classifier
        return (averaged if self._adaptation is None else self._adaptation.merged(averaged)).plain()

    def model_tensors(self) -> dict[str, Tensor]:
        """What exporting needs: the averaged tensors that training changed."""
        return self.scored().changed(self.plan)

    def training_tensors(self) -> dict[str, Tensor]:
        """What going on needs besides: the raw weights, the optimiser's memory, and what steps are computed in."""
        raw = {f"raw.{name}": tensor for name, tensor in self.classifier.trained(self.plan).items()}
        # What is scored says too little of an adapted network, and of a head on standardised features.
        averaged = self._average.classifier.changed(self.plan)
        kept = averaged if self._adaptation else {name: averaged[name] for name in averaged if name.startswith("head.")}
        raw |= {f"averaged.{name}": tensor for name, tensor in kept.items()}
        head = self.classifier.head
        standard = head.standard.tensors() if isinstance(head, StandardisedHead) else {}
        return {**raw, **standard, **self._optimizer.memory(), **self.arithmetic.note(self._scalars.device)}

    def go_on(self, passes: float, model: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint taken after `passes`; its `model` tensors are the averaged ones.

        Moments go by the names of their parameters, whatever groups those are in now. What has lost them begins anew,
        and is in `without_moments`: it did not train before, or `Optimizer.remember` says so.
        """
        self.step = round(passes * self.stream.steps_per_pass)
        averaged = _with_prefix(training, "averaged.")
        if self._adaptation is None:
            averaged = {**model, **averaged}
        self._average.classifier.restore(averaged)
        self.classifier.restore(averaged)  # what a parent trained and this trial does not
        raw = _with_prefix(training, "raw.")
        self.classifier.restore(raw)
        anew = self._optimizer.remember(training)
        groups = zip(self._optimizer.groups, self._begins, strict=True)
        begun = (self._optimizer.names(group) for group, begins in groups if self.step > begins)
        went_on = raw.keys() - anew
        self.without_moments = tuple(name for name in chain.from_iterable(begun) if name not in went_on)


def needed_whole(batch: int) -> str:
    """What to say where so many images are too many, and fewer will not do."""
    return (
        f"BatchNorm that trains needs all {batch} images of a batch at a time; "
        "use smaller batches, a smaller --image-size, or a strategy that holds BatchNorm"
    )


def _starting_point(classifier: Classifier, plan: Plan, pretrained: nn.Module) -> StartingPoint | None:
    """Of all that came pretrained and trains, where the plan asks for it."""
    if not plan.recipe.l2_sp:
        return None
    names = [name for group in plan.groups for name in group.names]
    ours, theirs = (dict(module.named_parameters()) for module in (classifier.backbone, pretrained))
    return StartingPoint([ours[name] for name in names], [theirs[name] for name in names], plan.recipe.l2_sp)


def _stages(classifier: Classifier, plan: Plan, stages: Sequence[Stage]) -> dict[str, list[nn.Parameter]]:
    """What trains of each stage, by the stage's name; those of which nothing does are left out."""
    trained, parameters = {name for group in plan.groups for name in group.names}, classifier.backbone.get_parameter
    named = {stage.name: [one.name for one in stage.parameters if one.name in trained] for stage in stages}
    return {stage: [parameters(name) for name in names] for stage, names in named.items() if names}


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
