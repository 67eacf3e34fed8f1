"""`AnswerForm`: all that follows of the form of a model's answers alone, whatever the task that trained it.

The forms are a closed set, as bundles are read where no plugin is installed. A task says which one it is of; it brings
the arithmetic itself (`answers`, and `tail`, the same as ONNX text).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoft.parts.base import UNCALIBRATED, Task
from autoft.parts.contract import targets_problem
from autoft.system.markdown import plain, table
from autoft.tasks.scores import scores
from autoft.values.bundle import (
    CORE,
    METRICS,
    MODEL,
    Calibration,
    ClassReport,
    ColumnReport,
    Estimate,
    LabelReport,
    MetricsReport,
)
from autoft.values.counts import counted, plural
from autoft.values.dataset import SplitName
from autoft.values.handoff import Ending
from autoft.values.prediction import Prediction
from autoft.values.summary import Scores
from autoft.values.target import Form, MetricFacts, Targets

Report = TypeVar("Report", ClassReport, LabelReport, ColumnReport)

Rows = NDArray[Any]
"""Outputs of a network or encoded targets, a row an image."""

Answers = NDArray[np.float32]
"""What a model answers, `(n, names)`: probabilities, or numbers in the data's own units."""

MOST_NAMES: Final = 30
"""So many names are listed in a card."""

WORST: Final = 5
"""So many names that the model does worst on are listed."""

_SPLITS: Final[Mapping[str, str]] = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Model:
    """What a deployed model is about, as its own metadata says; `metric` is what it was chosen by, "" if not told."""

    targets: Targets
    calibration: Calibration
    metric: str = ""


