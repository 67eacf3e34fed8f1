"""What the JSON files of a bundle hold, and what the files are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autoft.values.counts import counted
from autoft.values.dataset import SplitName, TrainOn

SCHEMA: Final = 1
MODEL: Final = "model.onnx"
CORE: Final = "model.core.onnx"
LABELS: Final = "labels.json"
PREPROCESS: Final = "preprocess.json"
PARITY: Final = "parity.json"
METRICS: Final = "metrics.json"
LATENCY: Final = "latency.json"
CARD: Final = "MODEL_CARD.md"
MANIFEST: Final = "manifest.json"
IMAGES: Final = "images.json"
LICENSES: Final = "LICENSES"
BESIDE: Final = "beside"
VECTORS: Final = "test_vectors"
VECTORS_FILE: Final = f"{VECTORS}/vectors.json"

MIN_ONNXRUNTIME: Final = "1.14"
"""The first onnxruntime that reads IR 8 with opset 18."""

ANSWER_TOLERANCE: Final = 0.02
"""Largest difference of an answer between the file, fed with pixels, and Pillow and torch.

Of a probability, or of a number in deviations of its column.
"""

CLEAR_MARGIN: Final = 2 * ANSWER_TOLERANCE
"""Where the first of two probabilities is further above the second, the best answer must be the same."""

DEFAULT_THRESHOLD: Final = 0.5
"""The probability from which a label is said to be there, where none was fitted."""


@dataclass(frozen=True)
class Training:
    """How long a trial trained by gradient: `passes` over its images, and `steps` in all."""

    passes: float
    steps: int

    def __str__(self) -> str:
        """In words."""
        return f"{counted(f'{round(self.passes, 2):,g}', 'pass')}, {counted(self.steps, 'step')}"


@dataclass(frozen=True)
class Origin:
    """Which trial of its run a model is, and the splits that it has trained on.

    `of_trial` is the trial whose validation score, temperature and thresholds it has: its own number, or of a refit,
    which has trained on the validation images too, that of the trial that it repeats. `training` and
    `twin_training`, of that trial where it is another one, are None for a head in closed form, and in older files.
    `share` is the part of the images of `train_on` that a head in closed form was fitted on: there may have been no
    time for all, of which older files say nothing.
    """

    trial: int
    train_on: TrainOn
    of_trial: int
    training: Training | None = None
    twin_training: Training | None = None
    share: float = 1.0


# ---------------------------------------------------------------- metrics.json


@dataclass(frozen=True)
class Calibration:
    """What a deployed model takes from `n` validation images: one temperature for all logits (Guo et al. 2017).

    `log_loss_before` and `log_loss_after` are mean negative log-likelihoods on images the temperature was not fitted
    on (cross-fitted); both are None when there were too few images to tell. `temperature` is 1 unless it helps;
    `reason` says why it is what it is. `thresholds`: the probability from which each label is said to be there, where
    an image may have any of them.
    """

    temperature: float
    n: int
    log_loss_before: float | None
    log_loss_after: float | None
    reason: str
    thresholds: tuple[float, ...] = ()

    @property
    def is_fitted(self) -> bool:
        """Whether answers are other than without it."""
        return self.temperature != 1 or any(threshold != DEFAULT_THRESHOLD for threshold in self.thresholds)


@dataclass(frozen=True)
class PriorCorrection:
    """What it does to probabilities of a model that was trained to weigh classes alike to take their sizes back in.

    They are multiplied by the classes' `shares` of the training images, in the order of labels.json, and divided by
    their sum (Saerens, Latinne and Decaestecker 2002). `log_loss_before` and `log_loss_after` are those of `n`
    validation images. The model itself has none of it.
    """

    n: int
    shares: tuple[float, ...]
    log_loss_before: float
    log_loss_after: float

    @property
    def helps(self) -> bool:
        """Whether the validation images say so."""
        return self.log_loss_after < self.log_loss_before


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class ClassReport:
    """One class: its images in the split, precision, recall and F1; None where it is undefined (0 of 0)."""

    label: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelReport:
    """One of the labels that an image may have: the same, at the `threshold` of its probability."""

    label: str
    n: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None
    threshold: float


@dataclass(frozen=True)
class ColumnReport:
    """One column of numbers, in its own units; R2 is None where the numbers are all alike.

    `mean` and `deviation` are those of the images of the split.
    """

    column: str
    n: int
    mae: float
    rmse: float
    r2: float | None
    mean: float
    deviation: float


@dataclass(frozen=True)
class MetricsReport:
    """metrics.json: how good the model is, from the outputs of the ONNX file.

    `metrics` are those of the task; of a loss the loss itself, smaller is better. `correct` counts images that are
    right as a whole, and is None where numbers are predicted. `per_class` has a line a class, a label or a column.

    Where an image has one class, `metrics` has ece too (expected calibration error), all with the temperature;
    `ece_before_temperature` is without it, and `ece_bins` says over which bins both are. There `confusion[i][j]` counts
    images of class i that were taken for class j, in the order of labels.json.

    `of_trial` is None where the figures are the file's own. Those on validation images that the model has trained on
    are those of its twin, the trial of that number, which has not. `prior_correction` is there where training weighed
    classes alike that have not as many images. `test_openings` counts how often the run has scored
    its test images by then, more than once where it was extended; 0 where the figures are of another split.
    `test_images_seen` are those of them that another run had for training or validation, with whose winners the search
    began. `origin` is None in a file of an older version.
    """

    split: SplitName
    n: int
    correct: int | None
    metrics: Mapping[str, Estimate]
    ece_before_temperature: Estimate | None
    calibration: Calibration
    per_class: tuple[ClassReport | LabelReport | ColumnReport, ...]
    confusion: tuple[tuple[int, ...], ...]
    note: str = ""
    of_trial: int | None = None
    test_openings: int = 0
    origin: Origin | None = None
    prior_correction: PriorCorrection | None = None
    ece_bins: str = ""
    test_images_seen: int = 0

    @property
    def missed(self) -> dict[str, int]:
        """The classes or labels of which not one image was recognised, with the number of their images."""
        named = [one for one in self.per_class if not isinstance(one, ColumnReport)]
        return {one.label: one.n for one in named if one.n and not one.recall}


# ---------------------------------------------------------------- parity.json


@dataclass(frozen=True)
class ImageDelta:
    """One image and how far the two sides are apart on it."""

    image: str
    delta: float


@dataclass(frozen=True)
class Difference:
    """Two computations of the same logits, the network's outputs, of `n` images, held against each other.

    `scale` is the logit scale: max |expected logit|, at least 1. `max_delta` is the largest |difference| of a logit and
    `limit` what it may be: more where no answer (a probability, or a number in deviations of its column) differs by
    more than `answer_limit`, and less where the answers hardly differ from image to image. `answer_delta` is the
    largest of those. `flips` counts decisions that are another one although the expected one was clear: no difference
    of answers within `answer_limit` would have changed it.
    """

    n: int
    scale: float
    max_delta: float
    mean_delta: float
    limit: float
    answer_delta: float
    answer_limit: float
    flips: int
    worst: tuple[ImageDelta, ...]


@dataclass(frozen=True)
class CoreParity(Difference):
    """model.core.onnx against torch on the same floats, `batch` at a time, onnxruntime's optimisations on or off."""

    batch: int
    optimised: bool


