"""`Worker`: executes slices of trials, in whatever process a runner puts it."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autoft.data.dataset import Dataset
from autoft.data.split import stratified_order
from autoft.errors import RunFolderError
from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.host import Host
from autoft.parts.network import Network
from autoft.parts.plugins import PluginRef
from autoft.store import Checkpoint, CheckpointStore, unwritable
from autoft.study.machine import peak_memory
from autoft.study.run import Run
from autoft.study.study import Device, StudyRecord
from autoft.system.disk_cache import cache_root
from autoft.system.files import DISK_ERRORS
from autoft.tasks.single_label import SingleLabel
from autoft.train.classifier import Classifier
from autoft.train.features import FeatureCache
from autoft.train.gradient import GradientRun
from autoft.train.pace import Pace
from autoft.train.ridge import RidgeHead, fit_ridge
from autoft.values.ledger import TrialRecord
from autoft.values.plan import ClosedFormHead, GradientHead, Plan
from autoft.values.space import Scalar
from autoft.values.trial import Costs, Parent, Report, Slice, Trial

INPUTS_AT_ONCE = 32
NETWORKS_IN_MEMORY = 3
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# A forward pass costs about a third of a training step (median 1 / 3.4 over timm's published timings).
FORWARD_SHARE = 1 / 3
# Of the time a slice has: for solving, once the features are there; and for training, where the head begins as a ridge.
FIT_SHARE, TRAINING_SHARE = 0.2, 0.7
FEWEST_FITTED, FITTED_A_CLASS = 64, 2  # images; a head on fewer says nothing of a backbone
FEWEST_GRACE_SECONDS = 2.0  # past the deadline, for the features of those, when all else is there
# What a step is taken to cost, at most, from the first ones: on a GPU they took 18 s where the next took 0.04.
LONGEST_GUESS_SECONDS = {"cuda": 1.0, "cpu": math.inf}


class Cancelled(Exception):
    """The run is being stopped; the slice stays open in the journal and runs again on resume."""


class WeightsChanged(RunFolderError):
    """The pretrained weights are not those that the run has trained from: no fault of a trial, its slice stays open."""


class _TooLate(Exception):
    """The slice's deadline leaves no time for what it must do, which the message says; it is given back."""


@dataclass(frozen=True)
class Job:
    """A slice on its way to a worker. `origin` is the wall-clock time (`time.time()`) of run time 0."""

    slice: Slice
    origin: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the slice's deadline; negative past it."""
        return self.slice.deadline - (time.time() - self.origin)


@dataclass(frozen=True, eq=False)
class _Bench:
    """What a slice works with."""

    job: Job
    network: Network
    plan: Plan
    images: Images

    @property
    def trial(self) -> Trial:
        return self.job.slice.trial

    @property
    def view(self) -> tuple[str, int]:
        """What the cost of a forward pass depends on."""
        return self.trial.backbone, self.trial.image_size