class AnswerForm(ABC):
    """What is written into the model, compared at the gate, reported, told in the card and shown of such answers."""

    name: Form
    output: str
    """The output of model.onnx that holds the answers."""
    compared: str
    """What is compared where answers are, in prose."""
    decided: str
    """What is decided by them, in prose; "": nothing."""
    noun: str
    """What a name is."""
    right: str = "right"
    """What an image is that counts as correct."""
    by_column: bool = False
    """Whether a manifest has a column for each name, called so."""

    def counted(self, targets: Targets) -> str:
        """What is predicted, in a few words."""
        return counted(len(targets.names), self.noun)

    def images_of(self, targets: Targets, truth: Rows) -> NDArray[np.int64]:
        """How many images have each name, `(names,)`, of encoded targets `(n, ...)`; a column of numbers all."""
        return np.full(len(targets.names), len(truth))

    # ---------------------------------------------------------------- the file

    @abstractmethod
    def ending(self, task: Task, calibration: Calibration) -> Ending:
        """What follows the network in model.onnx: the task's tail, and what else there is to say of its answers."""

    # ---------------------------------------------------------------- what agrees

    def units(self, targets: Targets) -> tuple[float, ...]:
        """Of each answer what a tolerance of 1 stands for; empty: 1."""
        return ()

    @abstractmethod
    def decisions(self, answers: Answers, calibration: Calibration) -> NDArray[Any]:
        """What is decided by answers `(n, names)` in units: `(n, decisions)`."""

    @abstractmethod
    def clearness(self, answers: Answers, calibration: Calibration) -> Answers:
        """How much every answer may change, in units, without that a decision does: `(n, decisions)`."""

    # ---------------------------------------------------------------- figures

    @abstractmethod
    def report(self, split: SplitName, outputs: Rows, truth: Rows, answering: Answering) -> MetricsReport:
        """What metrics.json holds, of outputs `(n, outputs)` and encoded targets `(n, ...)` of a split."""

    @abstractmethod
    def task(self, name: str = "") -> Task:
        """The built-in task of that name, else the plain one of this form.

        Its labels and metrics hold where a bundle is read: what trained it may be a plugin's, and not installed there.
        """

    @abstractmethod
    def judged(self, answers: Answers, model: Model) -> Rows:
        """What the metrics of the built-in task judge, `(n, names)`, of a file's answers."""

    def problem(self, label: str, targets: Targets) -> str | None:
        """Why a label, as a person writes it, is none that the model can be scored by; None when it is one."""
        task = self.task(targets.task).on(targets)
        found = task.problem(label) or _unknown(task, label)
        return None if found is None else f"{found}{self.of_plugin(targets)}"

    def of_plugin(self, targets: Targets) -> str:
        """What to add to why data cannot be scored, where the task that read it in training is not at hand; else ""."""
        if targets.task == self.task(targets.task).name:
            return ""
        return f"; it was made by task {targets.task!r} of a plugin, and cannot be scored from this data here"

    def scores(self, answers: Answers, labels: Sequence[str], model: Model) -> Scores:
        """The figures of the built-in task, of a file's answers `(n, names)` for labels as a person writes them.

        The primary one is the metric that the model was chosen by, or the task's first where that is a plugin's.
        """
        task = self.task(model.targets.task).on(model.targets)
        primary = next((one for one in task.metrics if one.name == model.metric), task.metrics[0])
        found = scores(task.metrics, primary, self.judged(answers, model), task.encode(labels))
        return replace(found, right=self.right)

    # ---------------------------------------------------------------- the card

    @abstractmethod
    def title(self, targets: Targets) -> str:
        """The headline."""

    @abstractmethod
    def about(self, targets: Targets) -> str:
        """What the model says of an image, with the names."""

    @abstractmethod
    def usage(self, fed: str) -> str:
        """The last lines of the snippet: from a `session` and `fed`, pixels as an expression, to something printed."""

    @abstractmethod
    def limits(self, targets: Targets) -> Sequence[str]:
        """What such an answer does not say."""

    @abstractmethod
    def formula(self, model: Model) -> str:
        """What the core gives, and how the built-in task makes the answers of it; goes on a sentence."""

    def from_core(self, model: Model) -> str:
        """What the core gives, and how the answers are made of it; of other tasks the file alone knows."""
        if model.targets.task == self.task(model.targets.task).name:
            return self.formula(model)
        return f"of which task {plain(model.targets.task)} makes the answers; its arithmetic is in `{MODEL}`."

    @abstractmethod
    def data(self, targets: Targets, metrics: MetricsReport) -> str:
        """What there is of each name in the split that is reported: a table."""

    @abstractmethod
    def worst(self, metrics: MetricsReport) -> str:
        """The names that the model does worst on: what stands below the table of the metrics."""

    @abstractmethod
    def calibration(self, metrics: MetricsReport) -> str:
        """What was fitted on the validation images after the training."""

    intervals: str = "percentiles of a bootstrap over images"
    """How those of the metrics come about, in prose."""

    meanings: Mapping[str, str] = {}
    """Of metrics by name, what they are."""

    def meanings_in(self, metrics: MetricsReport) -> Mapping[str, str]:
        """Of metrics by name, what they are in this report."""
        return self.meanings

    def score(self, metrics: MetricsReport, shown: Callable[[str], MetricFacts]) -> str:
        """Every metric with its interval, and where the model is worst; `shown` says of a metric by name how it is."""
        meanings = self.meanings_in(metrics)
        rows = [(plain(name), *_row(one, shown(name), meanings)) for name, one in metrics.metrics.items()]
        note = f" {plain(metrics.note)}" if metrics.note else ""
        whose = f"`{CORE}`" if metrics.of_trial is None else f"Trial {metrics.of_trial}, whose refit this model is,"
        right = "" if metrics.correct is None else f", and got {metrics.correct:,} {self.right}"
        return f"""## Score

{whose} was scored on {counted(metrics.n, "image")} of the {split_name(metrics.split)} split{right}.{note}
{self._missed(metrics)}{table(("Metric", "Value", "95 % interval", ""), rows)}

Intervals: {self.intervals}.

{self.worst(metrics)}"""

    def _missed(self, metrics: MetricsReport) -> str:
        """A warning of names that were never found, between blank lines."""
        shown = ", ".join(f"{plain(name)} ({n:,})" for name, n in list(metrics.missed.items())[:WORST])
        rest = ", and more" if len(metrics.missed) > WORST else ""
        these = f"this {self.noun}" if len(metrics.missed) == 1 else f"these {plural(self.noun)}"
        warning = f"**Not one image of {these} was recognised:** {shown}{rest}."
        return f"\n{warning}\n\n" if shown else "\n"

    # ---------------------------------------------------------------- one image

    @abstractmethod
    def prediction(self, image: str, answers: Answers, model: Model) -> Prediction:
        """What is said of an image, from its answers `(names,)`."""

    @abstractmethod
    def line(self, found: Prediction) -> str:
        """The prediction for people, on one line, in front of the image's name."""

    @abstractmethod
    def record(self, found: Prediction) -> Mapping[str, object]:
        """The prediction as JSON."""

    @abstractmethod
    def columns(self, targets: Targets) -> Sequence[str]:
        """The header of predictions as CSV, each column of another name."""

    @abstractmethod
    def cells(self, found: Prediction, targets: Targets) -> Sequence[object]:
        """One row under that header."""


