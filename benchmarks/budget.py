"""Whether `--time` is kept, from process start to exit: by budget, number of images and backbone, idle and busy.

    python benchmarks/budget.py --times 20,60,120 --images 350,1000 --backbones lite --repeats 3
    python benchmarks/budget.py --busy 2 --name budget_busy

Targets: no search later than 5 % or 5 s, whichever is more, and at most 8 % left unused, in the median of the repeats:
on a noisy machine the same export takes 5 s more or less from one run to the next, which no search can know. A budget
that cannot hold a probe has to be refused at once, which is shown as such. `--busy N` runs N processes beside it that
do nothing but spin.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
from common import FASHION, Check, RunFiles, Workplace
from PIL import Image

LATE_SHARE, LATE_SECONDS, UNUSED_SHARE = 0.05, 5.0, 0.08
ZOO = Path(__file__).parent / "parts" / "random_zoo.py"
BACKBONES = {
    "lite": ("--backbones", "lite/*"),
    "convnext_tiny": ("--plugin", str(ZOO), "--backbones", "random/convnext_tiny"),
    "resnet50": ("--plugin", str(ZOO), "--backbones", "random/resnet50"),
}
ENDING = ("export", "gate", "test", "bundle")
PHOTO_SIDE = 256
PHOTOS = 400  # sets up to this size are of photos' size, larger ones of 28 pixels


@dataclass(frozen=True)
class Row:
    """One search. `seconds` from process start to exit, `unused` of the budget; `refused` is what it said instead."""

    budget: float
    images: int
    backbones: str
    busy: int
    seconds: float
    unused: float
    phases: dict[str, float]
    trials: int
    passes: float
    best: str
    refused: str = ""

    @property
    def in_time(self) -> bool:
        """Not later than promised."""
        return self.seconds <= self.budget + max(LATE_SECONDS, LATE_SHARE * self.budget)

    @property
    def setting(self) -> tuple[int, str, float]:
        """What its repeats have in common."""
        return self.images, self.backbones, self.budget


def used_up(repeats: Sequence[Row]) -> bool:
    """Whether not much is left over in most of them, or nothing could have been done with it."""
    unused = [0.0 if row.refused else row.unused / row.budget for row in repeats]
    return statistics.median(unused) <= UNUSED_SHARE


def make_images(folder: Path, count: int) -> Path:
    """`count` images of ten classes in `folder`, made of the example's by shifts and noise; large ones when few."""
    sources = sorted(FASHION.glob("*/*.png"))
    each = len(sources) // 10
    for number in range(count):
        source = sources[(number % 10) * each + number // 10 % each]
        pixels = np.asarray(Image.open(source).convert("RGB")).astype(np.int16)
        rng = np.random.default_rng(number)
        moved = np.roll(pixels, rng.integers(-2, 3, 2), (0, 1)) + rng.integers(-8, 9, pixels.shape, np.int16)
        image = Image.fromarray(np.clip(moved, 0, 255).astype(np.uint8))
        if count <= PHOTOS:
            image = image.resize((PHOTO_SIDE, PHOTO_SIDE))
        place = folder / source.parent.name
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:06}.png")
    return folder


def measure(place: Workplace, data: Path, budget: float, images: int, backbones: str, busy: int) -> Row:
    """Search once with nothing cached."""
    out = place.path / "run"
    options = ("--time", f"{budget:g}s", *BACKBONES[backbones])
    finished = place.run(common.search_command(out, *options, data=data))
    start = (budget, images, backbones, busy, round(finished.seconds, 2), round(budget - finished.seconds, 2))
    if finished.code == 2:
        return Row(*start, {}, 0, 0.0, "", finished.stderr.strip().splitlines()[-1])
    run = RunFiles(out)
    summary, records = finished.require_success() and run.summary, run.ledger.trials.values()
    best = f"{summary.best.freeze} {summary.validation.metrics['accuracy']:.4f}"
    passes = sum(record.step for record in records)
    return Row(*start, dict(summary.seconds), len(records), round(passes, 2), best)


def _spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """`count` processes that burn a core each."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


@dataclass(frozen=True)
class Result:
    """Every search."""

    rows: tuple[Row, ...]


def by_setting(rows: Sequence[Row]) -> list[list[Row]]:
    """The repeats of each."""
    return [list(repeats) for _, repeats in itertools.groupby(rows, key=lambda row: row.setting)]


def table(rows: Sequence[Row]) -> None:
    """Print what was measured so far."""
    lines = [
        (
            f"{row.budget:g}",
            row.images,
            row.backbones,
            f"{row.seconds:.1f}",
            f"{row.unused:.1f}",
            "yes" if row.in_time else "LATE",
            "yes" if used_up(repeats) else "NO",
            f"{sum(row.phases.get(phase, 0.0) for phase in ENDING):.1f}",
            f"{row.trials} / {row.passes:g}",
            row.best or "refused",
        )
        for repeats in by_setting(rows)
        for row in repeats
    ]
    columns = ("budget", "images", "backbones", "s", "unused", "in time", "used", "end", "trials / passes", "best")
    common.show("seconds from process start to exit", columns, lines)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", default="20,60,120,300,900", help="budgets in seconds")
    parser.add_argument("--images", default="350,1000,20000")
    parser.add_argument("--backbones", default="lite,convnext_tiny", help=", ".join(BACKBONES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0, help="processes that spin beside it")
    parser.add_argument("--name", default="budget", help="of the result file")
    options = parser.parse_args()
    rows: list[Row] = []
    with spinning(options.busy):
        images, backbones = map(int, options.images.split(",")), options.backbones.split(",")
        times = map(float, options.times.split(","))
        for count, zoo, budget, _ in itertools.product(images, backbones, times, range(options.repeats)):
            with common.workplace() as place:
                data = make_images(place.path / "data", count)
                rows.append(measure(place, data, budget, count, zoo, options.busy))
            print(rows[-1], flush=True)
    table(rows)
    late, settings = sum(not row.in_time for row in rows), by_setting(rows)
    idle = sum(not used_up(repeats) for repeats in settings)
    checks = [
        Check("searches later than promised", f"{late} of {len(rows)}", "0", late == 0),
        Check("settings that left more than 8 % unused, in the median", f"{idle} of {len(settings)}", "0", idle == 0),
    ]
    return common.publish(options.name, Result(tuple(rows)), checks)


if __name__ == "__main__":
    sys.exit(main())
