"""What the refit is worth: searches with it and without, in the same time, scored on images that no search has seen.

    python benchmarks/make_composites.py FOLDER --drawings DIR                    # see there; without, two sets less
    python benchmarks/make_composites.py FOLDER --drawings DIR --unseen --seed 1 --count 2000
    python benchmarks/refit.py --composites FOLDER

A seed draws the split anew, for both alike. `fashion` is the example, scored on 2,000 further images; `digits` are 600
of scikit-learn's, scored on the others; `multi_label` and `regression` are the composites. All with EfficientNet-Lite0,
one trial at a time. The exported file is scored as a stranger would, by `autoft verify`. Of a loss less is better, and
a gain is the loss that is saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
from common import AUTOFT, Check
from make_fashion import write_further
from PIL import Image
from sklearn.datasets import load_digits

SETS = ("digits", "fashion", "multi_label", "regression")
SEARCH = ("--backbones", "lite/efficientnet_lite0", "--runner", "inline")
DIGITS = 600
LOSSES = ("mae", "rmse", "log_loss")
WITHIN = 2.0  # standard errors that are noise


@dataclass(frozen=True)
class Sets:
    """What to search, and what no search sees."""

    searched: Path
    unseen: Path


def sets(name: str, place: Path, composites: Path | None) -> Sets:
    """The set of that name, made in `place` where it is not there yet."""
    if name in ("multi_label", "regression"):
        if composites is None:
            raise SystemExit(f"{name} needs --composites")
        return Sets(composites / name / "data.csv", composites / f"{name}_new" / "data.csv")
    searched, unseen = place / name, place / f"{name}_unseen"
    if name == "fashion":
        if not unseen.exists():
            write_further(unseen)
        return Sets(common.FASHION, unseen)
    if not unseen.exists():
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.images))
        for place_of, row in enumerate(order):
            folder = (searched if place_of < DIGITS else unseen) / str(digits.target[row])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[row] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{row:04}.png")
    return Sets(searched, unseen)


@dataclass(frozen=True)
class Searched:
    """What one search came to; `figure` is that of its exported file on the unseen images."""

    metric: str
    figure: float
    exported: str
    refit: bool
    seconds: float


@dataclass(frozen=True)
class Pair:
    """One draw, with the refit and without; `gain` is by how much the first is better."""

    set: str
    seed: int
    refitted: Searched
    plain: Searched
    gain: float


@dataclass(frozen=True)
class Result:
    """Every draw."""

    seconds: float
    pairs: tuple[Pair, ...]


def search(found: Sets, seconds: float, seed: int, *options: str) -> Searched:
    """Search, and score the exported file as a stranger would."""
    with common.workplace() as place:
        arguments = ("--time", f"{seconds:g}s", "--seed", str(seed), *SEARCH, *options)
        finished, run = common.search(place, *arguments, data=found.searched)
        checked = place.run([*AUTOFT, "verify", run.model.parent, found.unseen, "--json"]).require_success()
        figures, summary = json.loads(checked.stdout)["rescored"]["scores"]["metrics"], run.summary
        exported = run.ledger.trials[summary.best.trial]
        return Searched(
            metric=summary.metric,
            figure=figures[summary.metric],
            exported=f"{summary.best.freeze} after {exported.best_step:.3g}",
            refit=summary.best.twin is not None,
            seconds=round(finished.seconds, 1),
        )


def compare(name: str, found: Sets, seconds: float, seed: int) -> Pair:
    """The two searches of one draw; which goes first alternates."""
    ways = (("--no-refit",), ()) if seed % 2 else ((), ("--no-refit",))
    done = {bool(options): search(found, seconds, seed, *options) for options in ways}
    gain = done[False].figure - done[True].figure
    return Pair(name, seed, done[False], done[True], -gain if done[False].metric in LOSSES else gain)


def checks(pairs: Sequence[Pair]) -> Iterator[Check]:
    """On no set is the refit worse by more than noise."""
    for name in dict.fromkeys(pair.set for pair in pairs):
        gains = [pair.gain for pair in pairs if pair.set == name]
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        measured = f"{mean:+.4f}, standard error {error:.4f}"
        yield Check(f"gain on {name}", measured, f"above -{WITHIN:g} standard errors", mean >= -WITHIN * error)


def _row(pair: Pair) -> tuple[object, ...]:
    figures = (f"{pair.refitted.figure:.4f}", f"{pair.plain.figure:.4f}", f"{pair.gain:+.4f}")
    exported = f"{'refit of ' * pair.refitted.refit}{pair.refitted.exported}"
    return pair.set, pair.seed, pair.plain.metric, *figures, exported, pair.plain.exported


def main() -> int:
    """Run, show, write results/refit.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--composites", type=Path, help="the folder of make_composites.py")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    pairs = []
    with common.workplace() as place:
        for seed in range(options.seeds):
            for name in options.sets:
                found = sets(name, place.path, options.composites)
                pairs.append(compare(name, found, options.seconds, seed))
                print(pairs[-1], file=sys.stderr)
    columns = ("set", "seed", "metric", "with", "without", "gain", "exported", "instead of")
    common.show(f"{options.seconds:g} s each", columns, list(map(_row, pairs)))
    return common.publish("refit", Result(options.seconds, tuple(pairs)), list(checks(pairs)))


if __name__ == "__main__":
    sys.exit(main())
