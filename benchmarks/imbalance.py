"""What to do about classes of unlike size: heads in closed form and fine-tunes, by balanced accuracy.

    python benchmarks/imbalance.py            # some minutes; needs the Fashion-MNIST files that make_fashion.py names

Lite0 at 64 px learns classes of Fashion-MNIST of which some have a fraction of the others' images, and is scored on as
many others of each class, where accuracy is the balanced one. A head is fitted as for accuracy, with images alike, and
as for balanced accuracy, with classes alike; fine-tunes begin with the first start of the strategy `full`, with each
remedy that a recipe knows and without one.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import common
import numpy as np
import torch
from make_fashion import CLASSES, DEBIAN, Part
from PIL import Image

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
from autoft.values.plan import Balance
from autoft.values.trial import Slice

BACKBONE = "lite/efficientnet_lite0"
SCORED, TESTED = 100, 2  # images a class
BY_METRIC = {"accuracy": "images alike", "balanced_accuracy": "classes alike"}
BALANCES: tuple[Balance, ...] = tuple(one for one in get_args(Balance) if one != "auto")


@dataclass(frozen=True)
class Shape:
    """Classes, common and rare, of which the common ones have so many training images."""

    name: str
    common: tuple[int, ...]
    rare: tuple[int, ...]
    images: int


SHAPES = (
    Shape("t-shirt, rare shirt", (0,), (6,), 400),
    Shape("five common, five rare", (0, 2, 3, 7, 8), (1, 4, 5, 6, 9), 150),
)


@dataclass(frozen=True)
class Score:
    """Balanced accuracy on new images of one way to train."""

    shape: str
    ratio: int
    seed: int
    fit: str
    way: str
    balanced_accuracy: float
    cpu_seconds: float


@dataclass(frozen=True)
class Result:
    """All of them, fine-tunes after so many passes."""

    passes: float
    scores: tuple[Score, ...]

    def mean(self, shape: str, ratio: int, fit: str, way: str) -> float:
        """Over the seeds."""
        wanted = (shape, ratio, fit, way)
        found = [one.balanced_accuracy for one in self.scores if (one.shape, one.ratio, one.fit, one.way) == wanted]
        return statistics.mean(found)


def manifest(part: Part, shape: Shape, ratio: int, seed: int, place: Path) -> Path:
    """The images as files, and the list of them with their splits."""
    listed, rng = place / "images.csv", random.Random(seed)
    with listed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        for label in (*shape.common, *shape.rare):
            count = shape.images if label in shape.common else max(2, shape.images // ratio)
            sides = ["train"] * count + ["val"] * SCORED + ["test"] * TESTED
            rows = rng.sample(np.flatnonzero(part.labels == label).tolist(), len(sides))
            for row, side in zip(rows, sides, strict=True):
                Image.fromarray(part.pixels[row]).save(place / f"{row}.png")
                writer.writerow((f"{row}.png", CLASSES[label], side))
    return listed


def begun(listed: Path, metric: str, out: Path) -> Run:
    """A run that is searched by the metric, and has no trial yet."""
    study = Study(
        data=str(listed),
        backbones=(BACKBONE,),
        freeze=("probe", "full"),
        metric=metric,
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
    return begin(study, source, out, sitting)


def scores(shape: Shape, ratio: int, seed: int, part: Part, passes: float) -> Iterator[Score]:
    """Of one draw of images, every way to train on them. Raises `RuntimeError` when a trial fails."""
    with tempfile.TemporaryDirectory() as folder:
        listed = manifest(part, shape, ratio, seed, Path(folder))
        for metric, way in BY_METRIC.items():
            run = begun(listed, metric, Path(folder) / metric)
            worker = Worker(Workshop(run, run.host()))
            probe, full = (next(c for c in run.record.candidates if c.freeze == one) for one in ("probe", "full"))
            trials = [("head", way, probe.trial(0, {}, seed), 1.0)]
            if metric == "balanced_accuracy":
                start = full.space.starts[0]
                trials += [
                    ("fine-tune", balance, full.trial(number, {**start, "balance": balance}, seed), passes)
                    for number, balance in enumerate(BALANCES, 1)
                ]
            for fit, how, trial, until in trials:
                began = time.process_time()
                report = worker.run(Job(Slice(trial, 0.0, until, math.inf), time.time()))
                if report.score is None:
                    raise RuntimeError(report.error)
                spent = round(time.process_time() - began, 1)
                print(f"{shape.name}, {ratio}:1, seed {seed}, {fit}, {how}: {report.score:.3f}", file=sys.stderr)
                yield Score(shape.name, ratio, seed, fit, how, round(report.score, 4), spent)


def checks(result: Result, ratios: list[int]) -> list[common.Check]:
    """What the defaults stand on: classes alike for a head, sampling for a fine-tune."""
    found = []
    for shape in SHAPES:
        for ratio in ratios:
            for fit, plain, ours in (("head", "images alike", "classes alike"), ("fine-tune", "none", "sampling")):
                gain = result.mean(shape.name, ratio, fit, ours) - result.mean(shape.name, ratio, fit, plain)
                what = f"{shape.name}, {ratio}:1, {fit}: balanced accuracy gained by {ours}"
                found.append(common.Check(what, f"{gain:+.3f}", "> 0", gain > 0))
    return found


def main() -> int:
    """Train, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--passes", type=float, default=3.0)
    parser.add_argument("--ratios", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--source", type=Path, default=DEBIAN)
    options = parser.parse_args()
    torch.set_num_threads(1)
    part = Part.read(options.source, "train")
    found = [
        score
        for shape in SHAPES
        for ratio in options.ratios
        for seed in range(options.seeds)
        for score in scores(shape, ratio, seed, part, options.passes)
    ]
    result = Result(options.passes, tuple(found))
    ways = [("head", way) for way in BY_METRIC.values()] + [("fine-tune", balance) for balance in BALANCES]
    rows = [
        (shape.name, f"{ratio}:1", *(f"{result.mean(shape.name, ratio, fit, way):.3f}" for fit, way in ways))
        for shape in SHAPES
        for ratio in options.ratios
    ]
    columns = ("classes", "ratio", *(f"{fit}, {way}" for fit, way in ways))
    common.show(f"balanced accuracy, mean of {options.seeds} draws", columns, rows)
    return common.publish("imbalance", result, checks(result, options.ratios))


if __name__ == "__main__":
    sys.exit(main())
