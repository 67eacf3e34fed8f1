"""From a finished search to a model: the best trial's bundle, and the test split, scored once from the ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch

from autoft.bundle.build import Bundle, write_bundle
from autoft.bundle.order import Order
from autoft.bundle.parity import Gate
from autoft.bundle.place import replacing
from autoft.bundle.sources import without_place
from autoft.data.dataset import Dataset
from autoft.engine.ending import Ending, gate_of
from autoft.engine.prepare import prepared_folder
from autoft.errors import BackboneUnavailable, GateFailed, PluginError, RunFailed, StudyError, TooSlow
from autoft.parts.base import Exporter
from autoft.parts.plugins import plugin_versions
from autoft.runners.search import Search
from autoft.store.checkpoints import Checkpoint
from autoft.study.latency import beyond_the_limit, remember
from autoft.study.machine import versions
from autoft.study.record import StudyRecord
from autoft.study.run import Run
from autoft.study.study import CORE_EXPORTER
from autoft.system.files import as_text, write_atomic
from autoft.system.screen import Screen
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.statistics import Logits
from autoft.train.classifier import Classifier
from autoft.train.workshop import WeightsChanged, Workshop
from autoft.values.bundle import MODEL, Calibration, ParityReport
from autoft.values.codec import encode
from autoft.values.counts import counted
from autoft.values.dataset import SplitName
from autoft.values.handoff import Artifact, Begun, Handoff, Layout, Preprocess
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.summary import Best, RunnerUp, Scores, Summary
from autoft.values.target import MetricFacts, Targets
from autoft.values.trial import Parent, Trial

T = TypeVar("T")

ROUNDING = 1e-6  # of a score's size, from one version of a library to the next


class NoWeights(RunFailed):
    """A trial's weights are gone or damaged, or fit its backbone no more."""


class NotExportable(RunFailed):
    """The exporter knows no way for a network, whatever was trained of it."""


_OF_THIS_TRIAL = (GateFailed, RunFailed, BackboneUnavailable, PluginError)


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
    """What kind of bundle: how much is compared, what model.onnx takes, and the split whose figures are reported.

    `images`: the figures come of at most so many images of that split, None for all. `max_latency` in milliseconds is
    what the network may take for one image here. `spare` gives the seconds for what a bundle can do without.
    """

    gate: Gate
    layout: Layout
    reported: SplitName
    images: int | None = None
    max_latency: float | None = None
    spare: Callable[[], float] = lambda: math.inf


def layout(batched: bool) -> Layout:
    """What model.onnx takes, from the flag."""
    return "batch" if batched else "image"


def finalists(ledger: Ledger) -> list[TrialRecord]:
    """The trials of which the first that can be is exported. Raises `RunFailed`, with the causes, without any."""
    if found := ledger.finalists():
        return list(found)
    causes = {report.error for record in ledger.trials.values() for report in record.reports if report.error}
    raise RunFailed(f"no trial gave a model: {'; '.join(sorted(causes)[:3]) or 'the time was too short for one slice'}")


def chosen(ledger: Ledger, number: int) -> TrialRecord:
    """Trial `number`. Raises `StudyError` when it cannot be exported."""
    kept = {record.trial.id: record for record in finalists(ledger)}
    known = sorted(record.trial.id for record in ledger.exportable())
    if number not in ledger.trials:
        raise StudyError(f"there is no trial {number}; exportable are {known} (see autoft leaderboard)")
    if number not in kept:
        raise StudyError(f"trial {number} has no checkpoint; exportable are {known} (see autoft leaderboard)")
    return kept[number]


