"""The engine: from a study to a summary, and from a run folder on.

What is quick to find out comes first: names, folders, the listing of the images. Only then are torch and Ray started.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from autoft.bundle.place import bundle_of
from autoft.data.dataset import Dataset, Source, bound, open_dataset, write_split_csv
from autoft.data.readers import data_folder, read_labelled
from autoft.data.scan import scan
from autoft.engine.ending import (
    Decoding,
    bare_seconds,
    least_seconds,
    more_time,
    require_any_time,
    require_enough_time,
    require_more_time,
)
from autoft.engine.review import bound_as_chosen, review, said_of
from autoft.engine.sitting import Sitting
from autoft.engine.views import decide
from autoft.errors import GateFailed, PluginError, StudyError, UserError, unknown_name
from autoft.media.image.view import choose_view, side_seen, what_a_crop_hides
from autoft.parts.base import UNCALIBRATED, Exporter, FreezeStrategy, Searcher, Task
from autoft.parts.host import Host
from autoft.parts.metric import Metric
from autoft.runners.base import Runner
from autoft.runners.refit import Refits
from autoft.runners.search import answer_seconds, is_over
from autoft.store import RunFolder
from autoft.study.latency import beyond_the_limit
from autoft.study.machine import WORKER_BYTES, Slowness, choose_runner, cores, versions, worker_memory
from autoft.study.record import Machine, RunnerName, StudyRecord, ViewsCompared, features_of
from autoft.study.run import Run
from autoft.study.shortlist import Workload, candidates, freeze_strategies, scored_images, shortlist, why_not
from autoft.study.study import CORE_EXPORTER, Change, Study
from autoft.study.views import Comparison, Look
from autoft.study.warm_start import Earlier
from autoft.system.clock import RunClock
from autoft.system.files import as_path, as_text
from autoft.system.mps import Mps
from autoft.system.screen import Screen
from autoft.system.starting import start_slowness
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.forms.table import FORMS, answering
from autoft.tasks.statistics import proportion
from autoft.values.backbone import Backbone
from autoft.values.codec import encode
from autoft.values.counts import counted
from autoft.values.dataset import DataProblem, Listing
from autoft.values.handoff import View
from autoft.values.ledger import Ledger
from autoft.values.space import Circumstances
from autoft.values.summary import Summary
from autoft.values.target import MetricFacts
from autoft.values.trial import Clock, Slice

RUNNERS = ("auto", "inline", "ray")
PROBLEMS_SHOWN = 10
_GENERIC = frozenset(
    {"all", "annotations", "data", "dataset", "images", "index", "label", "labels", "manifest", "metadata", "targets"}
    | {"test", "train", "training", "val"}
)
# With less time left a search gets further in this process: Ray and its workers take some ten seconds of it to start,
# where `start_slowness` is 1.
RAY_REPAYS_SECONDS = 45.0
MOST_TRIED = 2000  # images, for every metric before anything trains


def search(study: Study, screen: Screen, began: float, objects: Sequence[object] = ()) -> Summary:
    """Search, export the best and score it. `began` is the wall-clock time the budget counts from.

    Raises the errors of `autoft.errors`; an interrupted or failed run can be resumed.
    """
    watch = Stopwatch(began)
    require_any_time(study)
    with watch.phase("plugins"):
        host = _host(study, objects, screen)
        earlier = Earlier.of(as_path(study.from_)) if study.from_ else None
    clock = RunClock(began, study.time)
    with watch.phase("data"):
        in_time = partial(_require_time, clock, "reading the images")
        listing = read_labelled(as_path(study.data).resolve(), in_time)
        _report_layout(listing, study, screen)
        out = _run_path(study, listing)
        task = _task(study, host, listing, screen)
        if earlier:
            earlier.require_task(task.name)
        if study.metric != "auto":  # what "auto" is, the split decides
            study.require_bounds(_metric(study.metric, task, host))
        source = Source(scan(listing, cores(), in_time), task)
    with_ray = bare_seconds(study.time, "ray", Slowness.now()) if study.runner == "auto" else 0.0
    with _runner(_for_the_time(study, clock, with_ray, screen), host, watch, screen) as runner:
        sitting = Sitting(host, runner, screen, watch, clock)
        run = begin(study, source, out, sitting, earlier)
        screen.metric, host.errors = run.record.metric, run.folder.errors
        return _execute(run, sitting)


def resume(path: Path, change: Change, screen: Screen, began: float) -> Summary:
    """Go on with a run, changed as asked; one that is finished and gets no more time is done.

    study.json takes the change in only when the search can begin: a resume that fails leaves the run as it was.
    """
    watch = Stopwatch(began)
    recorded = Run.open(path)
    ledger, finished = recorded.ledger(), recorded.summary()
    elapsed = recorded.used(ledger)
    run = _changed(recorded, change, finished, elapsed)
    screen.metric = run.record.metric
    if finished and run.concluded(ledger):
        bundle_of(run.folder.path, finished)
    budget = run.record.study.time
    done = _done(run, ledger, finished, screen)
    if done is None or change.data is not None:
        with watch.phase("data"):
            run.verify_images(cores())
    if done is not None:
        if change.plugins or change.objects:
            host = _recorded_host(run, change, screen)
            run, done = run.with_plugins(host), replace(done, goes_on=done.goes_on and _could_go_on(run, host))
        _keep_change(recorded, run)
        return _through_the_gate(run.record.study, replace(done, run=as_text(run.folder.path.absolute())))
    clock, slowness = RunClock(began - elapsed, budget), Slowness(own=run.record.machine.busy + 1.0)()
    host = _recorded_host(run, change, screen)
    _require_its_searcher(run, host, ledger)
    run.task(host)
    for line in run.exporters_left_out(host):
        screen.note(line)
    run.test_openings()  # a search need not end to find the count damaged
    _require_networks(run, host, ledger)
    _require_time_for_more(run, host, ledger, clock, slowness)
    study = _for_the_time(run.record.study.elsewhere(), clock, least_seconds(run.record, "ray", slowness), screen)
    run = run.with_plugins(host)
    with _runner(study, host, watch, screen) as runner:
        machine = _capacity(run.record.study, runner, worker_memory(ledger), screen)
        run = _moved(run, machine, screen)
        return _execute(run, Sitting(host, runner, screen, watch, clock))


def _require_time_for_more(run: Run, host: Host, ledger: Ledger, clock: RunClock, slowness: float) -> None:
    """Raise `StudyError` where a run that goes on has no time to search, or nothing to search for."""
    if run.concluded(ledger):
        elapsed = run.used(ledger)
        require_more_time(run.record, elapsed, _had(run))
        _require_more_to_search(run, host, ledger, elapsed, clock)
    elif not ledger.exportable() or clock.budget != _had(run):  # else the model there is, is exported
        require_enough_time(run.record, clock.now(), least_seconds(run.record, "inline", slowness), _had(run))


def begin(study: Study, source: Source, out: Path, sitting: Sitting, earlier: Earlier | None = None) -> Run:
    """Resolve the study, with what an `earlier` run has found, and create its run folder."""
    host, screen = sitting.host, sitting.screen
    found, task = source.found, source.task
    machine = sitting.runner.capacity(study, WORKER_BYTES, screen)
    usual = choose_view(study.view, found.aspect)
    with sitting.watch.phase("shortlist"):
        workload = Workload(len(found.files), side_seen(usual, found.short_side, found.aspect))
        downloading = partial(_require_time, sitting.clock, "downloading weights")
        freezing = freeze_strategies(study, host.parts(FreezeStrategy), task)
        backbones = shortlist(study, host, machine, workload, screen, downloading)
    seen = _seen(study, source, backbones, sitting)
    metric = seen.dataset.task.metric("auto").facts
    searched = candidates(study, freezing, seen.backbones, seen.side, _circumstances(seen.dataset, machine))
    warm_start = None
    if earlier:
        searched, warm_start = earlier.begin(searched, seen.dataset.samples, partial(why_not, study, host, searched))
    record = StudyRecord(
        study=replace(study, out=as_text(out), task=task.name, metric=metric.name),
        data=seen.dataset.info,
        view=seen.view,
        backbones=seen.backbones,
        candidates=searched,
        plugins=host.refs,
        versions=versions(),
        machine=machine,
        metric=metric,
        validation=scored_images(study, machine, searched, seen.dataset.info.counts["val"]),
        compared=seen.compared,
        weighs_classes=metric.weighs_classes,
        warm_start=warm_start,
        features_of=features_of(seen.dataset.info.counts["train"]),
    )
    for line in earlier.remarks(record) if earlier else ():
        screen.note(line)
    _report_validation(record, seen.dataset.task, screen)
    # Not by what else runs here at this moment: it may be over soon.
    require_enough_time(record, sitting.clock.now(), least_seconds(record, machine.runner, start_slowness()))
    folder = RunFolder.create(out, encode(record), lambda folder: write_split_csv(seen.dataset, folder.split_csv))
    return Run(folder, record)


@dataclass(frozen=True)
class _Seen:
    """The data set as the run sees it: the view, the side of the square that it shows, backbones built for that."""

    dataset: Dataset
    view: View
    side: int
    backbones: tuple[Backbone, ...]
    compared: ViewsCompared | None


def _seen(study: Study, source: Source, backbones: tuple[Backbone, ...], sitting: Sitting) -> _Seen:
    """The data set in the view that was asked for, or was found to be best, else in the usual one."""
    found, comparison = source.found, Comparison.of(study, backbones, source, cores())
    usual = choose_view(study.view, found.aspect)
    squares = {Look.of(study, backbone, usual, found).square for backbone in backbones}
    in_time = partial(_require_time, sitting.clock, "decoding the images")
    after = bare_seconds(study.time, sitting.runner.name, start_slowness())
    decoding = Decoding(sitting.clock, after)
    with sitting.watch.phase("data"):
        further = comparison.squares_of_all if comparison else frozenset()
        dataset = open_dataset(source, study.seed, squares | further, cores(), in_time, decoding)
        _report_data(dataset, sitting.screen)
        metric = _to_search_by(study, dataset, sitting.screen)
        dataset = dataset.towards(metric.name)
        _try_task(dataset, metric.name, sitting.host)
        review(dataset, sitting.screen)
    hidden, compared = what_a_crop_hides(study.view, usual, found.aspect), None
    if comparison and hidden:
        with sitting.watch.phase("view"):
            compared = decide(comparison, dataset, metric, sitting, otherwise=hidden)
    elif hidden:
        sitting.screen.note(hidden)
    view = compared.view if compared else usual
    looks = [Look.of(study, backbone, view, found) for backbone in backbones]
    if view != usual:
        with sitting.watch.phase("data"):
            squares = {look.square for look in looks}
            dataset = open_dataset(source, study.seed, squares, cores(), in_time).towards(metric.name)
    side = side_seen(view, found.short_side, found.aspect)
    return _Seen(dataset, view, side, tuple(look.backbone for look in looks), compared)


def _require_time(clock: RunClock, doing: str) -> None:
    """Raise `StudyError` once the time is over."""
    if clock.now() > clock.budget:
        raise StudyError(f"--time {clock.budget:g}s was over while {doing}; give it more time")


def _changed(run: Run, change: Change, finished: Summary | None, elapsed: float) -> Run:
    """The run as the change wants it. Time that is added comes on top of what it had, or has used where that is more.

    Raises `StudyError` for less time than a finished run had, which is used, and for a target that no score reaches.
    """
    if change.data is not None:
        run = run.with_images(change.data)
    if change.target is not None:
        aiming = replace(run.record.study, target=change.target)
        aiming.require_bounds(run.record.metric)
        run = replace(run, record=replace(run.record, study=aiming))
    if change.time is None:
        return run
    study = replace(run.record.study, time=change.time(max(run.record.study.time, math.ceil(elapsed))))
    if finished and study.time < finished.budget:
        had = f"the run is finished and had {finished.budget:g} s, so --time {study.time:g}s leaves nothing to do"
        raise StudyError(f"{had}; give it more, such as --time {more_time(elapsed, run.record.study.time)}")
    return replace(run, record=replace(run.record, study=study))


def _done(run: Run, ledger: Ledger, finished: Summary | None, screen: Screen) -> Summary | None:
    """What a finished run came to, if no more is asked of it now; None where there is something to do.

    A line says that its target is reached. Raises `StudyError` where so is another one, or it gets time beyond that.
    """
    study, best = run.record.study, ledger.reaching(run.record.target)
    how = f"--target {study.target:g} is reached: {best.standing(run.record.metric)}" if best else ""
    if finished and (finished.budget, finished.target) == (study.time, study.target) and not ledger.in_flight:
        if how:
            screen.note(how)
        return finished
    if how and run.concluded(ledger):
        raise StudyError(f"the run is finished: {how}; to search on, name a target beyond that")
    return None


def _require_its_searcher(run: Run, host: Host, ledger: Ledger) -> None:
    """Raise `StudyError`, with what can be done, when no plugin has the searcher that the run began with."""
    try:
        host.part(Searcher, run.record.study.searcher)
    except StudyError as unknown:
        ways = "a run goes on with the searcher that it began with: have it back, or begin a new run with another"
        ledger.damaged = run.unusable(ledger, host)
        raise StudyError("; ".join(filter(None, [str(unknown), ways, run.best_so_far(ledger, host)]))) from None


def _could_go_on(run: Run, host: Host) -> bool:
    """Whether, with these plugins, there is anything to go on with."""
    try:
        host.part(Searcher, run.record.study.searcher)
        run.task(host)
        run.exporters_left_out(host)
    except StudyError:
        return False
    return bool(run.trainable(host))


def _require_networks(run: Run, host: Host, ledger: Ledger) -> None:
    """Raise `StudyError` where there is nothing to train, and no trial to export."""
    trainable, model = run.trainable(host), "the model of its last end stands" if run.concluded(ledger) else ""
    if not trainable and not any(host.has_zoo(one.trial.backbone) for one in ledger.exportable()):
        stands = model or "it has no model yet"
        raise StudyError(f"nothing of this run can be trained{host.suspects()}; {stands}")
    slow = [ledger.barred.get(one.network, "") for one in trainable]
    if slow and all(slow) and not model:
        why = "; ".join(dict.fromkeys(slow))
        raise StudyError(f"nothing of this run may be handed over: {why}; {beyond_the_limit(run)}")


def _require_more_to_search(run: Run, host: Host, ledger: Ledger, elapsed: float, clock: RunClock) -> None:
    """Raise `StudyError` when more time would only end with the same model once more.

    The searcher is told of the workers that the run had before, and of no reserve for the end: what there is now is
    known only once the runner is warm, which a refusal must not wait for. One that then has nothing to try after all
    lets the model stand. Where it has nothing, a refit that was left out before may have its time now.
    """
    study, problem, reading = run.record.study, run.problem(ledger, host), Clock(elapsed, clock.budget)
    if not is_over(host.part(Searcher, study.searcher), problem, ledger, reading, answer_seconds(reading.remaining)):
        return
    ledger.damaged = run.unusable(ledger, host)
    end = bare_seconds(study.time, "inline", start_slowness())
    refit = Refits(run.record, lambda *_: end, clock, host.has).due(ledger)
    if isinstance(refit, Slice):
        return
    if problem.trials is not None and len(ledger.trials) >= problem.trials:
        over = f"--trials {study.trials} is used up, and more time adds no trial; a new search with more --trials does"
    else:
        over = f"searcher {study.searcher!r} has nothing more to try, however much time"
    raise StudyError("; ".join(filter(None, [f"the run is finished: {over}", refit])))


def _had(run: Run) -> float:
    """The budget of a run before it was changed, in seconds."""
    return (run.opened or run.record).study.time


def _for_the_time(study: Study, clock: RunClock, with_ray: float, screen: Screen) -> Study:
    """How a search begins or goes on: inline where the time left is less than the seconds that Ray takes at least.

    Or where starting it would not repay, unless it was asked for, or several workers were.
    """
    is_wanted, left = study.runner == "ray" or study.workers, clock.budget - clock.now()
    repays = start_slowness() * RAY_REPAYS_SECONDS
    if study.runner == "inline" or left >= (with_ray if is_wanted else max(with_ray, repays)):
        return study
    screen.note(f"one trial at a time in this process: {max(0.0, left):.0f} s are left, too few for Ray to be worth it")
    return replace(study, runner="inline")


def _capacity(study: Study, runner: Runner, need: int, screen: Screen) -> Machine:
    """What there is for a run that goes on: with the GPUs a trial that it began with, or one where there are less."""
    if study.gpus_per_trial is None or study.gpus_per_trial <= 1:
        return runner.capacity(study, need, screen)
    try:
        return runner.capacity(study, need, screen)
    except StudyError as problem:
        screen.note(f"going on with one GPU a trial: {problem}")
        return runner.capacity(replace(study, gpus_per_trial=1.0), need, screen)


def _keep_change(before: Run, after: Run) -> None:
    """Save a change of a run that is not searched."""
    if encode(after.record) != encode(before.record):  # as `Run.save` compares
        with after.folder.lock():
            after.save()


def _moved(run: Run, machine: Machine, screen: Screen) -> Run:
    """The run on this machine, which may be another than the one it began on; study.json keeps to the first."""
    before = run.record.machine
    if str(before) != str(machine):
        screen.note(f"going on with {machine}; this run began with {before}")
    return replace(run, record=replace(run.record, machine=machine))


def _execute(run: Run, sitting: Sitting) -> Summary:
    from autoft.engine.execution import execute  # brings torch, which a mistake found above should not wait for

    summary = execute(run, sitting)
    return _through_the_gate(run.record.study, summary)


def _runner(study: Study, host: Host, watch: Stopwatch, screen: Screen) -> Runner:
    """The runner that the study gets, warmed up: the inline one where nobody asked for another that does not start."""
    name = choose_runner(study, host.inline_only, screen)
    with watch.phase("start"):
        runner = _runner_named(name, study, screen)
        try:
            runner.warm_up(cores())
        except StudyError as problem:
            if study.runner != "auto":
                raise
            screen.note(f"one trial at a time in this process: {problem}")
            runner = _runner_named("inline", study, screen)
            runner.warm_up(cores())
    return runner


def _runner_named(name: RunnerName, study: Study, screen: Screen) -> Runner:
    """The runner of that name for a study; each brings its own imports."""
    if name == "inline":
        from autoft.runners.inline import InlineRunner

        return InlineRunner()
    from autoft.runners.ray import RayRunner

    return RayRunner(Mps(screen.note) if study.shares_gpus else None)


def _run_path(study: Study, listing: Listing) -> Path:
    """Where the run goes; never inside the data, which is read and not written."""
    source = as_path(listing.source)
    name = _name_of(source) if listing.manifest else source.name
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    images = [entry.path for entry in listing.entries]
    around = data_folder(Path.cwd().resolve(), listing, images)
    here = around.parent if around else Path.cwd()
    out = as_path(study.out).resolve() if study.out else here / "runs" / f"{name}-{stamp}"
    if inside := data_folder(out.resolve(), listing, images):
        raise StudyError(f"the run folder {out} lies inside the data, in {inside}; choose another with --out")
    RunFolder.check_writable(out)
    return out


def _name_of(manifest: Path) -> str:
    """What a run with a manifest is called: as the file, or as its folder where many files are called so."""
    return manifest.parent.name or manifest.stem if manifest.stem.casefold() in _GENERIC else manifest.stem


def _host(study: Study, objects: Sequence[object], screen: Screen) -> Host:
    """The plugins, with every name the study uses looked up before anything slow begins."""
    host = Host.discover(study.plugins, objects)
    host.check()
    for warning in host.warnings():
        screen.note(warning)
    if study.runner not in RUNNERS:
        raise unknown_name("runner", study.runner, RUNNERS)
    searcher = host.part(Searcher, study.searcher)
    if study.from_ and not searcher.tries_starts:
        raise StudyError(
            f"--searcher {searcher.name} draws all parameters by itself and would make nothing of --from; leave one of "
            "the two out"
        )
    if not host.tasks():
        raise StudyError("no plugin that is loaded has a task, so there is nothing to learn; leave 'tasks' on")
    if study.task != "auto":
        host.task(study.task)
    if study.metric != "auto":
        _require_metric(study.metric, host)
    for name in (CORE_EXPORTER, *study.exporter):
        host.part(Exporter, name)
    for name in study.freeze:
        host.part(FreezeStrategy, name)
    return host


def _require_metric(name: str, host: Host) -> None:
    """Raise `StudyError` unless some task has a metric of that name; which task it is shows once there are labels."""
    known = {metric.name for task in host.tasks().values() for metric in task.metrics}
    if name not in known:
        raise unknown_name("metric", name, known)


def _metric(name: str, task: Task, host: Host) -> MetricFacts:
    """The metric of the task by that name. Raises `StudyError`, which says whose it is when it is another's."""
    own = [metric.name for metric in task.metrics]
    others = [other.name for other in host.tasks().values() if any(metric.name == name for metric in other.metrics)]
    if others and name not in own:
        raise StudyError(
            f"{name!r} is a metric of {' and '.join(others)}; this is {task.name}, which has {', '.join(own)}"
        )
    try:
        return task.metric(name).facts
    except StudyError as unknown:
        raise StudyError(f"{unknown}{host.suspects()}") from None


