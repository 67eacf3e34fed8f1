"""Writing a bundle: the models that passed the gate, and everything that goes beside them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np

from autoft.bundle.beside import write_beside
from autoft.bundle.card import CardFacts, model_card
from autoft.bundle.gate import Passed, Refused, first_that_passes, logits_of
from autoft.bundle.known import known_images
from autoft.bundle.licenses import write_licenses
from autoft.bundle.manifest import write_manifest
from autoft.bundle.order import Order, evenly
from autoft.bundle.parity import QUICK
from autoft.bundle.standalone.verify import verify
from autoft.errors import GateFailed
from autoft.media.image.decode import normalise, preprocess
from autoft.media.image.vectors import AS_THEY_ARE, cases, write_vectors
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.calibration import prior_correction
from autoft.tasks.forms.base import Answering
from autoft.tasks.scores import scores
from autoft.tasks.statistics import Logits
from autoft.values.bundle import (
    CARD,
    CORE,
    IMAGES,
    LABELS,
    LATENCY,
    METRICS,
    MODEL,
    PARITY,
    PREPROCESS,
    VECTORS_FILE,
    Calibration,
    Latency,
    MetricsReport,
    ParityReport,
    PriorCorrection,
    Vectors,
)
from autoft.values.codec import decode, encode_readable
from autoft.values.counts import counted
from autoft.values.dataset import SplitName
from autoft.values.handoff import Artifact
from autoft.values.summary import Scores

_SCRIPTS: Final = {"verify.py": "verify.py", "infer.py": "examples/infer.py", "infer.mjs": "examples/infer.mjs"}
_LATENCY_SECONDS: Final = 1.5
_LATENCY_TIMEOUT: Final = 60.0
_LEAST_LATENCY_TIMEOUT: Final = 5.0  # of a run that is late already: usually it takes half as long


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written: bytes of model.onnx, and what was measured; `core_milliseconds` where it was limited.

    `report` is metrics.json. `scores` are those of the reported split, `validation` those of the validation split;
    equal when that is reported.
    """

    model_bytes: int
    core_milliseconds: float | None
    parity: ParityReport
    calibration: Calibration
    validation: Scores
    scores: Scores
    report: MetricsReport


def write_bundle(order: Order, exports: Iterator[Artifact], folder: Path, watch: Stopwatch) -> Bundle:
    """Write a bundle into `folder`, which is empty, from the first of the `exports` that passes the gate.

    Seconds go to the phases "export", "gate", "test" (figures of the reported split, whichever that is) and "bundle".
    Raises `GateFailed` with the numbers and the worst images when none passes, and when the bundle does not verify
    itself; `TooSlow`, before the reported split is scored; `DataError` when images of the gate are gone. What is in
    `folder` then is no bundle.
    """
    folder.mkdir(exist_ok=True)  # a run folder that is gone stays gone
    passed = first_that_passes(order, exports, folder, watch)
    answering = passed.answering
    with watch.phase("test"):
        openings = order.open_test() if order.reported == "test" else 0
        logits = {"val": passed.validation_logits}
        if order.reported not in logits:
            logits[order.reported] = _logits(order, folder)
        report = replace(
            _report(order, logits[order.reported], answering),
            test_openings=openings,
            test_images_seen=order.test_images_seen if order.reported == "test" else 0,
            prior_correction=_prior_correction(order, logits["val"], answering),
        )
        validation, reported = (_scores(order, logits[split], split, answering) for split in ("val", order.reported))
    with watch.phase("bundle"):
        beside = tuple(write_beside(order, folder, answering))
        passed = replace(passed, parity=replace(passed.parity, beside=beside))
        vectors = _vectors(order, answering, folder)
        _write_facts(order, passed, report, vectors, folder)
        _write_scripts(folder)
        _write_card(order, passed, report, vectors, _latency(order, folder), folder)
        _verified(folder)
    size = (folder / MODEL).stat().st_size
    return Bundle(size, passed.core_milliseconds, passed.parity, answering.calibration, validation, reported, report)


def _report(order: Order, logits: Logits, answering: Answering) -> MetricsReport:
    truth, images = order.dataset.targets(order.reported), order.dataset.info.counts[order.reported]
    report = answering.form.report(order.reported, logits, truth, answering)
    report = replace(report, origin=order.handoff.origin)
    if order.reported == "val" and (twin := order.handoff.trial.twin):
        report = replace(report, of_trial=twin.trial)
    if len(truth) == images:
        return report
    return replace(
        report, note=f"There was time for {len(truth):,} of {counted(images, 'image')}. {report.note}".rstrip()
    )


