"""model.onnx against Pillow: whether the resize inside gives Pillow's pixels, and what it costs.

    python benchmarks/raw_pixels.py
    python benchmarks/raw_pixels.py --view squash    # or pad; writes raw_pixels_squash.json

Exactness: every photo in scikit-image's package and 200 of the Debian package openclipart-png, resized by model.onnx
around a network that does nothing, and by Pillow. Target: nowhere more than one step of 255.

Cost: EfficientNet-Lite0 with ten classes, one thread, from pixels that are decoded already: model.onnx in turn with
Pillow's crop and resize, numpy's normalisation, model.core.onnx and softmax. Medians. Target: at 1024x1024 at most
twice the CPU time. Where model.onnx spends it is onnxruntime's own profile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import common
import numpy as np
import onnx
import onnxruntime
import skimage
import torch
from autoft_lite import LiteZoo
from common import Check
from PIL import Image

from autoft import Handoff, Preprocess, Trial
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.data.folder import natural_key
from autoft.errors import UnreadableImage
from autoft.media.image.decode import Pixels, decode, normalise, preprocess
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.tasks.forms.table import answering
from autoft.tasks.single_label import SingleLabel
from autoft.tasks.statistics import softmax
from autoft.train.classifier import Classifier
from autoft.values.backbone import Interpolation
from autoft.values.bundle import ANSWER_TOLERANCE, CORE, MODEL, Calibration
from autoft.values.handoff import Ending, View
from autoft.values.target import Targets

CLIPART = Path("/usr/share/openclipart/png")
HOW_TO_GET_CLIPART = "Debian's openclipart-png has it: apt-get install openclipart-png, or unpack it and give --clipart"
PHOTOS = Path(skimage.__file__).parent / "data"

SIZES = (32, 64, 96, 128, 160, 224, 240, 260, 288, 384)
INTERPOLATIONS: tuple[Interpolation, ...] = ("bicubic", "bilinear")
MOST_STEPS = 1

BACKBONE = "lite/efficientnet_lite0"
CLASSES = 10
TEMPERATURE = 1.5
NETWORK_SIZES = (64, 128, 224)
ONE_MEGAPIXEL = (1024, 1024)
IMAGE_SIZES = ((512, 512), ONE_MEGAPIXEL, (1633, 1225))
MOST_TIMES = 2.0
PROFILED_CALLS = 20

# ---------------------------------------------------------------- values


@dataclass(frozen=True)
class Exactness:
    """One size and interpolation on the images of one source.

    `steps` is the largest difference, in 1/255; `differing` the share of values (three a pixel) that differ at all.
    """

    source: str
    size: int
    interpolation: Interpolation
    images: int
    steps: int
    worst: str
    differing: float


@dataclass(frozen=True)
class Cost:
    """Median milliseconds for one image of `pixels` "WxH" and a network that sees `size` px.

    `core` is the network alone, from normalised floats.
    """

    size: int
    pixels: str
    rounds: int
    model_cpu: float
    by_hand_cpu: float
    core_cpu: float
    cpu_ratio: float
    model_wall: float
    by_hand_wall: float
    wall_ratio: float


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one call of model.onnx by onnxruntime's profile, and the share of each part, the largest first.

    A part is "network", or an operator outside of it; those below one per cent are "others".
    """

    size: int
    pixels: str
    calls: int
    milliseconds: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """All rows of a view; `sources` counts the images of each source, `unreadable` names those that are not decoded."""

    view: View
    sources: Mapping[str, int]
    unreadable: tuple[str, ...]
    missing: str
    exactness: tuple[Exactness, ...]
    cost: tuple[Cost, ...]
    profiles: tuple[Profile, ...]


# ---------------------------------------------------------------- images


def clipart(folder: Path, most: int, seed: int) -> list[Path]:
    """At most so many PNG files in and below a folder, drawn at random, in natural order.

    Links are left out: the package names the same picture in several folders.
    """
    files = [path for path in folder.rglob("*.png") if path.is_file() and not path.is_symlink()]
    files.sort(key=lambda path: natural_key(path.relative_to(folder).as_posix()))
    return [files[row] for row in sorted(random.Random(seed).sample(range(len(files)), min(most, len(files))))]


