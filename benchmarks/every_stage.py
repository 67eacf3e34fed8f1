"""What heads gain that see every stage of a backbone, beside heads on its last layer: solved for, and by gradient.

    python benchmarks/every_stage.py                # 25 minutes of one core
    python benchmarks/every_stage.py --seeds 0      # without fine-tunes: 5 minutes

Heads: ridge heads on features of EfficientNet-Lite0 with its ImageNet weights at 64 px, fitted on some images a class
and scored on all others of the set, the same draws for both. Fine-tunes: 600 images of Fashion-MNIST to train, 1,500
to validate, from heads of zeros and from ridge heads. The sets are those of `selection.py`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import get_args

import common
import torch
from common import Check
from make_fashion import write_training
from selection import SETS, Drawn, Pool, worker_of

from autoft.data.split import stratified_order
from autoft.study.run import Run
from autoft.system.parallel import never_stop
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.codec import encode
from autoft.values.space import FeaturesOf
from autoft.values.trial import Slice

BACKBONE = "lite/efficientnet_lite0"
A_CLASS, DRAWS = (5, 20, 100), 6
TRAINED, VALIDATED = 600, 1500
STRATEGIES, INITS, PASSES = ("full", "last_stages", "bias_norm"), ("zero", "ridge"), (1.0, 3.0, 6.0)


@dataclass(frozen=True)
class Heads:
    """Accuracy on images not drawn of heads on the last stage and on every one, a draw each."""

    set: str
    a_class: int
    last: tuple[float, ...]
    every: tuple[float, ...]

    @property
    def gain(self) -> tuple[float, float]:
        """Its mean, and the standard error of that."""
        gains = [every - last for last, every in zip(self.last, self.every, strict=True)]
        return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains))


@dataclass(frozen=True)
class Tuned:
    """Validation accuracy of one fine-tune after 1, 3 and 6 passes."""

    strategy: str
    features_of: FeaturesOf
    init: str
    seed: int
    after: tuple[float, ...]

    @property
    def what(self) -> tuple[str, FeaturesOf, str]:
        """What those with other seeds have in common."""
        return self.strategy, self.features_of, self.init


@dataclass(frozen=True)
class Result:
    """All of it."""

    heads: tuple[Heads, ...]
    tuned: tuple[Tuned, ...]


def heads(name: str, folder: Path) -> Iterator[Heads]:
    """Of one set."""
    with common.workplace() as place:
        shop = worker_of(place.path, folder, Drawn.of(folder, 100, 0), (BACKBONE,)).shop
        network, pool = shop.network(BACKBONE), Pool.of(shop)
    features, labels = pool.features[BACKBONE], torch.from_numpy(pool.labels)
    widths = (network.own_dim, network.dim)
    for a_class in A_CLASS:
        drawn = [_accuracies(pool, features, labels, widths, a_class, seed) for seed in range(DRAWS)]
        yield Heads(name, a_class, *zip(*drawn, strict=True))


def _accuracies(
    pool: Pool, features: torch.Tensor, labels: torch.Tensor, widths: Sequence[int], a_class: int, seed: int
) -> list[float]:
    """Of heads on the first so many features, each width."""
    count, order = a_class * pool.task.outputs, stratified_order(pool.labels.tolist(), seed)
    training, rest = order[:count], order[count:]
    found = []
    for width in widths:
        head = pool.task.closed_form(features[training, :width], labels[training], never_stop)
        assert head is not None
        answers = (features[rest, :width] @ head.weight.T + head.bias).argmax(dim=1)
        found.append(float((answers == labels[rest]).float().mean()))
    return found


def tuned(folder: Path, seeds: int) -> Iterator[Tuned]:
    """Every strategy, on the last stage and on every one, from both heads, with each seed."""
    order = stratified_order([path.parent.name for path in sorted(folder.rglob("*.png"), key=Path.as_posix)], 0)
    drawn = Drawn(order[:TRAINED], order[TRAINED : TRAINED + VALIDATED], order[TRAINED + VALIDATED :])
    for seen in get_args(FeaturesOf):
        with common.workplace() as place:
            worker = _seeing(seen, worker_of(place.path, folder, drawn, (BACKBONE,)).shop)
            for number, (seed, init, freeze) in enumerate(product(range(seeds), INITS, STRATEGIES)):
                yield Tuned(freeze, seen, init, seed, tuple(_scores(worker, number, freeze, init, seed)))


def _seeing(seen: FeaturesOf, shop: Workshop) -> Worker:
    """A worker of the same run whose heads see that."""
    shop.folder.study.write_text(encode(replace(shop.record, features_of=seen)), encoding="utf-8")
    run = Run.open(shop.folder.path)
    return Worker(Workshop(run, run.host()))


def _scores(worker: Worker, number: int, freeze: str, init: str, seed: int) -> Iterator[float]:
    offered = next(one for one in worker.shop.record.candidates if one.freeze == freeze)
    trial, at = offered.trial(number, {**offered.space.starts[0], "head_init": init}, seed), 0.0
    for passes in PASSES:
        report = worker.run(Job(Slice(trial, at, passes, math.inf), time.time()))
        if report.score is None:
            raise RuntimeError(report.error)
        at = report.step
        yield report.score


def show(result: Result) -> None:
    """Both as tables, means over draws and seeds."""
    rows = []
    for one in result.heads:
        gain, error = one.gain
        means = (f"{statistics.mean(accuracies):.3f}" for accuracies in (one.last, one.every))
        rows.append((one.set, one.a_class, *means, f"{gain:+.3f} ({error:.3f})"))
    common.show("heads", ("set", "images a class", "last stage", "every stage", "gain"), rows)
    if result.tuned:
        trials = sorted(result.tuned, key=lambda one: one.what)
        means = [
            (*what, *(f"{statistics.mean(each):.3f}" for each in zip(*(one.after for one in same), strict=True)))
            for what, same in groupby(trials, key=lambda one: one.what)
        ]
        common.show("fine-tunes", ("strategy", "heads see", "begins", *(f"{n:g} passes" for n in PASSES)), means)


def main() -> int:
    """Measure, show, write results/every_stage.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="of the fine-tunes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with common.workplace() as place:
        found = list[Heads]()
        for name, make in SETS.items():
            make(place.path / name)
            found += heads(name, place.path / name)
        write_training(place.path / "more", (TRAINED + VALIDATED) // 10 + 10)
        trials = list[Tuned]()
        for one in tuned(place.path / "more", options.seeds):
            print(one, file=sys.stderr, flush=True)
            trials.append(one)
    result = Result(tuple(found), tuple(trials))
    show(result)
    checks = [
        Check(f"{one.set}, {one.a_class} images a class: gain", f"{one.gain[0]:+.3f}", "above 0", one.gain[0] > 0)
        for one in found
    ]
    return common.publish("every_stage", result, checks)


if __name__ == "__main__":
    sys.exit(main())
