"""`Study`: what the user asked. From flags, a TOML file or Python, with one validation for all three.

Light: `autoft search --help` and a usage error import it, so nothing below but the standard library and `errors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from autoft.errors import StudyError, unknown_name
from autoft.study.options import Option, options_of

if TYPE_CHECKING:
    from autoft.values.target import MetricFacts

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
PRECISIONS = ("auto", "fp32", "bf16")
CORE_EXPORTER = "onnx"
"""The exporter of what every bundle is made of."""

_PARAMETERS = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)([kmgb]?)", re.IGNORECASE)
_LATENCY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s)")
_MULTIPLES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "b": 1000**3}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


@dataclass(frozen=True)
class Study:
    """What the user asked: each option declared once, with its help, unit and default; durations in seconds.

    `task` "auto" is chosen by the labels, `metric` "auto" is the task's first, `image_size` 0 and `view` "auto" are
    chosen from the images, `from_` "" is no run, `workers` 0 is one a core, or as many as `gpus_per_trial` makes of the
    GPUs, which is None for "auto". `max_latency` is in milliseconds. `precision` "auto" is measured for each backbone.
    `licenses` are SPDX identifiers, "permissive" for the usual ones, "any" for all. The core of the exporter "onnx" is
    always there, the others' files stand beside it. `data` is an argument of its own, `plugins` the `-p` of all
    commands.
    """

    data: str
    time: Annotated[
        float,
        Option("Budget from start to exit, such as 90s, 10m or 1h30m.", "TIME", default="30m", read=parse_duration),
    ] = 1800.0
    trials: Annotated[
        int | None, Option("Start at most this many trials; the time left then goes into training them.", "N")
    ] = None
    target: Annotated[
        float | None,
        Option("Stop searching when the best validation score, or loss, has reached this beyond noise.", "SCORE"),
    ] = None
    out: Annotated[str, Option("The run folder.", "DIR", default="runs/NAME-DATE")] = ""
    seed: Annotated[int, Option("Of the split and of every trial.", "N")] = 0
    task: Annotated[str, Option("What is predicted; see autoft plugins.", "NAME", default="auto, by the labels")] = (
        "auto"
    )
    metric: Annotated[str, Option("What to be best in.", "NAME", default="auto, by task and classes")] = "auto"
    fail_under: Annotated[float | None, Option("Exit with code 3 when the test score is below this.", "SCORE")] = None
    fail_above: Annotated[float | None, Option("Exit with code 3 when the test loss is above this.", "LOSS")] = None
    backbones: Annotated[tuple[str, ...], Option("Search these; see autoft backbones.", "GLOB,...")] = ()
    freeze: Annotated[tuple[str, ...], Option("Search these freeze strategies.", "NAME,...", default="usual ones")] = ()
    image_size: Annotated[
        int,
        Option(
            "Side of the square that networks see; 0 is auto; transformers take multiples of their patch or window.",
            "PIXELS",
            default="auto",
            read=parse_pixels,
        ),
    ] = 0
    view: Annotated[str, Option("Centre square or whole image: auto, crop, squash, pad.", "NAME")] = "auto"
    searcher: Annotated[str, Option("What decides which trial trains next.", "NAME")] = "halving"
    from_: Annotated[str, Option("Begin with what did best in another run, of these or other images.", "RUN")] = ""
    offline: Annotated[bool, Option("Use only weights on this machine, never the network.")] = False
    licenses: Annotated[tuple[str, ...], Option("Of weights; or any.", "SPDX,...", read=str.lower)] = ("permissive",)
    max_params: Annotated[
        int | None, Option("Leave out larger backbones; such as 500k, 10M or 1G.", "PARAMETERS", read=parse_parameters)
    ] = None
    max_latency: Annotated[
        float | None,
        Option(
            "Hand over no model.core.onnx that takes longer for one image here, on all cores at best; such as 20ms.",
            "TIME",
            read=parse_latency,
        ),
    ] = None
    runner: Annotated[str, Option("auto, inline or ray.", "NAME")] = "auto"
    workers: Annotated[int, Option("Trials at a time.", "N", default="0: one a core, or what GPUs are shared by")] = 0
    gpus_per_trial: Annotated[
        float | None,
        Option("Below 1 trials share a GPU; auto measures how many.", "X", default="auto", read=parse_gpus),
    ] = None
    precision: Annotated[str, Option("Of training: auto, which measures, fp32 or bf16.", "NAME")] = "auto"
    keep: Annotated[int, Option("Checkpoints to keep, best first, besides what paused trials go on from.", "N")] = 5
    no_refit: Annotated[bool, Option("Export the winner as scored, not trained again on train + validation.")] = False
    exporter: Annotated[tuple[str, ...], Option("Also write what these make.", "NAME,...")] = (CORE_EXPORTER,)
    strict: Annotated[bool, Option("Refuse data of which a folder or an image would be left alone.")] = False
    batched: Annotated[bool, Option("model.onnx takes a batch of equal-sized images.")] = False
    full_parity: Annotated[bool, Option("Compare the exported files with torch in full.")] = False
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(0 < self.time < math.inf, f"--time must be positive and finite, got {self.time:g}s; try --time 10m")
        _require(self.trials is None or self.trials > 0, f"--trials must be at least 1, got {self.trials}")
        _require(0 <= self.seed < SEEDS, f"--seed is a whole number from 0 to 2**63 - 1, got {self.seed}")
        _require(self.workers >= 0, f"--workers must not be negative, got {self.workers}")
        _require(self.keep >= 1, f"--keep must be at least 1, got {self.keep}")
        _require_gpus(self.gpus_per_trial)
        valid_size = self.image_size == 0 or 16 <= self.image_size <= 1024
        _require(valid_size, f"--image-size is auto or 16 to 1024 pixels, got {self.image_size}")
        _require_view(self.view)
        some = self.max_params is None or self.max_params >= 1
        _require(some, f"--max-params must be at least 1, got {self.max_params}; try --max-params 10M")
        slowest = self.max_latency is None or 0 < self.max_latency < math.inf
        _require(slowest, f"--max-latency must be positive and finite, got {self.max_latency}; try --max-latency 20ms")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)

    def elsewhere(self) -> Study:
        """The study of a run that goes on, on another machine perhaps: with Ray where it works, if it was with Ray."""
        return replace(self, runner="auto" if self.runner == "ray" else self.runner)

    @property
    def shares_gpus(self) -> bool:
        """Whether several trials may run on one GPU."""
        return self.gpus_per_trial is None or self.gpus_per_trial < 1

    def require_bounds(self, metric: MetricFacts) -> None:
        """Raise `StudyError` for a bound of the other kind of metric, or one that no score or every score passes."""
        if self.fail_under is not None:
            _require(
                not metric.is_loss,
                f"--fail-under is for scores; {metric.name} is a loss, of which less is better: use --fail-above",
            )
            _require_bound("--fail-under", self.fail_under, metric)
        if self.fail_above is not None:
            _require(
                metric.is_loss,
                f"--fail-above is for losses; of {metric.name} more is better: use --fail-under",
            )
            _require_bound("--fail-above", self.fail_above, metric)
        if self.target is not None:
            _require_bound("--target", self.target, metric)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Study:
        """A study from plain options, as flags, TOML or Python give them. Raises `StudyError`."""
        from autoft.values.codec import decode

        known = {one.name: one for one in options_of(cls)}
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known)
        try:
            return decode(cls, {name: known[name].read(it) for name, it in options.items() if it is not None})
        except ValueError as problem:
            raise StudyError(str(problem)) from None

    @classmethod
    def options_from(cls, path: Path) -> dict[str, Any]:
        """The options in a TOML file, each named like its flag. Raises `StudyError`."""
        import tomllib

        try:
            options = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:  # of more digits than Python reads too
            raise StudyError(f"cannot read the configuration {path}: {problem}") from None
        names = {one.flag.removeprefix("--"): one.name for one in options_of(cls)}
        return {names.get(key.replace("_", "-"), key.replace("-", "_")): value for key, value in options.items()}


@dataclass(frozen=True)
class Change:
    """What a resumed run gets anew: `time` maps its budget in seconds to another, `data` is where its images lie.

    `target` is what to stop at instead of what it had. `plugins`, as `-p` takes them, and `objects` change those it
    recorded, as `Host.recorded` says. What takes the place of a recorded one is recorded instead; what is switched off,
    or comes on top, is so for this time.
    """

    time: Callable[[float], float] | None = None
    data: Path | None = None
    plugins: tuple[str, ...] = ()
    objects: tuple[object, ...] = ()
    target: float | None = None


def parse_duration(text: str) -> float:
    """Seconds in "90", "90s", "2m", "1h30m". Raises `StudyError`, also for a number without its unit behind another."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not text.strip() or match is None:
        raise StudyError(f"--time {text!r} is no duration; write it like 90s, 10m or 1h30m")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    written = text.strip().lower()
    if match[3] and (match[1] or match[2]) and not written.endswith("s"):
        other = written.removesuffix(match[3]) if match[2] else f"{written}m"
        raise StudyError(f"--time {text!r} may mean {written}s or {other}; write the unit of each number")
    return hours * 3600 + minutes * 60 + seconds


