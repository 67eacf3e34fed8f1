"""The fit by gradient: a stretch of a trial's passes, until it ends or its deadline comes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from autoft.media.image.batches import TrainingStream
from autoft.parts.base import FreezeStrategy
from autoft.store import Checkpoint
from autoft.train.arithmetic import Arithmetic, Numbers
from autoft.train.classifier import Classifier
from autoft.train.closed_form import GRACE_SECONDS, closed_form_head
from autoft.train.curve import Curve
from autoft.train.gradient import GradientRun, needed_whole
from autoft.train.job import TooLate
from autoft.train.pace import Pace
from autoft.train.precision import Choice
from autoft.train.prefix import Entrance, entrance
from autoft.train.readings import StepTaken
from autoft.train.standard import Standard
from autoft.train.workshop import Bench, memory, require_same_weights
from autoft.values.counts import counted
from autoft.values.plan import GradientHead
from autoft.values.space import Scalar
from autoft.values.trial import Costs, Report

SECONDS_BETWEEN_CHECKPOINTS = 60.0
# A forward pass costs about a third of a training step (median 1 / 3.4 over timm's published timings).
FORWARD_SHARE = 1 / 3
TRAINING_SHARE = 0.7  # of the time a slice has: for training, where the head begins in closed form
# What a step is taken to cost, at most, from the first ones: on a GPU they took 18 s where the next took 0.04. On cores
# so many forward passes of its images: measured were 2.8, and 8 where only those gain by bfloat16.
LONGEST_GUESS_SECONDS = 1.0
LONGEST_GUESS_FORWARDS = 12
# Solving for a head goes by the smaller of images and features, squared, times the larger: so much each. Measured for
# 600 to 4,000 images of 2,848 features on two slow cores, 4e-10 to 6e-10 s.
SOLVING_SECONDS = 5e-10
LITTLE_SECONDS = 1.0  # what takes no longer is not asked about
FORWARD_TIMED = 4  # images
STANDARDISED_BY = 128  # images, whose forward passes take about as long as one step of 32
IMAGES_TO_MERGE_BY = 2  # one would not show what an adapter makes of a batch


def fit_by_gradient(bench: Bench) -> Report:
    """Train until the slice ends or its deadline comes, then checkpoint and score.

    Raises `MemoryError` when memory ran out for the process that had the slice before, and its batches take no parts.
    """
    if bench.plan.batch_norm == "train" and bench.job.allowance.ran_out:
        raise MemoryError(f"it ran out for the process that had this slice before; {needed_whole(bench.together)}")
    checkpoint = bench.shop.checkpoints.load_latest(bench.trial.id)
    choice = bench.arithmetic(checkpoint)
    start = _beginning(bench) if checkpoint is None else _Start(_untouched(bench), {})
    if (standard := _standard(bench, checkpoint, start.numbers)) is not None:
        start.classifier.standardise(standard)
    with closing(_run_of(bench, checkpoint, start.classifier, choice.arithmetic)) as run:
        report = _fit(bench, run, choice)
    costs = replace(report.costs, solving=start.solving)
    return replace(report, facts={**report.facts, **start.facts}, costs=costs)


def _fit(bench: Bench, run: GradientRun, choice: Choice) -> Report:
    shop = bench.shop
    _require_time_for_a_step(bench, run.stream.batch_size)
    saver = _Saver(bench)
    with entrance(bench, run.classifier) as into:
        run.enter(into)
        with choice.arithmetic.training(shop.device):
            pace, facts = _advance(bench, run, into, saver)
        outputs, scoring = _outputs(bench, run, into)
    if run.without_moments:
        facts["optimiser_begun_anew"] = (
            f"{counted(len(run.without_moments), 'parameter')}, e.g. {run.without_moments[0]}"
        )
    score = shop.score(outputs)
    ended = run.step >= round(bench.plan.recipe.passes * run.stream.steps_per_pass)
    saver.save(run, {} if ended else run.training_tensors(), outputs)
    costs = Costs(pace.steady, run.stream.steps_per_pass, scoring, saver.seconds, bench.image_seconds or 0.0)
    facts |= {**choice.facts, **bench.left_out, "device": shop.device_name}
    report = Report(bench.trial.id, "finished" if ended else "paused", run.passes, score, 0.0, facts, costs=costs)
    loss = shop.loss(outputs, bench.plan.recipe)
    return bench.with_certainty(replace(report, horizon=bench.plan.recipe.passes, loss=loss), outputs)


def _run_of(bench: Bench, checkpoint: Checkpoint | None, classifier: Classifier, arithmetic: Arithmetic) -> GradientRun:
    """The trial as its checkpoint left it; as the classifier begins when it is new or its checkpoint is gone.

    What trains is laid out in memory as the arithmetic says; what is only scored stays as it is for everybody.
    """
    shop, plan, dataset = bench.shop, bench.plan, bench.shop.trained_on(bench.trial)
    rows, targets = dataset.rows(bench.trial.train_on), dataset.targets(bench.trial.train_on)
    images = replace(bench.images, layout=arithmetic.memory_format)
    stream = TrainingStream(images, rows, targets, plan.recipe, bench.trial.seed)
    if checkpoint is not None:
        require_same_weights(bench.network, checkpoint)
    classifier.to(shop.device).to(memory_format=arithmetic.memory_format)
    run = GradientRun(classifier, plan, stream, shop.task, arithmetic, bench.trained, bench.adaptation)
    if checkpoint is not None:
        run.go_on(checkpoint.step, checkpoint.model, checkpoint.training)
    return run


def _require_time_for_a_step(bench: Bench, batch_size: int, before: float = 0.0) -> None:
    """Raise `TooLate` where a step and its score, so many seconds from now, would end late.

    That is by the network's forward passes, which are timed where nobody has. The first model of a run comes late
    rather than never, if it can be scored.
    """
    an_image = _forward_seconds(bench) if bench.image_seconds is None else bench.image_seconds
    training = 0.0 if bench.shop.checkpoints.is_empty() else batch_size / FORWARD_SHARE
    grace = GRACE_SECONDS if training else 0.0  # what is reckoned roughly is not given up for less
    if bench.job.seconds_left + grace <= before + an_image * (training + len(bench.shop.validation)):
        raise TooLate("there was no time for a step and its score")


def _forward_seconds(bench: Bench) -> float:
    """What the forward pass of one image takes on cores, roughly; the first of a shape is slower. None on a GPU."""
    if bench.shop.device.type != "cpu":
        return 0.0
    rows = bench.shop.trained_on(bench.trial).rows(bench.trial.train_on)[:FORWARD_TIMED]
    images, taken = bench.images.normalised(bench.images.raw(rows)), []
    with torch.inference_mode():
        for _ in range(2):
            began = time.monotonic()
            bench.network.features(images)
            taken.append(time.monotonic() - began)
    return min(taken) / len(rows)


class _Start(NamedTuple):
    """What a trial begins from, what a report says of it, and the seconds of solving for its head.

    In `numbers` there are features of some training images.
    """

    classifier: Classifier
    facts: Mapping[str, Scalar]
    solving: float = 0.0
    numbers: Numbers = "fp32"


def _beginning(bench: Bench) -> _Start:
    """Before the first step: a parent's weights, a head in closed form, or a head of zeros."""
    shop, head = bench.shop, bench.plan.head
    _require_the_way_back(bench)
    if bench.trial.parents:
        parent = shop.restored(shop.saved(bench.trial.parents[0]))
        return _Start(bench.adaptation.begin(parent) if bench.adaptation else parent, {})
    if isinstance(head, GradientHead) and head.init == "ridge" and shop.task.has_closed_form:
        _require_time_to_solve(bench)
        solved = closed_form_head(bench, bench.job.seconds_left * TRAINING_SHARE)
        forward = solved.forward
        return _Start(_untouched(bench).with_head(solved.head), forward.facts, solved.seconds, forward.numbers)
    return _Start(_untouched(bench), {})


