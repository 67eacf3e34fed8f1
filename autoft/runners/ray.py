"""The Ray runner: slices as Ray Tune trials. The only file that knows ray.

One slice is one Tune trial, run by a class `Trainable` whose actor is reused, under Tune's stock FIFO scheduler. Tune's
own pausing, checkpoints, budget and restoring stay unused: pausing would save a second checkpoint and count a paused
trial as live, and Tune's snapshots lose up to ten seconds of work on a kill. What runs next `Search.ask` decides.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.asking import Search
from autoft.codec import decode, encode
from autoft.errors import StudyError
from autoft.runners.base import Runner, Site
from autoft.types import Done, Report, Slice

# Ray and Tune read these when they are imported. Whoever set one before knows why.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

OBJECT_STORE_BYTES = 100 * 2**20  # slices and reports are small; pixels and features are files that workers map


class RayRunner(Runner):
    """Runs `site.workers` slices at a time, each in an actor with its own cores or its share of the GPUs."""

    def __init__(self) -> None:
        self._own_cluster = False

    def warm_up(self, cores: int) -> None:
        """Use the cluster that is up, or start a quiet local one.

        The import of torch here runs beside Ray's start, which mostly waits. Raises `StudyError` under Ray Client,
        which would move driver and journal to another machine.
        """
        if os.environ.get("RAY_ADDRESS", "").startswith("ray://"):
            raise StudyError("Ray Client (RAY_ADDRESS=ray://...) would keep the journal elsewhere; run on the cluster")
        if ray.is_initialized():
            return
        importing = threading.Thread(target=_import_worker, daemon=True)
        importing.start()
        self._own_cluster = True
        with _signals_left_alone():
            if "RAY_ADDRESS" in os.environ:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    num_cpus=cores,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=OBJECT_STORE_BYTES,
                )
        importing.join()

    def run(self, search: Search, site: Site, stopped: Callable[[], bool]) -> None:
        """Drive the search by Tune."""
        adapter = _Adapter(search, site)
        with tempfile.TemporaryDirectory(prefix="autoft-ray-") as storage:
            _tuner(adapter, site, stopped, storage).fit()
        if adapter.error is not None:
            raise adapter.error

    def close(self) -> None:
        """End the cluster if it is our own."""
        if self._own_cluster:
            ray.shutdown()


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """`ray.init` makes SIGTERM end the process with code 15; whoever had a handler before keeps it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _import_worker() -> None:
    """Seconds of imports that the driver needs too. (Ray gives an actor a new process, so its cannot be done ahead.)"""
    importlib.import_module("autoft.train.worker")


def _tuner(adapter: _Adapter, site: Site, stopped: Callable[[], bool], storage: str) -> Any:
    resources = {"cpu": float(site.threads), "gpu": site.gpus if site.device == "cuda" else 0.0}
    return tune.Tuner(
        tune.with_resources(_SliceTrainable, resources),
        tune_config=tune.TuneConfig(search_alg=adapter, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="slices",
            storage_path=storage,
            stop=_OnRequest(stopped),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


@dataclass(frozen=True)
class _Errand:
    """What travels to an actor, as one string of JSON: which run, with how many threads, and the slice."""

    run: str
    threads: int
    origin: float
    slice: Slice


class _Adapter(Searcher):
    """A Tune searcher over `search`. It suggests while a worker is free: otherwise Tune would always ask one ahead."""

    def __init__(self, search: Search, site: Site) -> None:
        super().__init__(metric=None, mode=None)
        self.error: Exception | None = None
        self._search, self._site = search, site
        self._running: dict[str, Slice] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next slice as a Tune configuration, None to be asked again, or FINISHED."""
        if len(self._running) >= self._site.workers:
            return None
        answer = self._guarded(self._search.ask)
        if isinstance(answer, Slice):
            self._running[trial_id] = answer
            errand = _Errand(str(self._site.run), self._site.threads, self._site.origin, answer)
            return {"errand": encode(errand)}
        return Searcher.FINISHED if isinstance(answer, Done) else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell the search; a Tune trial that ended without a report was stopped on request or lost its process."""
        sent = self._running.pop(trial_id, None)
        if sent is None:
            return
        if result and "report" in result:
            self._guarded(lambda: self._search.tell(decode(Report, result["report"])))
        elif error:
            cause = "the worker process died (out of memory? the system log may know)"
            self._guarded(
                lambda: self._search.tell(Report(sent.trial.id, "failed", sent.start, None, 0.0, error=cause))
            )

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

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next slice into the same process."""
        self._errand = new_config["errand"]
        return True

    def step(self) -> dict[str, Any]:
        """Execute the slice. Every failure is a report: Tune's own error states carry no cause."""
        errand = decode(_Errand, self._errand)
        try:
            report = self._execute(errand)
        except Exception as error:
            report = Report(errand.slice.trial.id, "failed", errand.slice.start, None, 0.0, error=repr(error))
        return {"report": encode(report), "done": True}

    def _execute(self, errand: _Errand) -> Report:
        from autoft.train.worker import Job, Worker

        if self._worker is None:
            self._worker = Worker.open(Path(errand.run), errand.threads)
        report: Report = self._worker.run(Job(errand.slice, errand.origin))
        return report


class _OnRequest(tune.Stopper):
    """Ends all Tune trials once `stopped()`."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal came."""
        return self._stopped()

    def __getstate__(self) -> dict[str, Any]:
        return {}