def parse_pixels(text: str) -> int:
    """A number of pixels, 0 for "auto". Raises `StudyError`."""
    try:
        return 0 if text == "auto" else int(text)
    except ValueError:
        raise StudyError(f"--image-size {text!r} is neither a number of pixels nor auto") from None


def parse_parameters(text: str) -> int:
    """A number of parameters in "10000000", "500k", "2.5M", "1G" or "1B". Raises `StudyError`."""
    match = _PARAMETERS.fullmatch(text.strip())
    if match is None:
        raise StudyError(f"--max-params {text!r} is no number of parameters; write it like 500k, 10M or 1G")
    return round(float(match[1]) * _MULTIPLES[match[2].lower()])


def parse_latency(text: str) -> float:
    """Milliseconds in "20ms" or "0.02s". Raises `StudyError`, also without a unit: other durations are in seconds."""
    match = _LATENCY.fullmatch(text.strip().lower())
    if match is None:
        raise StudyError(f"--max-latency {text!r} is no time with its unit; write it like 20ms or 0.5s")
    return float(match[1]) * (1 if match[2] == "ms" else 1000)


def parse_gpus(text: str) -> float | None:
    """A number of GPUs or a share of one, None for "auto". Raises `StudyError`."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise StudyError(f"--gpus-per-trial {text!r} is neither a number of GPUs nor auto") from None


def budget_change(text: str | float) -> Callable[[float], float]:
    """What becomes of a budget in seconds: "+5m" extends it, "10m" replaces it. Raises `StudyError`."""
    extends = isinstance(text, str) and text.strip().startswith("+")
    seconds = parse_duration(text.strip().removeprefix("+")) if isinstance(text, str) else float(text)
    _require(seconds > 0, f"--time {text} must be positive, such as 40m, or +10m for what is added")
    return (lambda budget: budget + seconds) if extends else (lambda budget: seconds)


def licence_allowed(licence: str, allowed: tuple[str, ...]) -> bool:
    """Whether weights under `licence` may be used when the study allows `allowed`."""
    if "any" in allowed:
        return True
    return licence in allowed or ("permissive" in allowed and licence in PERMISSIVE)


def _require_view(name: str) -> None:
    from autoft.values.handoff import View

    views = ("auto", *get_args(View))
    if name not in views:
        raise unknown_name("view", name, views)


def _require_gpus(count: float | None) -> None:
    if count is not None:
        possible = 0 < count <= 1 or (1 < count < math.inf and count == int(count))
        _require(possible, f"--gpus-per-trial is auto, a share of one GPU or a whole number of them, got {count:g}")


def _require_bound(flag: str, bound: float, metric: MetricFacts) -> None:
    """A figure of the metric that some models have and others do not, as people know it: a loss is positive."""
    if metric.is_loss:
        _require(
            0 <= bound < math.inf,
            f"{flag} must be at least 0, the best {metric.name} there is, and finite, got {bound:g}",
        )
        return
    greatest = math.inf if metric.greatest is None else metric.greatest
    _require(
        0 < bound <= greatest,
        f"{flag} must be above 0 and at most {greatest:g}, the best {metric.name} there is, "
        f"got {bound:g}{_as_percentage(bound)}",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StudyError(message)


def _as_percentage(score: float) -> str:
    """The question whether a percentage was meant, where a score could be one."""
    return f"; did you mean {score / 100:g}?" if 1 < score <= 100 else ""