def _require_time_to_solve(bench: Bench) -> None:
    """Raise `TooLate` where the head to begin from would take what the slice has for training, or longer.

    Also where a step and its score would not fit behind the features for it, if what those take is known: then what is
    left is better spent on something else.
    """
    trial, shop, left = bench.trial, bench.shop, bench.job.seconds_left
    if (trial.network, trial.train_on) in shop.solved:
        return
    rows = shop.trained_on(trial).rows(trial.train_on)
    low, high = sorted((len(rows), bench.network.dim))
    seconds = SOLVING_SECONDS * low**2 * high
    if seconds > max(LITTLE_SECONDS, TRAINING_SHARE * left):
        raise TooLate(f"there was no time for the head to begin from, which takes some {seconds:.0f} s, and steps")
    if bench.image_seconds is not None:
        missing = shop.features.missing(bench.network, bench.images, rows, shop.check)
        features = min(bench.image_seconds * missing, (1 - TRAINING_SHARE) * left)
        _require_time_for_a_step(bench, min(bench.plan.recipe.batch_size, len(rows)), features)


def _standard(bench: Bench, checkpoint: Checkpoint | None, numbers: Numbers) -> Standard | None:
    """What features of several stages are standardised by, which differ most: as the trial began, or a few images.

    Features of the last stage alone stay as they are: heads on standardised ones were no better.
    """
    if checkpoint is not None:
        return Standard.remembered(checkpoint.training)
    if not bench.network.tapped:
        return None
    shop, dataset, splits = bench.shop, bench.shop.trained_on(bench.trial), bench.trial.train_on
    rows = dataset.rows(splits)[dataset.stratified(splits, shop.record.study.seed)][:STANDARDISED_BY]
    bench.network.module.to(shop.device)  # a worker that has probed nothing has it where it was built
    features = shop.features.leading(
        bench.network, bench.images, rows, lambda: bench.job.seconds_left <= 0.0, shop.check, numbers
    )
    return Standard.of(features, bench.network.own_dim)


