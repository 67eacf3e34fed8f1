"""From a finished search to a model: export, parity gate, and the test split, scored once from the ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autoft.codec import encode
from autoft.data.dataset import Dataset
from autoft.data.decode import normalise
from autoft.errors import GateFailed, RunFailed, StudyError
from autoft.files import write_atomic
from autoft.host import Host
from autoft.ledger import Ledger, TrialRecord
from autoft.onnx_runtime import OnnxClassifier
from autoft.parity import Parity, check_parity
from autoft.run import Run
from autoft.statistics import scores
from autoft.stopwatch import Stopwatch
from autoft.summary import Best, Scores, Summary
from autoft.task import SingleLabel
from autoft.train.worker import Worker
from autoft.types import Artifact, Handoff, Preprocess, SplitName, Trial

EXPORTER = "onnx"
PARITY_IMAGES = 256
SCORING_BATCH = 64


@dataclass(frozen=True)
class Exported:
    """A trial's ONNX file that passed the gate, with its validation scores from that file."""

    trial: Trial
    artifact: Artifact
    parity: Parity
    validation: Scores


def finalist(ledger: Ledger) -> TrialRecord:
    """The best trial that can be exported. Raises `RunFailed`, with the causes, when there is none."""
    kept = ledger.with_checkpoint()
    for record in ledger.ranking():
        if record.trial.id in kept:
            return record
    causes = {report.error for record in ledger.trials.values() for report in record.reports if report.error}
    raise RunFailed(f"no trial gave a model: {'; '.join(sorted(causes)[:3]) or 'the time was too short for one slice'}")


def chosen(ledger: Ledger, number: int) -> TrialRecord:
    """Trial `number`. Raises `StudyError` when it cannot be exported."""
    kept = ledger.with_checkpoint()
    exportable = sorted(record.trial.id for record in ledger.ranking() if record.trial.id in kept)
    if number not in exportable:
        raise StudyError(f"trial {number} has no checkpoint; exportable are {exportable} (see autoft leaderboard)")
    return ledger.trials[number]


def export(run: Run, host: Host, worker: Worker, record: TrialRecord, folder: Path) -> Exported:
    """Write the trial's ONNX file into `folder` and hold it against torch on validation images.

    Raises `GateFailed` with the numbers when they differ; the file is then removed.
    """
    trial, dataset, study = record.trial, run.dataset(), run.record.study
    backbone = next(backbone for backbone in run.record.backbones if backbone.name == trial.backbone)
    spec = backbone.input
    recipe = Preprocess(trial.image_size, spec.mean, spec.std, spec.interpolation)
    handoff = Handoff(
        labels=dataset.info.classes,
        preprocess=recipe,
        backbone=backbone,
        trial=trial,
        metric=study.metric,
        validation_score=record.score or 0.0,
        data_fingerprint=dataset.info.fingerprint,
    )
    folder.mkdir(parents=True, exist_ok=True)
    classifier = worker.classifier(trial).cpu()
    artifact = host.exporter(EXPORTER).export(classifier, handoff, folder)
    model = folder / Path(artifact.path).name
    rows = dataset.rows("val")[:PARITY_IMAGES]
    images = replace(worker.images(trial), device=torch.device("cpu"))  # where the exported model is held against it
    expected = worker.logits(classifier, images, rows)
    pixels = dataset.pixels(recipe.size, recipe.interpolation)
    try:
        parity = check_parity(expected, model, normalise(pixels[rows], recipe))
    except GateFailed:
        model.unlink()
        raise
    return Exported(trial, artifact, parity, score_file(model, dataset, "val", study.metric))


def score_file(model: Path, dataset: Dataset, split: SplitName, metric: str) -> Scores:
    """Every metric of the ONNX file on one split, from its outputs alone."""
    classifier = OnnxClassifier(model)
    recipe = classifier.preprocess
    pixels = dataset.pixels(recipe.size, recipe.interpolation)
    rows = dataset.rows(split)
    parts = [
        classifier.logits(normalise(pixels[rows[start : start + SCORING_BATCH]], recipe), SCORING_BATCH)
        for start in range(0, len(rows), SCORING_BATCH)
    ]
    return scores(SingleLabel(), metric, np.concatenate(parts), dataset.labels(split))


def conclude(run: Run, host: Host, worker: Worker, ledger: Ledger, watch: Stopwatch) -> Summary:
    """Export the finalist, open the test split, write leaderboard.csv and summary.json."""
    best = finalist(ledger)
    with watch.phase("export"):
        exported = export(run, host, worker, best, run.folder.export)
    with watch.phase("test"):
        model = run.folder.export / Path(exported.artifact.path).name
        test = score_file(model, run.dataset(), "test", run.record.study.metric)
    trial = exported.trial
    states = [record.state for record in ledger.trials.values()]
    summary = Summary(
        run=str(run.folder.path),
        metric=run.record.study.metric,
        best=Best(trial.id, trial.backbone, trial.freeze, trial.image_size, trial.params),
        validation=exported.validation,
        test=test,
        trials={state: states.count(state) for state in ("finished", "paused", "failed")},
        seconds=watch.seconds(),
        model=str(model.relative_to(run.folder.path)),
        test_openings=_openings(run) + 1,
        problems=len(run.record.data.problems),
    )
    run.folder.write_leaderboard(ledger)
    write_atomic(run.folder.summary, encode(summary))
    return summary


def _openings(run: Run) -> int:
    """How often the test split was opened before; a run that was extended opens it again, and says so."""
    before = run.summary()
    return before.test_openings if before else 0