@dataclass(frozen=True)
class PixelParity:
    """model.onnx, fed with decoded images, against Pillow, torch and the task's own arithmetic: differences of answers.

    `flips` counts decisions that are another one although the expected one was clear: of two probabilities the first
    was more than `clear_margin` above the second, or one was more than half of that away from its threshold.
    """

    n: int
    max_delta: float
    mean_delta: float
    limit: float
    clear_margin: float
    flips: int
    worst: tuple[ImageDelta, ...]


@dataclass(frozen=True)
class Beside:
    """What a further exporter wrote: its `path` within the bundle, `parity` with torch where it was compared.

    `path` is empty when the file is left out; `note` says why, or why it was not compared.
    """

    exporter: str
    path: str
    format: str
    parity: CoreParity | None
    note: str


@dataclass(frozen=True)
class ParityReport:
    """parity.json: the gate's numbers. `exporter` is the way of exporting that passed."""

    exporter: str
    refused: tuple[str, ...]
    core: tuple[CoreParity, ...]
    pixels: PixelParity
    beside: tuple[Beside, ...] = ()


# ---------------------------------------------------------------- test_vectors/vectors.json


@dataclass(frozen=True)
class Vector:
    """One image, as PNG and as raw RGB bytes `[height, width, 3]`, and what Pillow and torch say of it.

    The answers are `probabilities`, or `values` where numbers are predicted; `logits` are the core's outputs.
    """

    name: str
    png: str
    rgb: str
    height: int
    width: int
    label: str
    logits: tuple[float, ...]
    probabilities: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Vectors:
    """test_vectors/vectors.json. A runtime agrees when no probability, and no value in deviations of its column, is
    further off than `tolerance`, and decisions are the same wherever they are clear: the best answer where it is more
    than `clear_margin` above the second, a label where its probability is half as far from the threshold. `units` are
    the deviations of the columns; empty where answers are probabilities."""

    schema: int
    tolerance: float
    clear_margin: float
    vectors: tuple[Vector, ...]
    units: tuple[float, ...] = ()


# ---------------------------------------------------------------- latency.json


@dataclass(frozen=True)
class Timing:
    """Milliseconds of `runs` calls of one file: `batch` images a call, for model.onnx of `pixels` "HxW"."""

    file: str
    batch: int
    pixels: str
    p50_ms: float
    p95_ms: float
    runs: int


@dataclass(frozen=True)
class Latency:
    """latency.json. `peak_memory_mib` is that of the whole process after all timings; `command` measures again."""

    machine: str
    onnxruntime: str
    threads: int
    timings: tuple[Timing, ...]
    peak_memory_mib: int
    file_bytes: Mapping[str, int]
    command: str


# ---------------------------------------------------------------- manifest.json


@dataclass(frozen=True)
class FileRecord:
    """SHA-256, 64 hexadecimal digits, and bytes of a file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """manifest.json: every other file of the bundle by its path (posix, relative), and what made them.

    `origin` is None in a file of an older version.
    """

    schema: int
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]
    data_fingerprint: str
    min_onnxruntime: str
    created: str
    origin: Origin | None = None