@dataclass(frozen=True)
class BundleMaker:
    """Makes bundles of the trials of a run. `shop` has what the files are held against; seconds go to `watch`."""

    run: Run
    ledger: Ledger
    shop: Workshop
    watch: Stopwatch

    def make(self, record: TrialRecord, folder: Path, wanted: Wanted) -> Bundle:
        """Write the trial's bundle as `folder`, in place of what is there, once it is whole.

        What was prepared for its backbone is tried first. Raises `GateFailed` with the numbers when it differs from
        torch, and `TooSlow` above `wanted.max_latency`; `folder` is then as it was. Raises `NoWeights`,
        `NotExportable`, what building the backbone raises, and `RunFolderError` when the bundle cannot be written.
        """
        if damage := self.ledger.damage(record):
            raise NoWeights(damage)
        with self.watch.phase("export"):
            checkpoint, classifier = self._restored(record)
        run, host, network = self.run, self.shop.host, record.trial.network
        order = self._order(record, checkpoint, classifier, wanted)
        exporter, prepared = host.part(Exporter, CORE_EXPORTER), prepared_folder(run, host.refs, *network)
        try:
            with run.writing(folder), replacing(folder) as fresh:
                quick = _if_it_works(exporter.export_prepared(classifier, order.handoff, prepared, fresh))
                full = exporter.export(classifier, order.handoff, fresh)
                bundle = write_bundle(order, _if_there_is_a_way(chain(quick, full)), fresh, self.watch)
        except TooSlow as slow:  # and so are the others of its network
            remember(run, network, slow.milliseconds)
            self.ledger.barred = {**self.ledger.barred, network: str(slow)}
            raise
        if bundle.core_milliseconds is not None:
            remember(run, network, bundle.core_milliseconds)
        return bundle

    def _order(self, record: TrialRecord, checkpoint: Checkpoint, classifier: Classifier, wanted: Wanted) -> Order:
        run, shop, host = self.run, self.shop, self.shop.host
        dataset, began = shop.dataset, run.record.warm_start
        handoff = handoff_of(run.record, record, self.ledger.scored_as(record))
        tapped, better = shop.network(record.trial.backbone).tapped, better_than(self.ledger, record)
        handoff = replace(handoff, outputs=dataset.task.outputs, better=better, tapped=tapped)
        return Order(
            handoff=handoff,
            reference=lambda images: shop.answers(classifier, torch.from_numpy(images)),
            dataset=dataset if wanted.images is None else dataset.limited(wanted.reported, wanted.images),
            reported=wanted.reported,
            gate=wanted.gate,
            layout=wanted.layout,
            versions=versions() | plugin_versions(host.refs),
            scored=checkpoint.logits,
            twin=self._twins_logits(record),
            known=run.samples(),
            open_test=run.open_test,
            test_images_seen=began.test_images_seen if began else 0,
            max_latency=wanted.max_latency,
            seconds_left=wanted.spare,
            beside={
                name: partial(host.part(Exporter, name).export, classifier, handoff)
                for name in run.record.study.exporter
                if name != CORE_EXPORTER and name in host.parts(Exporter)  # see `Run.exporters_left_out`
            },
        )

    def _restored(self, record: TrialRecord) -> tuple[Checkpoint, Classifier]:
        checkpoint = self._saved(record, record.best_checkpoint)
        try:
            return checkpoint, self.shop.restored(checkpoint)
        except (ValueError, RuntimeError, WeightsChanged) as problem:  # torch's for tensors of another shape
            raise NoWeights(" ".join(str(problem.args[0]).split())) from problem

    def _twins_logits(self, record: TrialRecord) -> Logits | None:
        """Of a refit, what its twin made of the validation images. Raises `NoWeights` when that is not known."""
        if record.trial.twin is None:
            return None
        try:
            twin = self._saved(self.ledger.scored_as(record), record.trial.twin)
        except NoWeights as problem:
            of_which = f"trial {record.trial.twin.trial} is its twin, whose validation figures it has"
            raise NoWeights(f"{problem}; {of_which}") from problem
        if twin.logits is None:
            raise NoWeights(f"nobody kept what trial {twin.trial.id}, its twin, made of the validation images")
        return twin.logits

    def runner_up(self, record: TrialRecord) -> RunnerUp | None:
        """The best of the other trials, and how far behind; None where there is none whose outputs were kept.

        Nor is one that is ahead, as where the best could not be exported.
        """
        best, shown = self.ledger.scored_as(record), self.run.record.metric.shown
        others = (one for one in self.ledger.finalists() if not one.is_refit and one.trial.id != best.trial.id)
        if (second := next(others, None)) is None:
            return None
        try:
            ours, theirs = (self._saved(one, one.best_checkpoint).logits for one in (best, second))
        except NoWeights:
            return None
        if ours is None or theirs is None or (ahead := self.shop.ahead(ours, theirs)) is None or ahead[0] < 0:
            return None
        return RunnerUp(second.trial.id, shown(second.score or 0.0), *ahead)

    def _saved(self, record: TrialRecord, wanted: Parent) -> Checkpoint:
        """A checkpoint of a trial. Raises `NoWeights` when it is gone, or did not score what the journal says."""
        try:
            checkpoint = self.shop.saved(wanted)
        except LookupError as problem:
            self.run.folder.require()
            raise NoWeights(str(problem.args[0])) from problem
        if checkpoint.logits is not None and not record.is_refit:
            scored = self.shop.score(checkpoint.logits)
            metric, known = self.run.record.metric, record.score or 0.0
            if not is_same_score(scored, known, metric, self.shop.dataset.info.targets):
                now, then = (metric.text(metric.shown(score)) for score in (scored, known))
                weights = f"the weights of trial {record.trial.id}"
                raise NoWeights(f"{weights} scored {now}, the journal says {then}: one of them is damaged")
        return checkpoint


