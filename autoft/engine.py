"""The engine: from a study to a summary, and from a run folder on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from autoft.clock import RunClock
from autoft.codec import encode
from autoft.conclude import Exported, chosen, conclude, export, finalist, read_summary
from autoft.data.dataset import Dataset, open_dataset, verify_unchanged, write_split_csv
from autoft.data.scan import scan
from autoft.errors import DataError, GateFailed, Interrupted, StudyError, unknown_name
from autoft.files import write_atomic
from autoft.host import Host
from autoft.machine import Machine, share_out, versions
from autoft.parts import Problem
from autoft.run import Run
from autoft.runners.base import Runner, Site
from autoft.screen import Screen
from autoft.asking import Search
from autoft.shortlist import candidates, choose_size, shortlist
from autoft.signals import StopFlag, stop_on_signals
from autoft.stopwatch import Stopwatch
from autoft.store import Journal, RunFolder
from autoft.study import Study, StudyRecord
from autoft.summary import Summary
from autoft.task import METRICS
from autoft.train.worker import Cancelled, Worker

RUNNERS = ("auto", "inline", "ray")
# Seconds kept back for exporting, the parity gate, the test and leaving; measured in benchmarks/budget.py.
RESERVE_SECONDS = 20.0
PROBLEMS_SHOWN = 10
RESERVE_SHARE = 0.5  # at most this much of a short budget


def search(study: Study, screen: Screen, began: float, objects: Sequence[object] = ()) -> Summary:
    """Search, export the best and score it. `began` is the wall-clock time the budget counts from.

    Raises the errors of `autoft.errors`; an interrupted or failed run can be resumed.
    """
    watch = Stopwatch(began)
    with watch.phase("plugins"):
        host = _host(study, objects, screen)
        out = _run_path(study)
        machine = share_out(study, bool(host.inline_only))
        _say_why_inline(study, host, machine, screen)
    with watch.phase("data"):
        found = scan(Path(study.data).resolve(), machine.cores)
    with watch.phase("shortlist"):
        backbones = shortlist(study, host, machine, len(found.files), screen)
    with watch.phase("data"):
        specs = {backbone.input for backbone in backbones}
        views = {(choose_size(study, spec, found.short_side), spec.interpolation) for spec in specs}
        dataset = open_dataset(found, study.seed, views, machine.cores)
        _report_data(dataset, screen)
    record = StudyRecord(
        study=replace(study, out=str(out)),
        data=dataset.info,
        backbones=backbones,
        candidates=candidates(study, host.freeze_strategies(), backbones, found.short_side),
        plugins=host.refs,
        versions=versions(),
        runner=machine.runner,
        workers=machine.workers,
        threads=machine.threads,
        device=machine.device,
    )
    folder = RunFolder.create(out, encode(record), lambda folder: write_split_csv(dataset, folder.split_csv))
    return _go(Run(folder, record), host, screen, watch, RunClock(began, study.time, _reserve(study.time)))


def resume(path: Path, more: Callable[[float], float] | None, screen: Screen, began: float) -> Summary:
    """Go on with a run. `more` maps its time budget in seconds to a new one; without it a finished run is done."""
    run = Run.open(path)
    finished = read_summary(run)
    if finished is not None and more is None:
        return finished
    verify_unchanged(run.record.data, scan(Path(run.record.data.root), run.record.threads).fingerprint())
    if more is not None:
        study = replace(run.record.study, time=more(run.record.study.time))
        run = Run(run.folder, replace(run.record, study=study))
        with run.folder.lock():
            write_atomic(run.folder.study, encode(run.record))
    clock = RunClock(began - run.ledger().elapsed, run.record.study.time, _reserve(run.record.study.time))
    return _go(run, run.host(), screen, Stopwatch(began), clock)


def export_trial(path: Path, number: int | None, out: Path | None) -> Exported:
    """Write trial `number` of the run in `path`, or its best one, into `out`, or RUN/exports/N.

    The test split stays shut. The artifact's path is relative to the run folder where it lies in it. Raises
    `StudyError` for a trial without a checkpoint, `GateFailed` when file and torch differ.
    """
    run = Run.open(path)
    with run.folder.lock(), stop_on_signals() as stopped:
        ledger = run.ledger()
        record = finalist(ledger) if number is None else chosen(ledger, number)
        folder = _export_path(run, record.trial.id, out)
        host = run.host()
        worker = Worker(run.record, host, run.dataset(), run.checkpoints, stopped)
        try:
            exported = export(run, host, worker, record, folder)
        except Cancelled:
            raise Interrupted("stopped; nothing was exported", stopped.signal or signal.SIGINT) from None
    model = folder / Path(exported.artifact.path).name
    inside = model.relative_to(run.folder.path) if model.is_relative_to(run.folder.path) else model
    return replace(exported, artifact=replace(exported.artifact, path=str(inside)))


def _export_path(run: Run, number: int, out: Path | None) -> Path:
    """Where a trial is exported to: neither into the data nor over the model that summary.json speaks of."""
    folder = run.folder.path / "exports" / str(number) if out is None else out.absolute()
    if folder.resolve().is_relative_to(Path(run.record.data.root).resolve()):
        raise StudyError(f"{folder} lies inside the data; choose another --out")
    if folder.resolve() == run.folder.export.resolve():
        raise StudyError(f"{folder} holds the model that summary.json speaks of; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder} cannot be written: {error.strerror}; choose another --out") from None
    return folder


def _go(run: Run, host: Host, screen: Screen, watch: Stopwatch, clock: RunClock) -> Summary:
    """Search what is left, then conclude. The same for a new run and a resumed one."""
    with run.folder.lock(), stop_on_signals() as stopped:
        worker = Worker(run.record, host, run.dataset(), run.checkpoints, stopped)
        with watch.phase("search"), Journal(run.folder.journal) as journal:
            search = _search(run, host, screen, clock, journal, stopped)
            _runner(run.record, worker).run(search, _site(run, clock), stopped)
        screen.close()
        run.folder.write_leaderboard(search.ledger)
        _raise_if_stopped(run, stopped)
        try:
            summary = conclude(run, host, worker, search.ledger, watch)
        except Cancelled:
            _raise_if_stopped(run, stopped)
            raise
    host.notify_search_finished(summary)
    return _through_the_gate(run.record.study, summary)


def _search(
    run: Run, host: Host, screen: Screen, clock: RunClock, journal: Journal, stopped: Callable[[], bool]
) -> Search:
    study, ledger = run.record.study, run.ledger()
    return Search(
        searcher=host.searcher(study.searcher),
        problem=Problem(run.record.candidates, study.seed, run.record.workers, study.trials),
        ledger=ledger,
        journal=journal,
        checkpoints=run.checkpoints,
        clock=clock,
        host=host,
        screen=screen,
        stopped=stopped,
    )


def _runner(record: StudyRecord, worker: Worker) -> Runner:
    """The runner the study was resolved to; each brings its own imports."""
    if record.runner == "inline":
        from autoft.runners.inline import InlineRunner

        return InlineRunner(worker)
    from autoft.runners.ray import RayRunner

    return RayRunner()


def _site(run: Run, clock: RunClock) -> Site:
    record = run.record
    return Site(
        run=run.folder.path,
        workers=record.workers,
        threads=record.threads,
        device=record.device,
        gpus=record.study.gpus_per_trial,
        origin=clock.origin,
    )


def _run_path(study: Study) -> Path:
    """Where the run goes; never inside the data, which is read and not written."""
    data = Path(study.data).resolve()
    if not data.is_dir():
        kind = "is a file" if data.exists() else "does not exist"
        raise DataError(f"{study.data} {kind}; give a folder that holds one folder of images for each class")
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    out = Path(study.out).resolve() if study.out else Path.cwd() / "runs" / f"{data.name}-{stamp}"
    if out.resolve().is_relative_to(data):
        raise StudyError(f"the run folder {out} lies inside the data; choose another with --out")
    RunFolder.check_writable(out)
    return out


def _host(study: Study, objects: Sequence[object], screen: Screen) -> Host:
    """The plugins, with every name the study uses looked up before anything slow begins."""
    host = Host.discover(study.plugins, objects)
    for warning in host.warnings():
        screen.note(warning)
    if study.metric not in METRICS:
        raise unknown_name("metric", study.metric, METRICS)
    if study.runner not in RUNNERS:
        raise unknown_name("runner", study.runner, RUNNERS)
    host.searcher(study.searcher)
    for name in study.freeze:
        host.freeze_strategy(name)
    return host


def _say_why_inline(study: Study, host: Host, machine: Machine, screen: Screen) -> None:
    if machine.runner == "inline" and study.runner == "auto":
        names = ", ".join(host.inline_only)
        reason = f"plugin {names} is defined in __main__" if names else "ray is not installed"
        screen.note(f"one trial at a time in this process, because {reason}")


def _report_data(dataset: Dataset, screen: Screen) -> None:
    info = dataset.info
    counts = " / ".join(f"{info.counts.get(name, 0)} {name}" for name in ("train", "val", "test"))
    screen.note(f"{info.root}: {sum(info.counts.values())} images, {len(info.classes)} classes, {counts}")
    if info.problems:
        screen.note(f"{len(info.problems)} files are not used:")
    for problem in info.problems[:PROBLEMS_SHOWN]:
        screen.note(f"  {problem.path}: {problem.reason}")
    if len(info.problems) > PROBLEMS_SHOWN:
        screen.note(f"  and {len(info.problems) - PROBLEMS_SHOWN} more; study.json names them all")


def _reserve(budget: float) -> float:
    return min(RESERVE_SECONDS, RESERVE_SHARE * budget)


def _raise_if_stopped(run: Run, stopped: StopFlag) -> None:
    if stopped.signal is not None:
        raise Interrupted(
            f"stopped; the best so far is kept. Go on with: autoft resume {run.folder.path}", stopped.signal
        )


def _through_the_gate(study: Study, summary: Summary) -> Summary:
    """Raise `GateFailed` when the test score is below `--fail-under`."""
    score = summary.test.metrics[study.metric] if summary.test else 0.0
    if study.fail_under is not None and score < study.fail_under:
        raise GateFailed(f"test {study.metric} {score:.4f} is below --fail-under {study.fail_under:g}", summary)
    return summary
