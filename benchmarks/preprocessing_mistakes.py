"""What the usual mistakes cost whoever preprocesses by hand for model.core.onnx, and that model.onnx makes none.

    python benchmarks/preprocessing_mistakes.py                    # searches for five minutes first
    python benchmarks/preprocessing_mistakes.py --keep FOLDER      # keeps data and run in FOLDER
    python benchmarks/preprocessing_mistakes.py --run FOLDER/run   # measures again with that run

The images are 1,200 of the Debian package openclipart-png: drawings of many sizes and shapes, most of them transparent.
A thousand of them, all of the test and the validation split first, go through model.core.onnx as its preprocess.json
says (by Pillow), then once more with each mistake, then from pixels through model.onnx. Rows say how often the answer
is the same, how far probabilities move, how many clear answers (margin above 0.04) flip, and the accuracy on test.

The mistakes: bilinear for bicubic, or the reverse; bilinear without antialias, as OpenCV and canvases do; the nearest
pixel; the whole image squashed to a square, or letterboxed on grey; BGR; the usual mean and std of ImageNet, or none,
values from 0 to 1; alpha thrown away, as `convert("RGB")` does.

Target: model.onnx stays within the gate against Pillow and torch on all 1,000: no probability is further off than 0.02,
no clear answer changes.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch
from common import Check, RunFiles
from PIL import Image
from raw_pixels import CLIPART, HOW_TO_GET_CLIPART, clipart

from autoft import Preprocess
from autoft.bundle.onnx_runtime import CoreModel, Images, PixelModel
from autoft.bundle.order import evenly
from autoft.data.dataset import Dataset
from autoft.media.image.decode import Pixels, centre_square, decode, normalise, preprocess
from autoft.tasks.statistics import Logits, Probabilities, softmax
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.bundle import ANSWER_TOLERANCE, CLEAR_MARGIN, CORE, MODEL
from autoft.values.dataset import Sample, SplitName

CLASSES = ("animals", "computer", "food", "people", "recreation", "shapes", "signs_and_symbols", "transportation")
A_CLASS = 150
IMAGES = 1000
CHUNK = 32
GREY = 114
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SEARCH = ("--backbones", "lite/efficientnet_lite0", "--image-size", "160", "--view", "crop")

# ---------------------------------------------------------------- values


@dataclass(frozen=True)
class Row:
    """One way of preprocessing against the reference: as preprocess.json says by Pillow, then model.core.onnx.

    Shares of images with the same top-1, among all and in the test split; mean and worst of max |difference| of a
    probability; images whose answer changed although its margin was clear; share of test images that are right.
    """

    way: str
    agreement: float
    test_agreement: float
    mean_delta: float
    worst_delta: float
    flips: int
    test_accuracy: float


@dataclass(frozen=True)
class Gate:
    """model.onnx from pixels against Pillow and torch, and images a second it answered, from decoded pixels."""

    n: int
    max_delta: float
    mean_delta: float
    flips: int
    agreement: float
    images_per_second: float


@dataclass(frozen=True)
class Result:
    """`images` by split, `transparent` ones, those with a clear answer, megapixels of an image; then the rows."""

    model: str
    recipe: Preprocess
    images: Mapping[str, int]
    transparent: int
    clear: int
    mean_megapixels: float
    threads: int
    seconds: float
    gate: Gate
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class Shown:
    """An image: pixels as a person sees them, and as `convert("RGB")` gives them; both `(height, width, 3)`."""

    sample: Sample
    pixels: Pixels
    alpha_ignored: Pixels
    transparent: bool


@dataclass(frozen=True, eq=False)
class Answers:
    """What every way says of each image, `(n, classes)`; `torch` is the right way through torch."""

    shown: tuple[Sample, ...]
    transparent: int
    megapixels: float
    ways: Mapping[str, Probabilities]
    torch: Probabilities
    model: Probabilities
    model_seconds: float


# ---------------------------------------------------------------- right and wrong ways to the network's input

Way = Callable[[Shown, Preprocess], Images]
"""The network's input `(3, size, size)` of an image."""


def _input(pixels: Pixels, recipe: Preprocess) -> Images:
    return normalise(pixels[None], recipe)[0]