def _prior_correction(order: Order, validation: Logits, answering: Answering) -> PriorCorrection | None:
    if not order.handoff.balance:
        return None
    truth, trained = (order.dataset.targets(split) for split in ("val", "train"))
    return prior_correction(answering.answers(validation), truth, trained)


def _logits(order: Order, folder: Path) -> Logits:
    try:
        return logits_of(order, folder / CORE, order.reported)
    except Refused as reason:
        raise GateFailed(str(reason)) from reason


def _scores(order: Order, logits: Logits, split: SplitName, answering: Answering) -> Scores:
    task, judged = order.task, answering.judged(logits)
    found = scores(task.metrics, task.metric(order.handoff.metric), judged, order.dataset.targets(split))
    return replace(found, right=answering.form.right)


def _write_facts(order: Order, passed: Passed, report: MetricsReport, vectors: Vectors, folder: Path) -> None:
    _write(folder / LABELS, order.handoff.labels)
    _write(folder / PREPROCESS, order.handoff.preprocess)
    _write(folder / PARITY, passed.parity)
    _write(folder / METRICS, report)
    _write(folder / VECTORS_FILE, vectors)
    known = known_images(order.known or order.dataset.samples, train_on=order.handoff.trial.train_on)
    _write(folder / IMAGES, known)
    write_licenses(folder, order.handoff.backbone)


def _vectors(order: Order, answering: Answering, folder: Path) -> Vectors:
    # Eight of as many as the gate compares when it has time, fewer of a network that is slow.
    shown = max(2, AS_THEY_ARE * len(order.compared.samples) // QUICK.images)
    samples, recipe = evenly(order.compared.samples, min(shown, AS_THEY_ARE)), order.handoff.preprocess
    chosen = cases(list(zip(order.decoded(samples), (sample.label for sample in samples), strict=True)))
    inputs = normalise(np.stack([preprocess(case.pixels, recipe) for case in chosen]), recipe)
    return write_vectors(folder, chosen, order.reference(inputs), answering)


def _write_scripts(folder: Path) -> None:
    for name, place in _SCRIPTS.items():
        path = folder / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files("autoft.bundle.standalone").joinpath(name).read_bytes())


def _latency(order: Order, folder: Path) -> Latency:
    """Measured by the bundle's own script, in a process that holds nothing but the models.

    When that fails or there is no time for it there are no timings, and `machine` says why: the model is worth more.
    """
    try:
        done = subprocess.run(
            [sys.executable, "verify.py", "--latency", "--seconds", str(_LATENCY_SECONDS), "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=min(_LATENCY_TIMEOUT, max(_LEAST_LATENCY_TIMEOUT, order.seconds_left())),
            check=True,
            start_new_session=True,  # Ctrl-C is for the run, which hears it
        )
        latency = decode(Latency, done.stdout)
    except subprocess.TimeoutExpired:
        latency = _not_measured("there was no time for it")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        latency = _not_measured(type(error).__name__)
    _write(folder / LATENCY, latency)
    return latency


def _not_measured(why: str) -> Latency:
    return Latency(f"not measured: {why}", "", 0, (), 0, {}, "python verify.py --latency")


def _write_card(
    order: Order, passed: Passed, report: MetricsReport, vectors: Vectors, latency: Latency, folder: Path
) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    facts = CardFacts(
        handoff=order.handoff,
        form=passed.answering.form,
        data=order.dataset.info,
        metrics=report,
        parity=passed.parity,
        latency=latency,
        layout=order.layout,
        vectors=len(vectors.vectors),
        versions=order.versions,
        created=created,
        known={metric.name: metric.facts for metric in order.task.metrics},
        max_latency=order.max_latency,
        core_milliseconds=passed.core_milliseconds,
    )
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")
    write_manifest(folder, order.versions, order.handoff.data_fingerprint, created, order.handoff.origin)


def _verified(folder: Path) -> None:
    """The bundle checks itself before anybody else does. Raises `GateFailed`."""
    outcome = verify(folder)
    if outcome.problems:
        raise GateFailed(f"the bundle does not verify itself: {'; '.join(outcome.problems)}")


def _write(path: Path, value: object) -> None:
    path.write_text(encode_readable(value), encoding="utf-8")
