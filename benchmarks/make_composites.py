"""Make sets for several labels and for numbers: cut-out drawings on photos, each set a folder with a `data.csv`.

    python benchmarks/make_composites.py FOLDER                    # writes FOLDER/multi_label and FOLDER/regression
    python benchmarks/make_composites.py FOLDER --unseen --seed 1  # FOLDER/multi_label_new and FOLDER/regression_new

`multi_label` says which of twelve kinds of things are in an image, none to four: `image,label` with `bird|fruit`.
`regression` says how many things there are, none to six, and the greatest long side among them as a share of the
image's: `image,count,largest`. No splits are given. The same arguments, files and libraries always make the same
images.

A third of each kind's drawings is used for `--unseen` only. Drawings of a series (`apple_01`, `apple_02`) stay on one
side; backgrounds are the same on both. So scores on the unseen sets say what a model knows of the kinds, and those on
the validation and test images of a search, whose drawings were trained on, are better.

The drawings are the Debian package openclipart-png (public domain; `apt-get download` and `dpkg -x` do without root,
then `--drawings`), the photos those in scikit-image's package that are CC0 or in the public domain. Half of the
backgrounds are crops of the photos, the other half smooth noise.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import skimage
from numpy.random import Generator
from PIL import Image

DEBIAN: Final = Path("/usr/share/openclipart/png")
KINDS: Final[Mapping[str, str]] = {
    "bird": "animals/birds",
    "bug": "animals/bugs",
    "computer": "computer/hardware",
    "dessert": "food/desserts",
    "fish": "animals/fish",
    "flower": "plants/flowers",
    "fruit": "food/fruit",
    "house": "buildings/homes",
    "mammal": "animals/mammals",
    "music": "recreation/music",
    "smiley": "people/smilies",
    "vehicle": "transportation/vehicles",
}
"""Folder of the package by kind."""

PHOTOS: Final = ("astronaut", "brick", "coffee", "grass", "gravel", "hubble_deep_field", "moon", "rocket")
"""None of them shows one of the kinds."""

MOST_KINDS, MOST_THINGS = 4, 6
SIZES: Final = {"multi_label": (0.28, 0.55), "regression": (0.12, 0.5)}
"""Long sides of the things, as shares of the image's side."""

OVERLAP: Final = 0.1
"""Part of a thing's box that another's may share."""

TRIES: Final = 60
LOADED: Final = 160
"""Long side in pixels that cut-outs are kept at."""


@dataclass(frozen=True, eq=False)
class Thing:
    """A cut-out on its place: RGBA pixels, and its box (left, top, right, bottom)."""

    kind: str
    image: Image.Image
    box: tuple[int, int, int, int]

    @property
    def long_side(self) -> int:
        """The greater side of its box, in pixels."""
        return max(self.image.size)

    def meets(self, box: tuple[int, int, int, int]) -> bool:
        """Whether it shares more than `OVERLAP` of the smaller of the two boxes."""
        width = min(self.box[2], box[2]) - max(self.box[0], box[0])
        height = min(self.box[3], box[3]) - max(self.box[1], box[1])
        smaller = min(_area(self.box), _area(box))
        return min(width, height) > 0 and width * height > OVERLAP * smaller


@dataclass(frozen=True, eq=False)
class Composer:
    """Composes images of `side` pixels from photos, and cut-outs by kind."""

    side: int
    cutouts: Mapping[str, Sequence[Image.Image]]
    photos: Sequence[Image.Image]

    def compose(
        self, kinds: Sequence[str], sizes: tuple[float, float], rng: Generator
    ) -> tuple[Image.Image, list[Thing]]:
        """An image, and the things of `kinds` that are on it: all for which there was room."""
        picture = self._background(rng)
        things: list[Thing] = []
        for kind, share in zip(kinds, sorted(rng.uniform(*sizes, len(kinds)), reverse=True), strict=True):
            if (thing := self._placed(kind, share, things, rng)) is not None:
                picture.paste(thing.image, thing.box[:2], thing.image)
                things.append(thing)
        return picture, things

    def _placed(self, kind: str, share: float, others: Sequence[Thing], rng: Generator) -> Thing | None:
        source = self.cutouts[kind][rng.integers(len(self.cutouts[kind]))]
        if rng.random() < 0.5:
            source = source.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned = _trimmed(source.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True))
        scale = share * self.side / max(turned.size)
        image = turned.resize([max(1, round(scale * length)) for length in turned.size], Image.Resampling.LANCZOS)
        for _ in range(TRIES):
            left, top = (int(rng.integers(self.side - length + 1)) for length in image.size)
            box = (left, top, left + image.width, top + image.height)
            if not any(other.meets(box) for other in others):
                return Thing(kind, image, box)
        return None

    def _background(self, rng: Generator) -> Image.Image:
        return self._photo(rng) if rng.random() < 0.5 else self._noise(rng)

    def _photo(self, rng: Generator) -> Image.Image:
        photo = self.photos[rng.integers(len(self.photos))]
        length = int(rng.integers(min(self.side, *photo.size), min(photo.size) + 1))
        left, top = (int(rng.integers(whole - length + 1)) for whole in photo.size)
        crop = photo.resize((self.side, self.side), Image.Resampling.BICUBIC, (left, top, left + length, top + length))
        pixels = np.asarray(crop, np.float32) * rng.uniform(0.6, 1.2) + rng.uniform(-20, 40, 3)
        turned = np.rot90(pixels.clip(0, 255).astype(np.uint8), rng.integers(4))
        return Image.fromarray(np.ascontiguousarray(turned))

    def _noise(self, rng: Generator) -> Image.Image:
        total = np.full((self.side, self.side, 3), rng.uniform(60, 200, 3))
        for cells, strength in ((3, 60), (8, 30), (32, 12)):
            grid = (128 + 127 * rng.uniform(-1, 1, (cells, cells, 3))).astype(np.uint8)
            smooth = Image.fromarray(grid).resize((self.side, self.side), Image.Resampling.BICUBIC)
            total += strength * (np.asarray(smooth, np.float32) / 127.5 - 1)
        return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def write_multi_label(folder: Path, composer: Composer, count: int, seed: int) -> None:
    """Write `count` images of none to four kinds, each once, and `data.csv`."""
    rows = []
    for name, rng in _images(folder, count, seed):
        kinds = rng.permutation(list(composer.cutouts))[: rng.integers(MOST_KINDS + 1)].tolist()
        picture, things = composer.compose(kinds, SIZES["multi_label"], rng)
        picture.save(folder / name, quality=90)
        rows.append((name, "|".join(sorted(thing.kind for thing in things))))
    _write_manifest(folder, ("image", "label"), rows)


