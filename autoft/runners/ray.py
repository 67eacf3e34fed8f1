"""The Ray runner: slices as Ray Tune trials. The only file that knows ray.

One slice is one Tune trial, run by a class `Trainable` whose actor is reused, under Tune's stock FIFO scheduler. Tune's
own pausing, checkpoints, budget and restoring stay unused: pausing would save a second checkpoint and count a paused
trial as live, and Tune's snapshots lose up to ten seconds of work on a kill. What runs next `Search.ask` decides.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from autoft.errors import PluginError, RunFolderError, StudyError
from autoft.parts.plugins import PluginRef
from autoft.runners.base import Runner, Site
from autoft.runners.deaths import OomKills, cause_of_death
from autoft.runners.obstacles import OBJECT_STORE_BYTES, home_for_token, ray_obstacle
from autoft.runners.places import Ended, Places, SharedGpus, Where
from autoft.runners.search import Search
from autoft.runners.seats import is_better_free, take_seat
from autoft.runners.stop_file import StopFile
from autoft.study.machine import Resources
from autoft.system import faults
from autoft.system.mps import Mps, visible_gpus
from autoft.system.signals import StopFlag, put_back
from autoft.system.starting import start_slowness
from autoft.values.codec import decode, encode
from autoft.values.space import Device
from autoft.values.trial import NOTHING_KNOWN, Allowance, Done, Report, Slice

# Ray and Tune read these when they are imported. Whoever set one before knows why.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # a failed report says more
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

# How long a slice may wait past the deadline for a worker that starts, while there is no model that could be exported.
GRACE_SECONDS = 30.0  # where `start_slowness` is 1
SHUTDOWN_SECONDS = 5.0
WAITING, OTHERS_SECONDS = "waiting", 30.0  # a worker's start, on the slowest machine that is reckoned with
_OF_NO_TRIAL: Final = {kind.__name__: kind for kind in (PluginError, RunFolderError)}
"""What a worker raises that is the fault of no trial; the driver raises the same, which ends the search."""
MOST_A_GPU = 4  # workers, where what they come to together is measured; each takes seconds to start and a CUDA context


class RayRunner(Runner):
    """Runs `site.machine.workers` slices at a time, each in an actor with its own cores or its share of the GPUs.

    Workers that share GPUs on a cluster of this process' own do so through `mps`, where it works.
    """

    name = "ray"
    starting = 6.0  # a new process, which imports torch; five to eight seconds on two cores that others use too

    def __init__(self, mps: Mps | None = None) -> None:
        self._mps = mps
        self._own_cluster = self._connected = False
        self._leaving = threading.Thread(target=_shut_down, daemon=True)
        self._cores = 1
        self._logs: Path | None = None

    def warm_up(self, cores: int) -> None:
        """Use the cluster that RAY_ADDRESS names or this process is connected to, or start a quiet local one.

        The import of torch here runs beside Ray's start, which mostly waits. Raises `StudyError` where Ray does not
        start, and under Ray Client, which would move driver and journal to another machine.
        """
        self._cores, address = cores, os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            raise StudyError("Ray Client (RAY_ADDRESS=ray://...) would keep the journal elsewhere; run on the cluster")
        if ray.is_initialized():
            return
        self._own_cluster = not address
        if self._own_cluster and (obstacle := ray_obstacle()):
            raise StudyError(f"Ray cannot start: {obstacle}")
        importing = threading.Thread(target=_import_worker, daemon=True)
        importing.start()
        try:
            if self._own_cluster and self._mps:
                self._mps.start()
            with _signals_left_alone():
                self._connect(address)
        except BaseException:
            self.close()
            raise
        importing.join()

    def _connect(self, address: str) -> None:
        if self._own_cluster and not home_for_token():  # a container's user may have none
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        local: dict[str, Any] = {
            "num_cpus": self._cores,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        options = {"address": "local", **local} if self._own_cluster else {}
        try:
            context: Any = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # whatever fails in it: Ray has no class of its own for this
            where, remedy = ("cannot start", "autoft doctor checks why")
            if not self._own_cluster:
                where, remedy = f"cannot be reached at RAY_ADDRESS={address}", "RAY_AUTH_MODE=token if it has a token"
            ray.shutdown()  # whatever part of it has started
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise StudyError(f"Ray {where} ({said}); {remedy}, or --runner inline goes without") from error
        self._connected, self._logs = True, Path(context.address_info["session_dir"], "logs")

    def nodes(self) -> tuple[Resources, ...]:
        """This machine, or what a cluster that others use too has free."""
        if self._own_cluster:
            return (replace(Resources.here(self._cores), most_a_gpu=MOST_A_GPU),)
        return _free_nodes()

    def run(self, search: Search, site: Site, stopped: StopFlag) -> None:
        """Drive the search by Tune."""
        stop_file = StopFile(site.run)
        stop_file.remove()
        with tempfile.TemporaryDirectory(prefix="autoft-ray-") as storage:
            adapter = _Adapter(search, site, self._logs, storage if site.machine.measured else "")

            def over() -> bool:
                ends = stopped() or adapter.error is not None or adapter.given_up()
                if ends:
                    stop_file.write()
                return ends

            try:
                with _signals_left_alone(), _quiet():
                    _tuner(adapter, site, over, storage).fit()
            finally:
                stop_file.remove()
                self._leave()
        if adapter.error is not None:
            raise adapter.error

    def close(self) -> None:
        """Leave the cluster, which ends it if it is our own."""
        self._leave()
        if self._leaving.ident is not None:
            self._leaving.join(SHUTDOWN_SECONDS)
        if self._mps:
            self._mps.close()

    def _leave(self) -> None:
        """Begin to free memory and cores for the export; a second or two that nothing waits for.

        What Tune leaves in cycles goes first: a reference or a handle of Ray's that goes while Ray is being shut down
        makes it end this process at once, with code 1.
        """
        if self._connected:
            self._connected = False
            gc.collect()
            self._leaving.start()


def _shut_down() -> None:
    """Leave Ray once: its own handler at exit would wait for this one, however long it takes."""
    atexit.unregister(ray.shutdown)
    ray.shutdown()
    atexit.register(ray.shutdown)  # for whoever starts it again in this process


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """`ray.init` makes SIGTERM end the process with code 15, Tune takes SIGUSR1; whoever had a handler keeps it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        put_back(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune's log says at the end that trials failed, which reports have said, with the cause."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _free_nodes() -> tuple[Resources, ...]:
    """What the machines of a cluster have free now; one core of the first when all are busy, to wait for.

    GPUs count where this process has one too: the network must have been tried on what it is going to run on.
    """
    import torch

    cluster: Any = ray  # these of its functions have no types
    free = int(cluster.available_resources().get("CPU", 0))
    found = []
    for node in (node["Resources"] for node in cluster.nodes() if node["Alive"]):
        cores = min(int(node.get("CPU", 0)), free)
        free -= cores
        gpus = int(node.get("GPU", 0)) if torch.cuda.is_available() else 0
        found.append(Resources(cores, gpus, int(node.get("memory", 0))))
    if not any(node.cores for node in found) and cluster.cluster_resources().get("CPU", 0) >= 1:
        return (Resources(1, *(found[0].gpus, found[0].memory)),)
    return tuple(found)


def _has_place() -> bool:
    """Whether the cluster has given this process the cores of a worker, which runs then or starts.

    Tune asks for them by a placement group, whose id ends in that of the job it is of.
    """
    job = ray.get_runtime_context().get_job_id()
    groups = ray.util.placement_group_table().items()
    return any(name.endswith(job) and group["state"] == "CREATED" for name, group in groups)


def _import_worker() -> None:
    """Seconds of imports that the driver needs too. (Ray gives an actor a new process, so its cannot be done ahead.)

    What goes wrong is for whoever imports it next to tell; the process may be ending, and that is no fault.
    """
    with suppress(Exception):
        importlib.import_module("autoft.train.worker")


def _tuner(adapter: _Adapter, site: Site, over: Callable[[], bool], storage: str) -> Any:
    resources = {"cpu": site.machine.cpus, "gpu": site.machine.gpus}
    return tune.Tuner(
        tune.with_resources(_SliceTrainable, resources),
        tune_config=tune.TuneConfig(search_alg=adapter, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="slices",
            storage_path=storage,
            stop=_OnRequest(over),
            callbacks=[_Witness(adapter)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


@dataclass(frozen=True)
class _Errand:
    """What travels to an actor, as JSON: the run, threads and device, the plugins of the driver, and the slice.

    `gpus` are those that workers share by taking a seat in the folder `seats`, as CUDA_VISIBLE_DEVICES names them.
    `allowance` is what the search knows of the memory that the slice takes.
    """

    run: str
    threads: int
    device: Device
    plugins: tuple[PluginRef, ...]
    origin: float
    slice: Slice
    gpus: tuple[str, ...] = ()
    seats: str = ""
    allowance: Allowance = NOTHING_KNOWN


class SeatGivenUpError(Exception):
    """A worker ends to make way for one on a GPU with fewer workers, and leaves its slice as it was."""


class _Adapter(Searcher):
    """A Tune searcher over `search`. It suggests while there is room: otherwise Tune would always ask one ahead."""

    def __init__(self, search: Search, site: Site, logs: Path | None, seats: str = "") -> None:
        super().__init__(metric=None, mode=None)
        self.error: Exception | None = None
        self._search, self._site, self._logs, self._seats = search, site, logs, seats
        self._places = SharedGpus(site.machine, search.screen.note) if site.machine.measured else Places(site.machine)
        self._running: dict[str, Slice] = {}
        self._again: list[Slice] = []
        self._begun: set[str] = set()
        self._oom_kills = OomKills()

    def suggest(self, trial_id: str) -> Any:
        """The next slice as a Tune configuration, None to be asked again, or FINISHED.

        Not while a slice is under way, since it may have to be handed out once more.
        """
        if not self._places.has_room:
            return None
        answer = self._again.pop() if self._again and self.error is None else self._guarded(self._search.ask)
        if isinstance(answer, Slice):
            self._running[trial_id] = answer
            self._mark_waiting()
            self._places.take(trial_id, answer, self._now())
            site, machine, plugins = self._site, self._site.machine, self._search.host.refs
            shared = visible_gpus(machine.measured), self._seats, self._search.ledger.allowance(answer.trial)
            errand = _Errand(str(site.run), machine.threads, machine.device, plugins, site.origin, answer, *shared)
            return {"errand": encode(errand)}
        is_under_way = self._running and self.error is None
        return Searcher.FINISHED if isinstance(answer, Done) and not is_under_way else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell the search. A Tune trial without a report was stopped on request, or `died` says what happened."""
        if result and "ends" in result:
            self.error = self.error or _OF_NO_TRIAL[result["error"]](result["ends"])
        elif result and "report" in result and trial_id in self._running:
            where = decode(Where, result["where"]) if "where" in result else Where()
            self._guarded(lambda: self._tell(trial_id, decode(Report, result["report"]), where))

    def began(self, trial_id: str) -> None:
        """A worker has the slice."""
        if sent := self._running.get(trial_id):
            self._begun.add(trial_id)
            self._oom_kills.began(trial_id)
            self._mark_waiting()
            self._guarded(partial(self._search.began, sent.trial.id))

    def died(self, trial_id: str, said: str) -> None:
        """The process of a slice is gone; `said` is what Ray knows about it.

        One that gave up its seat for a better one has left the slice as it was: the next worker takes it. What becomes
        of one for which memory ran out, the search says.
        """
        if trial_id in self._running and SeatGivenUpError.__name__ in said:
            slice_ = self._withdrawn(trial_id)
            self._again.append(slice_)
            self._guarded(partial(self._search.left, slice_))
        elif sent := self._running.get(trial_id):
            death = cause_of_death(said, self._logs, partial(self._oom_kills.account_for, trial_id))
            if death.of_memory:
                self._guarded(partial(self._search.lost, self._withdrawn(trial_id).trial.id, death.cause))
            else:
                report = Report(sent.trial.id, "failed", sent.start, None, 0.0, error=death.cause)
                self._guarded(partial(self._tell, trial_id, report))

    def given_up(self) -> bool:
        """Whether the search is over and no worker has begun what is left; those trials then stand where they stood.

        A slice that waits past a deadline of its own, as a probe's is, is given back by the worker that takes it.
        """
        waiting = {trial_id: sent for trial_id, sent in self._running.items() if trial_id not in self._begun}
        if not waiting or len(waiting) < len(self._running):
            return False
        late = self._now() - max(self._search.deadline, *(sent.deadline for sent in waiting.values()))
        if late < 0.0 or late < self._grace():
            return False
        for trial_id, sent in waiting.items():
            self._guarded(partial(self._tell, trial_id, _not_taken(sent)))
        return True

    def _grace(self) -> float:
        """Seconds past the deadline for what waits: none where there is a model, or no cores for a worker to start."""
        if self._search.ledger.ranking() or not _has_place():
            return 0.0
        return start_slowness() * GRACE_SECONDS

    def _withdrawn(self, trial_id: str) -> Slice:
        """The slice, which no process has any more."""
        self._places.leave(trial_id, None)
        slice_ = self._running.pop(trial_id)
        self._mark_waiting()
        return slice_

    def _tell(self, trial_id: str, report: Report, where: Where | None = None) -> None:
        """The slice has ended so, in the process that `where` tells of."""
        del self._running[trial_id]
        self._search.tell(report)
        self._places.leave(trial_id, Ended(report, self._now(), where or Where()))
        self._mark_waiting()

    def _mark_waiting(self) -> None:
        """Where GPUs are shared, say whether a slice is waiting for its worker to start.

        Tune would hand it to a worker that has just ended another and drop the one that starts: where slices are
        shorter than a start there would never be a second worker. So workers do not end before it has begun.
        """
        if not self._seats:
            return
        mark = Path(self._seats, WAITING)
        if self._running.keys() - self._begun:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def _now(self) -> float:
        """Run time in seconds."""
        return time.time() - self._site.origin

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Tune wraps a searcher's exception in its own; keep ours and end the search."""
        try:
            return call() if self.error is None else Done()
        except Exception as error:
            self.error = error
            return Done()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its tuner at the start; nobody ever reads it back


class _SliceTrainable(tune.Trainable):
    """One `step` is one slice. The worker with its backbones stays from slice to slice."""

    def setup(self, config: dict[str, Any]) -> None:
        """Remember the first slice."""
        self._errand = config["errand"]
        self._worker: Any = None
        errand = decode(_Errand, self._errand)
        self._stopped = StopFile(Path(errand.run)).watch()
        self._seat = take_seat(Path(errand.seats), len(errand.gpus)) if errand.gpus else None
        if self._seat:
            os.environ["CUDA_VISIBLE_DEVICES"] = errand.gpus[self._seat.gpu]  # read when CUDA is first used

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next slice into the same process. Always: one that Tune is refused it forgets without a word."""
        self._errand = new_config["errand"]
        return True

    def step(self) -> dict[str, Any]:
        """Execute the slice. Every failure is a report: Tune's own error states carry no cause.

        One that is being stopped has none; it stays open in the journal. So it does where the trial is not at fault:
        nothing can be written, or this process does not get the plugins that the driver has. That ends the search.
        Raises `SeatGivenUpError`, which ends this process, where another would be on a GPU with fewer workers.
        """
        errand = decode(_Errand, self._errand)
        if time.time() - errand.origin > errand.slice.deadline:
            return {"report": encode(_not_taken(errand.slice)), "done": True}
        is_first = self._worker is None
        if not is_first and self._gives_up_seat(errand):
            raise SeatGivenUpError
        try:
            report = self._execute(errand)
        except tuple(_OF_NO_TRIAL.values()) as error:
            kind = next(name for name, kind in _OF_NO_TRIAL.items() if isinstance(error, kind))
            return {"ends": str(error), "error": kind, "done": True}
        except Exception as error:
            if self._stopped():
                return {"done": True}
            cause = faults.record(error, Path(errand.run) / "errors")
            report = Report(errand.slice.trial.id, "failed", errand.slice.start, None, 0.0, error=cause)
        if self._seat is None:
            return {"report": encode(report), "done": True}
        where = Where(self._seat.gpu, is_first, time.time() - errand.origin)
        self._wait_for_others(Path(errand.seats, WAITING), errand.slice.deadline - (time.time() - errand.origin))
        return {"report": encode(report), "where": encode(where), "done": True}

    def _gives_up_seat(self, errand: _Errand) -> bool:
        return self._seat is not None and is_better_free(self._seat, Path(errand.seats), len(errand.gpus))

    def _wait_for_others(self, mark: Path, seconds_left: float) -> None:
        """Wait while a worker for another slice starts, which may take some seconds; see `_Adapter._mark_waiting`.

        Not past the deadline of the slice: what comes after it has its own time.
        """
        until = time.monotonic() + min(OTHERS_SECONDS, seconds_left)
        while mark.exists() and time.monotonic() < until and not self._stopped():
            time.sleep(0.02)

    def _execute(self, errand: _Errand) -> Report:
        from autoft.train.job import Job
        from autoft.train.worker import Worker

        if self._worker is None:
            run = Path(errand.run)
            self._worker = Worker.open(run, errand.threads, errand.device, errand.plugins, self._stopped)
        report: Report = self._worker.run(Job(errand.slice, errand.origin, errand.allowance))
        return report


def _not_taken(waiting: Slice) -> Report:
    return Report(waiting.trial.id, "paused", waiting.start, None, 0.0, error="no worker was free in time")


class _Witness(tune.Callback):
    """Tells the adapter what Tune tells no searcher: when a worker begins, and what a worker died of."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its actor answers, a new one or one that is used again, and is about to be told to run the slice."""
        self._adapter.began(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Its worker is gone; Tune has written what Ray said into a file."""
        said = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._adapter.died(trial.trial_id, said)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _OnRequest(tune.Stopper):
    """Ends all Tune trials once `over()`."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal or an error came, or the time is over."""
        return self._over()

    def __getstate__(self) -> dict[str, Any]:
        return {}