def _to_search_by(study: Study, dataset: Dataset, screen: Screen) -> MetricFacts:
    """The metric that was asked for; "auto" of uneven classes is the first that weighs each alike. A line says so.

    Of the images that train: files that cannot be read, and the split, may make uneven classes of others. Raises
    `StudyError` for a bound of the other kind of metric.
    """
    task = dataset.task
    facts, uneven = task.metric(study.metric).facts, task.imbalance(dataset.labels("train"))
    if study.metric == "auto" and uneven and not facts.weighs_classes:
        facts = next((metric.facts for metric in task.metrics if metric.facts.weighs_classes), facts)
    study.require_bounds(facts)
    if uneven:
        screen.note(said_of(uneven, facts, study.metric, task))
    return facts


def _circumstances(dataset: Dataset, machine: Machine) -> Circumstances:
    """What spaces may go by."""
    labels = dataset.labels("train")
    return Circumstances(machine.device, len(labels), tuple(dataset.task.remedies(labels)), features_of(len(labels)))


def _task(study: Study, host: Host, listing: Listing, screen: Screen) -> Task:
    """The task that was asked for, else the one that claims the labels, bound to them.

    Raises `StudyError` when several claim them, and as `bound` does.
    """
    if study.task != "auto":
        return bound(host.task(study.task), listing)
    known = list(host.tasks().values())
    labels = [entry.label for entry in listing.entries]
    claiming = [] if listing.classes else [task for task in known if task.claims(labels, listing.columns)]
    if len(claiming) > 1:
        names = " and ".join(repr(task.name) for task in claiming)
        raise StudyError(f"the labels in {listing.source} could be of the tasks {names}; name one with --task")
    return bound_as_chosen(next(iter(claiming), known[0]), known, listing, screen)


