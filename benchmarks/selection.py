"""How to choose among the models of a small set: by the hold-out alone, or with folds and noise in mind.

    python benchmarks/selection.py heads    # 10 minutes of CPU time
    python benchmarks/selection.py all      # 15 minutes

A draw takes some images of a set, a quarter of them for validation, and fits on the others what a search does: heads in
closed form on three backbones, short fine-tunes of two. Each rule chooses one of them, knowing what a search knows; it
is worth the accuracy of its choices on images that were not drawn, here less that of the hold-out's choices.

`heads` has heads alone, in many draws: whether figures out of fold, on all images drawn, rank them better. What counts
is the head of the chosen backbone fitted to train + validation, as it is exported. `all` has all: whether a fine-tune
should have to be better than the best head by so many standard errors of the paired difference, and what should break
ties. As few validation images choose at random, each of its draws also has many validation sets of the same size, taken
from the images that were not drawn, and each scored on the rest of these.

`digits` are scikit-learn's and `fashion` is Fashion-MNIST, far from ImageNet; `photos` are noisy patches of
scikit-image's pictures, by picture. All at 64 px.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import common
import numpy as np
import skimage
import torch
from make_fashion import write_training
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from autoft.data.dataset import Source, bound
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.data.split import stratified_order
from autoft.engine.engine import begin
from autoft.engine.sitting import Sitting
from autoft.parts.base import Task
from autoft.parts.host import Host
from autoft.parts.linear_head import LinearHead
from autoft.runners.inline import InlineRunner
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.parallel import never_stop
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.statistics import softmax
from autoft.train.job import Job
from autoft.train.views import out_of_fold
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.trial import Parent, Report, Slice

BACKBONES = tuple(f"lite/efficientnet_lite{number}" for number in range(3))
TUNED = (
    ("last_stages", BACKBONES[0], 0),
    ("full", BACKBONES[0], 0),
    ("full", BACKBONES[0], 1),
    ("last_stages", BACKBONES[1], 0),
)
"""What is fine-tuned: strategy, backbone and the number of the strategy's start."""
PASSES = (1.0, 3.0, 6.0)
SIZES, HEADS_SIZES = (100, 240), (60, 100, 200, 400)  # images for training and validation
SEEDS = {"heads": 30, "all": 6}
UNSEEN = 600  # images that fine-tunes are scored on
A_CLASS = 250  # images of a set, where it is made
VALIDATION_SETS = 200
PICTURES = ("astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble", "ihc")
PICTURES += ("moon", "motorcycle_left", "retina", "rocket", "text")


# ---------------------------------------------------------------- sets


def write_digits(folder: Path) -> None:
    """All of scikit-learn's."""
    digits = load_digits()
    for row, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        picture.resize((32, 32), Image.Resampling.BICUBIC).save(folder / str(digit) / f"{row:04}.png")


def write_fashion(folder: Path) -> None:
    """Some of Fashion-MNIST's."""
    write_training(folder, A_CLASS)


