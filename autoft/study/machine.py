"""What this machine offers a search, and how a study shares it out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoft.errors import StudyError
from autoft.study.record import Machine, RunnerName
from autoft.study.study import Study
from autoft.system.cgroups import cpu_quota, memory_left
from autoft.system.load import OtherTasks, waiting
from autoft.system.screen import Screen
from autoft.system.starting import start_slowness
from autoft.values.counts import counted
from autoft.values.ledger import Ledger
from autoft.values.space import Device

PACKAGES = ("autoft", "torch", "timm", "onnx", "onnxruntime", "ray", "numpy", "pillow")


MIB, GIB = 2**20, 2**30
# What a worker needs before a run has measured it: torch, one backbone at a time in training, and a few kept beside it.
WORKER_BYTES = 3 * GIB // 2
EPSILON = 1e-3
# One measurement tells a fair share (waiting .24 to .80 of two loops on two cores) from that of a session of its own (0
# to .33), but not how small that is. What cores lose to their neighbours, who share caches and more, is in
# `start_slowness` already: with both an export beside two loops was reckoned 1.34 times as long, and took 1.3.
FEELING_SECONDS, LEAST_FELT = 0.3, 0.25


@dataclass(frozen=True)
class Resources:
    """What one machine offers to workers: processor cores, GPUs, and bytes of memory.

    So many workers at most may share one of its GPUs, if measured to be worth it: one where others use them too.
    """

    cores: int
    gpus: int
    memory: int
    most_a_gpu: int = 1

    @classmethod
    def here(cls, cores: int) -> Resources:
        """Those of this machine, when `cores` workers may be started on it; room for this process is taken off."""
        import torch

        return cls(cores, torch.cuda.device_count(), memory() - WORKER_BYTES)

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers that take so many cores and GPUs, or shares of one, run at once."""
        by_cores = math.floor(self.cores / cpus + EPSILON)
        if not gpus:
            return by_cores
        return min(by_cores, self.gpus * math.floor(1 / gpus + EPSILON) if gpus <= 1 else self.gpus // int(gpus))


def cores() -> int:
    """Processor cores this process may use: its affinity and its control group's quota, the lesser of both."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def memory() -> int:
    """Bytes of memory that can be had now without pushing anybody out, cached files aside."""
    found = [left for left in (memory_left(), _available()) if left is not None]
    return min(found) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory() -> int:
    """The most resident memory this process has had, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Slowness:
    """Calling it gives how many times as long things take here as where they were measured, at least 1.

    Because this machine is slow, as `start_slowness` finds, and because of what else runs on it: by the tasks of others
    now, or by the load of the last minute, of which `own` is ours, where that is more.
    """

    own: float
    others: Callable[[], float | None] = field(default_factory=OtherTasks)

    @classmethod
    def now(cls) -> float:
        """As a command begins: the load average would have what ran here before in it."""
        return cls(own=math.inf)()

    def __call__(self) -> float:
        """A factor of 2 means: twice as long as on the other machine, with nothing else running there."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        more = max(0.0, load - self.own, self.others() or 0.0)
        waits = _waiting_beside(more)
        return start_slowness() * (1.0 + (waits * _felt() if waits else 0.0))


def _waiting_beside(others: float) -> float:
    """Seconds one thread waits for each it computes, if all tasks get as much of the whole machine's cores.

    For one thread, as most of what is reckoned with has: of two cores that two others keep busy it has two thirds of
    one.
    """
    return max(0.0, (1.0 + others) / (os.cpu_count() or 1) - 1.0)


class _Felt:
    """The part of that which a thread does wait here, measured when the machine is crowded for the first time.

    That is before the workers start, if it is from the beginning; later, they make it look larger. Tasks of other
    sessions count for less than their number. What comes and goes meanwhile is not measured by, and counts in full.
    """

    def __init__(self) -> None:
        self._part: float | None = None

    def __call__(self) -> float:
        if self._part is None:
            before = _waiting_beside(OtherTasks()() or 0.0)
            waits = waiting(FEELING_SECONDS) if before else 0.0
            expected = min(before, _waiting_beside(OtherTasks()() or 0.0)) if before else 0.0
            self._part = min(1.0, max(LEAST_FELT, waits / expected)) if expected else None
        return 1.0 if self._part is None else self._part


_felt = _Felt()


def worker_memory(ledger: Ledger) -> int:
    """Bytes a worker needs: the most that one was measured to, else `WORKER_BYTES`."""
    reports = (report for record in ledger.trials.values() for report in record.reports)
    measured = (report.facts.get("peak_rss_mib") for report in reports)
    return max((int(peak) * MIB for peak in measured if isinstance(peak, int | float)), default=WORKER_BYTES)


def choose_runner(study: Study, inline_only: tuple[str, ...], screen: Screen) -> RunnerName:
    """The runner a study gets. `inline_only` names plugins that cannot travel to other processes.

    "auto" is Ray where that works; why it does not is said on the screen. Raises `StudyError` where Ray was asked for.
    """
    if study.runner == "inline":
        return "inline"
    if inline_only:
        reason = f"plugin {', '.join(inline_only)} is defined in __main__; put it into a file and give it with -p"
    elif importlib.util.find_spec("ray") is None:
        reason = "ray is not installed; pip install 'ray[tune]'"
    else:
        return "ray"
    if study.runner == "ray":
        raise StudyError(f"--runner ray cannot be used: {reason}")
    screen.note(f"one trial at a time in this process: {reason}")
    return "inline"


def share_out(study: Study, runner: RunnerName, nodes: Sequence[Resources], need: int, screen: Screen) -> Machine:
    """Workers and threads for a study on the `nodes` its runner uses, when a worker needs `need` bytes.

    One worker a core or a GPU, unless the study says otherwise or memory does not reach; what limits is said on the
    screen. Where nothing says how many share a GPU, there are as many as may, and cores, to be used as measured. Raises
    `StudyError` when not one worker fits.
    """
    count, gpus = sum(node.cores for node in nodes), sum(node.gpus for node in nodes)
    asked = study.gpus_per_trial or 1.0
    if 0 < gpus < asked:
        raise StudyError(f"--gpus-per-trial {asked:g} asks for more than there is here, {counted(gpus, 'GPU')}")
    device: Device = "cuda" if gpus else "cpu"
    most = int(gpus / asked) if gpus else max(1, count)
    is_open = study.gpus_per_trial is None and not study.workers
    if is_open and gpus:
        most = max(most, min(count, sum(node.gpus * node.most_a_gpu for node in nodes)))
    workers = 1 if runner == "inline" else study.workers or _within_memory(most, nodes, need, screen)
    share = min(asked, 1 / math.ceil(workers / gpus)) if gpus else 0.0
    if gpus and workers > most:
        screen.note(f"{workers} workers share {counted(gpus, 'GPU')}, {share:.3g} each")
    threads = max(1, min(count // workers, max(node.cores for node in nodes)))
    cpus = min(threads, math.floor(1000 * count / workers) / 1000)  # below 1 when more workers than cores are wanted
    room = sum(node.room(cpus, share) for node in nodes) if cpus else 0
    there = f"{counted(count, 'core')} and {counted(gpus, 'GPU')}"
    if not room:
        raise StudyError(f"no worker fits into {there}; use --runner inline")
    if room < workers:
        screen.note(f"{counted(room, 'worker')} and not {workers}: more do not fit into {there}")
    workers = min(workers, room)
    return Machine(runner, workers, threads, device, cpus, share, gpus if is_open and 0 < gpus < workers else 0)


def _within_memory(workers: int, nodes: Sequence[Resources], need: int, screen: Screen) -> int:
    """As many workers as fit into memory, at least one."""
    fit = max(1, sum(max(0, node.memory) // need for node in nodes))
    if fit < workers:
        free = sum(node.memory for node in nodes) / GIB
        screen.note(
            f"{counted(fit, 'worker')} and not {workers}: each needs {need / GIB:.1f} GiB, and {free:.1f} GiB are free"
        )
    return min(workers, fit)


def _available() -> int | None:
    """What Linux counts as available, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run does; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
