"""`Study`: what the user asked. From flags, a TOML file or Python, with one validation for all three."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from autoft.errors import StudyError, unknown_name
from autoft.parts.plugins import PluginRef
from autoft.system.files import as_text
from autoft.values.backbone import Backbone, Interpolation
from autoft.values.dataset import DatasetInfo
from autoft.values.handoff import View
from autoft.values.target import MetricFacts
from autoft.values.trial import Candidate

PERMISSIVE = (
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "cc0-1.0",
    "unlicense",
)
SEEDS = 2**63
"""As many as torch and numpy tell apart, and as every reader of JSON can be expected to keep."""
SCHEMA = "autoft.study/3"
CORE_EXPORTER = "onnx"
"""The exporter of what every bundle is made of."""

VIEWS = ("auto", *get_args(View))

RunnerName = Literal["inline", "ray"]
Device = Literal["cpu", "cuda"]

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Study:
    """What the user asked, one field a flag. Durations in seconds, sizes in pixels.

    `task` "auto" is chosen by the labels, `metric` "auto" is the task's first. `image_size` 0 and `view` "auto" mean:
    chosen from the images. `workers` 0: one a core, or one a GPU. `licenses`:
    SPDX identifiers of weights that may be used, "permissive" for the usual ones, "any" for all. `gpus_per_trial` below
    1 shares a GPU.
    `exporter`: whose files the bundle holds; the core of the "onnx" one is always there, the others' stand beside it.
    `fail_under`: the test score below which the run ends with exit code 3, `fail_above`: the test loss above which it
    does. `keep`: checkpoints that stay.
    `batched`: model.onnx takes `[batch, height, width, 3]`. `full_parity`: the gate compares more images, and without
    onnxruntime's optimisations too.
    """

    data: str
    out: str = ""
    time: float = 1800.0
    trials: int | None = None
    seed: int = 0
    workers: int = 0
    runner: str = "auto"
    backbones: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    searcher: str = "halving"
    exporter: tuple[str, ...] = (CORE_EXPORTER,)
    task: str = "auto"
    metric: str = "auto"
    image_size: int = 0
    view: str = "auto"
    offline: bool = False
    licenses: tuple[str, ...] = ("permissive",)
    fail_under: float | None = None
    fail_above: float | None = None
    keep: int = 5
    batched: bool = False
    full_parity: bool = False
    gpus_per_trial: float = 1.0
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(0 < self.time < math.inf, f"--time must be positive and finite, got {self.time:g}s; try --time 10m")
        _require(self.trials is None or self.trials > 0, f"--trials must be at least 1, got {self.trials}")
        _require(0 <= self.seed < SEEDS, f"--seed is a whole number from 0 to 2**63 - 1, got {self.seed}")
        _require(self.workers >= 0, f"--workers must not be negative, got {self.workers}")
        _require(self.keep >= 1, f"--keep must be at least 1, got {self.keep}")
        whole = self.gpus_per_trial <= 1 or self.gpus_per_trial == int(self.gpus_per_trial)
        _require(
            self.gpus_per_trial > 0 and whole,
            f"--gpus-per-trial is a share of one GPU or a whole number of them, got {self.gpus_per_trial:g}",
        )
        valid_size = self.image_size == 0 or 16 <= self.image_size <= 1024
        _require(valid_size, f"--image-size is auto or 16 to 1024 pixels, got {self.image_size}")
        if self.view not in VIEWS:
            raise unknown_name("view", self.view, VIEWS)

    def require_bounds(self, metric: MetricFacts) -> None:
        """Raise `StudyError` for a bound of the other kind of metric, or one that no score or every score passes."""
        if (under := self.fail_under) is not None:
            _require(
                not metric.is_loss,
                f"--fail-under is for scores; {metric.name} is a loss, of which less is better: use --fail-above",
            )
            greatest = math.inf if metric.greatest is None else metric.greatest
            _require(
                0 < under <= greatest,
                f"--fail-under must be above 0 and at most {greatest:g}, the best {metric.name} there is, "
                f"got {under:g}{_as_percentage(under)}",
            )
        if (above := self.fail_above) is not None:
            _require(
                metric.is_loss,
                f"--fail-above is for losses; of {metric.name} more is better: use --fail-under",
            )
            _require(
                0 <= above < math.inf,
                f"--fail-above must be at least 0, the best {metric.name} there is, and finite, got {above:g}",
            )

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Study:
        """A study from plain options, as flags, TOML or Python give them. Raises `StudyError`."""
        from autoft.values.codec import decode

        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known)
        try:
            return decode(cls, {name: _plain(name, value) for name, value in options.items() if value is not None})
        except ValueError as problem:
            raise StudyError(str(problem)) from None

    @classmethod
    def options_from(cls, path: Path) -> dict[str, Any]:
        """The options in a TOML file, each named like its flag. Raises `StudyError`."""
        try:
            options = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:  # of more digits than Python reads too
            raise StudyError(f"cannot read the configuration {path}: {problem}") from None
        return {name.replace("-", "_"): value for name, value in options.items()}


@dataclass(frozen=True)
class Machine:
    """How a machine is shared out: `runner` runs `workers` slices at a time, each with `threads` threads on `device`.

    `cpus` and `gpus` are a worker's share of the cores and GPUs of its machine.
    """

    runner: RunnerName
    workers: int
    threads: int
    device: Device
    cpus: float = 1.0
    gpus: float = 0.0

    def __str__(self) -> str:
        """As people read it."""
        return f"{self.workers} workers of {self.threads} threads on {self.device} by {self.runner}"

    @property
    def busy(self) -> int:
        """Threads of all workers together."""
        return self.workers * self.threads


@dataclass(frozen=True)
class StudyRecord:
    """study.json: the study resolved, everything that resuming and the workers need besides journal and checkpoints.

    `view` is how images become squares. `versions` of autoft, torch and the like. `machine` is how the one that the run
    began on was shared out, which a resumed run decides anew. `validation` is how many images of the validation split
    are scored, None for all: where scoring them all would take too much of the time.
    """

    study: Study
    data: DatasetInfo
    view: View
    backbones: tuple[Backbone, ...]
    candidates: tuple[Candidate, ...]
    plugins: tuple[PluginRef, ...]
    versions: Mapping[str, str]
    machine: Machine
    metric: MetricFacts
    validation: int | None = None
    schema: str = SCHEMA

    def on(self, device: Device) -> StudyRecord:
        """The record for a process that computes on that device."""
        return replace(self, machine=replace(self.machine, device=device))

    @property
    def squares(self) -> frozenset[tuple[int, Interpolation, View]]:
        """What this run makes of its images: size in pixels, interpolation and view, as `Dataset.hold` takes them."""
        interpolation = {backbone.name: backbone.input.interpolation for backbone in self.backbones}
        return frozenset((one.image_size, interpolation[one.backbone], self.view) for one in self.candidates)


@dataclass(frozen=True)
class Change:
    """What a resumed run gets anew: `time` maps its budget in seconds to another, `data` is where its images lie.

    `plugins`, as `-p` takes them, and `objects` change those it recorded, as `Host.recorded` says. What takes the place
    of a recorded one is recorded instead; what is switched off, or comes on top, is so for this time.
    """

    time: Callable[[float], float] | None = None
    data: Path | None = None
    plugins: tuple[str, ...] = ()
    objects: tuple[object, ...] = ()


def parse_duration(text: str | float) -> float:
    """Seconds in "90", "90s", "2m", "1h30m". Raises `StudyError`."""
    if isinstance(text, int | float):
        return float(text)
    match = _DURATION.fullmatch(text.strip().lower())
    if not text.strip() or match is None:
        raise StudyError(f"--time {text!r} is no duration; write it like 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def budget_change(text: str | float) -> Callable[[float], float]:
    """What becomes of a budget in seconds: "+5m" extends it, "10m" replaces it. Raises `StudyError`."""
    extends = isinstance(text, str) and text.strip().startswith("+")
    seconds = parse_duration(text.strip().removeprefix("+") if isinstance(text, str) else text)
    _require(seconds > 0, f"--time {text} must be positive; try --time +10m")
    return (lambda budget: budget + seconds) if extends else (lambda budget: seconds)


def licence_allowed(licence: str, allowed: tuple[str, ...]) -> bool:
    """Whether weights under `licence` may be used when the study allows `allowed`."""
    if "any" in allowed:
        return True
    return licence in allowed or ("permissive" in allowed and licence in PERMISSIVE)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StudyError(message)


def _as_percentage(score: float) -> str:
    """The question whether a percentage was meant, where a score could be one."""
    return f"; did you mean {score / 100:g}?" if 1 < score <= 100 else ""


def _plain(name: str, value: Any) -> Any:
    """The forms a person writes, in the form the value keeps."""
    if name == "time":
        return parse_duration(value)
    if name == "image_size" and value == "auto":
        return 0
    if name in ("backbones", "freeze", "exporter", "licenses", "plugins"):
        value = value.split(",") if isinstance(value, str) else value
        parts = tuple(part.strip() for part in value if part.strip())
        return tuple(part.lower() for part in parts) if name == "licenses" else parts
    is_place = isinstance(value, Path) or (name in ("data", "out") and isinstance(value, str))
    return as_text(value) if is_place else value
