"""Images a second of trials that share one GPU, over those of one alone, with and without NVIDIA's MPS.

    python benchmarks/engine_packing.py

Each trial is a process that trains as a search does, its pixels where autoft puts them. All are started at once and
warmed up; then the first one, three and four of them train for some seconds, the others idle. MPS runs under a daemon
of its own in a private folder, which is stopped in the end; where its binary is missing or it does not start, it is
said. Target: the better of three and four at least 1.8 times one alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import common
import torch
from common import Check
from engine_training import IMAGES, Setting, device_here, device_name
from subject import Subject, waiting

SETTINGS = "efficientnet_lite0:64:32,efficientnet_lite0:96:128"
COUNTS, GAIN = "1,3,4", 1.8
WARM_UP_STEPS, STEPS_AHEAD = 20, 16
START_SECONDS, MORE_SECONDS, END_SECONDS = 90.0, 30.0, 5.0
MPS = "nvidia-cuda-mps-control"


@dataclass(frozen=True)
class Packed:
    """Total images a second of some processes side by side, and of each."""

    setting: Setting
    mps: bool
    processes: int
    images_per_second: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """The device, what was measured, and what was not."""

    device: str
    packed: tuple[Packed, ...]
    missing: tuple[str, ...]


def train(orders: Connection, settings: tuple[Setting, ...], augment: str, threads: int) -> None:
    """A process: for each order `(setting number, seconds)` train so long, and answer images a second; None ends it."""
    torch.set_num_threads(threads)
    device = device_here()
    wait = waiting(device)
    runs = [Subject.of(one.network, one.size, IMAGES, device).run(0, one.batch, augment) for one in settings]
    for run in runs:
        for _ in range(WARM_UP_STEPS):
            run.advance()
    wait()
    orders.send(0.0)
    while order := orders.recv():
        number, seconds = order
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(STEPS_AHEAD):  # else some would be asked for far more than the others, and end later
                runs[number].advance()
            wait()
            steps += STEPS_AHEAD
        orders.send(steps * settings[number].batch / (time.perf_counter() - began))


class Team:
    """Processes that train when told."""

    def __init__(self, count: int, settings: tuple[Setting, ...], augment: str) -> None:
        context = multiprocessing.get_context("spawn")
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        self._members: list[tuple[SpawnProcess, Any]] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=train, args=(theirs, settings, augment, threads), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))

    def rates(self, count: int, seconds: float) -> tuple[float, ...]:
        """What the first `count` answer. Raises `RuntimeError` when one of them does not."""
        found = []
        for process, ours in self._members[:count]:
            try:
                if not ours.poll(seconds):
                    raise RuntimeError(f"process {process.pid} does not answer")
                found.append(float(ours.recv()))
            except (EOFError, OSError) as error:
                raise RuntimeError(f"process {process.pid} has ended") from error
        return tuple(found)

    def together(self, count: int, number: int, seconds: float) -> tuple[float, ...]:
        """Images a second of the first `count`, side by side in setting `number`."""
        for _, ours in self._members[:count]:
            ours.send((number, seconds))
        return self.rates(count, seconds + MORE_SECONDS)

    def end(self) -> None:
        """No process is left; those that listen end by themselves, as MPS wants its clients to."""
        for _, ours in self._members:
            with suppress(OSError):
                ours.send(None)
        for process, ours in self._members:
            process.join(END_SECONDS)
            process.kill()
            process.join()
            ours.close()


@contextmanager
def mps(wanted: bool) -> Iterator[None]:
    """Processes started in the block share the GPU by MPS, if wanted. Raises `RuntimeError` where there is none."""
    if not wanted:
        yield
        return
    binary = shutil.which(MPS)
    if binary is None:
        raise RuntimeError(f"{MPS} is not there")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(own)
        try:
            started = subprocess.run([binary, "-d"], capture_output=True, text=True, timeout=20)
            if started.returncode:
                raise RuntimeError(f"{MPS} -d: {(started.stderr or started.stdout).strip()}")
            yield
        finally:
            subprocess.run([binary], input="quit\n", text=True, capture_output=True, timeout=20)
            for name in own:
                del os.environ[name]


def measure(
    settings: tuple[Setting, ...], counts: list[int], shared: bool, augment: str, seconds: float
) -> Iterator[Packed]:
    """All settings and counts, with MPS or without."""
    with mps(shared):
        team = Team(max(counts), settings, augment)
        try:
            team.rates(max(counts), START_SECONDS)
            for number, setting in enumerate(settings):
                for count in counts:
                    each = team.together(count, number, seconds)
                    yield Packed(setting, shared, count, round(sum(each), 1), tuple(round(rate, 1) for rate in each))
        finally:
            team.end()


def gains(result: Result) -> Iterator[tuple[Packed, float]]:
    """Each figure with what it is over that of one process alone without MPS, or with it if that is all there is."""
    alone = {one.setting: one.images_per_second for one in reversed(result.packed) if one.processes == 1}
    return ((one, one.images_per_second / alone[one.setting]) for one in result.packed if one.setting in alone)


def checks(result: Result) -> Iterator[Check]:
    """The best of each setting against the target."""
    best: dict[Setting, tuple[float, Packed]] = {}
    for one, gain in gains(result):
        if one.processes > 1 and gain > best.get(one.setting, (0.0, one))[0]:
            best[one.setting] = gain, one
    for setting, (gain, one) in best.items():
        how = f"{one.processes} processes, {'with' if one.mps else 'without'} MPS"
        what = f"{setting.network}, {setting.size} px, batch {setting.batch}: {how}, times one alone"
        yield Check(what, f"{gain:.2f}", f">= {GAIN}", gain >= GAIN)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=SETTINGS, help="NETWORK:SIZE:BATCH, separated by commas")
    parser.add_argument("--counts", default=COUNTS, help="processes side by side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure")
    parser.add_argument("--augment", default="crop_flip", choices=["none", "crop", "crop_flip"])
    options = parser.parse_args()
    settings = tuple(map(Setting.read, options.networks.split(",")))
    counts = [int(text) for text in options.counts.split(",")]
    packed, missing = [], []
    for shared in (False, True):
        try:
            for one in measure(settings, counts, shared, options.augment, options.seconds):
                print(one, flush=True)
                packed.append(one)
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            missing.append(f"{'with' if shared else 'without'} MPS: {error}")
            print(missing[-1], flush=True)
    result = Result(device_name(), tuple(packed), tuple(missing))
    rows = [
        (
            f"{one.setting.network} {one.setting.size} px, batch {one.setting.batch}",
            "yes" if one.mps else "no",
            one.processes,
            f"{one.images_per_second:.0f}",
            f"{gain:.2f}",
        )
        for one, gain in gains(result)
    ]
    common.show(f"packed trials, {result.device}", ("training", "MPS", "processes", "images/s", "times one"), rows)
    return common.publish("engine_packing", result, list(checks(result)))


if __name__ == "__main__":
    sys.exit(main())