def _recorded_host(run: Run, change: Change, screen: Screen) -> Host:
    """The plugins that the run recorded, changed as asked."""
    host = run.host(change.plugins, change.objects)
    for warning in host.warnings():
        screen.note(warning)
    return host


def _try_task(dataset: Dataset, primary: str, host: Host) -> None:
    """Have every metric judge outputs that know nothing, and hold a plugin's `tail` against its `answers` of them.

    What fails here, before anything trains, would end the run once all is trained. Raises `PluginError`, and
    `StudyError` when the metric to search by has no figure.
    """
    rng, task = np.random.default_rng(0), dataset.task
    targets = rng.permutation(dataset.targets("val"))[:MOST_TRIED]
    outputs = rng.standard_normal((len(targets), task.outputs), np.float32)
    judged = task.judged(outputs)
    scores = {metric.name: metric.score(judged, targets) for metric in task.metrics}
    for of_classes in filter(None, (metric.by_class for metric in task.metrics)):
        of_classes(judged, targets)
    if math.isnan(scores[primary]):
        raise _without_figure(primary, len(targets), host)
    if host.is_builtin(Task, task.name):
        return
    from autoft.bundle.tail import tail_problem  # brings onnxruntime, which a built-in task need not wait for

    for calibration in (UNCALIBRATED, task.calibrate(outputs, targets)):
        with host.blaming(Task, task.name, "tail()"):
            if problem := tail_problem(answering(task, calibration), outputs):
                raise ValueError(problem)