def photos() -> list[Path]:
    """The photos that scikit-image's package holds; others it would download."""
    return sorted(path for path in PHOTOS.iterdir() if path.suffix in (".png", ".jpg"))


# ---------------------------------------------------------------- exactness

PASS_THROUGH = """
    <ir_version: 8, opset_import: ["" : 18]>
    core (float[batch, 3, {size}, {size}] images) => (float[batch, {values}] logits)
    < int64[2] flat = {{0, -1}} >
    {{ logits = Reshape (images, flat) }}"""


@dataclass(frozen=True, eq=False)
class Resizer:
    """A model.onnx whose logits are the pixels that reach the network, from 0 to 255."""

    recipe: Preprocess
    session: Any

    @classmethod
    def make(cls, size: int, interpolation: Interpolation, view: View, threads: int) -> Resizer:
        """Build it, as the product builds the front of any model.onnx."""
        recipe = Preprocess(size, (0.0,) * 3, (1 / 255,) * 3, interpolation, view)
        with tempfile.TemporaryDirectory() as folder:
            core, model = Path(folder, CORE), Path(folder, MODEL)
            onnx.save(onnx.parser.parse_model(PASS_THROUGH.format(size=size, values=3 * size * size)), core)
            write_raw_pixel_model(core, model, recipe, ending(3 * size * size, 1.0), "image")
            return cls(recipe, session(model, threads))

    def off_by(self, image: Pixels) -> np.ndarray:
        """Steps of 1/255 between its pixels and Pillow's, `(3, size, size)`, whole numbers."""
        (logits,) = self.session.run(["logits"], {"image": image})
        expected = preprocess(image, self.recipe).transpose(2, 0, 1)
        found = np.rint(logits).reshape(expected.shape)  # scaled down and up again, so not quite whole
        return np.nan_to_num(np.abs(found - expected), nan=255).astype(int)


@dataclass
class Tally:
    """What one `Resizer` came to on the images of one source so far."""

    images: int = 0
    values: int = 0
    differing: int = 0
    steps: int = 0
    worst: str = ""

    def add(self, name: str, steps: np.ndarray) -> None:
        """Count one image."""
        self.images += 1
        self.values += steps.size
        self.differing += int(np.count_nonzero(steps))
        if steps.max() > self.steps:
            self.steps, self.worst = int(steps.max()), name


