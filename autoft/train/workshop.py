"""`Workshop`: what the slices of one process share, and `Bench`, what one of them works with."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoft.data.dataset import Dataset
from autoft.errors import RunFolderError
from autoft.media.image.batches import FORWARD_TIMES, Images
from autoft.media.image.resident import Resident
from autoft.parts.base import FreezeStrategy, Task
from autoft.parts.cut import Cut
from autoft.parts.host import Host
from autoft.parts.metric import Metric
from autoft.parts.network import Network
from autoft.store import Checkpoint, unwritable
from autoft.study.machine import MIB, peak_memory
from autoft.study.run import Run
from autoft.system.disk_cache import cache_root
from autoft.system.files import DISK_ERRORS
from autoft.system.signals import Cancelled
from autoft.tasks.scores import interval
from autoft.tasks.statistics import RESAMPLES, Interval, bootstrap, value_of
from autoft.train.adaptation import Adaptation
from autoft.train.arithmetic import begun
from autoft.train.classifier import Classifier
from autoft.train.features import FeatureCache
from autoft.train.forward import Forward, ForwardChoice
from autoft.train.halves import in_halves
from autoft.train.heads import Solved, seen_by_heads
from autoft.train.job import Job
from autoft.train.precision import Choice, Precision, device_name
from autoft.train.step_timing import Subject
from autoft.values.counts import passes
from autoft.values.dataset import TrainOn
from autoft.values.plan import Balance, Plan, Recipe
from autoft.values.space import Scalar
from autoft.values.trial import Parent, Report, Trial

INPUTS_AT_ONCE = 32
NETWORKS_IN_MEMORY = 3
FEW = 500
"""Validation images by which no score is sure: of more, an accuracy has a standard error of .02 at most."""
ERRORS_IN_AN_INTERVAL = 2 * 1.96
MOST_RESAMPLING, TRIED_RESAMPLES = 1.0, 20
"""Seconds of a core that all resamples of a score may take, and how many are tried to find out."""
TIMED_ON_A_GPU = 64
"""Images of the steps by which the arithmetic is chosen there."""


class WeightsChanged(RunFolderError):
    """The pretrained weights are not those that the run has trained from: no fault of a trial, its slice stays open."""


class Workshop:
    """What the slices of one process share: the images and their task, networks, features, checkpoints, measured costs.

    Keeps the last few backbones in memory, pristine, from one slice to the next. `cancelled` is asked between batches;
    when it says yes, what is under way raises `Cancelled`.
    """

    def __init__(self, run: Run, host: Host, cancelled: Callable[[], bool] = lambda: False) -> None:
        record, self.host, self.dataset, self.checkpoints = run.record, host, run.dataset(host), run.checkpoints
        self.record, self.folder, self.task = record, run.folder, self.dataset.task
        self._run = run
        self.device = torch.device(record.machine.device)
        self.features = FeatureCache(cache_root() / "features", record.data.fingerprint, record.view)
        self.prefixes = cache_root() / "prefixes"
        self.precision = Precision(cache_root() / "precision", record.study.precision)
        self.forward = Forward(cache_root() / "precision", record.study.precision, self.features)
        self.image_seconds: dict[tuple[str, int], float] = {}
        """What one image's forward pass was measured to take, by backbone and input size."""
        self.solved: dict[tuple[tuple[str, int], TrainOn], Solved] = {}
        """Heads in closed form on all images to train on, by backbone and input size."""
        self._cancelled = cancelled
        self._resident = Resident(self.device)
        self._backbones = {backbone.name: backbone for backbone in record.backbones}
        self._networks: OrderedDict[str, Network] = OrderedDict()
        self._cuts: dict[tuple[str, int, int], Cut | None] = {}
        self._is_resampled: bool | None = None

    @cached_property
    def validation(self) -> NDArray[np.int64]:
        """Rows `(n,)` of the validation images; asked for at every step, and found among all samples."""
        return self.dataset.rows("val")

    @cached_property
    def _remedy(self) -> Balance:
        """What is done for rare classes where a plan leaves it open: for refits too, whatever they train on."""
        return next(iter(self.task.remedies(self.dataset.labels("train"))), "none")

    def trained_on(self, trial: Trial) -> Dataset:
        """The images of a trial: a refit trains on validation images that there was no time to score, too."""
        return self.dataset if trial.twin is None else self._every_image

    @cached_property
    def _every_image(self) -> Dataset:
        return self._run.every_image(self.host)

    @property
    def device_name(self) -> str:
        """Of which kind the device is."""
        return device_name(self.device)

    def check(self) -> None:
        """Raise `Cancelled` when the run is being stopped."""
        if self._cancelled():
            raise Cancelled

    def fault(self, error: Exception) -> str:
        """What went wrong with a trial, in one line. Raises `RunFolderError` where nobody can write into the run."""
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise unwritable(self.checkpoints.run, self.checkpoints.run, error) from error
        self.folder.require()
        return self.host.describe(error)

    def network(self, backbone: str) -> Network:
        """The backbone's network as it came, eval mode; not to be changed."""
        if backbone not in self._networks:
            network = seen_by_heads(self.host.build(self._backbones[backbone]), self.record.features_of)
            network.module.eval().to(memory_format=network.layout(self.device))
            assert network.fingerprint  # of the weights as they came
            self._networks[backbone] = network
            while len(self._networks) > NETWORKS_IN_MEMORY:
                self._networks.popitem(last=False)
        self._networks.move_to_end(backbone)
        return self._networks[backbone]

    def cut(self, backbone: str, depth: int, size: int) -> Cut | None:
        """Where the backbone's network can be cut (`Network.split`); found out once."""
        wanted = (backbone, depth, size)
        if wanted not in self._cuts:
            self._cuts[wanted] = self.network(backbone).split(depth, size)
        return self._cuts[wanted]

    def bench(self, job: Job) -> Bench:
        """What the job's slice works with: its images in as small parts as are known to be needed."""
        trial = job.slice.trial
        network, strategy = self.network(trial.backbone), self.host.part(FreezeStrategy, trial.freeze)
        adapter = strategy.adapter(trial.params)
        adaptation = None if adapter is None else Adaptation.of(network, adapter, trial.seed)
        stages = network.stages if adaptation is None else adaptation.network.stages
        plan = strategy.plan(stages, trial.params)
        recipe, left_out = _taken(plan.recipe, self.task, self._remedy)
        plan = replace(plan, recipe=recipe)
        bench = Bench(self, job, network, plan, self.images(trial), adaptation, left_out)
        if plan.batch_norm == "train":  # which takes no parts
            return bench
        most = job.allowance.images(bench.images.at_once, bench.together, self.device_name)
        return replace(bench, images=replace(bench.images, most=most))

    def images(self, trial: Trial) -> Images:
        """The pixels as the trial's backbone sees them."""
        spec, layout = self._backbones[trial.backbone].input, self.network(trial.backbone).layout(self.device)
        pixels = self.dataset.pixels(trial.image_size, spec.interpolation, self.record.view)
        return Images(pixels, spec, self.device, layout, self._resident.pixels(pixels))

    def outputs(self, classifier: nn.Module, batches: Iterable[torch.Tensor]) -> np.ndarray:
        """Outputs `(n, outputs)` float32 for batches of a classifier's inputs on its device."""
        parts = []
        with torch.inference_mode():
            for batch in batches:
                self.check()
                parts.append(in_halves(classifier, batch).float().cpu())
        return torch.cat(parts).numpy()

    def answers(self, classifier: Classifier, inputs: torch.Tensor) -> np.ndarray:
        """Outputs `(n, outputs)` float32 of the network's inputs `(n, 3, size, size)`."""
        return self.outputs(classifier, torch.split(inputs.to(self.device), INPUTS_AT_ONCE))

    def score(self, outputs: np.ndarray) -> float:
        """The validation score. Raises `FloatingPointError` for outputs that would take broken images for class 0."""
        if broken := int((~np.isfinite(outputs)).any(axis=1).sum()):
            raise FloatingPointError(f"the logits of {broken} of {len(outputs)} validation images are not finite")
        return self.task.score(self.record.metric.name, outputs, self.dataset.targets("val"))

    def interval(self, outputs: np.ndarray) -> Interval | None:
        """The 95 % interval of the validation score.

        None for more than `FEW` images, and of a metric of which a thousand resamples would take seconds, unless the
        score is past the target: then it decides whether the search is over.
        """
        metric = self.task.metric(self.record.metric.name)
        judged, targets = self.task.judged(outputs), self.dataset.targets("val")
        target = self.record.target
        is_wanted = target is not None and metric.score(judged, targets) >= target
        if not is_wanted and not self._is_resampled_unasked(metric, judged, targets):
            return None
        low, high = interval(metric, judged, targets)
        return (low, high) if math.isfinite(high - low) else None

    def ahead(self, outputs: np.ndarray, others: np.ndarray) -> tuple[float, float] | None:
        """By how much the validation score of outputs is above that of others, and the standard error of that.

        Of one bootstrap for both, as they are wrong about the same images. None where resamples would take seconds.
        """
        metric, targets = self.task.metric(self.record.metric.name), self.dataset.targets("val")
        judged = [self.task.judged(one) for one in (outputs, others)]
        if not metric.is_proportion and not self._is_resampled_unasked(metric, judged[0], targets):
            return None
        statistics = {name: metric.statistic(one, targets) for name, one in zip(("one", "other"), judged, strict=True)}
        drawn = bootstrap(statistics, len(targets))
        gain = value_of(statistics["one"], len(targets)) - value_of(statistics["other"], len(targets))
        error = float(np.nanstd(drawn["one"] - drawn["other"]))
        return (gain, error) if math.isfinite(gain + error) else None

    def _is_resampled_unasked(self, metric: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> bool:
        if len(targets) > FEW:
            return False
        if self._is_resampled is None:  # one answer for all trials, whatever else the machine does
            seconds = 0.0 if metric.is_proportion else _resampling_seconds(metric, judged, targets)
            self._is_resampled = seconds <= MOST_RESAMPLING
        return self._is_resampled

    def loss(self, outputs: np.ndarray, recipe: Recipe) -> float | None:
        """The task's loss of the validation images, for labels that are not smoothed; None if it is not finite."""
        targets = torch.from_numpy(self.dataset.targets("val"))
        loss = self.task.loss(torch.from_numpy(outputs), targets, replace(recipe, label_smoothing=0.0)).item()
        return loss if math.isfinite(loss) else None

    # ---------------------------------------------------------------- checkpoints

    def saved(self, wanted: Parent) -> Checkpoint:
        """A checkpoint that is kept. Raises `LookupError` when it is gone or damaged."""
        if (checkpoint := self.checkpoints.load(wanted)) is None:
            raise LookupError(f"trial {wanted.trial} has no whole checkpoint at {passes(wanted.step)} any more")
        return checkpoint

    def restored(self, checkpoint: Checkpoint) -> Classifier:
        """The checkpoint's classifier, eval mode.

        Raises `WeightsChanged` when the backbone's weights are not those it was trained from.
        """
        network = self.network(checkpoint.trial.backbone)
        require_same_weights(network, checkpoint)
        classifier = Classifier.of(network, self.task.outputs)
        classifier.restore(checkpoint.model)
        return classifier


def _resampling_seconds(metric: Metric, judged: NDArray[Any], targets: NDArray[Any]) -> float:
    """What all resamples of a score would take of a core, by a few: they come in stacks, as in `bootstrap`."""
    statistic, each_once = metric.statistic(judged, targets), np.ones((1, len(targets)), np.int64)
    statistic(each_once)  # what is loaded when first used
    stack, began = each_once.repeat(TRIED_RESAMPLES, axis=0), time.thread_time()
    statistic(stack)
    return (time.thread_time() - began) * RESAMPLES / TRIED_RESAMPLES


def _taken(recipe: Recipe, task: Task, remedy: Balance) -> tuple[Recipe, dict[str, Scalar]]:
    """What of a recipe the task takes, with the `remedy` where it leaves that open, and what is said of the rest."""
    left_out: dict[str, Scalar] = {}
    if recipe.balance == "auto":
        recipe = replace(recipe, balance=remedy)
    if task.form == "numbers" and recipe.is_mixing:  # half of two images is not half of what they show
        recipe = replace(recipe, mixup=0.0, cutmix=0.0)
        left_out["mixing"] = "left out: answers are numbers"
    if recipe.balance not in ("none", *task.balances):
        left_out["balance_left_out"] = f"{recipe.balance}: not for task {task.name!r}"
        recipe = replace(recipe, balance="none")
    return recipe, left_out


def require_same_weights(network: Network, checkpoint: Checkpoint) -> None:
    """Raise `WeightsChanged` unless a checkpoint is over these weights.

    It holds what training changed; over other frozen tensors it is another model.
    """
    if network.fingerprint != checkpoint.weights:
        raise WeightsChanged(
            f"the pretrained weights of {checkpoint.trial.backbone} are not those that trial "
            f"{checkpoint.trial.id} was trained from; restore them, or start a new run"
        )


@dataclass(frozen=True, eq=False)
class Bench:
    """What one slice works with."""

    shop: Workshop
    job: Job
    network: Network
    plan: Plan
    images: Images
    adaptation: Adaptation | None = None
    """Where the strategy puts parameters into the network."""
    left_out: Mapping[str, Scalar] = field(default_factory=dict)
    """Of the strategy's plan, what the task does not take."""

    @property
    def trial(self) -> Trial:
        """Whose slice it is."""
        return self.job.slice.trial

    @property
    def trained(self) -> Network:
        """The network that trains by gradient."""
        return self.network if self.adaptation is None else self.adaptation.network

    @property
    def image_seconds(self) -> float | None:
        """Seconds of one image's forward pass at this size; None before it was measured."""
        return self.shop.image_seconds.get(self.trial.network)

    def arithmetic(self, checkpoint: Checkpoint | None) -> Choice:
        """What the trial's steps are computed in: that of the checkpoint it goes on from, or what is chosen now."""
        device, images = self.shop.device, self.images
        if checkpoint and (before := begun(checkpoint.training, self.network, device)):
            return Choice(before, "as the trial began")
        # On a GPU what is faster hardly depends on the batch, and each batch size searched would be measured anew.
        wanted = self.plan.recipe.batch_size if device.type == "cpu" else TIMED_ON_A_GPU
        batch = min(wanted, len(self.shop.dataset.rows("train")))
        at_once = batch if self.plan.batch_norm == "train" else min(batch, images.at_once)
        subject = Subject(self.trial.backbone, self.network, self.trial.image_size, at_once, device)
        return self.shop.precision.choice(subject, self.job.seconds_left, self.shop.check)

    def forward(self, rows: NDArray[np.int64]) -> ForwardChoice:
        """In which numbers the untouched backbone's features of these training images are computed."""
        return self.shop.forward.choice(self.network, self.images, rows, self.job.seconds_left, self.shop.check)

    def measured(self, image_seconds: float) -> None:
        """One image's forward pass has just taken so long."""
        self.shop.image_seconds[self.trial.backbone, self.trial.image_size] = image_seconds

    def with_certainty(self, report: Report, outputs: np.ndarray) -> Report:
        """The report with how sure its score is, where `Workshop.interval` says; a refit has no score."""
        if self.trial.twin is not None or (ends := self.shop.interval(outputs)) is None:
            return report
        low, high = ends
        return replace(report, standard_error=(high - low) / ERRORS_IN_AN_INTERVAL, bound=low)

    @property
    def together(self) -> int:
        """How many images it would have in memory at a time, where a step's activations count as four forward passes'.

        Those of a batch, or of a probe a forward pass'.
        """
        if self.plan.fit == "closed_form":
            return max(1, self.images.forward_size // FORWARD_TIMES)
        trained = self.shop.trained_on(self.trial).rows(self.trial.train_on)
        return min(self.plan.recipe.batch_size, len(trained))


def memory() -> dict[str, Scalar]:
    """Peak memory in MiB: resident of this process, and where a GPU is used what tensors took of that in this slice.

    With it the most that was reserved for them, what all else takes of the GPU now (the contexts of CUDA, this process'
    among them, and other processes), and how much the GPU has.
    """
    facts: dict[str, Scalar] = {"peak_rss_mib": peak_memory() // MIB}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        free, card = torch.cuda.mem_get_info()
        facts["peak_gpu_mib"] = torch.cuda.max_memory_allocated() // MIB
        facts["reserved_gpu_mib"] = torch.cuda.max_memory_reserved() // MIB
        facts["others_gpu_mib"] = (card - free - torch.cuda.memory_reserved()) // MIB
        facts["card_gpu_mib"] = card // MIB
    return facts


def release_memory() -> None:
    """Behind a slice: give back to a GPU what no tensor holds, and begin the peaks of the next slice.

    Otherwise one large slice would stand for all that its process does later, and hold its memory from others.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
