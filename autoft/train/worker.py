"""`Worker`: executes slices of trials, in whatever process a runner puts it."""

from __future__ import annotations

import math
import resource
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autoft.data.cache import cache_root
from autoft.data.dataset import Dataset
from autoft.host import Host
from autoft.ledger import TrialRecord
from autoft.network import Network
from autoft.run import Run
from autoft.space import Scalar
from autoft.store import CheckpointStore
from autoft.study import StudyRecord
from autoft.task import SingleLabel
from autoft.train.classifier import Classifier
from autoft.train.features import FeatureCache
from autoft.train.gradient import GradientRun
from autoft.train.images import Images, TrainingStream
from autoft.train.ridge import RidgeHead, fit_ridge
from autoft.types import ClosedFormHead, GradientHead, Plan, Report, Slice, SplitName, Trial

INPUTS_AT_ONCE = 32
NETWORKS_IN_MEMORY = 3
SECONDS_BETWEEN_CHECKPOINTS = 60.0


class Cancelled(Exception):
    """The run is being stopped; the slice stays open in the journal and runs again on resume."""


@dataclass(frozen=True)
class Job:
    """A slice on its way to a worker. `origin` is the wall-clock time (`time.time()`) of run time 0."""

    slice: Slice
    origin: float


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
        self._device = torch.device(record.device)
        self._features = FeatureCache(cache_root() / "features", record.data.fingerprint, record.view)
        self._backbones = {backbone.name: backbone for backbone in record.backbones}
        self._networks: OrderedDict[str, Network] = OrderedDict()

    @classmethod
    def open(cls, run: Path, threads: int, cancelled: Callable[[], bool] = lambda: False) -> Worker:
        """A worker over a run folder, in a process of its own."""
        torch.set_num_threads(threads)
        opened = Run.open(run)
        return cls(opened.record, opened.host(), opened.dataset(), opened.checkpoints, cancelled)

    def run(self, job: Job) -> Report:
        """Execute one slice. A failure is a report that names the cause, never an exception."""
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            try:
                report = self._execute(job)
            except Cancelled:
                raise
            except Exception as error:
                cause = "".join(traceback.format_exception_only(error)).strip()
                report = Report(job.slice.trial.id, "failed", job.slice.start, None, 0.0, error=cause)
        return _sound(replace(report, seconds=time.monotonic() - began))

    def classifier(self, trial: Trial) -> Classifier:
        """The trial's classifier from its latest checkpoint, eval mode. Raises `LookupError` when that is gone."""
        return self._restored(trial.backbone, trial.id)

    def scored(self, record: TrialRecord) -> Classifier:
        """The classifier that `record.score` belongs to, eval mode. Raises `LookupError` without its checkpoint."""
        return self._restored(record.trial.backbone, record.trial.id, record.scored_step)

    def images(self, trial: Trial) -> Images:
        """The pixels as the trial's backbone sees them."""
        spec = self._backbones[trial.backbone].input
        pixels = self._dataset.pixels(trial.image_size, spec.interpolation, self._record.view)
        return Images(pixels, spec, self._device)

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
        """Fit the head in closed form and score it; the trial is finished."""
        head = self._ridge(bench)
        classifier = _with_head(Classifier(bench.network.module, bench.network.dim, self._outputs), head)
        self._checkpoints.save(bench.trial, 1.0, classifier.changed(bench.plan), {})
        validation = self._feature_rows(bench, "val")
        logits = (validation @ head.weight.T + head.bias).numpy()
        score = self._task.score(self._record.study.metric, logits, self._dataset.labels("val"))
        facts = {"ridge_strength": head.strength, "loo_accuracy": head.loo_accuracy, **_memory()}
        return Report(bench.trial.id, "finished", 1.0, score, 0.0, facts)

    def _train(self, bench: _Bench, head: GradientHead) -> Report:
        """Train until the slice ends or its deadline comes, then checkpoint and score."""
        run = self._gradient_run(bench, head)
        facts = self._advance(bench, run)
        logits = self.logits(run.scored(), bench.images, self._dataset.rows("val"))
        score = self._task.score(self._record.study.metric, logits, self._dataset.labels("val"))
        self._save(bench, run)
        ended = run.step >= round(bench.plan.recipe.passes * run.stream.steps_per_pass)
        return Report(bench.trial.id, "finished" if ended else "paused", run.passes, score, 0.0, facts)

    def _advance(self, bench: _Bench, run: GradientRun) -> dict[str, Scalar]:
        """Train to the end of the slice or to its deadline; at least one step, counting those of a killed attempt."""
        pace, loss = _Pace(run.step), 0.0
        last = round(min(bench.job.slice.until, bench.plan.recipe.passes) * run.stream.steps_per_pass)
        first = round(bench.job.slice.start * run.stream.steps_per_pass) + 1
        while run.step < max(first, last) and not self._out_of_time(
            bench.job, pace.seconds_a_step(run.step), run.stream
        ):
            self._check()
            loss = run.advance()
            if pace.checkpoint_due():
                self._save(bench, run)
        if not (a_step := pace.seconds_a_step(run.step)):
            return _memory()
        return {"images_per_second": run.stream.batch_size / a_step, "loss": loss, **_memory()}

    def _save(self, bench: _Bench, run: GradientRun) -> None:
        tensors, beside = run.training_tensors(), bench.job.slice.start  # what was scored last stays beside the new one
        self._checkpoints.save(bench.trial, run.passes, run.model_tensors(), tensors, beside=beside)

    def _gradient_run(self, bench: _Bench, head: GradientHead) -> GradientRun:
        """The trial as its checkpoint left it; from the start when it is new or its checkpoint is gone."""
        rows, labels = self._dataset.rows("train"), self._dataset.labels("train")
        stream = TrainingStream(bench.images, rows, labels, bench.plan.recipe, bench.trial.seed)
        run = GradientRun(self._beginning(bench, head).to(self._device), bench.plan, head, stream)
        checkpoint = self._checkpoints.load(bench.trial.id)
        if checkpoint is not None:
            run.go_on(checkpoint.step, checkpoint.model, checkpoint.training)
        return run

    def _beginning(self, bench: _Bench, head: GradientHead) -> Classifier:
        """The classifier before its first step: a parent's weights, a ridge head, or a head of zeros."""
        if bench.trial.parents:
            return self._restored(bench.trial.backbone, bench.trial.parents[0])
        classifier = Classifier.of(bench.network, self._outputs)
        return _with_head(classifier, self._ridge(bench)) if head.init == "ridge" else classifier

    def _restored(self, backbone: str, trial: int, step: float | None = None) -> Classifier:
        checkpoint = self._checkpoints.load(trial, step)
        if checkpoint is None:
            raise LookupError(f"trial {trial} has no checkpoint any more")
        classifier = Classifier.of(self._network(backbone), self._outputs)
        classifier.restore(checkpoint.model)
        return classifier

    def _ridge(self, bench: _Bench) -> RidgeHead:
        features = self._feature_rows(bench, "train")
        labels = torch.from_numpy(self._dataset.labels("train"))
        return fit_ridge(features, labels, self._outputs)

    def _feature_rows(self, bench: _Bench, split: SplitName) -> torch.Tensor:
        network = bench.network
        network.module.to(self._device)
        return self._features.features(network, bench.images, self._dataset.rows(split), self._check)

    def _network(self, name: str) -> Network:
        if name not in self._networks:
            network = self._host.build(self._backbones[name])
            network.module.eval().to(memory_format=torch.channels_last)
            self._networks[name] = network
            while len(self._networks) > NETWORKS_IN_MEMORY:
                self._networks.popitem(last=False)
        self._networks.move_to_end(name)
        return self._networks[name]

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled

    def _out_of_time(self, job: Job, a_step: float, stream: TrainingStream) -> bool:
        """Whether another step would leave too little time for scoring before the deadline; one step always runs."""
        # A forward pass costs about a third of a training step (median 1 / 3.4 over timm's published timings).
        scoring = self._record.data.counts["val"] / stream.batch_size * a_step / 3
        return a_step > 0 and time.time() - job.origin + a_step + scoring > job.slice.deadline


class _Pace:
    """How fast a slice's steps go, and when the next safety checkpoint is due."""

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._began = self._saved = time.monotonic()

    def seconds_a_step(self, step: int) -> float:
        """Mean seconds a step; 0 before the first."""
        done = step - self._first_step
        return (time.monotonic() - self._began) / done if done else 0.0

    def checkpoint_due(self) -> bool:
        """Once every `SECONDS_BETWEEN_CHECKPOINTS`, so that a kill costs no more than that."""
        due = time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        if due:
            self._saved = time.monotonic()
        return due


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
    """Peak resident memory of this process in MiB (`ru_maxrss` counts KiB), and of the GPU when there is one."""
    facts: dict[str, Scalar] = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if torch.cuda.is_available():
        facts["peak_gpu_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return facts