def session(path: Path, threads: int) -> Any:
    """The file in onnxruntime, on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compare(
    sources: Mapping[str, Sequence[Path]], resizers: Sequence[Resizer]
) -> tuple[list[Exactness], tuple[str, ...]]:
    """A row for each source and resizer, and the names of the files that could not be decoded."""
    rows, unreadable = [], []
    for source, paths in sources.items():
        tallies = [Tally() for _ in resizers]
        for path in paths:
            try:
                image = decode(path)
            except UnreadableImage as error:
                unreadable.append(f"{path.name}: {error}")
                continue
            for resizer, tally in zip(resizers, tallies, strict=True):
                tally.add(path.name, resizer.off_by(image))
        rows += [_exactness(source, *pair) for pair in zip(resizers, tallies, strict=True)]
    return rows, tuple(unreadable)


def _exactness(source: str, resizer: Resizer, tally: Tally) -> Exactness:
    differing = round(tally.differing / max(1, tally.values), 7)
    recipe = resizer.recipe
    return Exactness(source, recipe.size, recipe.interpolation, tally.images, tally.steps, tally.worst, differing)


# ---------------------------------------------------------------- cost


@dataclass(frozen=True, eq=False)
class Pair:
    """Both files of a bundle, on one thread."""

    folder: Path
    core: CoreModel
    model: PixelModel

    def by_hand(self, image: Pixels) -> np.ndarray:
        """Probabilities of an image by numpy, Pillow and model.core.onnx."""
        images = normalise(preprocess(image, self.core.preprocess)[None], self.core.preprocess)
        return softmax(self.core.logits(images) / np.float32(TEMPERATURE))[0]


def classes(number: int) -> Targets:
    """So many classes."""
    return Targets(SingleLabel.name, SingleLabel.form, tuple(f"class {one}" for one in range(number)))


def ending(number: int, temperature: float) -> Ending:
    """What follows the logits of so many classes."""
    calibration = Calibration(temperature, 0, None, None, "For a benchmark.")
    return answering(SingleLabel().on(classes(number)), calibration).ending()


@contextlib.contextmanager
def pair(size: int, view: View) -> Iterator[Pair]:
    """EfficientNet-Lite0 with a head of random weights, exported as autoft does."""
    zoo = LiteZoo()
    backbone = next(backbone for backbone in zoo.backbones() if backbone.name == BACKBONE)
    spec = backbone.input
    recipe = Preprocess(size, spec.mean, spec.std, spec.interpolation, view)
    trial = Trial(0, backbone.name, "probe", size, {}, seed=0)
    torch.manual_seed(0)
    classifier = Classifier.of(zoo.build(backbone), CLASSES)
    torch.nn.init.normal_(classifier.head.weight, std=0.05)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        handoff = Handoff(classes(CLASSES), recipe, backbone, trial, "accuracy", 0.0, "none")
        next(iter(OnnxExporter().export(classifier, handoff, folder)))
        write_raw_pixel_model(folder / CORE, folder / MODEL, recipe, ending(CLASSES, TEMPERATURE), "image")
        yield Pair(folder, CoreModel(folder / CORE, threads=1), PixelModel(folder / MODEL, threads=1))


def photo(width: int, height: int) -> Pixels:
    """A photo of that size."""
    with Image.open(PHOTOS / "astronaut.png") as image:
        return np.array(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def cost(both: Pair, width: int, height: int, rounds: int) -> Cost:
    """Time model.onnx, the way by hand and the network alone in turn. Raises `RuntimeError` when they disagree."""
    image, recipe = photo(width, height), both.core.preprocess
    images = normalise(preprocess(image, recipe)[None], recipe)
    if (delta := np.abs(both.model.answers(image) - both.by_hand(image)).max()) > ANSWER_TOLERANCE:
        raise RuntimeError(f"{MODEL} and the way by hand differ by {delta:.3f}; their times mean nothing")
    ways: Mapping[str, Callable[[], object]] = {
        "model": lambda: both.model.answers(image),
        "by hand": lambda: both.by_hand(image),
        "core": lambda: both.core.logits(images),
    }
    cpu, wall = timed(ways, rounds)
    return Cost(
        size=recipe.size,
        pixels=f"{width}x{height}",
        rounds=rounds,
        model_cpu=round(cpu["model"], 3),
        by_hand_cpu=round(cpu["by hand"], 3),
        core_cpu=round(cpu["core"], 3),
        cpu_ratio=round(cpu["model"] / cpu["by hand"], 3),
        model_wall=round(wall["model"], 3),
        by_hand_wall=round(wall["by hand"], 3),
        wall_ratio=round(wall["model"] / wall["by hand"], 3),
    )


def timed(ways: Mapping[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of a call each way, CPU and wall; a round calls them all, every other one backwards."""
    cpu: dict[str, list[float]] = defaultdict(list)
    wall: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 2):  # the first two warm up
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began, began_cpu = time.perf_counter(), time.process_time()
            ways[name]()
            if number >= 2:
                cpu[name].append(1000 * (time.process_time() - began_cpu))
                wall[name].append(1000 * (time.perf_counter() - began))
    return _medians(cpu), _medians(wall)


def _medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in times.items()}


def profile(both: Pair, width: int, height: int) -> Profile:
    """Where model.onnx spends its time."""
    image = photo(width, height)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(both.folder / "profile")
    running = onnxruntime.InferenceSession(both.folder / MODEL, options, providers=["CPUExecutionProvider"])
    for _ in range(PROFILED_CALLS):
        running.run(["probabilities"], {"image": image})
    parts: Counter[str] = Counter()
    for event in json.loads(Path(running.end_profiling()).read_text(encoding="utf-8")):
        if event["cat"] == "Node":
            parts[_part(event["name"], event["args"]["op_name"])] += event["dur"]
    microseconds = parts.total()
    shares: dict[str, float] = {}
    for part, spent in parts.most_common():
        name = part if spent >= 0.01 * microseconds else "others"
        shares[name] = shares.get(name, 0.0) + spent / microseconds
    rounded = {part: round(share, 4) for part, share in shares.items()}
    return Profile(
        both.core.preprocess.size,
        f"{width}x{height}",
        PROFILED_CALLS,
        round(microseconds / PROFILED_CALLS / 1000, 3),
        rounded,
    )


