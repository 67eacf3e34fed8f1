"""Whether a learning rate means the same at every batch size once it is scaled, and how few steps a pass may have.

    python benchmarks/batch_size.py            # some minutes

Lite0 at 64 px learns `examples/fashion`, 600 images of it, from the first start of the strategy `full`, in batches of
16 to 128, with the rate scaled by the root of the batch size, as the built-in strategies do it, and with one rate for
all. Each is scored on 390 other images by a worker of the usual kind.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import torch

from autoft.builtin.freeze import RATED_BATCH
from autoft.data.dataset import Source, bound
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.engine.engine import begin
from autoft.engine.sitting import Sitting
from autoft.parts.host import Host
from autoft.runners.inline import InlineRunner
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.trial import Slice

BATCHES = (16, 32, 64, 128)
SPLITS = {"train": 60, "val": 39, "test": 1}  # images a class
BACKBONE = "lite/efficientnet_lite0"
NEAR = 0.02  # of accuracy: about the noise of two means of a few seeds on so many images


@dataclass(frozen=True)
class Curve:
    """Validation accuracy of one trial after so many passes each, and the CPU seconds that it took."""

    batch: int
    scaled: bool
    seed: int
    steps_a_pass: int
    learning_rate: float
    passes: tuple[float, ...]
    accuracy: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Result:
    """All trials."""

    curves: tuple[Curve, ...]

    def mean(self, batch: int, scaled: bool, last: int = -1) -> float:
        """Mean accuracy over the seeds; at 32 images both rates are one."""
        of = [one for one in self.curves if one.batch == batch and one.scaled in (scaled, batch == RATED_BATCH)]
        return statistics.mean(one.accuracy[last] for one in of)


def manifest(place: Path) -> Path:
    """A copy of `examples/fashion` with splits of our own: enough images to learn from, and to score on."""
    sides, listed = [side for side, count in SPLITS.items() for _ in range(count)], place / "fashion.csv"
    shutil.copytree(common.FASHION, place / "fashion")
    with listed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        for folder in sorted(one for one in (place / "fashion").iterdir() if one.is_dir()):
            images = sorted(folder.iterdir())
            random.Random(0).shuffle(images)
            named = (image.relative_to(place) for image in images)
            writer.writerows((name, folder.name, side) for name, side in zip(named, sides, strict=True))
    return listed


def begun(place: Path) -> Run:
    """A run that has its candidates and pixels, and no trial yet."""
    listed = manifest(place)
    study = Study(
        data=str(listed),
        backbones=(BACKBONE,),
        freeze=("full",),
        image_size=64,
        time=36_000.0,
        runner="inline",
        offline=True,
        plugins=("no:timm",),
    )
    host, now = Host.discover(study.plugins), time.time()
    listing = read_labelled(listed)
    source = Source(scan(listing, 1), bound(host.task("single_label"), listing))
    sitting = Sitting(host, InlineRunner(), Silent(), Stopwatch(now), RunClock(now, study.time))
    return begin(study, source, place / "run", sitting)


@dataclass(frozen=True)
class Bench:
    """A worker on the run, which gives its trials their numbers."""

    run: Run
    worker: Worker
    passes: tuple[float, ...]

    def train(self, number: int, batch: int, scaled: bool, seed: int) -> Curve:
        """One trial. Raises `RuntimeError` when it fails."""
        (candidate,) = self.run.record.candidates
        start = candidate.space.starts[0]
        undone = 1.0 if scaled else math.sqrt(RATED_BATCH / batch)
        params = {**start, "batch_size": batch, "learning_rate": float(start["learning_rate"]) * undone}
        trial, before, scores = candidate.trial(number, params, seed), 0.0, []
        began = time.process_time()
        for passes in self.passes:
            report = self.worker.run(Job(Slice(trial, before, passes, math.inf), time.time()))
            if report.score is None:
                raise RuntimeError(report.error)
            before = report.step
            scores.append(report.score)
        rate, steps = float(report.facts["learning_rate"]), report.costs.steps_a_pass
        seconds = time.process_time() - began
        print(f"batch {batch}, rate {rate:.2g}, seed {seed}: {scores}, {seconds:.0f} s", file=sys.stderr, flush=True)
        return Curve(batch, scaled, seed, steps, rate, self.passes, tuple(scores), round(seconds, 1))


def checks(result: Result) -> list[common.Check]:
    """Scaled, a batch size of eight steps or more a pass is as good as that of 32."""
    found = []
    reference = result.mean(RATED_BATCH, True)
    for batch in sorted({one.batch for one in result.curves if one.steps_a_pass >= 8} - {RATED_BATCH}):
        below = reference - result.mean(batch, True)
        what = f"accuracy after the last pass: batch 32 above batch {batch} at the scaled rate"
        found.append(common.Check(what, f"{below:+.3f}", f"<= {NEAR}", below <= NEAR))
    return found


def main() -> int:
    """Train, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [
        (batch, scaled, seed)
        for seed in range(options.seeds)
        for batch in options.batches
        for scaled in ((True,) if batch == RATED_BATCH else (True, False))
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = begun(Path(folder))
        worker = Worker(Workshop(run, run.host()))
        bench = Bench(run, worker, tuple(options.passes))
        result = Result(tuple(bench.train(number, *one) for number, one in enumerate(wanted)))
    rows = [
        (
            batch,
            one.steps_a_pass,
            "scaled" if scaled else "as at 32",
            f"{one.learning_rate:.2g}",
            *(f"{result.mean(batch, scaled, at):.3f}" for at in range(len(options.passes))),
        )
        for batch, scaled in dict.fromkeys((batch, scaled) for batch, scaled, _ in wanted)
        for one in [next(c for c in result.curves if (c.batch, c.scaled) == (batch, scaled))]
    ]
    columns = ("batch", "steps a pass", "rate", "", *(f"after {passes:g} passes" for passes in options.passes))
    common.show(f"validation accuracy, mean of {options.seeds} seeds", columns, rows)
    return common.publish("batch_size", result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
