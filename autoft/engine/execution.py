"""Execution: the slow half of a run, from an opened run folder to its summary."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoft.bundle.parity import FULL
from autoft.bundle.place import holds_bundle, require_free, settle
from autoft.data.readers import data_folder
from autoft.engine.conclude import (
    BundleMaker,
    Exported,
    NoWeights,
    Wanted,
    chosen,
    conclude,
    export_best,
    finalists,
    let_stand,
    limit_explained,
)
from autoft.engine.ending import Ending
from autoft.engine.prepare import Preparation
from autoft.engine.sitting import Sitting
from autoft.errors import Interrupted, PluginError, RunFolderError, StudyError
from autoft.parts import hookspecs
from autoft.parts.base import Searcher
from autoft.parts.host import Host
from autoft.runners.base import Site
from autoft.runners.refit import Refits
from autoft.runners.search import Search
from autoft.store import Journal
from autoft.study.latency import too_slow
from autoft.study.machine import Slowness
from autoft.study.run import Run
from autoft.system.files import as_path, as_text
from autoft.system.parallel import Check
from autoft.system.screen import Screen
from autoft.system.signals import Cancelled, StopFlag, stop_on_signals
from autoft.system.starting import start_slowness
from autoft.system.stopwatch import Stopwatch
from autoft.train.workshop import Workshop
from autoft.values.handoff import Layout
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.summary import Summary
from autoft.values.trial import Parent


def execute(run: Run, sitting: Sitting) -> Summary:
    """Search what is left, then export the best and score it. The same for a new run and a resumed one.

    A finished run in which nothing better was found keeps its model and its score: the test split is not opened again.
    Raises `Interrupted` on a signal, `RunFailed` without a model, `GateFailed` when the exported file misses parity.
    """
    host, watch = sitting.host, sitting.watch
    with run.folder.lock(), stop_on_signals() as stopped:
        settle(run.folder.export)
        with watch.phase("data"):
            dataset = run.dataset(host)  # open to the end, so that no other run evicts the pixels that the workers need
            ledger = run.ledger()  # read under the lock: another command may have gone on with the run until now
            sitting = sitting.going_on_after(run.used(ledger))
            interrupt = partial(_raise_if_stopped, run, ledger, host, stopped)
            dataset.hold(run.record.squares, run.record.machine.busy, interrupt)
        with closing(Preparation(run, host)) as preparation, Journal(run.folder.journal) as journal:
            slowness = Slowness(own=run.record.machine.busy + 1.0)
            ending = Ending(run.record, preparation, sitting.clock, slowness)
            search = _search(run, sitting, ledger, journal, stopped, ending)
            ledger.damaged = run.unusable(ledger, host, interrupt)
            for line in _damage(run, ledger, interrupt):
                sitting.screen.note(line)
            with _time_is_used(search):
                with watch.phase("search"):
                    run.save()  # workers read it
                    ending.prepare(search.ledger)
                    host.tell(hookspecs.autoft_search_started, run.record, run.folder.path)
                    kept = _best_is_kept(run, search.ledger, host)
                    with _leaderboard_at_the_end(run, search.ledger, sitting.screen), kept:
                        if remark := search.searcher.remark(search.problem):
                            sitting.screen.note(remark)
                        site = Site(run.folder.path, run.record.machine, sitting.clock.origin)
                        sitting.runner.run(search, site, stopped)
                _raise_if_stopped(run, search.ledger, host, stopped)
                summary = _end(run, search, ending, watch)
    host.tell(hookspecs.autoft_search_finished, summary)
    return summary


def _end(run: Run, search: Search, ending: Ending, watch: Stopwatch) -> Summary:
    """Export the best and score it, or let the model stand that there is."""
    ledger, stopped = search.ledger, search.stopped
    try:
        with stopped.at_once():
            if before := run.concluded(ledger):
                return let_stand(run, search, before)
            best = (ledger.winner or finalists(ledger)[0]).trial
            with watch.phase("export"):
                ending.finish(best)
            shop = _shop(run, search.host, stopped)
            maker = BundleMaker(run, ledger, shop, watch)
            return conclude(maker, search, ending)
    except (Cancelled, KeyboardInterrupt):
        _raise_if_stopped(run, ledger, search.host, stopped)
        raise


@contextmanager
def _time_is_used(search: Search) -> Iterator[None]:
    """However the block is cut short, the time since the last report is used when the run goes on."""
    try:
        yield
    except BaseException:
        with suppress(RunFolderError):  # what ended the run is what has to be said
            search.stop()
        raise


@contextmanager
def _leaderboard_at_the_end(run: Run, ledger: Ledger, screen: Screen) -> Iterator[None]:
    """However the search in the block ends, leaderboard.csv says what came of it."""

    def write() -> None:
        run.folder.write_leaderboard(ledger, run.record.metric)

    try:
        yield
    except BaseException:
        with suppress(OSError):  # what ended the search is what has to be said
            write()
        raise
    screen.close()
    with run.writing(run.folder.leaderboard):
        write()


@contextmanager
def _best_is_kept(run: Run, ledger: Ledger, host: Host) -> Iterator[None]:
    """A plugin that ends the search in the block costs no model: its error says how to come to the best so far."""
    try:
        yield
    except PluginError as error:
        raise PluginError("; ".join(filter(None, [str(error), run.best_so_far(ledger, host)]))) from error


@dataclass(frozen=True)
class ExportWish:
    """What is to be exported: trial `number`, None for the best that can be, as `out`.

    `out` is None for RUN/exports/N, or for RUN/export where the model that summary.json speaks of is that trial's, and
    gone.
    """

    number: int | None
    out: Path | None
    layout: Layout


def export_trial(run: Run, plugins: Sequence[str], wish: ExportWish, screen: Screen) -> Exported:
    """Write a trial's bundle.

    `plugins` change those the run recorded, as `Host.recorded` says. The gate compares in full, and the test split
    stays shut. Raises `StudyError` for a trial without a checkpoint, `GateFailed` when files and torch differ, or no
    trial can be exported, `RunFolderError` when none has a score yet, `DataError` when the run's images are not where
    it looks for them.
    """
    with run.folder.lock(), stop_on_signals() as stopped:
        ledger = run.ledger()
        _require_a_score(run, ledger)
        with _stopped_at_once(stopped):
            ledger.damaged = run.checkpoints.damaged(ledger)  # which the plugins may add to
        settle(run.folder.export)
        records = finalists(ledger) if wish.number is None else [chosen(ledger, wish.number)]
        _export_path(run, records[0], wish.out)  # what is quick to find out comes first
        run.images()
        host = run.host(plugins)
        for warning in host.warnings():
            screen.note(warning)
        for line in run.exporters_left_out(host):
            screen.note(line)
        ledger.damaged = run.unusable(ledger, host)
        limit = run.record.study.max_latency if wish.number is None else None  # who names one knows what they want
        ledger.barred = {}  # what was too slow is timed again: the machine may have been busy
        maker = BundleMaker(run, ledger, _shop(run, host, stopped), Stopwatch(time.time()))

        def exported(record: TrialRecord) -> Exported:
            screen.note(f"exporting trial {record.trial.id}: {record.trial.backbone}, {record.trial.freeze}")
            folder = _export_path(run, record, wish.out)
            bundle = maker.make(record, folder, Wanted(FULL, _layout(run, folder, wish), "val", max_latency=limit))
            if folder == run.folder.export.resolve():
                screen.note(
                    "the run's model is back, with validation figures only; its test score stays in summary.json"
                )
            return Exported(
                record.trial, as_text(folder), bundle.model_bytes, bundle.parity, bundle.calibration, bundle.validation
            )

        try:
            with _stopped_at_once(stopped), limit_explained(run, ledger):
                named = wish.number is not None
                found = exported(records[0]) if named else export_best(records, exported, screen)[1]
        except NoWeights as problem:
            raise RunFolderError(f"trial {records[0].trial.id}: {problem}; see autoft leaderboard for others") from None
        try:
            run.with_plugins(host).save()
        except RunFolderError as problem:  # a read-only folder, say: the bundle is there
            screen.note(f"the run does not remember what was changed: {problem}")
        return found


@contextmanager
def _stopped_at_once(stopped: StopFlag) -> Iterator[None]:
    """A signal ends the block of an export with `Interrupted`."""
    try:
        with stopped.at_once():
            yield
    except (Cancelled, KeyboardInterrupt):
        raise Interrupted("stopped; nothing was exported", stopped.signal or signal.SIGINT) from None


def _require_a_score(run: Run, ledger: Ledger) -> None:
    """Raise `RunFolderError` where the search has not come so far as to a score, and no trial says why not."""
    is_explained = any(report.error for record in ledger.trials.values() for report in record.reports)
    if not ledger.ranking() and not is_explained:
        path = shlex.quote(str(run.folder.path))
        raise RunFolderError(f"no trial of the run in {path} has a score yet; `autoft resume {path}` goes on with it")


def _shop(run: Run, host: Host, stopped: StopFlag) -> Workshop:
    """One that works on the CPU: what is exported, and what it is held against, are promises about the CPU."""
    return Workshop(run.on("cpu"), host, stopped)


def _export_path(run: Run, record: TrialRecord, out: Path | None) -> Path:
    """Where a trial is exported to: neither into the data nor where the model of summary.json is, or belongs."""
    data, best, put_back = as_path(run.record.data.root), run.folder.export, _is_lost(run, record)
    usual = best if put_back else run.folder.path / "exports" / str(record.trial.id)
    folder = usual if out is None else out
    listed = run.samples() if run.record.data.manifest else ()
    if inside := data_folder(folder.resolve(), run.record.data, [sample.path for sample in listed]):
        raise StudyError(f"{folder} lies inside the data, in {inside}; choose another --out")
    if folder.resolve().is_relative_to(best.resolve()) and not (put_back and folder.resolve() == best.resolve()):
        raise StudyError(f"{folder} is the place of the model that summary.json speaks of; choose another --out")
    return require_free(folder, (run.folder.path, data))


def _is_lost(run: Run, record: TrialRecord) -> bool:
    """Whether summary.json speaks of a model of these very weights, and it is gone."""
    if holds_bundle(run.folder.export) or (summary := run.summary()) is None:
        return False
    if not summary.finalists:  # of an older version
        return summary.best.trial == record.trial.id
    return summary.finalists[-1] == record.best_checkpoint


def _layout(run: Run, folder: Path, wish: ExportWish) -> Layout:
    """What model.onnx takes: that of the run itself is put back as it was."""
    as_before = folder == run.folder.export.resolve() and run.record.study.batched
    return "batch" if as_before else wish.layout


def _search(run: Run, sitting: Sitting, ledger: Ledger, journal: Journal, stopped: StopFlag, ending: Ending) -> Search:
    refits = Refits(run.record, ending, sitting.clock, sitting.host.has)
    return Search(
        searcher=sitting.host.part(Searcher, run.record.study.searcher),
        problem=run.problem(ledger, sitting.host),
        ledger=ledger,
        journal=journal,
        checkpoints=run.checkpoints,
        clock=sitting.clock,
        host=sitting.host,
        screen=sitting.screen,
        stopped=stopped,
        reserve=refits.reserve,
        told=partial(_follow, run, sitting.screen, ending),
        refits=refits,
        starting=start_slowness() * sitting.runner.starting,
        target=run.record.target,
    )


def _follow(run: Run, screen: Screen, ending: Ending, ledger: Ledger) -> None:
    """What is done after each report: networks that are too slow are barred, and the end is prepared."""
    slow = too_slow(run, ledger)
    for network in sorted(slow.keys() - ledger.barred.keys()):
        screen.note(f"no more of it: {slow[network]}")
    ledger.barred = slow
    ending.prepare(ledger)


def _damage(run: Run, ledger: Ledger, check: Check) -> Iterator[str]:
    """A line for each trial whose checkpoint is damaged or gone: what becomes of the trial, and what is wrong.

    Of a run whose model stands there may be no export: if there is one, it says itself what it passes over. What one
    that a kill cut short goes on from is not known before its worker has looked. `check` is as in
    `CheckpointStore.damaged`.
    """
    checkpoints, stands = run.checkpoints, run.concluded(ledger) is not None
    for number in sorted(ledger.with_checkpoint()):
        check()
        record, going_on = ledger.trials[number], None
        kept = None if stands else ledger.damage(record)
        if record.state == "paused":
            latest = Parent(number, record.step)
            going_on = checkpoints.problem(latest) or checkpoints.training_problem(latest)
        becomes = ["is passed over in the export"] * bool(kept) + ["begins anew if it goes on"] * bool(going_on)
        if becomes:
            yield f"trial {number} {' and '.join(becomes)}: {kept or going_on}"


def _raise_if_stopped(run: Run, ledger: Ledger, host: Host, stopped: StopFlag) -> None:
    """Raise `Interrupted`, with the commands that make something of what there is, after a signal."""
    if stopped.signal is None:
        return
    stopped_with = "; ".join(filter(None, ["stopped", run.best_so_far(ledger, host)]))
    again = f"autoft resume {shlex.quote(str(run.folder.path))}{host.without}"
    raise Interrupted(f"{stopped_with}. Go on with: {again}", stopped.signal)
