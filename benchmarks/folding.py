"""Images a second of training with held BatchNorms folded into the convolutions before them, and without.

    python benchmarks/folding.py
    python benchmarks/folding.py --settings efficientnet_lite0:64:32 --steps 3    # on cores, in CPU seconds

On a GPU in wall-clock time, the device waited for at both ends; on cores in CPU seconds of one thread. Both kinds of
step take turns. It says from how many pixels a step on folding pays: `folding.FOLDED_FROM_PIXELS`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import common
import torch
from subject import Subject, waiting

from autoft.train.folding import FOLDED_FROM_PIXELS
from autoft.train.gradient import GradientRun

SETTINGS = (
    "efficientnet_lite0:64:32,efficientnet_lite0:64:128,efficientnet_lite0:96:128,efficientnet_lite0:224:8,"
    "resnet50:224:8,resnet50:224:128"
)
WARM_UP, REPEATS = 6, 5


@dataclass(frozen=True)
class Line:
    """Images a second, of a step with so many pixels at a time."""

    setting: str
    pixels: int
    plain: float
    folded: float
    norms: int


@dataclass(frozen=True)
class Result:
    """The device, and one line a setting."""

    device: str
    lines: tuple[Line, ...]


def prepared(name: str, size: int, batch: int, device: torch.device, folds_from: float) -> GradientRun:
    """A run that is warm."""
    FOLDED_FROM_PIXELS[device.type] = folds_from  # type: ignore[assignment]
    run = Subject.of(name, size, 2 * batch, device).run(0, batch)
    for _ in range(WARM_UP if device.type == "cuda" else 1):
        run.advance()
    return run


def measure(setting: str, steps: int, device: torch.device) -> Line:
    """Both, in turns; medians."""
    name, size, batch = setting.split(":")[0], *map(int, setting.split(":")[1:])
    clock: Callable[[], float] = time.perf_counter if device.type == "cuda" else time.process_time
    wait = waiting(device)
    runs = [prepared(name, size, batch, device, folds_from) for folds_from in (math.inf, 0)]
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for run, found in zip(runs, rates, strict=True):
            wait()
            began = clock()
            for _ in range(steps):
                run.advance()
            wait()
            found.append(steps * batch / (clock() - began))
    plain, folded = (round(statistics.median(found), 1) for found in rates)
    return Line(setting, min(batch, runs[0].at_once) * size**2, plain, folded, len(runs[1].folded or ()))


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", default=SETTINGS, help="NETWORK:SIZE:BATCH, separated by commas")
    parser.add_argument("--steps", type=int, default=20, help=f"of each of {REPEATS} repeats")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    lines = []
    for setting in options.settings.split(","):
        lines.append(measure(setting, options.steps, device))
        print(lines[-1], flush=True)
    where = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    rows = [
        (line.setting, line.pixels, f"{line.plain:.0f}", f"{line.folded:.0f}", f"{line.folded / line.plain:.2f}")
        for line in lines
    ]
    common.show(f"images/s in training, {where}", ("setting", "pixels", "plain", "folded", "times"), rows)
    return common.publish(f"folding_{device.type}", Result(where, tuple(lines)), ())


if __name__ == "__main__":
    sys.exit(main())
