"""Whether the view that a search decides for is the one that is best on images that it has not seen.

    python benchmarks/views.py --drawings /usr/share/openclipart/png     # of the Debian package openclipart-png

Each draw takes some images of a set for training and validation, compares the views on them as a search does, and fits
the head of each view to all of them; the others are the test. `drawings` and `wide drawings` are classes of
openclipart-png, which are usually cropped and usually squashed; `middle` are cut-outs in the middle of 3:2 images with
others on both sides, so that a crop is best; `anywhere` are single ones at any place of 3:2, `side` at an end of 4:3,
which are usually cropped; `strips` show what they are at an end, 4:1 and 2:1, and `fashion` is square: nothing is
compared there. Features of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import FASHION, Check
from make_composites import DEBIAN, Composer, load_cutouts, load_photos
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from autoft.data.dataset import Dataset, Source, bound, open_dataset
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.data.split import stratified_order
from autoft.media.image.batches import Images
from autoft.media.image.view import views_to_compare
from autoft.parts.host import Host
from autoft.study.machine import cores
from autoft.study.study import Study
from autoft.study.views import Look
from autoft.system.disk_cache import cache_root
from autoft.system.parallel import never_stop
from autoft.tasks.single_label import SingleLabel
from autoft.train.features import FeatureCache
from autoft.train.views import judge, out_of_fold
from autoft.values.handoff import View

BACKBONE = "lite/efficientnet_lite0"
USUALLY_CROPPED = ("people", "plants", "office", "education", "buildings")
USUALLY_SQUASHED = ("animals", "food", "transportation", "tools", "recreation")
A_CLASS = 150  # drawings
LONGEST = 400  # pixels of a drawing
COMPOSED = 120  # images a kind
STRIPS = ("bag", "coat", "sandal", "trouser", "shirt")
SIZES = (100, 300)  # images for training and validation
VIEWS: tuple[View, ...] = ("crop", "squash", "pad")
NOISE = 2.0  # standard errors

# ---------------------------------------------------------------- sets


def write_drawings(folder: Path, drawings: Path, classes: Sequence[str]) -> None:
    """Drawings by class, none larger than needed."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(sorted((drawings / name).rglob("*.png"))[:A_CLASS]):
            with Image.open(file) as image:
                if image.width * image.height < 20_000_000:
                    drawing = image.convert("RGBA")
                    drawing.thumbnail((LONGEST, LONGEST))
                    drawing.save(folder / name / f"{number:03}.png")


def write_composed(folder: Path, composer: Composer, paste: Callable[..., None], width: int = 240) -> None:
    """Images of so many pixels by 160, by the kind of cut-out on each."""
    kinds = sorted(composer.cutouts)
    for place, kind in enumerate(kinds):
        (folder / kind).mkdir(parents=True)
        for number in range(COMPOSED):
            rng = np.random.default_rng([place, number])
            picture = composer.compose([], (0, 0), rng)[0].resize((width, composer.side))
            paste(picture, kind, kinds, composer, rng)
            picture.save(folder / kind / f"{number:03}.jpg", quality=90)


def anywhere(picture: Image.Image, kind: str, kinds: Sequence[str], composer: Composer, rng: Generator) -> None:
    """One cut-out, of half the height to nearly all of it, at any place."""
    thing = _of_size(composer, kind, rng.uniform(0.5, 0.9), rng)
    left, top = (int(rng.integers(a - b + 1)) for a, b in zip(picture.size, thing.size, strict=True))
    picture.paste(thing, (left, top), thing)


def side(picture: Image.Image, kind: str, kinds: Sequence[str], composer: Composer, rng: Generator) -> None:
    """One at the left or the right end."""
    thing = _of_size(composer, kind, rng.uniform(0.5, 0.8), rng)
    left, top = (int(rng.integers(2)) * (picture.width - thing.width), int(rng.integers(composer.side - thing.height)))
    picture.paste(thing, (left, top), thing)