def is_same_score(one: float, other: float, metric: MetricFacts, targets: Targets) -> bool:
    """Whether two scores differ by no more than rounding.

    That is a part of the scores, but not less than the same part of what the metric is measured in: 1 where it has a
    greatest figure, as such scores are near 0 by chance, else a deviation of the numbers, or 1 where there are none.
    """
    unit = metric.greatest or min(targets.deviation, default=1.0)
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING * unit)


def _if_it_works(quick: Iterator[Artifact]) -> Iterator[Artifact]:
    """What a prepared graph gives; whatever goes wrong with it, the full exports follow."""
    with suppress(PluginError):
        yield from quick


def _if_there_is_a_way(exports: Iterator[Artifact]) -> Iterator[Artifact]:
    """What an exporter gives. Raises `NotExportable` where that is nothing, as it knows no way."""
    made = 0
    try:
        for made, artifact in enumerate(exports, 1):  # noqa: B007  counts
            yield artifact
    except RunFailed as problem:
        if made:
            raise
        raise NotExportable(str(problem)) from problem


def export_best(
    records: Sequence[TrialRecord],
    export: Callable[[TrialRecord], T],
    screen: Screen,
) -> tuple[TrialRecord, T]:
    """The first of the records that can be exported, and what `export` gave of it; each before it is a line.

    Of a network that cannot be exported only the first is tried, and its line says how many more there are. Raises
    `GateFailed` with every cause when none can. What would end every other export too, images that are gone or a full
    disk, is raised at once.
    """
    causes: dict[str, list[str]] = {}
    left = [*records]
    while left:
        record, *left = left
        try:
            return record, export(record)
        except _OF_THIS_TRIAL as problem:
            others = [one for one in left if one.trial.network == record.trial.network]
            passed = [record, *others] if isinstance(problem, NotExportable) else [record]
            left = [one for one in left if one not in passed]
            causes.setdefault(str(problem), []).extend(str(one.trial.id) for one in passed)
            more = f", and {len(passed) - 1} more of its network, are" if len(passed) > 1 else " is"
            screen.note(f"trial {record.trial.id}{more} passed over: {problem}")
    every = "; ".join(f"{_trials(numbers)}: {cause}" for cause, numbers in causes.items())
    raise GateFailed(f"none of {counted(len(records), 'trial')} can be exported: {every}")


def _trials(numbers: Sequence[str]) -> str:
    *others, last = numbers
    return f"trials {', '.join(others)} and {last}" if others else f"trial {last}"


@contextmanager
def limit_explained(run: Run, ledger: Ledger) -> Iterator[None]:
    """Where no trial can be exported in the block, and a network is too slow, the error says what can be done."""
    try:
        yield
    except GateFailed as none:
        if not ledger.barred:
            raise
        raise GateFailed(f"{none}; {beyond_the_limit(run)}") from none


def handoff_of(study: StudyRecord, record: TrialRecord, scored: TrialRecord) -> Handoff:
    """What goes with the trial's weights, which were chosen by the score of `scored`: the trial itself, or its twin.

    Nothing of this machine is in it.
    """
    trial, info = record.trial, study.data
    backbone = next(backbone for backbone in study.backbones if backbone.name == trial.backbone)
    spec = backbone.input
    return Handoff(
        targets=info.targets,
        preprocess=Preprocess(
            trial.image_size, spec.mean, spec.std, spec.interpolation, study.view, value_range=info.value_range
        ),
        backbone=replace(backbone, source=without_place(backbone.source)),
        trial=trial,
        metric=study.metric.name,
        validation_score=study.metric.shown(scored.score or 0.0),
        data_fingerprint=info.fingerprint,
        share=record.share,
        scored_share=scored.share,
        precision=record.precision,
        balance=record.balance,
        training=record.training,
        scored_training=scored.training,
        search_seed=study.study.seed,
        begun=Begun(without_place(study.warm_start.run), len(study.warm_start.taken)) if study.warm_start else None,
    )


def better_than(ledger: Ledger, record: TrialRecord) -> int | None:
    """The trial that the search puts before this one, or before its twin; None where it is the best."""
    best = ledger.winner
    return best.trial.id if best and best.trial.id != record.trial.scored_as else None


def conclude(maker: BundleMaker, search: Search, ending: Ending) -> Summary:
    """Export the best trial that can be, open the test split, write summary.json.

    As many test images are scored as there is time for. Raises `GateFailed` with the causes when none passes. A model
    of an earlier end of this run is replaced only by one that passed the gate.
    """
    run, study, ledger, clock = maker.run, maker.run.record.study, search.ledger, search.clock
    how = gate_of(study), layout(study.batched)
    wanted = Wanted(*how, "test", max_latency=study.max_latency, spare=ending.spare)

    def exported(record: TrialRecord) -> tuple[Bundle, bool]:
        # May take seconds, in which no bundle should lie beside the summary of another; networks may be barred since.
        goes_on = search.goes_on()
        in_time = replace(wanted, images=ending.testable(ledger, record.trial, clock.budget - clock.now()))
        return maker.make(record, run.folder.export, in_time), goes_on

    order = finalists(ledger)
    with limit_explained(run, ledger):
        record, (bundle, goes_on) = export_best(order, exported, search.screen)
    _report(run, bundle, search.screen)
    if not record.is_refit and (lost := [one for one in order[: order.index(record)] if one.is_refit]):
        search.screen.note(_without_refit(record, lost[0], goes_on))
    summary = _summary(maker, ledger, record, bundle)
    return _written(run, search, replace(summary, seconds=maker.watch.seconds(), goes_on=goes_on))


