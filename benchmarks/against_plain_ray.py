"""autoft beside 80 lines of plain Ray Tune with ASHA, in the same two minutes, both scored on 2,000 further images.

    python benchmarks/against_plain_ray.py            # 3 paired seeds, about 13 minutes

Same machine, images, split, backbones, weights, input size and budget; the baseline is `plain_ray_tune.py`. The budget
runs from process start to exit. Of autoft's it also pays for export, the parity gate and the test split; the baseline
only has to leave its best checkpoint. Validation accuracy chooses on both sides. The further images come from
Fashion-MNIST's test file, which neither side sees. The order alternates from seed to seed.

Target: autoft's mean accuracy is higher by more than one standard error of the mean paired difference.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import common
import make_fashion
from common import FASHION, Check, RunFiles, Workplace
from fashion_search import count_correct, folder_images

BASELINE = Path(__file__).with_name("plain_ray_tune.py")


@dataclass(frozen=True)
class Side:
    """One search: seconds from start to exit, what it chose, its validation and its further accuracy."""

    seconds: float
    chose: str
    trials: int
    passes: float
    validation: float
    accuracy: float


@dataclass(frozen=True)
class Pair:
    """Both sides under one seed; `first` says who ran first."""

    seed: int
    first: str
    autoft: Side
    plain: Side

    @property
    def difference(self) -> float:
        """How much more accurate autoft's model is."""
        return self.autoft.accuracy - self.plain.accuracy


@dataclass(frozen=True)
class Result:
    """All pairs, and the mean of their differences with its standard error."""

    budget: float
    image_size: int
    further_images: int
    pairs: tuple[Pair, ...]
    mean_difference: float
    standard_error: float


@dataclass(frozen=True)
class Setting:
    """What both sides are given: seconds, pixels, the further images, and the split of one seed."""

    budget: float
    size: int
    further: Path
    split: Path
    seed: int


def prepare(split: Path, seed: int) -> int:
    """Write the split that autoft makes for this seed; the input size in pixels that it chooses.

    By a search of one probe, so that the baseline may run first; its caches are thrown away with its place.
    """
    with common.workplace() as place:
        one_probe = ("--trials", "1", "--freeze", "probe", "--backbones", "lite/efficientnet_lite0")
        _, run = common.search(place, *one_probe, "--time", "5m", "--runner", "inline", "--seed", str(seed))
        shutil.copy(run.path / "split.csv", split)
        return run.summary.best.image_size


def run_autoft(setting: Setting) -> Side:
    """Search with autoft on Ray. Raises `RuntimeError` when it did not use the split and the size of the setting."""
    with common.workplace() as place:
        options = ("--time", f"{setting.budget:g}s", "--runner", "ray", "--seed", str(setting.seed))
        finished, run = common.search(place, *options, "--backbones", "lite/efficientnet_lite*")
        _require_same(run, setting)
        summary, ledger = run.summary, run.ledger
        images = folder_images(setting.further)
        return Side(
            seconds=round(finished.seconds, 1),
            chose=f"{summary.best.backbone} {summary.best.freeze}",
            trials=len(ledger.trials),
            passes=round(sum(record.step for record in ledger.trials.values()), 1),
            validation=summary.validation.metrics["accuracy"],
            accuracy=count_correct(run.model, images) / len(images),
        )


def run_plain(setting: Setting) -> Side:
    """Search with the baseline, in as clean a place."""
    with common.workplace() as place:
        given = ("--data", FASHION, "--split", setting.split, "--out", place.path / "plain")
        numbers = ("--size", str(setting.size), "--seed", str(setting.seed), "--time", f"{setting.budget:g}")
        finished = place.run([sys.executable, BASELINE, *given, *numbers]).require_success()
        best = json.loads((place.path / "plain" / "best.json").read_text(encoding="utf-8"))
        return Side(
            seconds=round(finished.seconds, 1),
            chose=f"{best['backbone']} full, lr {best['lr']:.1e}",
            trials=best["trials"],
            passes=best["epochs"],
            validation=round(best["validation"], 4),
            accuracy=_plain_accuracy(place, best["backbone"], setting),
        )


def _plain_accuracy(place: Workplace, backbone: str, setting: Setting) -> float:
    """Top-1 of the baseline's checkpoint on the further images, in torch, with the baseline's own functions."""
    import torch
    from plain_ray_tune import accuracy, build, decoded

    classes = sorted(folder.name for folder in FASHION.iterdir())
    images = folder_images(setting.further)
    model = build(backbone, len(classes))
    model.load_state_dict(torch.load(place.path / "plain" / "model.pt", weights_only=True))
    pixels = decoded([path for path, _ in images], setting.size)
    return accuracy(model, pixels, torch.tensor([classes.index(label) for _, label in images]))


def _require_same(run: RunFiles, setting: Setting) -> None:
    sizes = {candidate.image_size for candidate in run.record.candidates}
    if sizes != {setting.size}:
        raise RuntimeError(f"autoft searched at {sizes} px, the baseline at {setting.size}")
    if (run.path / "split.csv").read_bytes() != setting.split.read_bytes():
        raise RuntimeError("autoft did not use the split that the baseline was given")


def run_pair(setting: Setting) -> Pair:
    """Both sides; autoft first under even seeds."""
    if setting.seed % 2 == 0:
        ours = run_autoft(setting)
        return Pair(setting.seed, "autoft", ours, run_plain(setting))
    plain = run_plain(setting)
    return Pair(setting.seed, "plain", run_autoft(setting), plain)


def measure(seeds: int, budget: float, a_class: int) -> Result:
    """Run all pairs, printing each as it is done."""
    pairs = []
    with common.workplace() as place:
        further = place.path / "further"
        make_fashion.write_further(further, a_class=a_class)
        for seed in range(seeds):
            split = place.path / f"split-{seed}.csv"
            size = prepare(split, seed)
            pairs.append(pair := run_pair(Setting(budget, size, further, split, seed)))
            print(f"seed {seed}: autoft {pair.autoft.accuracy:.4f}, plain {pair.plain.accuracy:.4f}", flush=True)
    differences = [pair.difference for pair in pairs]
    error = statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else math.inf
    return Result(budget, size, a_class * 10, tuple(pairs), statistics.mean(differences), error)


def show(result: Result) -> None:
    """One line a side and seed."""
    columns = ("seed", "", "further accuracy", "validation", "trials", "passes", "seconds", "chose")
    rows = [
        (pair.seed, name, *_figures(side))
        for pair in result.pairs
        for name, side in (("autoft", pair.autoft), ("plain Ray Tune", pair.plain))
    ]
    common.show(f"{result.budget:g} s, {result.image_size} px, {result.further_images} further images", columns, rows)


def _figures(side: Side) -> tuple[object, ...]:
    accuracies = (f"{side.accuracy:.4f}", f"{side.validation:.4f}")
    return (*accuracies, side.trials, side.passes, side.seconds, side.chose)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", type=float, default=120.0, help="seconds given to each side")
    parser.add_argument("--further", type=int, default=make_fashion.FURTHER_A_CLASS, help="further images a class")
    options = parser.parse_args()
    result = measure(options.seeds, options.time, options.further)
    show(result)
    mean, error = result.mean_difference, result.standard_error
    target = f"> {error:.4f}, one standard error"
    return common.publish("against_plain_ray", result, [Check("mean difference", f"{mean:+.4f}", target, mean > error)])


if __name__ == "__main__":
    sys.exit(main())
