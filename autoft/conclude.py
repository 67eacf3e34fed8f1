"""From a finished search to a model: the best trial's bundle, and the test split, scored once from the ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from autoft.bundle.build import Bundle, write_bundle
from autoft.bundle.order import Order
from autoft.bundle.parity import FULL, QUICK, Gate
from autoft.bundle.place import replacing
from autoft.bundle.raw_pixels import Layout
from autoft.bundle.sources import without_place
from autoft.bundle.values import MODEL, Calibration, ParityReport
from autoft.codec import encode
from autoft.errors import RunFailed, StudyError
from autoft.files import as_text, write_atomic
from autoft.host import Host
from autoft.ledger import Ledger, TrialRecord
from autoft.machine import versions
from autoft.run import Run
from autoft.screen import Screen
from autoft.stopwatch import Stopwatch
from autoft.study import StudyRecord
from autoft.summary import Best, Scores, Summary
from autoft.task import METRICS
from autoft.train.worker import Worker
from autoft.types import Handoff, Preprocess, SplitName, Trial

EXPORTER = "onnx"


@dataclass(frozen=True)
class Exported:
    """A trial's bundle: its folder, the bytes of its model.onnx, what was measured; validation figures only."""

    trial: Trial
    folder: str
    model_bytes: int
    parity: ParityReport
    calibration: Calibration
    validation: Scores


@dataclass(frozen=True)
class Wanted:
    """What kind of bundle: how much is compared, what model.onnx takes, and the split whose figures are reported."""

    gate: Gate
    layout: Layout
    reported: SplitName


def layout(batched: bool) -> Layout:
    """What model.onnx takes, from the flag."""
    return "batch" if batched else "image"


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


def export(run: Run, host: Host, worker: Worker, record: TrialRecord, folder: Path, wanted: Wanted) -> Bundle:
    """Write the trial's bundle as `folder`, in place of what is there, once it is whole.

    Raises `GateFailed` with the numbers when it differs from torch; `folder` is then as it was. Raises `LookupError`
    when the trial's checkpoint is gone or damaged.
    """
    classifier = worker.restored(worker.checkpoint(record))
    order = Order(
        handoff=handoff_of(run.record, record),
        reference=lambda images: worker.answers(classifier, torch.from_numpy(images)),
        dataset=run.dataset(),
        reported=wanted.reported,
        gate=wanted.gate,
        layout=wanted.layout,
        versions=versions(),
    )
    with replacing(folder) as fresh:
        exports = host.exporter(EXPORTER).export(classifier, order.handoff, fresh)
        return write_bundle(order, exports, fresh)


def handoff_of(study: StudyRecord, record: TrialRecord) -> Handoff:
    """What goes with the trial's weights; nothing of this machine is in it."""
    trial, info = record.trial, study.data
    backbone = next(backbone for backbone in study.backbones if backbone.name == trial.backbone)
    spec = backbone.input
    return Handoff(
        labels=info.classes,
        preprocess=Preprocess(
            trial.image_size, spec.mean, spec.std, spec.interpolation, study.view, value_range=info.value_range
        ),
        backbone=replace(backbone, source=without_place(backbone.source)),
        trial=trial,
        metric=study.study.metric,
        validation_score=METRICS[study.study.metric].shown(record.score or 0.0),
        data_fingerprint=info.fingerprint,
    )


def conclude(run: Run, host: Host, worker: Worker, ledger: Ledger, watch: Stopwatch, screen: Screen) -> Summary:
    """Export the best trial, open the test split, write summary.json.

    A model of an earlier end of this run is replaced only by one that passed the gate.
    """
    study = run.record.study
    wanted = Wanted(FULL if study.full_parity else QUICK, layout(study.batched), "test")
    with watch.phase("export"):
        trial, bundle = _export_best(run, host, worker, ledger, wanted, screen)
    states = [record.state for record in ledger.trials.values()]
    summary = Summary(
        run=as_text(run.folder.path),
        metric=study.metric,
        best=Best(trial.id, trial.backbone, trial.freeze, trial.image_size, trial.params),
        validation=bundle.validation,
        test=bundle.scores,
        trials={state: states.count(state) for state in ("finished", "paused", "failed")},
        seconds=watch.seconds(),
        model=f"{run.folder.export.name}/{MODEL}",
        budget=study.time,
        test_openings=_openings(run) + 1,
        problems=len(run.record.data.problems),
        candidates=len(run.record.candidates),
        tried=len({(trial.backbone, trial.freeze) for trial in (record.trial for record in ledger.ranking())}),
        missed=bundle.report.missed,
    )
    write_atomic(run.folder.summary, encode(summary))
    return summary


def _export_best(
    run: Run, host: Host, worker: Worker, ledger: Ledger, wanted: Wanted, screen: Screen
) -> tuple[Trial, Bundle]:
    """The best trial whose checkpoint is whole; one that is not is passed over with a line."""
    for record in finalists(ledger):
        try:
            return record.trial, export(run, host, worker, record, run.folder.export, wanted)
        except LookupError as problem:
            screen.note(f"not exported: {problem.args[0]}; trying the next best")
    raise RunFailed("no checkpoint in this run is whole; nothing can be exported")


def _openings(run: Run) -> int:
    """How often the test split was opened before; a run that was extended opens it again, and says so."""
    before = run.summary()
    return before.test_openings if before else 0