def _right(shown: Shown, recipe: Preprocess) -> Images:
    return _input(preprocess(shown.pixels, recipe), recipe)


def _resized(pixels: Pixels, recipe: Preprocess, how: Image.Resampling) -> Images:
    return _input(np.array(Image.fromarray(pixels).resize((recipe.size,) * 2, how)), recipe)


def _resampling(recipe: Preprocess) -> Image.Resampling:
    return Image.Resampling[recipe.interpolation.upper()]


def _other_interpolation(shown: Shown, recipe: Preprocess) -> Images:
    others = {"bicubic": Image.Resampling.BILINEAR, "bilinear": Image.Resampling.BICUBIC}
    return _resized(centre_square(shown.pixels), recipe, others[recipe.interpolation])


def _no_antialias(shown: Shown, recipe: Preprocess) -> Images:
    square = torch.from_numpy(centre_square(shown.pixels).transpose(2, 0, 1).astype(np.float32))[None]
    small = torch.nn.functional.interpolate(
        square, (recipe.size,) * 2, mode="bilinear", antialias=False, align_corners=False
    )
    return _input(small[0].round().clamp(0, 255).to(torch.uint8).numpy().transpose(1, 2, 0), recipe)


def _nearest(shown: Shown, recipe: Preprocess) -> Images:
    return _resized(centre_square(shown.pixels), recipe, Image.Resampling.NEAREST)


def _squash(shown: Shown, recipe: Preprocess) -> Images:
    return _resized(shown.pixels, recipe, _resampling(recipe))