def write_regression(folder: Path, composer: Composer, count: int, seed: int) -> None:
    """Write `count` images of none to six things, of any kinds, and `data.csv`."""
    rows = []
    for name, rng in _images(folder, count, seed):
        kinds = rng.choice(list(composer.cutouts), rng.integers(MOST_THINGS + 1)).tolist()
        picture, things = composer.compose(kinds, SIZES["regression"], rng)
        picture.save(folder / name, quality=90)
        largest = max((thing.long_side for thing in things), default=0) / composer.side
        rows.append((name, str(len(things)), f"{largest:.4f}"))
    _write_manifest(folder, ("image", "count", "largest"), rows)


def load_cutouts(drawings: Path, unseen: bool) -> Mapping[str, Sequence[Image.Image]]:
    """The cut-outs of each kind, RGBA, from one of the two sides. Raises `FileNotFoundError` without the package."""
    found = {}
    for kind, folder in KINDS.items():
        images = map(_cutout, _files(drawings / folder, unseen))
        found[kind] = [image for image in images if image is not None]
        if not found[kind]:
            raise FileNotFoundError(f"no drawings in {drawings / folder}; install openclipart-png, or give --drawings")
    return found


def load_photos() -> Sequence[Image.Image]:
    """The photos in RGB."""
    folder = Path(skimage.__file__).parent / "data"
    return [Image.open(path).convert("RGB") for name in PHOTOS for path in sorted(folder.glob(f"{name}.*"))]


def _files(folder: Path, unseen: bool) -> list[Path]:
    """A kind's files of one side: unseen are whole series, in the order of their hashes, up to a third of the files."""
    files = sorted(folder.rglob("*.png"))
    series = {path: path.stem.rstrip("0123456789_-") for path in files}
    sizes = Counter(series.values())
    held_out: set[str] = set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if 3 * (sizes[name] + sum(sizes[other] for other in held_out)) <= len(files):
            held_out.add(name)
    return [path for path in files if (series[path] in held_out) is unseen]


def _cutout(path: Path) -> Image.Image | None:
    """A drawing without its empty edge; None for what is hard to see or to cut out: outlines, strips, whole pages."""
    with Image.open(path) as image:
        if image.width * image.height > 20_000_000 or not image.has_transparency_data:
            return None
        drawing = image.convert("RGBA")
    drawing = _trimmed(drawing)
    drawing.thumbnail((LOADED, LOADED), Image.Resampling.LANCZOS)
    opaque = float((np.asarray(drawing.getchannel("A")) > 128).mean())
    return drawing if 0.25 < opaque < 0.95 and max(drawing.size) < 3 * min(drawing.size) else None


def _trimmed(image: Image.Image) -> Image.Image:
    return image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _images(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Generator]]:
    """Name and random numbers of each image; `folder` is made."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        yield f"images/{number:05d}.jpg", np.random.default_rng([seed, number])


def _write_manifest(folder: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    print(f"{len(rows)} images in {folder}")


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the sets are made, each in a folder of its own")
    parser.add_argument("--count", type=int, default=1500, help="images a set (%(default)s)")
    parser.add_argument("--side", type=int, default=160, help="width and height in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the images are drawn by (%(default)s)")
    parser.add_argument("--unseen", action="store_true", help="from the drawings that no other set holds")
    parser.add_argument("--drawings", type=Path, default=DEBIAN, help="the package's folder (%(default)s)")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # some drawings are huge; those are not decoded
    composer = Composer(options.side, load_cutouts(options.drawings, options.unseen), load_photos())
    ending = "_new" if options.unseen else ""
    write_multi_label(options.folder / f"multi_label{ending}", composer, options.count, options.seed)
    write_regression(options.folder / f"regression{ending}", composer, options.count, options.seed)


if __name__ == "__main__":
    main()