def _without_refit(record: TrialRecord, lost: TrialRecord, goes_on: bool) -> str:
    """Why a trial is handed over as it was scored, though there was time for a refit."""
    way = "; more time (autoft resume --time) gives it its own" if goes_on else ""
    made = f"that of trial {lost.trial.scored_as} was made, which is passed over"
    return f"no refit of trial {record.trial.id}: {made}{way}"


def let_stand(run: Run, search: Search, before: Summary) -> Summary:
    """Write what the run came to `before` as what it comes to with the time it has now: its model is the best still."""
    now = replace(before, goes_on=search.goes_on())
    why = _why_it_stands(run, search.ledger, now)
    search.screen.note(f"{why}; the model and its score stand, and the test images stay shut")
    return _written(run, search, now)


def _why_it_stands(run: Run, ledger: Ledger, summary: Summary) -> str:
    own = (record for record in ledger.trials.values() if not record.is_refit)
    since = (report for record in own for report in record.reports if report.elapsed > summary.elapsed)
    if any(report.score is not None or report.event == "failed" for report in since):
        return "nothing better was found"
    if ledger.reaching(run.record.target):
        return "the target is reached"
    return "there was no time to look for a better one" if summary.goes_on else "there was nothing more to try"


def _written(run: Run, search: Search, summary: Summary) -> Summary:
    """Write the summary, with what was searched and the time it took as of now."""
    records = search.ledger.trials.values()
    states = [record.state for record in records]
    now = replace(
        summary,
        trials={state: states.count(state) for state in ("finished", "paused", "left out", "failed")},
        tried=len({(r.trial.backbone, r.trial.freeze) for r in records if r.score is not None}),
        run=as_text(run.folder.path),
        budget=run.record.study.time,
        target=run.record.study.target,
        reached=search.ledger.reaching(run.record.target) is not None,
        elapsed=search.clock.now(),
    )
    with run.writing(run.folder.summary):
        write_atomic(run.folder.summary, encode(now))
    return now


def _report(run: Run, bundle: Bundle, screen: Screen) -> None:
    """Say what is not as somebody might take it to be."""
    for one in bundle.parity.beside:
        if not one.path:
            line = f"exporter {one.exporter}: nothing of it is in the bundle: {one.note}"
            screen.note(f"{line}; a traceback would be in {run.folder.errors}" if run.folder.errors.exists() else line)
    tested, images = bundle.scores.n, run.record.data.counts["test"]
    if tested < images:
        screen.note(
            f"test on {tested:,} of {counted(images, 'image')}, for the time there was; autoft verify scores them all"
        )


def _summary(maker: BundleMaker, ledger: Ledger, record: TrialRecord, bundle: Bundle) -> Summary:
    """What came of the export; `_written` adds what was searched."""
    run = maker.run
    study, best, ranked = run.record.study, record.trial, ledger.finalists()
    return Summary(
        run=as_text(run.folder.path),
        metric=run.record.metric.name,
        best=Best(
            trial=best.id,
            backbone=best.backbone,
            freeze=best.freeze,
            image_size=best.image_size,
            params=best.params,
            share=record.share,
            train_on=best.train_on,
            twin=best.twin.trial if best.twin else None,
            precision=record.precision,
        ),
        validation=bundle.validation,
        test=bundle.scores,
        trials={},
        seconds={},
        model=f"{run.folder.export.name}/{MODEL}",
        budget=study.time,
        test_openings=bundle.report.test_openings,
        problems=len(run.record.data.problems),
        candidates=len(run.record.candidates),
        missed=bundle.report.missed,
        weighs_classes=run.record.metric.weighs_classes,
        suggested_metric=suggested_metric(run.record.metric, maker.shop.dataset),
        runner_up=maker.runner_up(record),
        finalists=tuple(one.best_checkpoint for one in ranked[: ranked.index(record) + 1]),
    )


def suggested_metric(metric: MetricFacts, dataset: Dataset) -> str:
    """One to which each class counts alike, where the task takes them for uneven and the search went by no such one.

    "" if there is none.
    """
    task = dataset.task
    if metric.weighs_classes or task.imbalance(dataset.labels("train")) is None:
        return ""
    return next((one.name for one in task.metrics if one.facts.weighs_classes), "")