def _part(node: str, operator: str) -> str:
    # onnxruntime reorders a convolution's input and output for itself.
    return "network" if node.startswith("core/") or operator.startswith("Reorder") else operator


# ---------------------------------------------------------------- all of it


def measure(arguments: argparse.Namespace) -> Result:
    """Both parts."""
    sources: dict[str, list[Path]] = {"scikit-image": photos()}
    missing = "" if arguments.clipart.is_dir() else f"there is no {arguments.clipart}; {HOW_TO_GET_CLIPART}"
    if not missing:
        sources["openclipart"] = clipart(arguments.clipart, arguments.images, seed=0)
    view = arguments.view
    resizers = [Resizer.make(size, how, view, arguments.threads) for size in arguments.sizes for how in INTERPOLATIONS]
    exactness, unreadable = compare(sources, resizers)
    costs, profiles = [], []
    for size in arguments.network_sizes:
        with pair(size, view) as both:
            costs += [cost(both, *pixels, arguments.rounds) for pixels in IMAGE_SIZES]
            profiles.append(profile(both, *ONE_MEGAPIXEL))
    counts = {source: len(paths) for source, paths in sources.items()}
    return Result(view, counts, unreadable, missing, tuple(exactness), tuple(costs), tuple(profiles))


def show(result: Result) -> None:
    """Print the tables."""
    for line in (result.missing, *result.unreadable):
        if line:
            print(line)
    cells: dict[tuple[int, str], list[str]] = defaultdict(list)
    for row in result.exactness:
        cells[row.size, row.interpolation].append(f"{row.steps} step, {row.differing:.3%}")
    common.show(
        "resize against Pillow: largest difference, share of values that differ",
        ("px", "", *(f"{source}, {n} images" for source, n in result.sources.items())),
        [(*key, *row) for key, row in cells.items()],
    )
    common.show(
        "milliseconds of CPU time, one thread",
        ("px", "image", "model.onnx", "by hand", "times", "network alone", "times, wall"),
        [
            (
                c.size,
                c.pixels,
                *map("{:.2f}".format, (c.model_cpu, c.by_hand_cpu, c.cpu_ratio, c.core_cpu, c.wall_ratio)),
            )
            for c in result.cost
        ],
    )
    common.show(
        "where model.onnx spends it",
        ("px", "image", "ms", "shares"),
        [
            (p.size, p.pixels, f"{p.milliseconds:.2f}", ", ".join(f"{part} {x:.0%}" for part, x in p.shares.items()))
            for p in result.profiles
        ],
    )


def checks(result: Result) -> list[Check]:
    """The result against its targets."""
    one_megapixel = "{}x{}".format(*ONE_MEGAPIXEL)
    steps = max(row.steps for row in result.exactness)
    images = sum(result.sources.values()) - len(result.unreadable)
    what = f"most steps of 255 on {images} images"
    return [Check(what, str(steps), f"<= {MOST_STEPS}", steps <= MOST_STEPS)] + [
        Check(
            f"CPU time, {row.pixels} to {row.size} px, times by hand",
            f"{row.cpu_ratio:.2f}",
            f"<= {MOST_TIMES:g}",
            row.cpu_ratio <= MOST_TIMES,
        )
        for row in result.cost
        if row.pixels == one_megapixel
    ]


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--view", choices=get_args(View), default="crop", help="default crop")
    parser.add_argument("--clipart", type=Path, default=CLIPART, help=f"default {CLIPART}")
    parser.add_argument("--images", type=int, default=200, help="of the clipart (default 200)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels, for exactness")
    parser.add_argument("--network-sizes", type=int, nargs="+", default=NETWORK_SIZES, help="pixels, for cost")
    parser.add_argument("--rounds", type=int, default=31, help="default 31")
    parser.add_argument("--threads", type=int, default=1, help="for exactness (default 1)")
    result = measure(parser.parse_args())
    show(result)
    name = "raw_pixels" if result.view == "crop" else f"raw_pixels_{result.view}"
    return common.publish(name, result, checks(result))


if __name__ == "__main__":
    sys.exit(main())