def _require_the_way_back(bench: Bench) -> None:
    """Raise `PluginError` unless what a strategy puts into the network comes out again, before it trains."""
    if bench.adaptation is None:
        return
    rows = bench.shop.trained_on(bench.trial).rows(bench.trial.train_on)[:IMAGES_TO_MERGE_BY]
    images = bench.images.normalised(bench.images.raw(rows)).cpu()
    with bench.shop.host.blaming(FreezeStrategy, bench.trial.freeze, "adapter()"):
        if problem := bench.adaptation.problem(bench.plan, images):
            raise ValueError(problem)


def _untouched(bench: Bench) -> Classifier:
    """The network as it came, under a head of zeros."""
    return Classifier.of(bench.trained, bench.shop.task.outputs)


def _advance(bench: Bench, run: GradientRun, into: Entrance, saver: _Saver) -> tuple[Pace, dict[str, Scalar]]:
    """Train to the end of the slice or to its deadline; at least one step, counting those of a killed attempt."""
    pace = Pace(bench.shop.device.type, _longest_guess(bench, run))
    last = round(min(bench.job.slice.until, bench.plan.recipe.passes) * run.stream.steps_per_pass)
    first = round(bench.job.slice.start * run.stream.steps_per_pass) + 1
    with Curve(bench.shop.folder.curve(bench.trial.id), run) as curve:

        def note(known: Iterable[StepTaken], besides: float = 0.0) -> None:
            steps = [replace(step, seconds=step.seconds - besides) for step in known]
            for step in steps:
                pace.step_done(step.seconds, besides)
            curve.known(steps)

        while run.step < max(first, last):
            ending = _ending_seconds(bench, run, pace, saver)
            if run.step >= first and bench.job.seconds_left < pace.expected + ending:
                if pace.steady is not None or not run.queued:
                    break
                note(run.settle())  # a guess ends no slice while there are steps to go by
                continue
            bench.shop.check()
            filled, known = into.filling, run.advance()
            note(known, into.filling - filled)
            if saver.due():
                note(run.settle())
                curve.write()  # what the checkpoint has behind it is not trained again
                saver.save(run, run.training_tensors())
        note(run.settle())
    if pace.steady is None:
        return pace, {**into.facts, **run.facts, **memory()}
    facts = {"images_per_second": run.stream.batch_size / pace.steady, "loss": curve.last_loss}
    return pace, {**facts, **into.facts, **run.facts, **memory()}


def _longest_guess(bench: Bench, run: GradientRun) -> float:
    """Seconds that a step is taken to cost, at most, before those beyond the warm-up tell."""
    if bench.shop.device.type == "cuda":
        return LONGEST_GUESS_SECONDS
    if bench.image_seconds is None:
        return math.inf
    return LONGEST_GUESS_FORWARDS * run.stream.batch_size * bench.image_seconds


def _outputs(bench: Bench, run: GradientRun, into: Entrance) -> tuple[np.ndarray, float]:
    """Outputs of the validation images, and the seconds of that without what filled a cache."""
    rows = bench.shop.validation
    began, filled = time.monotonic(), into.filling
    outputs = bench.shop.outputs(into.rest(run.scored()), into.batches(rows))
    scoring = time.monotonic() - began - (into.filling - filled)
    if into.image_seconds is not None:
        bench.measured(into.image_seconds + scoring / len(rows))
    return outputs, scoring


def _ending_seconds(bench: Bench, run: GradientRun, pace: Pace, saver: _Saver) -> float:
    """What queued steps, scoring and saving will take, as measured on this backbone, or guessed from the pace."""
    guess = pace.expected * FORWARD_SHARE / run.stream.batch_size
    an_image = guess if bench.image_seconds is None else bench.image_seconds
    return run.queued * pace.expected + an_image * len(bench.shop.validation) + saver.seconds


class _Saver:
    """Saves one slice's checkpoints: each takes the place of the one before, but not of those of earlier slices."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._replacing: float | None = None
        self._saved = time.monotonic()
        self.seconds = 0.0
        """What the last save took."""

    def due(self) -> bool:
        """Once every `SECONDS_BETWEEN_CHECKPOINTS`, so that a kill costs no more than that."""
        return time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS

    def save(self, run: GradientRun, training: Mapping[str, torch.Tensor], outputs: np.ndarray | None = None) -> None:
        """Make the run as it stands the trial's latest checkpoint."""
        began, bench = time.monotonic(), self._bench
        weights = bench.network.fingerprint
        checkpoint = Checkpoint(bench.trial, run.passes, weights, run.model_tensors(), training, outputs)
        bench.shop.checkpoints.save(checkpoint, self._replacing)
        self._replacing, self._saved = run.passes, time.monotonic()
        self.seconds = self._saved - began
