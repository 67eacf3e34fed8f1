"""`Summary`: what a run came to; `summary.json` is its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoft.values.counts import counted
from autoft.values.dataset import TrainOn
from autoft.values.space import Params
from autoft.values.target import in_digits
from autoft.values.trial import Parent


@dataclass(frozen=True)
class Best:
    """The trial that was exported; `share` is the part of the images to train on that its head was fitted on.

    `train_on` are the splits that it has trained on; of a refit `twin` is the trial that it repeats, whose validation
    scores those of the run are. `precision` is what its training steps were computed in, such as "bf16, channels last";
    "" where there were none, or an older version has written it.
    """

    trial: int
    backbone: str
    freeze: str
    image_size: int
    params: Params
    share: float = 1.0
    train_on: TrainOn = "train"
    twin: int | None = None
    precision: str = ""


@dataclass(frozen=True)
class Scores:
    """Every metric on one split of `n` images; `ci95` of the primary one, which `metric` names.

    `correct` counts the images that are right as a whole, which `right` says in words: by the primary metric where that
    is one of the task's own that counts them, else by its first that does, as accuracy; None where it has none, as of
    numbers. A loss is positive here, as people know it: smaller is better. A metric that has no figure for these images
    is not there, and `ci95` is None where that is the primary one. The figures of `unbounded` metrics may be of any
    size, as in the units of the data. An older version has not written `metric`.
    """

    n: int
    correct: int | None
    metrics: Mapping[str, float]
    ci95: tuple[float, float] | None
    right: str = "right"
    unbounded: tuple[str, ...] = ()
    metric: str = ""

    def counted(self, metric: str = "") -> str:
        """How many of the images are right; how many there are where that cannot be said.

        Beside the figure of a `metric` that is another proportion nobody is to take the one for the other.
        """
        if self.correct is None:
            return counted(self.n, "image")
        figure = self.metrics.get(metric)
        if figure is None or abs(figure - self.correct / self.n) < 1e-6:
            return f"{self.correct} of {self.n} {self.right}"
        return f"{counted(self.n, 'image')}, {self.correct} of them {self.right}"

    def text(self, metric: str, figure: float | None = None) -> str:
        """The metric's figure for people, or another one in its unit."""
        shown = self.metrics.get(metric) if figure is None else figure
        return "undefined" if shown is None else in_digits(shown, metric not in self.unbounded)


@dataclass(frozen=True)
class RunnerUp:
    """The best trial but for the one that was chosen, and by how much its validation score, `validation`, is behind.

    `standard_error` is that of the difference, over images that both were scored on. All in the metric's unit.
    """

    trial: int
    validation: float
    behind: float
    standard_error: float

    @property
    def is_within_noise(self) -> bool:
        """Whether chance may have decided between the two: the difference is below two standard errors."""
        return self.behind < 2 * self.standard_error


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    `validation` chose the trial and is therefore optimistic; of a refit it is its twin's. `test` was scored from the
    ONNX file.
    `seconds` holds "total" and one entry a phase. `model` is the path of the ONNX file relative to `run`.
    `budget` is the time budget it has had, `elapsed` the run time at its end, in seconds, over all sittings.
    `test_openings` counts how often the test split was scored: more than once when a finished run was extended, or an
    end of the run failed or was killed behind that.
    `problems` counts the files that were not used. Of `candidates`, pairs of backbone and freeze strategy, `tried` got
    a score. `missed`: classes of which not one test image was recognised, with the number of their test images.
    `finalists`: the checkpoints that were to be exported, best first; the last is `best`, those before it could not
    be. A summary of an older version names none. `weighs_classes`: the metric does, each class alike;
    where it does not and classes are uneven, `suggested_metric` is one of the task that does, by which nothing was
    searched or trained. `goes_on`: with more time more would be tried. `target`, None without one, is the score or loss
    at which the search was to end; `reached`: the best trial has it beyond noise. `runner_up` is the next best trial,
    None where there is none whose outputs were kept.
    """

    run: str
    metric: str
    best: Best
    validation: Scores
    test: Scores | None
    trials: Mapping[str, int]
    seconds: Mapping[str, float]
    model: str
    budget: float
    elapsed: float = 0.0
    test_openings: int = 1
    problems: int = 0
    candidates: int = 0
    tried: int = 0
    missed: Mapping[str, int] = field(default_factory=dict)
    finalists: tuple[Parent, ...] = ()
    weighs_classes: bool = False
    suggested_metric: str = ""
    goes_on: bool = True
    target: float | None = None
    reached: bool = False
    runner_up: RunnerUp | None = None