def _without_figure(metric: str, images: int, host: Host) -> UserError:
    """What to raise where the metric to search by gives NaN for so many images: that of a plugin is blamed on it."""
    nothing = f"has no figure for {images} validation images"
    if metric not in host.parts(Metric):
        return StudyError(f"metric {metric!r} {nothing}; search by another")
    try:
        with host.blaming(Metric, metric, "the score"):
            raise ValueError(f"it {nothing}, only NaN")
    except PluginError as blamed:
        return blamed


def _report_layout(listing: Listing, study: Study, screen: Screen) -> None:
    """Say what was taken for what, and what is left alone. Raises `StudyError` for that where nothing may be."""
    for line in listing.remarks:
        screen.note(line)
    if listing.left_alone and study.strict:
        first, places = listing.left_alone[0], counted(len(listing.left_alone), "place")
        raise StudyError(f"--strict: {places} would be left alone, such as {first.path}: {first.reason}")
    _report(listing.left_alone, ("place is left alone", "places are left alone"), screen)


def _report_data(dataset: Dataset, screen: Screen) -> None:
    info = dataset.info
    counts = " / ".join(f"{info.counts.get(name, 0)} {name}" for name in ("train", "val", "test"))
    what = f"{info.targets.task}: {FORMS[info.targets.form].counted(info.targets)}"
    screen.note(f"{info.source}: {counted(sum(info.counts.values()), 'image')}, {what}, {counts}")
    if remark := dataset.task.remark():
        screen.note(remark)
    unused = "line is not used", "lines are not used"
    _report(info.problems, unused if info.manifest else ("file is not used", "files are not used"), screen)
    twice = "image has two labels, and is used with both", "images have two labels, and are used with both"
    _report(info.contradictions, twice, screen)
    hidden = "float image is used, but not all of it shows", "float images are used, but not all of them shows"
    _report(info.unseen, hidden, screen)