def write_photos(folder: Path) -> None:
    """Noisy grey patches of pictures, by the picture that they are of."""
    for number, name in enumerate(PICTURES):
        (path,) = (Path(skimage.__file__).parent / "data").glob(f"{name}*.*")
        pixels, rng = np.asarray(Image.open(path).convert("L"), np.float32), np.random.default_rng(number)
        (folder / name).mkdir(parents=True)
        for patch in range(A_CLASS // 2):
            top, left = (int(rng.integers(extent - 48)) for extent in pixels.shape)
            part = pixels[top : top + 48, left : left + 48]
            noisy = (part - part.mean()) / (part.std() + 8) * 40 + 128 + rng.normal(0, 40, part.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{patch:03}.png")


SETS: Mapping[str, Callable[[Path], None]] = {"digits": write_digits, "fashion": write_fashion, "photos": write_photos}

# ---------------------------------------------------------------- rules


@dataclass(frozen=True, eq=False)
class Answers:
    """Of some images: 1.0 where the answer is right, and the loss, `(n,)` each."""

    right: NDArray[np.float64]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> Answers:
        """From outputs `(n, classes)`."""
        own = np.take_along_axis(softmax(outputs.astype(np.float64)), labels[:, None], axis=1)[:, 0]
        return cls((outputs.argmax(axis=1) == labels).astype(np.float64), -np.log(own.clip(1e-12)))

    def __getitem__(self, places: NDArray[np.int64]) -> Answers:
        return Answers(self.right[places], self.losses[places])


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model to choose. Of a head in closed form `folds` is the accuracy out of fold on all images drawn.

    `worth` is the accuracy on images that no rule knows.
    """

    name: str
    validation: Answers
    worth: float
    folds: float | None = None

    @property
    def score(self) -> float:
        """Accuracy on the validation images."""
        return float(self.validation.right.mean())


Candidates = Sequence[Candidate]
Rule = Callable[[Candidates], Candidate]


def hold_out(found: Candidates) -> Candidate:
    """The best on the validation images; of equal ones the first, which are the cheaper ones."""
    return max(found, key=lambda one: one.score)


def hold_out_then_loss(found: Candidates) -> Candidate:
    """Of equal ones that of the smaller loss."""
    return max(found, key=lambda one: (one.score, -one.validation.losses.mean()))


def smallest_loss(found: Candidates) -> Candidate:
    """By the loss alone."""
    return min(found, key=lambda one: one.validation.losses.mean())


def folds(found: Candidates) -> Candidate:
    """The best out of fold."""
    return max((one for one in found if one.folds is not None), key=lambda one: one.folds or 0.0)


def with_margin(errors: float, best_head: Rule, found: Candidates) -> Candidate:
    """The best fine-tune, if it is better than that head by so many standard errors of it, else the head."""
    heads, tuned = _apart(found)
    head, best = best_head(heads), hold_out(tuned)
    difference = best.validation.right - head.validation.right
    noise = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return best if best.score - head.score > errors * noise else head


def on_one_scale(errors: float, found: Candidates) -> Candidate:
    """As `with_margin`, with the heads' figures out of fold on the scale of the hold-out.

    From each is taken by how much, for all heads in the mean, folds are easier than the hold-out.
    """
    heads, tuned = _apart(found)
    easier = statistics.mean((one.folds or 0.0) - one.score for one in heads)
    head, best = folds(heads), hold_out(tuned)
    difference = best.validation.right - head.validation.right
    noise = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return best if best.score - ((head.folds or 0.0) - easier) > errors * noise else head


def _apart(found: Candidates) -> tuple[Candidates, Candidates]:
    return [one for one in found if one.folds is not None], [one for one in found if one.folds is None]


def best_to_be_had(found: Candidates) -> Candidate:
    """What no rule can know."""
    return max(found, key=lambda one: one.worth)


MARGINS = (0.0, 0.5, 1.0, 2.0)
RULES: Mapping[str, Rule] = {
    "hold-out": hold_out,
    "ties by loss": hold_out_then_loss,
    "loss": smallest_loss,
    **{f"margin {errors:g}": partial(with_margin, errors, hold_out) for errors in MARGINS},
    **{f"one scale, margin {errors:g}": partial(on_one_scale, errors) for errors in MARGINS},
    "best": best_to_be_had,
}
HEADS_RULES: Mapping[str, Rule] = {
    "hold-out": hold_out,
    "ties by loss": hold_out_then_loss,
    "loss": smallest_loss,
    "folds": folds,
    "best": best_to_be_had,
}

# ---------------------------------------------------------------- draws


@dataclass(frozen=True)
class Draw:
    """What the choice of each rule is worth in one draw; `resampled` the mean over many validation sets."""

    set: str
    images: int
    seed: int
    candidates: Mapping[str, tuple[float, float | None, float]]
    """By name: accuracy on the validation images, out of fold, and on images that were not drawn."""
    worth: Mapping[str, float]
    resampled: Mapping[str, float]

    @classmethod
    def of(cls, place: tuple[str, int, int], found: Candidates, rules: Mapping[str, Rule]) -> Draw:
        """What the rules make of the candidates of a draw; `place` is its set, size and seed."""
        figures = {one.name: (one.score, one.folds, one.worth) for one in found}
        return cls(*place, figures, {name: rule(found).worth for name, rule in rules.items()}, {})


@dataclass(frozen=True, eq=False)
class Drawn:
    """Places among the images of a set, in a stratified order."""

    training: NDArray[np.int64]
    validation: NDArray[np.int64]
    rest: NDArray[np.int64]

    @classmethod
    def of(cls, folder: Path, count: int, seed: int) -> Drawn:
        """So many of its images, a quarter of them for validation."""
        order = stratified_order([image.parent.name for image in _images(folder)], seed)
        return cls(order[count // 4 : count], order[: count // 4], order[count:])


@dataclass(frozen=True, eq=False)
class Pool:
    """All images of a set: features `(n, dim)` by backbone, labels `(n,)`, and their rows `(n,)` in the pixel cache."""

    task: Task
    features: Mapping[str, torch.Tensor]
    labels: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, shop: Workshop) -> Pool:
        """In the order of the samples."""
        dataset, trials = shop.dataset, {one.backbone: one.trial(0, {}, 0) for one in shop.record.candidates}
        rows = np.array([sample.row for sample in dataset.samples], np.int64)
        features = {
            name: shop.features.features(shop.network(name), shop.images(trial), rows) for name, trial in trials.items()
        }
        labels = dataset.task.encode([sample.label for sample in dataset.samples])
        return cls(dataset.task, features, labels, rows)

    def heads(self, drawn: Drawn, refit: bool) -> Iterator[tuple[Candidate, Answers]]:
        """A head a backbone, and its answers for the images that were not drawn; with `refit`, fitted to all drawn."""
        seen = np.concatenate([drawn.validation, drawn.training])  # in a stratified order, as folds need it
        for name, features in self.features.items():
            head = self._fitted(features, drawn.training)
            out = out_of_fold(self.task, features[seen], self.labels[seen], never_stop)
            figure = float((out.argmax(axis=1) == self.labels[seen]).mean())
            validation = self._answers(head, features, drawn.validation)
            unseen = self._answers(self._fitted(features, seen) if refit else head, features, drawn.rest)
            yield Candidate(f"probe {name[-5:]}", validation, float(unseen.right.mean()), figure), unseen

    def _fitted(self, features: torch.Tensor, places: NDArray[np.int64]) -> LinearHead:
        head = self.task.closed_form(features[places], torch.from_numpy(self.labels[places]), never_stop)
        assert head is not None
        return head

    def _answers(self, head: LinearHead, features: torch.Tensor, places: NDArray[np.int64]) -> Answers:
        outputs = (features[places] @ head.weight.T + head.bias).numpy()
        return Answers.of(outputs, self.labels[places])


def heads_alone(folders: Mapping[str, Path], seeds: int) -> Iterator[Draw]:
    """So many draws of each set and size in which there are heads alone."""
    for name, folder in folders.items():
        with common.workplace() as place:
            pool = Pool.of(worker_of(place.path, folder, Drawn.of(folder, 100, 0)).shop)
        for seed, count in product(range(seeds), HEADS_SIZES):
            found = [candidate for candidate, _ in pool.heads(Drawn.of(folder, count, seed), refit=True)]
            yield Draw.of((name, count, seed), found, HEADS_RULES)


def every(folders: Mapping[str, Path], seeds: int) -> Iterator[Draw]:
    """So many draws of each set and size in which there are fine-tunes too."""
    for seed, (name, folder), count in product(range(seeds), folders.items(), SIZES):
        with common.workplace() as place:
            drawn = Drawn.of(folder, count, seed)
            worker = worker_of(place.path, folder, drawn)
            pool, drawn = Pool.of(worker.shop), replace(drawn, rest=drawn.rest[:UNSEEN])
            found = list(pool.heads(drawn, refit=False))
            found += [_tuned(worker, number, one, pool, drawn.rest) for number, one in enumerate(TUNED)]
        draw = Draw.of((name, count, seed), [candidate for candidate, _ in found], RULES)
        yield replace(draw, resampled=_resampled(found, count // 4, seed))


def _resampled(found: Sequence[tuple[Candidate, Answers]], validation: int, seed: int) -> Mapping[str, float]:
    """What rules are worth in the mean over validation sets of so many images that were not drawn."""
    rng, totals = np.random.default_rng(seed), dict.fromkeys(RULES, 0.0)
    for _ in range(VALIDATION_SETS):
        order = rng.permutation(len(found[0][1].right))
        given, rest = order[:validation], order[validation:]
        again = [Candidate(one.name, un[given], float(un.right[rest].mean()), one.folds) for one, un in found]
        for name, rule in RULES.items():
            totals[name] += rule(again).worth / VALIDATION_SETS
    return totals


def _tuned(
    worker: Worker, number: int, what: tuple[str, str, int], pool: Pool, rest: NDArray[np.int64]
) -> tuple[Candidate, Answers]:
    """A fine-tune where it scored best, of equal scores where its loss was smaller, as a ledger has it."""
    shop, (freeze, backbone, start) = worker.shop, what
    offered = next(one for one in shop.record.candidates if (one.freeze, one.backbone) == (freeze, backbone))
    trial, at, reports = offered.trial(number, offered.space.starts[start], number), 0.0, list[Report]()
    for passes in PASSES:
        reports.append(worker.run(Job(Slice(trial, at, passes, math.inf), time.time())))
        if reports[-1].score is None:
            raise RuntimeError(reports[-1].error)
        at = reports[-1].step
    best = max(reports, key=lambda one: (one.score or 0.0, -(one.loss or 0.0)))
    checkpoint = shop.saved(Parent(trial.id, best.step))
    assert checkpoint.logits is not None
    outputs = shop.outputs(shop.restored(checkpoint), shop.images(trial).batches(pool.rows[rest]))
    unseen = Answers.of(outputs, pool.labels[rest])
    validation = Answers.of(checkpoint.logits, shop.dataset.targets("val"))
    return Candidate(f"{freeze} {backbone[-5:]} {start}", validation, float(unseen.right.mean())), unseen


def worker_of(place: Path, folder: Path, drawn: Drawn, backbones: tuple[str, ...] = BACKBONES) -> Worker:
    """A worker on a run that has these splits and no trial yet; images that were not drawn are its test split."""
    listed, images = folder.parent / f"{place.name}.csv", _images(folder)  # a manifest is above all its images
    sides = {"train": drawn.training, "val": drawn.validation, "test": drawn.rest}
    with listed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        for side, places in sides.items():
            chosen = (images[one] for one in places.tolist())
            writer.writerows((one.relative_to(folder.parent), one.parent.name, side) for one in chosen)
    study = Study(
        data=str(listed),
        backbones=backbones,
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
    run = begin(study, source, place / "run", sitting)
    shop = Workshop(run, run.host())
    if [Path(sample.path).name for sample in shop.dataset.samples] != [image.name for image in images]:
        raise RuntimeError(f"{folder} has images that cannot be used")
    return Worker(shop)


def _images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=Path.as_posix)


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Gain:
    """What a rule gains on the hold-out, over so many draws."""

    draws: int
    mean: float
    error: float

    @classmethod
    def of(cls, worth: Sequence[Mapping[str, float]], rule: str) -> Gain:
        """Of a rule, by what the rules are worth in each draw."""
        gains = [one[rule] - one["hold-out"] for one in worth]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        return cls(len(gains), round(statistics.mean(gains), 5), round(error, 5))

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.error:.4f})"


@dataclass(frozen=True)
class Result:
    """Every draw, and what the rules gain over all sets and sizes: so drawn, and over the further validation sets."""

    gains: Mapping[str, Gain]
    resampled: Mapping[str, Gain]
    draws: tuple[Draw, ...]

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> Result:
        """The gains of these."""
        worth = [one.worth for one in draws]
        further = [one.resampled for one in draws if one.resampled]
        return cls(
            {rule: Gain.of(worth, rule) for rule in worth[0]},
            {rule: Gain.of(further, rule) for rule in further[0]} if further else {},
            tuple(draws),
        )


def show(title: str, draws: Sequence[Draw], worth: Callable[[Draw], Mapping[str, float]]) -> None:
    """A row a rule: what it gains on the hold-out on each set, in all sizes, and on all."""
    groups = {one.set: list[Mapping[str, float]]() for one in draws} | {"all": []}
    for one in draws:
        groups[one.set].append(worth(one))
        groups["all"].append(worth(one))
    accuracies = [f"{statistics.mean(one['hold-out'] for one in found):.4f}" for found in groups.values()]
    rules = [rule for rule in worth(draws[0]) if rule != "hold-out"]
    rows = [(rule, *(Gain.of(found, rule) for found in groups.values())) for rule in rules]
    common.show(f"{title}, {len(draws)} draws", ("", *groups), [("hold-out", *accuracies), *rows])


def main() -> int:
    """Run, show, write results/selection_heads.json or results/selection_all.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("heads", "all"))
    parser.add_argument(
        "--seeds", type=int, default=0, help=", ".join(f"{count} of {what}" for what, count in SEEDS.items())
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with common.workplace() as place:
        for name, make in SETS.items():
            make(place.path / name)
        folders = {name: place.path / name for name in SETS}
        made = (
            heads_alone(folders, options.seeds or 30) if options.what == "heads" else every(folders, options.seeds or 6)
        )
        draws = []
        for draw in made:
            draws.append(draw)
            print(draw, file=sys.stderr, flush=True)
    show(options.what, draws, lambda draw: draw.worth)
    if draws[0].resampled:
        show(f"{options.what}, over {VALIDATION_SETS} validation sets each", draws, lambda draw: draw.resampled)
    return common.publish(f"selection_{options.what}", Result.of(draws), [])


if __name__ == "__main__":
    sys.exit(main())
