"""The form "numbers": a number for each column, in the data's own units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from autoft.parts.base import Task
from autoft.system.markdown import plain
from autoft.tasks.forms.base import (
    AnswerForm,
    Answering,
    Answers,
    Model,
    Rows,
    beside,
    facts,
    figure,
    first_of,
    listed,
    reports,
    split_name,
)
from autoft.tasks.scores import estimates
from autoft.values.bundle import LABELS, METRICS, Calibration, ColumnReport, MetricsReport
from autoft.values.counts import counted
from autoft.values.dataset import SplitName
from autoft.values.handoff import Ending, Output
from autoft.values.prediction import Prediction
from autoft.values.target import Targets

MOST_NAMED: Final = 4


class Numbers(AnswerForm):
    """One number an image, or several."""

    name = "numbers"
    output = "values"
    compared = "values, in deviations of their column,"
    decided = ""
    noun = "column of numbers"
    by_column = True
    meanings: Mapping[str, str] = {
        "mae": "mean absolute error, in the units of the data; smaller is better",
        "rmse": "root of the mean squared error, in the units of the data; smaller is better",
        "r2": "part of the variance that is explained; 0 is what the mean gets",
    }

    def meanings_in(self, metrics: MetricsReport) -> Mapping[str, str]:
        """Of several columns, what their mean is worth."""
        if len(metrics.per_class) < 2:
            return self.meanings
        return {
            "mae": "mean of the columns' mean absolute errors, whatever their units; smaller is better",
            "rmse": "mean of the columns' roots of the mean squared error, whatever their units; smaller is better",
            "r2": "mean of the columns' parts of the variance that is explained; 0 is what the mean gets",
        }

    def counted(self, targets: Targets) -> str:
        """The columns by name."""
        rest = len(targets.names) - MOST_NAMED
        more = f" and {rest} more" if rest > 0 else ""
        return f"numbers ({', '.join(targets.names[:MOST_NAMED])}{more})"

    def ending(self, task: Task, calibration: Calibration) -> Ending:
        """The values."""
        results = (Output("values", "answers", len(task.targets.names)),)
        return Ending(task.tail(calibration), results, facts(task, calibration, ["values"]))

    def units(self, targets: Targets) -> tuple[float, ...]:
        """The deviation of each column over the training images; 1 for one that is the same in all, or not known."""
        return tuple(deviation or 1.0 for deviation in targets.deviation or [1.0] * len(targets.names))

    def decisions(self, answers: Answers, calibration: Calibration) -> NDArray[Any]:
        """None: numbers only differ."""
        return answers[:, :0]

    def clearness(self, answers: Answers, calibration: Calibration) -> Answers:
        """Of nothing."""
        return answers[:, :0]

    def report(self, split: SplitName, outputs: Rows, truth: Rows, answering: Answering) -> MetricsReport:
        """A line a column."""
        values, true = answering.answers(outputs).astype(np.float64), np.asarray(truth, np.float64)
        return MetricsReport(
            split=split,
            n=len(true),
            correct=None,
            metrics=estimates(answering.task.metrics, answering.judged(outputs), truth),
            ece_before_temperature=None,
            calibration=answering.calibration,
            per_class=tuple(
                _column(name, values[:, row], true[:, row]) for row, name in enumerate(answering.task.targets.names)
            ),
            confusion=(),
        )

    def task(self, name: str = "") -> Task:
        """Regression."""
        from autoft.tasks.regression import Regression

        return Regression()

    def judged(self, answers: Answers, model: Model) -> Rows:
        """The values: they are in the data's own units."""
        return answers

    # ---------------------------------------------------------------- the card

    def title(self, targets: Targets) -> str:
        """How many numbers there are."""
        return f"Image regression of {counted(len(targets.names), 'number')}"

    def about(self, targets: Targets) -> str:
        """The columns."""
        return f"It estimates numbers of an image, in the units of its training data: {listed(targets.names)}."

    def usage(self, fed: str) -> str:
        """Print the numbers by name."""
        return f"""values = session.run(["values"], {{"image": {fed}}})[0].ravel()
print(dict(zip(json.loads(pathlib.Path("{LABELS}").read_text("utf-8")), values.tolist())))"""

    def limits(self, targets: Targets) -> Sequence[str]:
        """Every image gets a number."""
        return (
            "It is for images like its training images, whose numbers lie where those of the training images lay.",
            "Every image gets numbers, one with nothing on it to measure too, and none comes with its uncertainty.",
            "Images unlike the training images get wrong numbers, which do not look any different.",
        )

    def formula(self, model: Model) -> str:
        """By how much each output is stretched and moved."""
        columns = zip(model.targets.names, model.targets.deviation, model.targets.mean, strict=True)
        lines = "\n".join(f"- {plain(name)} = output * {deviation!r} + {mean!r}" for name, deviation, mean in columns)
        return f"""standardised numbers, in the order of `{LABELS}`; in the units of the data they are

{lines}"""

    def data(self, targets: Targets, metrics: MetricsReport) -> str:
        """Where the numbers lie: those of the training images, and those of the split that is reported."""
        ends = zip(targets.names, targets.least, targets.greatest, targets.mean, targets.deviation)  # noqa: B905
        training = [(plain(name), *(f"{number:.6g}" for number in numbers)) for name, *numbers in ends]
        rows = [
            (plain(one.column), f"{one.n:,}", f"{one.mean:.6g}", f"{one.deviation:.6g}")
            for one in reports(metrics, ColumnReport)
        ]
        head = ("Column", f"Scored images of the {split_name(metrics.split)} split", "Mean there", "Deviation there")
        reported = first_of(head, rows, self.noun)
        if not training:  # a task of a plugin may not say
            return reported
        ends_head = ("Column", "Least in the training split", "Greatest there", "Mean there", "Deviation there")
        return f"{first_of(ends_head, training, self.noun)}\n\n{reported}"

    def worst(self, metrics: MetricsReport) -> str:
        """Every column, as there are few."""
        rows = [
            (plain(one.column), f"{one.mae:.6g}", f"{one.rmse:.6g}", figure(one.r2), f"{one.deviation:.6g}")
            for one in reports(metrics, ColumnReport)
        ]
        deviation = f"Deviation in the {split_name(metrics.split)} split"
        shown = first_of(("Column", "MAE", "RMSE", "R2", deviation), rows, self.noun)
        return f"Column by column, in its own units; `{METRICS}` has more digits:\n\n{shown}"

    def calibration(self, metrics: MetricsReport) -> str:
        """There is none."""
        return "None: the numbers are as the network gives them, in the units of the data."

    # ---------------------------------------------------------------- one image

    def prediction(self, image: str, answers: Answers, model: Model) -> Prediction:
        """The values by column."""
        return Prediction(image, values=dict(zip(model.targets.names, answers.tolist(), strict=True)))

    def line(self, found: Prediction) -> str:
        """The values by column."""
        return "  ".join(f"{name} {value:.6g}" for name, value in found.values.items())

    def record(self, found: Prediction) -> Mapping[str, object]:
        """The values by column."""
        return {"image": found.image, "values": found.values, "error": found.error}

    def columns(self, targets: Targets) -> Sequence[str]:
        """A column a number."""
        return ("image", *beside(("image", "error"), targets.names), "error")

    def cells(self, found: Prediction, targets: Targets) -> Sequence[object]:
        """The values."""
        return (found.image, *(found.values.get(name) for name in targets.names), found.error)


def _column(name: str, values: NDArray[np.float64], true: NDArray[np.float64]) -> ColumnReport:
    """The line of a column, of values and what they should be, both `(n,)`."""
    errors, spread = values - true, float(((true - true.mean()) ** 2).sum())
    squares = float((errors**2).sum())
    return ColumnReport(
        column=name,
        n=len(true),
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt(squares / len(true))),
        r2=1 - squares / spread if spread else None,
        mean=float(true.mean()),
        deviation=float(true.std()),
    )