@dataclass(frozen=True, eq=False)
class Answering:
    """How a network's outputs `(n, outputs)` become answers: a task bound to its targets, and what was calibrated."""

    task: Task
    form: AnswerForm
    calibration: Calibration = UNCALIBRATED

    @property
    def model(self) -> Model:
        """What the file says of itself."""
        return Model(self.task.targets, self.calibration)

    def answers(self, outputs: Rows) -> Answers:
        """What a deployed model answers, `(n, names)`."""
        return self.task.answers(outputs, self.calibration)

    def judged(self, outputs: Rows) -> Rows:
        """What metrics judge, `(n, ...)`."""
        return self.task.judged(outputs, self.calibration)

    def in_units(self, answers: Answers) -> Answers:
        """Answers `(n, names)` in the unit that tolerances are in."""
        units = self.form.units(self.task.targets)
        scale: Answers = np.array(units or 1.0, np.float32)
        return answers / scale

    def flips(self, found: Answers, expected: Answers, limit: float) -> int:
        """How many decisions are other ones, although no difference within `limit` would have changed them.

        Both are answers `(n, names)` in units.
        """
        with np.errstate(invalid="ignore"):  # what is NaN is not clear
            clear = self.form.clearness(expected, self.calibration) > limit
        other = self.form.decisions(found, self.calibration) != self.form.decisions(expected, self.calibration)
        return int((clear & other).sum())

    def ending(self) -> Ending:
        """What follows the network in model.onnx."""
        return self.form.ending(self.task, self.calibration)


# ---------------------------------------------------------------- shared by the forms


def _unknown(task: Task, label: str) -> str | None:
    """Why a label, which is one of the task, is none of its targets."""
    try:
        encoded = task.encode([label])
    except KeyError as unknown:
        return f"{unknown.args[0]!r} is no label of the model"
    if targets_problem(task, encoded, [label]):
        names = task.targets.names
        return f"{label!r} holds {encoded.shape[-1]} and not {len(names)}: {', '.join(names[:MOST_NAMES])}"
    return None


def facts(task: Task, calibration: Calibration, outputs: Sequence[str]) -> dict[str, object]:
    """What model.onnx says of its ending in its metadata."""
    return {
        "temperature": calibration.temperature,
        "calibration": asdict(calibration),
        "outputs": list(outputs),
        "targets": asdict(task.targets),
    }


def _row(figure: Estimate, metric: MetricFacts, meanings: Mapping[str, str]) -> tuple[str, str, str]:
    """A figure, its interval and what it means."""
    meaning = meanings.get(metric.name, "smaller is better" if metric.is_loss else "")
    return metric.text(figure.value), " to ".join(map(metric.text, figure.ci95)), meaning


def beside(own: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names as columns beside those called `own`: one called like these gets underscores at its end."""
    columns: list[str] = []
    for name in names:
        column = name
        while name in own and column in {*own, *names, *columns}:
            column += "_"
        columns.append(column)
    return columns


def split_name(split: str) -> str:
    """What a split is called in prose."""
    return _SPLITS.get(split, plain(split))


def listed(names: Sequence[str]) -> str:
    """The names in Markdown, the first of them if there are many."""
    return f"{', '.join(map(plain, names[:MOST_NAMES]))}{more(len(names))}"


def more(names: int) -> str:
    """How many names are not listed."""
    return f" and {names - MOST_NAMES} more" if names > MOST_NAMES else ""


def first_of(head: Sequence[str], rows: Sequence[Sequence[str]], noun: str) -> str:
    """A table of the first rows, and where the others are."""
    cut = len(rows) - MOST_NAMES
    hidden = f"\n\n... and {counted(cut, f'more {noun}')}; `{METRICS}` has all." if cut > 0 else ""
    return table(head, rows[:MOST_NAMES]) + hidden


def reports(metrics: MetricsReport, kind: type[Report]) -> list[Report]:
    """The lines of that kind: what a form writes of its labels, classes or columns."""
    return [one for one in metrics.per_class if isinstance(one, kind)]


def fitted_on(metrics: MetricsReport) -> str:
    """On which images temperature and thresholds were fitted, and of a refit on whose outputs."""
    origin = metrics.origin
    of_twin = origin is not None and origin.of_trial != origin.trial
    whose = f"what trial {origin.of_trial} made of " if origin and of_twin else ""
    return f"fitted on {whose}{counted(metrics.calibration.n, 'validation image')}"


def figure(value: float | None) -> str:
    """To four digits."""
    return "undefined" if value is None else f"{value:.4f}"