def _letterbox(shown: Shown, recipe: Preprocess) -> Images:
    image = Image.fromarray(shown.pixels)
    width, height = (max(1, round(side * recipe.size / max(image.size))) for side in image.size)
    page = Image.new("RGB", (recipe.size,) * 2, (GREY,) * 3)
    corner = ((recipe.size - width) // 2, (recipe.size - height) // 2)
    page.paste(image.resize((width, height), _resampling(recipe)), corner)
    return _input(np.array(page), recipe)


def _bgr(shown: Shown, recipe: Preprocess) -> Images:
    return _input(preprocess(shown.pixels, recipe)[:, :, ::-1], recipe)


def _normalised_by(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Way:
    def way(shown: Shown, recipe: Preprocess) -> Images:
        return _input(preprocess(shown.pixels, recipe), Preprocess(recipe.size, mean, std, recipe.interpolation))

    return way


def _alpha_ignored(shown: Shown, recipe: Preprocess) -> Images:
    return _input(preprocess(shown.alpha_ignored, recipe), recipe)


RIGHT = "preprocess.json by Pillow"
WAYS: Mapping[str, Way] = {
    RIGHT: _right,
    "other interpolation": _other_interpolation,
    "no antialias": _no_antialias,
    "nearest": _nearest,
    "squashed": _squash,
    f"letterbox, grey {GREY}": _letterbox,
    "BGR": _bgr,
    "ImageNet mean, std": _normalised_by(*IMAGENET),
    "no mean, std": _normalised_by((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "alpha ignored": _alpha_ignored,
}

# ---------------------------------------------------------------- data and run


def write_data(source: Path, folder: Path, a_class: int) -> None:
    """Class folders of links to drawings, chosen at random, in natural order. Raises `SystemExit` without drawings."""
    for label in CLASSES:
        if not (source / label).is_dir():
            raise SystemExit(f"there is no {source / label}; {HOW_TO_GET_CLIPART}")
        (folder / label).mkdir(parents=True)
        for number, path in enumerate(clipart(source / label, a_class, seed=0)):
            (folder / label / f"{number:03}-{path.name}").symlink_to(path)


@contextmanager
def finished_run(arguments: argparse.Namespace) -> Iterator[RunFiles]:
    """The run that is given, or a fresh one."""
    if arguments.run is not None:
        yield RunFiles(arguments.run.resolve())
        return
    with common.workplace() as place:
        folder = place.path if arguments.keep is None else arguments.keep.resolve()
        write_data(arguments.clipart, folder / "data", arguments.a_class)
        options = (*SEARCH, "--time", arguments.time)
        place.run(common.search_command(folder / "run", *options, data=folder / "data")).require_success()
        yield RunFiles(folder / "run")


def chosen(dataset: Dataset, most: int) -> list[Sample]:
    """So many images: those of the test split first, then validation, then training, each evenly over the classes."""
    samples: list[Sample] = []
    order: tuple[SplitName, ...] = ("test", "val", "train")
    for split in order:
        samples += evenly([sample for sample in dataset.samples if sample.split == split], most - len(samples))
    return samples


def read(root: Path, sample: Sample) -> Shown:
    """Read a file; decoded once as it should be, and once without regard for alpha."""
    content = (root / sample.path).read_bytes()
    with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
        warnings.simplefilter("ignore")  # Pillow warns of what this is about
        return Shown(sample, decode(content), np.array(image.convert("RGB")), image.has_transparency_data)


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class Runtimes:
    """The three that answer: both files of the bundle, and torch."""

    core: CoreModel
    model: PixelModel
    torch: Callable[[Images], Logits]

    @classmethod
    def of(cls, run: RunFiles, shop: Workshop, threads: int) -> Runtimes:
        """Those of a finished run."""
        best = run.ledger.trials[run.summary.best.trial].best_checkpoint
        classifier = shop.restored(shop.saved(best))
        bundle = run.model.parent
        return cls(
            CoreModel(bundle / CORE, threads),
            PixelModel(bundle / MODEL, threads),
            lambda images: shop.answers(classifier, torch.from_numpy(images)),
        )


def ask(runtimes: Runtimes, root: Path, samples: Sequence[Sample]) -> Answers:
    """Every image, each way; a few at a time, so that each is decoded once."""
    ways: dict[str, list[Probabilities]] = {name: [] for name in WAYS}
    by_torch: list[Probabilities] = []
    by_model: list[Probabilities] = []
    seconds, transparent, pixels = 0.0, 0, 0
    for start in range(0, len(samples), CHUNK):
        chunk = [read(root, sample) for sample in samples[start : start + CHUNK]]
        transparent += sum(shown.transparent for shown in chunk)
        pixels += sum(shown.pixels.size // 3 for shown in chunk)
        for name, way in WAYS.items():
            images = np.stack([way(shown, runtimes.core.preprocess) for shown in chunk])
            ways[name].append(_cooled(runtimes, runtimes.core.logits(images)))
            if name == RIGHT:
                by_torch.append(_cooled(runtimes, runtimes.torch(images)))
        began = time.perf_counter()
        by_model += [runtimes.model.answers(shown.pixels) for shown in chunk]
        seconds += time.perf_counter() - began
    return Answers(
        tuple(samples),
        transparent,
        pixels / len(samples) / 1e6,
        {name: np.concatenate(parts) for name, parts in ways.items()},
        np.concatenate(by_torch),
        np.stack(by_model),
        seconds,
    )


def _cooled(runtimes: Runtimes, logits: Logits) -> Probabilities:
    return softmax(logits / np.float32(runtimes.model.calibration.temperature))


def clear(probabilities: Probabilities) -> np.ndarray:
    """Which rows have a margin between first and second above the gate's, `(n,)`."""
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second > CLEAR_MARGIN)


@dataclass(frozen=True, eq=False)
class Truth:
    """Of each image: whether it is in the test split, and its class, both `(n,)`."""

    test: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], dataset: Dataset) -> Truth:
        """What the data set says."""
        test = np.array([sample.split == "test" for sample in samples])
        return cls(test, dataset.task.encode([sample.label for sample in samples]))


def compare(way: str, found: Probabilities, reference: Probabilities, truth: Truth) -> Row:
    """One row."""
    deltas = np.abs(found - reference).max(axis=1)
    answers = found.argmax(axis=1)
    same = answers == reference.argmax(axis=1)
    test, right = truth.test, answers == truth.classes
    return Row(
        way=way,
        agreement=round(float(same.mean()), 4),
        test_agreement=round(float(same[test].mean()), 4),
        mean_delta=round(float(deltas.mean()), 5),
        worst_delta=round(float(deltas.max()), 5),
        flips=int((~same & clear(reference)).sum()),
        test_accuracy=round(float(right[test].mean()), 4),
    )


def measure(run: RunFiles, most: int, threads: int) -> Result:
    """All rows for a finished run."""
    began = time.perf_counter()
    shop = Worker.open(run.path, threads, "cpu", run.record.plugins).shop
    samples = chosen(shop.dataset, most)
    runtimes = Runtimes.of(run, shop, threads)
    if (view := runtimes.core.preprocess.view) != "crop":
        raise SystemExit(f"the mistakes are those of somebody who crops; this run has --view {view}")
    answers = ask(runtimes, Path(shop.dataset.info.root), samples)
    reference = answers.ways[RIGHT]
    truth = Truth.of(samples, shop.dataset)
    through = {MODEL: answers.model, "the same in torch": answers.torch, **answers.ways}
    against_torch = compare(MODEL, answers.model, answers.torch, truth)
    best = run.summary.best
    splits = [sample.split for sample in samples]
    return Result(
        model=f"{best.backbone} {best.freeze} at {best.image_size} px",
        recipe=runtimes.core.preprocess,
        images={split: splits.count(split) for split in ("test", "val", "train")},
        transparent=answers.transparent,
        clear=int(clear(reference).sum()),
        mean_megapixels=round(answers.megapixels, 3),
        threads=threads,
        seconds=round(time.perf_counter() - began, 1),
        gate=Gate(
            n=len(samples),
            max_delta=against_torch.worst_delta,
            mean_delta=against_torch.mean_delta,
            flips=against_torch.flips,
            agreement=against_torch.agreement,
            images_per_second=round(len(samples) / answers.model_seconds, 1),
        ),
        rows=tuple(compare(way, found, reference, truth) for way, found in through.items()),
    )


# ---------------------------------------------------------------- what is said of it


def show(result: Result) -> None:
    """Print the table and what it was measured on."""
    images = ", ".join(f"{n} {split}" for split, n in result.images.items())
    print(f"{result.model}, {result.recipe.interpolation}; {images}; {result.transparent} transparent")
    rate, size = result.gate.images_per_second, result.mean_megapixels
    print(f"{MODEL}: {rate:.0f} images a second of {size:.2f} megapixels, decoded, on {result.threads} threads")
    common.show(
        f"top-1 and |delta p| against Pillow and {CORE}, {result.gate.n} images, {result.clear} of them clear",
        ("", "same", "in test", "mean", "worst", "flips", "test accuracy"),
        [
            (
                row.way,
                f"{row.agreement:.1%}",
                f"{row.test_agreement:.1%}",
                f"{row.mean_delta:.4f}",
                f"{row.worst_delta:.4f}",
                row.flips,
                f"{row.test_accuracy:.1%}",
            )
            for row in result.rows
        ],
    )


def checks(result: Result, images: int) -> list[Check]:
    """model.onnx against the gate."""
    gate = result.gate
    near = gate.max_delta <= ANSWER_TOLERANCE
    return [
        Check("images compared", str(gate.n), f"= {images}", gate.n == images),
        Check("worst probability, to torch", f"{gate.max_delta:.4f}", f"<= {ANSWER_TOLERANCE:g}", near),
        Check("clear answers that change", str(gate.flips), "= 0", gate.flips == 0),
    ]


def main() -> int:
    """Search or take a run, measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a finished run, in place of a new one; its images must be there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write data/ and run/ of a new run there")
    parser.add_argument("--clipart", type=Path, default=CLIPART, help=f"default {CLIPART}")
    parser.add_argument("--a-class", type=int, default=A_CLASS, help=f"images a class (default {A_CLASS})")
    parser.add_argument("--time", default="5m", help="for the search (default 5m)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"that are compared (default {IMAGES})")
    parser.add_argument("--threads", type=int, default=common.facts().cores, help="default: all cores")
    arguments = parser.parse_args()
    with finished_run(arguments) as run:
        result = measure(run, arguments.images, arguments.threads)
    show(result)
    return common.publish("preprocessing_mistakes", result, checks(result, arguments.images))


if __name__ == "__main__":
    sys.exit(main())