def _report_validation(record: StudyRecord, task: Task, screen: Screen) -> None:
    """Say of how many images scores are, if not of all, and if they are too few to be sure of the target by them."""
    every = record.data.counts["val"]
    scored = every if record.validation is None else record.validation
    if scored < every:
        screen.note(f"validation on {scored:,} of {counted(every, 'image')}, for the time there is")
    if record.target is None or not task.metric(record.metric.name).is_proportion:
        return
    surest, _ = proportion(scored, scored)
    if surest < record.target:
        right = f"all of {counted(scored, 'validation image')} right are {record.metric.text(surest)} or more for sure"
        screen.note(f"--target {record.study.target:g} will not end the search before its time: {right}")


def _report(problems: Sequence[DataProblem], what: Sequence[str], screen: Screen) -> None:
    """Name the first of them; `what` is so of one, and of several."""
    if problems:
        screen.note(f"{len(problems)} {what[len(problems) > 1]}:")
    for problem in problems[:PROBLEMS_SHOWN]:
        screen.note(f"  {problem.path}: {problem.reason}")
    if len(problems) > PROBLEMS_SHOWN:
        screen.note(f"  and {len(problems) - PROBLEMS_SHOWN} more; study.json names them all")


def _through_the_gate(study: Study, summary: Summary) -> Summary:
    """Raise `GateFailed` when the test score is below `--fail-under`, or the test loss above `--fail-above`."""
    test, metric = summary.test, study.metric
    figure, said = (test.metrics.get(metric, math.nan), test.text(metric)) if test else (math.nan, "unknown")
    if study.fail_under is not None and not figure >= study.fail_under:
        raise GateFailed(f"test {metric} {said} is below --fail-under {study.fail_under:g}", summary)
    if study.fail_above is not None and not figure <= study.fail_above:
        raise GateFailed(f"test {metric} {said} is above --fail-above {study.fail_above:g}", summary)
    return summary
