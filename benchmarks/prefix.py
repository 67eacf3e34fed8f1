"""A pass over training images with a frozen prefix that is kept, against full fine-tuning; CPU seconds of one thread.

    python benchmarks/prefix.py            # a few minutes

Side by side in one process, in turns: a pass that trains everything, one that trains the last stages and computes the
frozen ones again, and one that reads what they gave from disk. The cut is the first stage boundary before which at
least half, or three quarters, of a forward pass' floating-point operations lie. Weights are random, pixels noise: they
cost what others cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch
from subject import Subject
from torch.utils.flop_counter import FlopCounterMode

from autoft.train.gradient import GradientRun
from autoft.train.prefix import Prefix
from autoft.train.row_table import RowTable

SETTINGS = (
    ("tf_efficientnet_lite0", 64, 256),
    ("tf_efficientnet_lite0", 224, 64),
    ("convnext_atto", 64, 256),
    ("vit_tiny_patch16_224", 224, 64),
)
TARGETS = {0.5: 0.55, 0.75: 0.3}


@dataclass(frozen=True)
class Passes:
    """CPU seconds of one pass, each the median of some; `frozen` is the share of operations before the cut."""

    network: str
    size: int
    images: int
    cut: str
    stages: int
    frozen: float
    full: float
    recomputed: float
    filling: float
    kept: float
    mib_per_1000: float

    @property
    def against_full(self) -> float:
        """A pass from what is kept against one of full fine-tuning."""
        return self.kept / self.full


@dataclass(frozen=True)
class Result:
    """All passes that were measured."""

    passes: tuple[Passes, ...]


@contextmanager
def kept_prefix(subject: Subject, depth: int) -> Iterator[tuple[GradientRun, Prefix]]:
    """Training of the stages from number `depth` on, from a prefix in a temporary file."""
    run, cut = subject.run(depth), subject.network.split(depth)
    assert cut is not None, f"{subject.name} cannot be cut before stage {depth}"
    count, dim = len(subject.images.pixels), int(np.prod(cut.shape))
    with tempfile.TemporaryDirectory() as folder, RowTable.open(Path(folder, "p.npy"), count, dim, True) as table:
        before = cut.before(run.classifier.backbone)
        prefix = Prefix(subject.images, cut, before, table, count * (dim + 1) * 4)
        run.enter(prefix)
        yield run, prefix


def frozen_shares(subject: Subject) -> list[float]:
    """The share of a forward pass' operations before each stage, but for the first."""
    images, network = torch.zeros(1, 3, subject.size, subject.size), subject.network
    whole = _operations(network.module, images)
    cuts = [network.split(depth) for depth in range(1, len(network.stages))]
    return [0.0 if cut is None else _operations(cut.before(network.module), images) / whole for cut in cuts]


def _operations(module: torch.nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    return counter.get_total_flops()


def one_pass(run: GradientRun) -> float:
    """CPU seconds of a pass."""
    began = time.process_time()
    for _ in range(run.stream.steps_per_pass):
        run.advance()
    return time.process_time() - began


def measure(subject: Subject, depth: int, frozen: float, repeats: int) -> Passes:
    """The passes of one network whose first `depth` stages are frozen, that share of its operations."""
    full, recomputed = subject.run(0), subject.run(depth)
    with kept_prefix(subject, depth) as (kept, prefix):
        for run in (full, recomputed):
            run.advance()  # warm-up
        filling = one_pass(kept)
        turns = [[one_pass(run) for run in (full, recomputed, kept)] for _ in range(repeats)]
        medians = [statistics.median(seconds) for seconds in zip(*turns, strict=True)]
        where, count = prefix.cut.place, len(subject.images.pixels)
        mib = prefix.bytes / 2**20 / count * 1000
    return Passes(
        subject.name,
        subject.size,
        count,
        where,
        depth,
        frozen,
        medians[0],
        medians[1],
        filling,
        medians[2],
        mib,
    )


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, checks = [], []
    for name, size, count in SETTINGS:
        subject = Subject.of(name, size, count)
        shares = frozen_shares(subject)
        depths = {next(n for n, share in enumerate(shares, 1) if share >= wanted): wanted for wanted in TARGETS}
        for depth, wanted in depths.items():
            one, target = measure(subject, depth, shares[depth - 1], options.repeats), TARGETS[wanted]
            found.append(one)
            what = f"{name}, {size} px, {one.frozen:.2f} of the operations frozen: a pass against a full one"
            checks.append(common.Check(what, f"{one.against_full:.2f}", f"<= {target}", one.against_full <= target))
    rows = [
        (
            f"{one.network} {one.size} px",
            f"{one.cut} ({one.stages})",
            f"{one.frozen:.2f}",
            *(f"{1000 * seconds / one.images:.1f}" for seconds in (one.full, one.recomputed, one.filling, one.kept)),
            f"{one.against_full:.2f}",
            f"{one.kept / one.recomputed:.2f}",
            f"{one.mib_per_1000:.0f}",
        )
        for one in found
    ]
    columns = ("network", "cut (stages)", "frozen", "full", "recomputed", "filling", "kept")
    title = "CPU milliseconds an image and pass, one thread"
    common.show(title, (*columns, "kept / full", "kept / recomputed", "MiB per 1,000"), rows)
    return common.publish("prefix", Result(tuple(found)), checks)


if __name__ == "__main__":
    sys.exit(main())
