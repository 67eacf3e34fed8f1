"""Faults of the Ray runner, one after another on a cluster of two logical cores; prints what came of each as JSON.

The search and the worker are stand-ins; runner, Tune and processes are real.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from autoft import DONE, WAIT, AutoftError, Candidate, Ledger, Problem, Report, Searcher, Slice, Space, Trial
from autoft.parts.host import Host
from autoft.runners import deaths
from autoft.runners import ray as subject
from autoft.runners import search as asking
from autoft.runners.base import Site
from autoft.store import CheckpointStore, Journal
from autoft.study.record import Machine
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.signals import StopFlag


class Worker(subject._SliceTrainable):
    """Does what the name of the freeze strategy says."""

    def _execute(self, errand):
        until = time.monotonic() + 60
        match errand.slice.trial.freeze:
            case "segv":
                ctypes.string_at(0)
            case "exit":
                sys.exit(4)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("the slice")
            case "heeding":
                while time.monotonic() < until:
                    if self._stopped():
                        raise RuntimeError("cancelled")
                    time.sleep(0.05)
            case "deaf":
                time.sleep(60)
            case "starved" | "starved for ever" as fault:
                halved = len(errand.allowance.lost)
                if fault == "starved for ever" or not halved:
                    (RUN / f"{errand.slice.trial.id}-{halved}.oom").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return Report(errand.slice.trial.id, "finished", 1.0, 0.5, 0.0)


class Search:
    """Hands out one slice after another."""

    def __init__(self, *faults, deadline=1e6, failing=False):
        self.ledger, self.begun, self.told, self.host = Ledger(), [], [], Host.from_refs(())
        self._slices = [
            Slice(Trial(number, "b", fault, 64, {}, 0), 0.0, 1.0, deadline) for number, fault in enumerate(faults)
        ]
        self._out, self._failing, self.deadline = 0, failing, 0.0

    def ask(self):
        if self._slices and not self._out:
            self._out += 1
            return self._slices.pop(0)
        if self._failing and self._soon():
            raise AutoftError("the driver's own")
        return WAIT if self._out else DONE

    def _soon(self):
        """Some seconds after the first question: the slice has begun by then."""
        self._asked = getattr(self, "_asked", time.monotonic())
        return time.monotonic() > self._asked + 3

    def began(self, trial):
        self.begun.append(trial)

    def tell(self, report):
        self._out -= 1
        self.told.append([report.event, report.error])


class Starving(Searcher):
    """Asks for a slice that costs one process, and for one that costs any, and is done."""

    name = "starving"

    def ask(self, problem, ledger, clock):
        number = len(ledger.trials)
        if number == len(problem.candidates):
            return DONE
        return Slice(problem.candidates[number].trial(number, {}, 0), 0.0, 1.0, clock.deadline)


def starving() -> asking.Search:
    candidates = tuple(Candidate("b", fault, 64, Space({})) for fault in ("starved", "starved for ever"))
    return asking.Search(
        searcher=Starving(),
        problem=Problem(candidates, seed=0, workers=1),
        ledger=Ledger(),
        journal=Journal(RUN / "trials.jsonl"),
        checkpoints=CheckpointStore(RUN / "checkpoints"),
        clock=RunClock(time.time(), 300.0),
        host=Host.from_refs(()),
        screen=Silent(),
        stopped=StopFlag(),
        reserve=lambda ledger, trial: 0.0,
    )


def runner_for() -> subject.RayRunner:
    """One that uses the cluster that is up, and leaves it so."""
    runner = subject.RayRunner()
    runner._logs = LOGS
    return runner


def run(search: Search, stopped=lambda: False, workers: int = 2) -> dict:
    began, raised = time.monotonic(), None
    site = Site(RUN, Machine("ray", workers, 1, "cpu"), time.time())
    try:
        runner_for().run(search, site, stopped)
    except AutoftError as error:
        raised = str(error)
    return {"seconds": time.monotonic() - began, "begun": search.begun, "told": search.told, "raised": raised}


def mine(number, frame):
    raise AssertionError


RUN = Path(sys.argv[1])
subject._SliceTrainable = Worker
subject._import_worker = lambda: None
signal.signal(signal.SIGTERM, mine)
signal.signal(signal.SIGUSR1, mine)
runner = subject.RayRunner()
runner.warm_up(2)
LOGS = runner._logs

results = {}
deaths.oom_kills = lambda: len(list(RUN.glob("*.oom")))  # as the kernel would count
starved = starving()
runner_for().run(starved, Site(RUN, Machine("ray", 1, 1, "cpu"), time.time()), starved.stopped)
results["starved"] = [[event.event, event.trial] for event in Journal.read(RUN / "trials.jsonl")]
results["starved for ever"] = starved.ledger.trials[1].reports[-1].error
faults = ("segv", "exit", "kill", "raise")
fatal = run(Search(*faults))
results["deaths"], results["begun"] = dict(zip(faults, fatal["told"], strict=True)), fatal["begun"]
results["error"] = run(Search("heeding", failing=True))
for worker in ("heeding", "deaf"):
    soon = time.monotonic() + 3
    results[worker] = run(Search(worker), lambda soon=soon: time.monotonic() > soon)


@subject.ray.remote(num_cpus=2)
class Neighbour:
    """Takes all there is."""

    def here(self):
        return True


guest = subject.RayRunner()
guest.warm_up(7)
results["free"] = [[node.cores, node.gpus] for node in guest.nodes()]
neighbour = Neighbour.remote()
subject.ray.get(neighbour.here.remote())
patience = time.monotonic() + 5
while subject.ray.available_resources().get("CPU", 0) and time.monotonic() < patience:
    time.sleep(0.1)  # the head of a cluster hears of it a moment later
results["free when busy"] = [[node.cores, node.gpus] for node in guest.nodes()]
subject.GRACE_SECONDS = 60.0
results["busy"] = run(Search("raise", deadline=1.0))
patient = Search("raise", "raise", deadline=1.0)
patient.deadline = 120.0
threading.Timer(4.0, subject.ray.kill, (neighbour,)).start()
results["busy for a while"] = run(patient)
results["handlers"] = signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGUSR1) is mine
sys.stdout.write(json.dumps(results))
sys.stdout.flush()
os._exit(0)