class Worker:
    """Executes slices. Keeps the last few backbones in memory, pristine, from one slice to the next.

    `cancelled` is asked between batches; when it says yes, `run` raises `Cancelled`.
    """

    def __init__(
        self,
        record: StudyRecord,
        host: Host,
        dataset: Dataset,
        checkpoints: CheckpointStore,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._record, self._host, self._dataset, self._checkpoints = record, host, dataset, checkpoints
        self._cancelled = cancelled
        self._task = SingleLabel()
        self._device = torch.device(record.machine.device)
        self._features = FeatureCache(cache_root() / "features", record.data.fingerprint, record.view)
        self._backbones = {backbone.name: backbone for backbone in record.backbones}
        self._networks: OrderedDict[str, Network] = OrderedDict()
        self._image_seconds: dict[tuple[str, int], float] = {}

    @classmethod
    def open(
        cls,
        run: Path,
        threads: int,
        device: Device,
        plugins: Iterable[PluginRef],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Worker:
        """A worker over a run folder, in a process of its own.

        `device` is this machine's, not the one recorded; `plugins` are those that the driver has. Raises `PluginError`
        when they cannot be had here just as they are there.
        """
        torch.set_num_threads(threads)
        opened = Run.open(run)
        record, host = opened.record.on(device), Host.from_refs(plugins)
        host.errors = opened.folder.errors
        return cls(record, host, opened.dataset(), opened.checkpoints, cancelled)

    def run(self, job: Job) -> Report:
        """Execute one slice. A failure is a report that names the cause, never an exception.

        A slice whose deadline passes before its first step, or before the features that a probe must have are there, is
        given back: paused where it was, without a score; the report says why. Only where the run has no model at all
        yet, such features are waited for. Raises `RunFolderError` when nothing can be written any more or the weights
        of the backbone have changed: that is no fault of the trial, whose slice stays open.
        """
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            try:
                report = self._execute(job)
            except (Cancelled, RunFolderError):
                raise
            except _TooLate as reason:
                report = Report(job.slice.trial.id, "paused", job.slice.start, None, 0.0, error=str(reason))
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise unwritable(self._checkpoints.run, self._checkpoints.run, error) from error
                cause = self._host.describe(error)
                report = Report(job.slice.trial.id, "failed", job.slice.start, None, 0.0, error=cause)
        return _sound(replace(report, seconds=time.monotonic() - began))

    def checkpoint(self, record: TrialRecord) -> Checkpoint:
        """The checkpoint that `record.score` belongs to. Raises `LookupError` when it is gone or damaged."""
        return self._saved(record.best_checkpoint)

    def restored(self, checkpoint: Checkpoint) -> Classifier:
        """The checkpoint's classifier, eval mode.

        Raises `WeightsChanged` when the backbone's weights are not those it was trained from.
        """
        network = self._network(checkpoint.trial.backbone)
        self._require_same_weights(network, checkpoint)
        classifier = Classifier.of(network, self._outputs)
        classifier.restore(checkpoint.model)
        return classifier

    def images(self, trial: Trial) -> Images:
        """The pixels as the trial's backbone sees them."""
        spec, layout = self._backbones[trial.backbone].input, self._network(trial.backbone).layout(self._device)
        pixels = self._dataset.pixels(trial.image_size, spec.interpolation, self._record.view)
        return Images(pixels, spec, self._device, layout)

    def logits(self, classifier: Classifier, images: Images, rows: np.ndarray) -> np.ndarray:
        """Logits `(len(rows), classes)`, without augmentation, float32."""
        return self._answers(classifier, images.batches(rows))

    def answers(self, classifier: Classifier, inputs: torch.Tensor) -> np.ndarray:
        """Logits `(n, classes)` of the network's inputs `(n, 3, size, size)`, float32."""
        return self._answers(classifier, torch.split(inputs.to(self._device), INPUTS_AT_ONCE))

    def _answers(self, classifier: Classifier, batches: Iterable[torch.Tensor]) -> np.ndarray:
        parts = []
        with torch.inference_mode():
            for batch in batches:
                self._check()
                parts.append(classifier(batch).float().cpu())
        return torch.cat(parts).numpy()

    @property
    def _outputs(self) -> int:
        return self._task.head_size(len(self._record.data.classes))

    def _execute(self, job: Job) -> Report:
        trial = job.slice.trial
        network = self._network(trial.backbone)
        plan = self._host.freeze_strategy(trial.freeze).plan(network.stages, trial.params)
        bench = _Bench(job, network, plan, self.images(trial))
        match plan.head:
            case ClosedFormHead():
                return self._probe(bench)
            case GradientHead() as head:
                return self._train(bench, head)

    def _probe(self, bench: _Bench) -> Report:
        """Fit the head in closed form, on as many images as there is time for, and score it; the trial is finished.

        The validation images are all there or the probe is given back: ranks compare what was scored on the same ones.
        """
        costs = self._forward_costs(bench)
        validation = self._needed_features(bench, self._dataset.rows("val"), "validation", 0.0)
        head, share = self._ridge(bench, bench.job.seconds_left * FIT_SHARE)
        logits = (validation @ head.weight.T + head.bias).numpy()
        score = self._score(logits)
        model = _with_head(Classifier(bench.network.module, bench.network.dim, self._outputs), head)
        changed = model.changed(bench.plan)
        self._checkpoints.save(Checkpoint(bench.trial, 1.0, bench.network.fingerprint, changed, logits=logits))
        facts = {"ridge_strength": head.strength, "loo_accuracy": head.loo_accuracy, **_memory()}
        return Report(bench.trial.id, "finished", 1.0, score, 0.0, facts, costs=costs, share=share)

    def _forward_costs(self, bench: _Bench) -> Costs:
        """What scoring takes, measured unless the features are kept already."""
        rows = self._dataset.rows("val")
        bench.network.module.to(self._device)
        an_image = self._features.row_seconds(bench.network, bench.images, rows, self._check)
        if an_image:
            self._image_seconds[bench.view] = an_image
        return Costs(scoring=an_image * len(rows), image=an_image)

    def _train(self, bench: _Bench, head: GradientHead) -> Report:
        """Train until the slice ends or its deadline comes, then checkpoint and score."""
        run = self._gradient_run(bench, head)
        scoring = self._image_seconds.get(bench.view, 0.0) * len(self._dataset.rows("val"))
        if bench.job.seconds_left <= scoring:
            raise _TooLate("there was no time for a step and its score")
        saver = _Saver(self._checkpoints, bench)
        pace, facts = self._advance(bench, run, saver)
        began = time.monotonic()
        logits = self.logits(run.scored(), bench.images, self._dataset.rows("val"))
        scoring = time.monotonic() - began
        score = self._score(logits)
        ended = run.step >= round(bench.plan.recipe.passes * run.stream.steps_per_pass)
        saver.save(run, {} if ended else run.training_tensors(), logits)
        self._image_seconds[bench.view] = scoring / len(logits)
        costs = Costs(pace.steady, run.stream.steps_per_pass, scoring, saver.seconds, scoring / len(logits))
        return Report(bench.trial.id, "finished" if ended else "paused", run.passes, score, 0.0, facts, costs=costs)

    def _advance(self, bench: _Bench, run: GradientRun, saver: _Saver) -> tuple[Pace, dict[str, Scalar]]:
        """Train to the end of the slice or to its deadline; at least one step, counting those of a killed attempt."""
        pace, loss = Pace(LONGEST_GUESS_SECONDS[self._device.type]), 0.0
        last = round(min(bench.job.slice.until, bench.plan.recipe.passes) * run.stream.steps_per_pass)
        first = round(bench.job.slice.start * run.stream.steps_per_pass) + 1
        while run.step < max(first, last):
            if run.step >= first and bench.job.seconds_left < pace.expected + self._ending_seconds(
                bench, run, pace, saver
            ):
                break
            self._check()
            loss = run.advance()
            pace.step_done()
            if saver.due():
                saver.save(run, run.training_tensors())
                pace.paused()
        if pace.steady is None:
            return pace, _memory()
        return pace, {"images_per_second": run.stream.batch_size / pace.steady, "loss": loss, **_memory()}

    def _ending_seconds(self, bench: _Bench, run: GradientRun, pace: Pace, saver: _Saver) -> float:
        """What scoring and saving will take, as measured before on this backbone, or guessed from the pace."""
        guess = pace.expected * FORWARD_SHARE / run.stream.batch_size
        an_image = self._image_seconds.get(bench.view, guess)
        return an_image * len(self._dataset.rows("val")) + saver.seconds

    def _score(self, logits: np.ndarray) -> float:
        """The validation score. Raises `FloatingPointError` for logits that would take broken images for class 0."""
        if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
            raise FloatingPointError(f"the logits of {broken} of {len(logits)} validation images are not finite")
        return self._task.score(self._record.study.metric, logits, self._dataset.labels("val"))

    def _gradient_run(self, bench: _Bench, head: GradientHead) -> GradientRun:
        """The trial as its checkpoint left it; from the start when it is new or its checkpoint is gone."""
        rows, labels = self._dataset.rows("train"), self._dataset.labels("train")
        stream = TrainingStream(bench.images, rows, labels, bench.plan.recipe, bench.trial.seed)
        checkpoint = self._checkpoints.load_latest(bench.trial.id)
        if checkpoint is None:
            return GradientRun(self._beginning(bench, head).to(self._device), bench.plan, head, stream)
        self._require_same_weights(bench.network, checkpoint)
        fresh = Classifier.of(bench.network, self._outputs).to(self._device)
        run = GradientRun(fresh, bench.plan, head, stream)
        run.go_on(checkpoint.step, checkpoint.model, checkpoint.training)
        return run

    def _beginning(self, bench: _Bench, head: GradientHead) -> Classifier:
        """The classifier before its first step: a parent's weights, a ridge head, or a head of zeros."""
        if bench.trial.parents:
            return self.restored(self._saved(bench.trial.parents[0]))
        classifier = Classifier.of(bench.network, self._outputs)
        if head.init == "zero":
            return classifier
        return _with_head(classifier, self._ridge(bench, bench.job.seconds_left * TRAINING_SHARE)[0])

    def _saved(self, wanted: Parent) -> Checkpoint:
        if (checkpoint := self._checkpoints.load(wanted)) is None:
            raise LookupError(f"trial {wanted.trial} has no whole checkpoint at {wanted.step:g} passes any more")
        return checkpoint

    @staticmethod
    def _require_same_weights(network: Network, checkpoint: Checkpoint) -> None:
        """A checkpoint holds what training changed; over other frozen tensors it is another model."""
        if network.fingerprint != checkpoint.weights:
            raise WeightsChanged(
                f"the pretrained weights of {checkpoint.trial.backbone} are not those that trial "
                f"{checkpoint.trial.id} was trained from; restore them, or start a new run"
            )

    def _ridge(self, bench: _Bench, reserve: float) -> tuple[RidgeHead, float]:
        """The head, fitted on a fair sample of the training images: all whose features can be had while more than
        `reserve` seconds are left, a few in any case. The number is their share of all.
        """
        rows, labels = self._dataset.rows("train"), self._dataset.labels("train")
        order = stratified_order(labels, self._record.study.seed)
        bench.network.module.to(self._device)
        fewest = rows[order[: max(FEWEST_FITTED, FITTED_A_CLASS * self._outputs)]]
        self._needed_features(bench, fewest, "training", FEWEST_GRACE_SECONDS)
        features = self._features.leading(
            bench.network, bench.images, rows[order], lambda: bench.job.seconds_left < reserve, self._check
        )
        seen = labels[order[: len(features)]]
        head = fit_ridge(features, torch.from_numpy(seen), self._outputs, self._check)
        return head, len(seen) / len(rows)

    def _needed_features(self, bench: _Bench, rows: np.ndarray, kind: str, grace: float) -> torch.Tensor:
        """Features of all these rows. Raises `_TooLate` when they are not there `grace` seconds after the deadline, and
        keeps what was computed. The first model of a run comes late rather than never.
        """

        def too_late() -> bool:
            return bench.job.seconds_left < -grace and not self._checkpoints.is_empty()

        features = self._features.leading(bench.network, bench.images, rows, too_late, self._check)
        if len(features) < len(rows):
            had = f"{len(features):,} of {len(rows):,} {kind} images"
            raise _TooLate(f"there was time for {had}, and it needs them all")
        return features

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            network = self._host.build(self._backbones[name])
            network.module.eval().to(memory_format=network.layout(self._device))
            assert network.fingerprint  # of the weights as they came
            self._networks[name] = network
            while len(self._networks) > NETWORKS_IN_MEMORY:
                self._networks.popitem(last=False)
        self._networks.move_to_end(name)
        return self._networks[name]

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled


class _Saver:
    """Saves one slice's checkpoints: each takes the place of the one before, but not of those of earlier slices."""

    def __init__(self, store: CheckpointStore, bench: _Bench) -> None:
        self._store, self._bench = store, bench
        self._replacing: float | None = None
        self._saved = time.monotonic()
        self.seconds = 0.0
        """What the last save took."""

    def due(self) -> bool:
        """Once every `SECONDS_BETWEEN_CHECKPOINTS`, so that a kill costs no more than that."""
        return time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS

    def save(self, run: GradientRun, training: Mapping[str, torch.Tensor], logits: np.ndarray | None = None) -> None:
        """Make the run as it stands the trial's latest checkpoint."""
        began, trial = time.monotonic(), self._bench.trial
        weights = self._bench.network.fingerprint
        checkpoint = Checkpoint(trial, run.passes, weights, run.model_tensors(), training, logits)
        self._store.save(checkpoint, self._replacing)
        self._replacing, self._saved = run.passes, time.monotonic()
        self.seconds = self._saved - began


def _with_head(classifier: Classifier, head: RidgeHead) -> Classifier:
    with torch.no_grad():
        classifier.head.weight.copy_(head.weight)
        classifier.head.bias.copy_(head.bias)
    return classifier


def _sound(report: Report) -> Report:
    """The report, or a failure in its place when its score is no finite number: such a trial must never be best."""
    if report.score is None or math.isfinite(report.score):
        return report
    cause = f"the validation score is {report.score}"
    return Report(report.trial, "failed", report.step, None, report.seconds, error=cause)


def _memory() -> dict[str, Scalar]:
    """Peak resident memory of this process in MiB, and of the GPU when there is one."""
    facts: dict[str, Scalar] = {"peak_rss_mib": peak_memory() // 2**20}
    if torch.cuda.is_available():
        facts["peak_gpu_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return facts
