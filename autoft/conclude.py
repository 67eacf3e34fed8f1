"""From a finished search to a model: export, parity gate, and the test split, scored once from the ONNX file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from autoft.screen import Screen
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


def finalists(ledger: Ledger) -> list[TrialRecord]:
    """The trials that can be exported, best first. Raises `RunFailed`, with the causes, when there is none."""
    kept = ledger.with_checkpoint()
    if exportable := [record for record in ledger.ranking() if record.trial.id in kept]:
        return exportable
    causes = {report.error for record in ledger.trials.values() for report in record.reports if report.error}
    raise RunFailed(f"no trial gave a model: {'; '.join(sorted(causes)[:3]) or 'the time was too short for one slice'}")


def chosen(ledger: Ledger, number: int) -> TrialRecord:
    """Trial `number`. Raises `StudyError` when it cannot be exported."""
    exportable = {record.trial.id: record for record in finalists(ledger)}
    if number not in exportable:
        known = sorted(exportable)
        raise StudyError(f"trial {number} has no checkpoint; exportable are {known} (see autoft leaderboard)")
    return exportable[number]


def export(run: Run, host: Host, worker: Worker, record: TrialRecord, folder: Path) -> Exported:
    """Write the trial's ONNX file into `folder` and hold it against torch on validation images.

    Raises `GateFailed` with the numbers when they differ; the file is then removed. Raises `LookupError` when the
    trial's checkpoint is gone or damaged.
    """
    classifier, trial, dataset = worker.scored(record), record.trial, run.dataset()
    handoff = _handoff(run, record)
    folder.mkdir(parents=True, exist_ok=True)
    artifact = host.exporter(EXPORTER).export(classifier, handoff, folder)
    model = folder / Path(artifact.path).name
    rows = dataset.rows("val")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), PARITY_IMAGES)).astype(int)]  # evenly over the classes
    expected = worker.logits(classifier, worker.images(trial), rows)
    recipe = handoff.preprocess
    try:
        parity = check_parity(
            expected, model, normalise(dataset.pixels(recipe.size, recipe.interpolation)[rows], recipe)
        )
    except GateFailed:
        model.unlink()
        raise
    return Exported(trial, artifact, parity, score_file(model, dataset, "val", run.record.study.metric))


def _handoff(run: Run, record: TrialRecord) -> Handoff:
    trial, info = record.trial, run.record.data
    backbone = next(backbone for backbone in run.record.backbones if backbone.name == trial.backbone)
    spec = backbone.input
    return Handoff(
        labels=info.classes,
        preprocess=Preprocess(trial.image_size, spec.mean, spec.std, spec.interpolation),
        backbone=backbone,
        trial=trial,
        metric=run.record.study.metric,
        validation_score=record.score or 0.0,
        data_fingerprint=info.fingerprint,
    )


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


def conclude(run: Run, host: Host, worker: Worker, ledger: Ledger, watch: Stopwatch, screen: Screen) -> Summary:
    """Export the best trial, open the test split, write summary.json.

    A model of an earlier end of this run is replaced only by one that passed the gate.
    """
    fresh = run.folder.path / ".export"
    shutil.rmtree(fresh, ignore_errors=True)
    with watch.phase("export"):
        exported = _export_best(run, host, worker, ledger, fresh, screen)
    with watch.phase("test"):
        test = score_file(fresh / Path(exported.artifact.path).name, run.dataset(), "test", run.record.study.metric)
    shutil.rmtree(run.folder.export, ignore_errors=True)
    fresh.rename(run.folder.export)
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
        model=f"{run.folder.export.name}/{Path(exported.artifact.path).name}",
        budget=run.record.study.time,
        test_openings=_openings(run) + 1,
        problems=len(run.record.data.problems),
    )
    write_atomic(run.folder.summary, encode(summary))
    return summary


def _export_best(run: Run, host: Host, worker: Worker, ledger: Ledger, folder: Path, screen: Screen) -> Exported:
    """The best trial whose checkpoint is whole; one that is not is passed over with a line."""
    for record in finalists(ledger):
        try:
            return export(run, host, worker, record, folder)
        except LookupError as problem:
            screen.note(f"not exported: {problem.args[0]}; trying the next best")
    raise RunFailed("no checkpoint in this run is whole; nothing can be exported")


def _openings(run: Run) -> int:
    """How often the test split was opened before; a run that was extended opens it again, and says so."""
    before = run.summary()
    return before.test_openings if before else 0
