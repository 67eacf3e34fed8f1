"""What goes with exported weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autoft.values.backbone import Backbone, Interpolation
from autoft.values.bundle import Origin, Training
from autoft.values.dataset import ValueRange
from autoft.values.target import Targets
from autoft.values.trial import Trial

View = Literal["crop", "squash", "pad"]

Layout = Literal["image", "batch"]
"""What `model.onnx` takes: one image `[height, width, 3]`, or equal-sized ones `[batch, height, width, 3]`."""


@dataclass(frozen=True)
class Preprocess:
    """The recipe from an upright RGB image to the network's input, enough to write it again elsewhere.

    1. what is seen, by `view`:
       "crop": the centre square: side = min(width, height), left = (width - side) // 2, top = (height - side) // 2
       "squash" and "pad": the whole image
    2. Pillow resize of that with `interpolation` (antialiased), first the width, then the height, rounded to uint8 both
       times. "crop" and "squash": each side to `size`
       "pad": each side to max(1, (2 * side * size + long) // (2 * long)), where long = max(width, height); then pasted
       on (size, size) pixels of `pad_colour`, (size - width) // 2 from the left and (size - height) // 2 from the top
    3. divide by 255, subtract `mean`, divide by `std`, per channel; layout `(batch, 3, size, size)` float32

    `pad_colour` is ImageNet's mean in whole numbers, so that it is near zero in the network's input. As it is one
    colour for all backbones, they share their pixels.

    Before all that, float and 32-bit integer images become 8-bit ones: `value_range` (low, high) of the training data
    becomes 0 to 255, rounded, and what lies outside is clipped; NaN becomes 0. None: there were no such images.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    view: View = "crop"
    pad_colour: tuple[Literal[124], Literal[116], Literal[104]] = (124, 116, 104)
    channels: Literal["RGB"] = "RGB"
    alpha: Literal["over_white"] = "over_white"
    orientation: Literal["exif"] = "exif"
    value_range: ValueRange | None = None


@dataclass(frozen=True)
class Output:
    """One output of a deployed model: its `name`, and the value `[batch, size]` in an `Ending` that it is."""

    name: str
    value: str
    size: int
    kind: Literal["float", "int64"] = "float"


@dataclass(frozen=True)
class Ending:
    """What follows the network in a deployed model, as ONNX text, and what is said of it in the metadata.

    `tail` makes `answers` of `outputs`, the network's, both float[batch, ...]; `further` makes of these two what else
    the model gives. `results` are all that it gives, in order; `facts` go into the metadata, each as JSON.
    """

    tail: str
    results: tuple[Output, ...]
    facts: Mapping[str, object]
    further: str = ""


@dataclass(frozen=True)
class Begun:
    """What a search began with (`--from`): the parameters of so many `trials` of another run, by its folder's name."""

    run: str
    trials: int


@dataclass(frozen=True)
class Handoff:
    """What an exporter has to put beside the weights so that a stranger can deploy them.

    `targets` say what the answers are about. `validation_score` is that of a refit's twin. `share` is the part of the
    images to train on that a closed-form head was fitted on, `scored_share` that of the one whose `validation_score` it
    is: the same, but of a refit, whose twin may have had no time for all. `outputs` is how many numbers the network
    gives for an image; None: one a name. `precision` is what training steps were computed in, "" where there were none.
    `balance` is what training did to weigh classes alike, "" where it did not. `training` is how long it trained by
    gradient, `scored_training` the one whose `validation_score` it is; None for heads in closed form. `search_seed` is
    that of the search, which makes the split; the trial has one of its own. `better` is the trial that is before this
    one by validation score, None where none is. `begun` is what the search began with of another. `tapped`: besides the
    backbone's features its head sees so many means and maxima of what each stage gives.
    """

    targets: Targets
    preprocess: Preprocess
    backbone: Backbone
    trial: Trial
    metric: str
    validation_score: float
    data_fingerprint: str
    share: float = 1.0
    scored_share: float = 1.0
    outputs: int | None = None
    precision: str = ""
    balance: str = ""
    training: Training | None = None
    scored_training: Training | None = None
    search_seed: int | None = None
    better: int | None = None
    begun: Begun | None = None
    tapped: int = 0

    @property
    def width(self) -> int:
        """How many numbers the network gives for an image."""
        return len(self.targets.names) if self.outputs is None else self.outputs

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, labels or columns of numbers, in the order of the outputs."""
        return self.targets.names

    @property
    def origin(self) -> Origin:
        """What the bundle's JSON files say of the trial."""
        twins = self.scored_training if self.trial.twin else None
        return Origin(self.trial.id, self.trial.train_on, self.trial.scored_as, self.training, twins, self.share)


@dataclass(frozen=True)
class Artifact:
    """An exported file: `path` relative to the run folder, format, opset, bytes, SHA-256, and the way it was made.

    `failed`: the ways that were tried before it and gave no file, each with the cause.
    """

    path: str
    format: str
    opset: int
    size: int
    sha256: str
    exporter: str
    failed: tuple[str, ...] = ()
