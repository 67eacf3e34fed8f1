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
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.network import Network
from autoft.tasks.single_label import SingleLabel
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.train.prefix import Prefix
from autoft.train.row_table import RowTable
from autoft.values.backbone import InputSpec
from autoft.values.plan import GradientHead, ParameterGroup, Plan, Recipe
from autoft.values.target import Targets

SETTINGS = (
    ("tf_efficientnet_lite0", 64, 256),
    ("tf_efficientnet_lite0", 224, 64),
    ("convnext_atto", 64, 256),
    ("vit_tiny_patch16_224", 224, 64),
)
TARGETS = {0.5: 0.55, 0.75: 0.3}
CLASSES, BATCH = 10, 32


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


@dataclass(frozen=True)
class Subject:
    """A network and the images that it trains on."""

    name: str
    network: Network
    images: Images

    @classmethod
    def of(cls, name: str, size: int, count: int) -> Subject:
        """A timm architecture and noise."""
        torch.manual_seed(0)
        fixed = {"img_size": size} if name.startswith("vit") else {}
        module = timm.create_model(name, num_classes=0, **fixed).to(memory_format=torch.channels_last)
        network = Network.of(module, InputSpec(size))
        pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return cls(name, network, Images(pixels, network.input, torch.device("cpu")))  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return self.images.pixels.shape[1]

    def run(self, depth: int) -> GradientRun:
        """Training of the stages from number `depth` on."""
        count = len(self.images.pixels)
        names = tuple(parameter.name for stage in self.network.stages[depth:] for parameter in stage.parameters)
        recipe = Recipe(batch_size=BATCH, augment="none")
        plan = Plan((ParameterGroup(names, 1e-4, 0.05),), GradientHead(1e-3), recipe=recipe)
        task = SingleLabel().on(Targets("single_label", "one_of", tuple(map(str, range(CLASSES)))))
        stream = TrainingStream(self.images, np.arange(count), np.arange(count) % CLASSES, recipe, 0)
        return GradientRun(Classifier.of(self.network, CLASSES), plan, stream, task)

    @contextmanager
    def kept(self, run: GradientRun, depth: int) -> Iterator[tuple[GradientRun, Prefix]]:
        """The run, from a prefix in a temporary file."""
        cut = self.network.split(depth)
        assert cut is not None, f"{self.name} cannot be cut before stage {depth}"
        count, dim = len(self.images.pixels), int(np.prod(cut.shape))
        with tempfile.TemporaryDirectory() as folder, RowTable.open(Path(folder, "p.npy"), count, dim, True) as table:
            prefix = Prefix(self.images, cut, cut.before(run.classifier.backbone), table, count * (dim + 1) * 4)
            run.enter(prefix)
            yield run, prefix

    def shares(self) -> list[float]:
        """The share of a forward pass' operations before each stage, but for the first."""
        images = torch.zeros(1, 3, self.size, self.size)
        whole = _operations(self.network.module, images)
        cuts = [self.network.split(depth) for depth in range(1, len(self.network.stages))]
        return [0.0 if cut is None else _operations(cut.before(self.network.module), images) / whole for cut in cuts]


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
    with subject.kept(subject.run(depth), depth) as (kept, prefix):
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
        shares = subject.shares()
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