def middle(picture: Image.Image, kind: str, kinds: Sequence[str], composer: Composer, rng: Generator) -> None:
    """One in the middle, and two of any kinds half outside the centre square."""
    side = composer.side
    for centre in (side // 8, picture.width - side // 8):
        other = _of_size(composer, kinds[rng.integers(len(kinds))], 0.6, rng)
        picture.paste(other, (centre - other.width // 2, (side - other.height) // 2), other)
    thing = _of_size(composer, kind, 0.8, rng)
    picture.paste(thing, ((picture.width - thing.width) // 2, (side - thing.height) // 2), thing)


def _of_size(composer: Composer, kind: str, share: float, rng: Generator) -> Image.Image:
    thing = composer.cutouts[kind][rng.integers(len(composer.cutouts[kind]))].copy()
    scale = share * composer.side / max(thing.size)
    return thing.resize([max(1, round(scale * length)) for length in thing.size], Image.Resampling.LANCZOS)


def write_strips(folder: Path, factor: int) -> None:
    """Strips of noise whose left end shows an image of the example."""
    for name in STRIPS:
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(sorted((FASHION / name.replace(" ", "_")).iterdir())[:100]):
            strip = Image.fromarray(np.random.default_rng(number).integers(90, 110, (64, 64 * factor)).astype(np.uint8))
            side = 64 if factor == 4 else 32
            strip.paste(Image.open(file).convert("L").resize((side, side)), (0, 0))
            strip.save(folder / name / file.name)


def sets(place: Path, drawings: Path) -> Iterator[tuple[str, Path]]:
    """Each set's name and folder, made anew."""
    Image.MAX_IMAGE_PIXELS = None  # some drawings are huge; those are not decoded
    composer = Composer(160, load_cutouts(drawings, False), load_photos())
    makers: Mapping[str, Callable[[Path], None]] = {
        "drawings": partial(write_drawings, drawings=drawings, classes=USUALLY_CROPPED),
        "wide drawings": partial(write_drawings, drawings=drawings, classes=USUALLY_SQUASHED),
        "anywhere": partial(write_composed, composer=composer, paste=anywhere),
        "side": partial(write_composed, composer=composer, paste=side, width=213),
        "middle": partial(write_composed, composer=composer, paste=middle),
        "strips 4:1": partial(write_strips, factor=4),
        "strips 2:1": partial(write_strips, factor=2),
    }
    for name, make in makers.items():
        make(place / name)
        yield name, place / name
    yield "fashion", FASHION


# ---------------------------------------------------------------- draws


@dataclass(frozen=True)
class Draw:
    """What one draw came to: the view that was `usual` and the one that was `chosen`, by out-of-fold accuracies.

    `errors` are the standard errors of what a view gains on the usual one; `test` is the accuracy of each view's head
    on the images that were not drawn.
    """

    set: str
    seed: int
    images: int
    usual: View
    chosen: View
    found: Mapping[View, float]
    errors: Mapping[View, float]
    test: Mapping[View, float]

    @property
    def gain(self) -> float:
        """Of the chosen view on the usual one."""
        return self.test[self.chosen] - self.test[self.usual]

    @property
    def missed(self) -> float:
        """What the best view would have had more."""
        return max(self.test.values()) - self.test[self.chosen]


@dataclass(frozen=True)
class Result:
    """Every draw."""

    backbone: str
    draws: tuple[Draw, ...]


def draws(name: str, folder: Path, host: Host, seeds: int) -> Iterator[Draw]:
    """The draws of one set."""
    study = Study(str(folder), backbones=(BACKBONE,))
    listing = read_labelled(folder)
    source = Source(scan(listing, cores()), bound(SingleLabel(), listing))
    backbone = next(one for one in host.backbones() if one.name == BACKBONE)
    looks = [Look.of(study, backbone, view, source.found) for view in VIEWS]
    dataset = open_dataset(source, 0, {look.square for look in looks}, cores())
    features = {look.view: _features(dataset, host, look) for look in looks}
    labels, task = dataset.task.encode([sample.label for sample in dataset.samples]), dataset.task
    views = views_to_compare("auto", source.found.aspect)
    for seed in range(seeds):
        order = stratified_order(labels.tolist(), seed)
        for count in SIZES:
            seen, rest = order[:count], order[count:]
            outputs = {
                view: out_of_fold(task, features[view][seen], labels[seen], never_stop) for view in views or ("crop",)
            }
            found = judge(outputs, labels[seen], task, task.metric("accuracy"))
            test = {view: _accuracy(task, features[view], labels, seen, rest) for view in VIEWS}
            errors = {view: error for view, (_, error) in found.gains.items()}
            yield Draw(name, seed, count, next(iter(found.scores)), found.best, found.scores, errors, test)


def _features(dataset: Dataset, host: Host, look: Look) -> torch.Tensor:
    network = host.build(look.backbone)
    network.module.eval()
    images = Images(dataset.pixels(*look.square), look.backbone.input, torch.device("cpu"))
    rows = np.array([sample.row for sample in dataset.samples], np.int64)
    cache = FeatureCache(cache_root() / "features", dataset.info.fingerprint, look.view)
    return cache.features(network, images, rows)


def _accuracy(task: Any, features: torch.Tensor, labels: NDArray[Any], seen: NDArray[Any], rest: NDArray[Any]) -> float:
    head = task.closed_form(features[seen], torch.from_numpy(labels[seen]), never_stop)
    answers = (features[rest] @ head.weight.T + head.bias).argmax(dim=1).numpy()
    return float((answers == labels[rest]).mean())


# ---------------------------------------------------------------- results


def checks(found: Sequence[Draw]) -> Iterator[Check]:
    """On no set the choice is worse than the usual view by more than noise, and it finds what is clearly better."""
    for name in dict.fromkeys(draw.set for draw in found):
        gains, missed = zip(*((draw.gain, draw.missed) for draw in found if draw.set == name), strict=True)
        mean, error = statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        said = f"{mean:+.4f}, standard error {error:.4f}; the best has {statistics.mean(missed):.4f} more"
        yield Check(f"gain on {name}", said, f"above -{NOISE:g} standard errors", mean >= -NOISE * error)


def _row(draw: Draw) -> tuple[object, ...]:
    test = (f"{draw.test[view]:.3f}" for view in VIEWS)
    found = " ".join(f"{draw.found[view]:.3f}" if view in draw.found else "-" for view in VIEWS)
    return draw.set, draw.images, draw.seed, draw.usual, draw.chosen, found, *test, f"{draw.gain:+.3f}"


def main() -> int:
    """Run, show, write results/views.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drawings", type=Path, default=DEBIAN, help="the package's folder (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    host, found = Host.discover(), []
    with common.workplace() as place:
        for name, folder in sets(place.path, options.drawings):
            for draw in draws(name, folder, host, options.seeds):
                found.append(draw)
                print(*_row(draw), file=sys.stderr)
    columns = ("set", "images", "seed", "usual", "chosen", "out of fold", *VIEWS, "gain")
    common.show("views", columns, list(map(_row, found)))
    return common.publish("views", Result(BACKBONE, tuple(found)), list(checks(found)))


if __name__ == "__main__":
    sys.exit(main())
