"""The fit without gradients: the best head on features of the untouched backbone."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import torch

from autoft.errors import RunFailed, RunFolderError
from autoft.parts.contract import NO_CLOSED_FORM
from autoft.store import Checkpoint
from autoft.system.signals import Cancelled
from autoft.train.arithmetic import Numbers
from autoft.train.classifier import Classifier
from autoft.train.heads import Solved
from autoft.train.job import TooLate
from autoft.train.views import FOLDS, out_of_fold
from autoft.train.workshop import Bench, memory
from autoft.values.trial import Costs, Report

FIT_SHARE = 0.2  # of the time a slice has: for solving, once the features are there
FEWEST_FITTED, FITTED_AN_OUTPUT = 64, 2  # images; a head on fewer says nothing of a backbone
GRACE_SECONDS = 2.0  # past the deadline, for features without which all that was computed is of no use

MANY = 1500  # images to train on: heads on so many are told apart by validation images, and folds take seconds


def fit_closed_form(bench: Bench) -> Report:
    """Fit the head in closed form, on as many images as there is time for, and score it; the trial is finished.

    The validation images are all there or the slice is given back: ranks compare what was scored on the same ones.
    """
    shop, began = bench.shop, time.monotonic()
    costs = _forward_costs(bench)
    needs = f"{len(shop.validation):,} validation images, and it needs them all"
    is_nearly_in_time = costs.scoring <= bench.job.seconds_left + GRACE_SECONDS
    validation = _needed_features(bench, shop.validation, needs, GRACE_SECONDS if is_nearly_in_time else 0.0, "fp32")
    costs = _not_dearer_than_it_was(costs, time.monotonic() - began, len(validation))
    if costs.image and (an_image := _of_training_images(bench)):
        costs = _not_dearer_than_it_was(costs, an_image * len(validation), len(validation))
    solved = closed_form_head(bench, bench.job.seconds_left * FIT_SHARE)
    head, share, solving, forward = solved
    outputs = (validation @ head.weight.T + head.bias).numpy()
    score = shop.score(outputs)
    model = Classifier(bench.network.module, bench.network.dim, shop.task.outputs).with_head(head)
    changed = model.changed(bench.plan)
    shop.checkpoints.save(Checkpoint(bench.trial, 1.0, bench.network.fingerprint, changed, logits=outputs))
    costs, facts = replace(costs, solving=solving), {**head.facts, **forward.facts, **memory()}
    report = Report(bench.trial.id, "finished", 1.0, score, 0.0, facts, costs=costs, share=share)
    return _with_folds(bench, solved, bench.with_certainty(report, outputs))


def _with_folds(bench: Bench, solved: Solved, report: Report) -> Report:
    """The report with the score out of fold. A fault there is a fact of the head, which has its score all the same."""
    try:
        return replace(report, folds=_out_of_fold(bench, solved))
    except (Cancelled, RunFolderError):
        raise
    except Exception as error:
        return replace(report, facts={**report.facts, "folds_left_out": bench.shop.fault(error)})


def _out_of_fold(bench: Bench, solved: Solved) -> float | None:
    """The score of such heads on the images for training and validation, each fitted without the fold that it judges.

    None for many images, where time is short, of a refit, and where images belong to groups, which folds would part.
    """
    shop, dataset = bench.shop, bench.shop.dataset
    is_apt = bench.trial.twin is None and solved.share == 1.0 and len(dataset.rows("train")) < MANY
    if dataset.info.groups:
        return None
    if not is_apt or FOLDS * solved.seconds > FIT_SHARE * bench.job.seconds_left:
        return None
    order = dataset.stratified("train+val", shop.record.study.seed)
    rows, targets = dataset.rows("train+val")[order], dataset.targets("train+val")[order]
    numbers = solved.forward.numbers
    features = shop.features.leading(bench.network, bench.images, rows, lambda: False, shop.check, numbers)
    score = shop.task.score(shop.record.metric.name, out_of_fold(shop.task, features, targets, shop.check), targets)
    return score if math.isfinite(score) else None


def closed_form_head(bench: Bench, reserve: float) -> Solved:
    """The task's head, fitted on a fair sample of the images to train on.

    These are all whose features can be had while more than `reserve` seconds are left, a few in any case. A head on all
    of them is solved for once a process: fine-tunes begin from the one that the probe has.
    """
    shop, dataset, splits = bench.shop, bench.shop.trained_on(bench.trial), bench.trial.train_on
    if (known := shop.solved.get((bench.trial.network, splits))) is not None:
        return known
    rows, order = dataset.rows(splits), dataset.stratified(splits, shop.record.study.seed)
    bench.network.module.to(shop.device)
    forward = bench.forward(rows[order])
    fewest = rows[order[: max(FEWEST_FITTED, FITTED_AN_OUTPUT * shop.task.outputs)]]
    least = f"at least {len(fewest):,}" if len(fewest) < len(rows) else "them all"
    needs = f"{len(rows):,} training images, and it needs {least}"
    _needed_features(bench, fewest, needs, GRACE_SECONDS, forward.numbers)
    features = shop.features.leading(
        bench.network,
        bench.images,
        rows[order],
        lambda: bench.job.seconds_left < reserve,
        shop.check,
        forward.numbers,
    )
    seen, began = dataset.targets(splits)[order[: len(features)]], time.monotonic()
    head = shop.task.closed_form(features, torch.from_numpy(seen), shop.check)
    if head is None:
        raise RunFailed(f"task {shop.task.name!r} gave no head in closed form; {NO_CLOSED_FORM}")
    solved = Solved(head, len(seen) / len(rows), time.monotonic() - began, forward)
    if solved.share == 1.0:
        shop.solved[bench.trial.network, splits] = solved
    return solved


def _forward_costs(bench: Bench) -> Costs:
    """What scoring takes, measured unless the features are kept already."""
    rows = bench.shop.validation
    bench.network.module.to(bench.shop.device)
    an_image = bench.shop.features.row_seconds(bench.network, bench.images, rows, bench.shop.check)
    if an_image:
        bench.measured(an_image)
    return Costs(scoring=an_image * len(rows), image=an_image)


def _of_training_images(bench: Bench) -> float:
    """Seconds a training image takes, as `_forward_costs`; of the first that the head is fitted on, and kept for that.

    0.0 where they are known, are wanted in bf16, or there is no time.
    """
    shop, dataset, splits = bench.shop, bench.shop.trained_on(bench.trial), bench.trial.train_on
    if shop.record.study.precision == "bf16" or bench.job.seconds_left < 2 * GRACE_SECONDS:
        return 0.0
    rows = dataset.rows(splits)[dataset.stratified(splits, shop.record.study.seed)]
    return shop.features.row_seconds(bench.network, bench.images, rows, shop.check)


def _not_dearer_than_it_was(costs: Costs, seconds: float, images: int) -> Costs:
    """What scoring takes, when so many took so long: its first second may have been a bad one, as of a new process."""
    return replace(costs, scoring=min(costs.scoring, seconds), image=min(costs.image, seconds / images))


def _needed_features(bench: Bench, rows: np.ndarray, needs: str, grace: float, numbers: Numbers) -> torch.Tensor:
    """Features of all these rows.

    Raises `TooLate` when they are not there `grace` seconds after the deadline, and keeps what was computed; it says
    how many there are, of the images and for the reason in `needs`. The first model of a run comes late rather than
    never.
    """

    def too_late() -> bool:
        return bench.job.seconds_left < -grace and not bench.shop.checkpoints.is_empty()

    features = bench.shop.features.leading(bench.network, bench.images, rows, too_late, bench.shop.check, numbers)
    if len(features) < len(rows):
        raise TooLate(f"there was time for {len(features):,} of {needs}")
    return features
