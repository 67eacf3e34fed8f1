"""The form "any_of": a probability for each label, and a threshold of its own from which the label is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoft.parts.base import Task
from autoft.system.markdown import plain, table
from autoft.tasks.forms.base import (
    WORST,
    AnswerForm,
    Answering,
    Answers,
    Model,
    Rows,
    beside,
    facts,
    figure,
    first_of,
    fitted_on,
    listed,
    reports,
    split_name,
)
from autoft.tasks.scores import estimates
from autoft.tasks.single_label import SEPARATOR
from autoft.values.bundle import DEFAULT_THRESHOLD, LABELS, METRICS, MODEL, Calibration, LabelReport, MetricsReport
from autoft.values.dataset import SplitName
from autoft.values.handoff import Ending, Output
from autoft.values.prediction import Prediction
from autoft.values.target import Targets

_LEAST: Final = 1e-7
"""The least distance of a probability from 0 and 1 that a logit is taken at."""


class AnyOf(AnswerForm):
    """Any of the labels an image, or none."""

    name = "any_of"
    output = "probabilities"
    compared = "probabilities"
    decided = "labels"
    noun = "label"
    intervals = (
        "of parts of the images, as subset accuracy is, Wilson's; of the others percentiles of a bootstrap over\n"
        "images, widened for mean average precision and macro F1"
    )
    right = "with every label right"
    meanings: Mapping[str, str] = {
        "subset_accuracy": "part of the images of which every label is right",
        "macro_f1": "mean F1 of the labels",
        "micro_f1": "F1 of all labels of all images together",
        "map": "mean average precision of the labels, whatever the thresholds",
    }

    def images_of(self, targets: Targets, truth: Rows) -> NDArray[np.int64]:
        """How many images have each label."""
        found: NDArray[np.int64] = np.count_nonzero(truth > 0, axis=0)
        return found

    def ending(self, task: Task, calibration: Calibration) -> Ending:
        """Probabilities, logits, and which labels are there."""
        labels = len(task.targets.names)
        numbers = ", ".join(map(repr, thresholds(calibration, labels).tolist()))
        results = (
            Output("probabilities", "answers", labels),
            Output("logits", "outputs", task.outputs),
            Output("present", "there", labels, "int64"),
        )
        return Ending(
            tail=task.tail(calibration),
            further=f"""
                thresholds = Constant <value = float[{labels}] {{{numbers}}}> ()
                reached = GreaterOrEqual (answers, thresholds)
                there = Cast <to = 7> (reached)""",
            results=results,
            facts=facts(task, calibration, [one.name for one in results]),
        )

    def decisions(self, answers: Answers, calibration: Calibration) -> NDArray[np.bool_]:
        """Which labels are there, `(n, labels)`."""
        there: NDArray[np.bool_] = answers >= thresholds(calibration, answers.shape[1])
        return there

    def clearness(self, answers: Answers, calibration: Calibration) -> Answers:
        """How far each probability is from its threshold, `(n, labels)`."""
        distances: Answers = np.abs(answers - thresholds(calibration, answers.shape[1]))
        return distances

    def report(self, split: SplitName, outputs: Rows, truth: Rows, answering: Answering) -> MetricsReport:
        """A line a label, at its threshold."""
        answers, true = answering.answers(outputs), truth > DEFAULT_THRESHOLD
        found = self.decisions(answers, answering.calibration)
        limits = thresholds(answering.calibration, answers.shape[1]).tolist()
        return MetricsReport(
            split=split,
            n=len(truth),
            correct=int((found == true).all(axis=1).sum()),
            metrics=estimates(answering.task.metrics, answering.judged(outputs), truth),
            ece_before_temperature=None,
            calibration=answering.calibration,
            per_class=tuple(
                _label(name, true[:, row], found[:, row], answers[:, row], limit)
                for row, (name, limit) in enumerate(zip(answering.task.targets.names, limits, strict=True))
            ),
            confusion=(),
        )

    def task(self, name: str = "") -> Task:
        """Multi-label classification."""
        from autoft.tasks.multi_label import MultiLabel

        return MultiLabel()

    def judged(self, answers: Answers, model: Model) -> Rows:
        """What the built-in task judges of logits whose sigmoid gives the probabilities again, at the thresholds."""
        from scipy.special import logit

        logits = logit(np.clip(answers.astype(np.float64), _LEAST, 1 - _LEAST))
        limits = tuple(thresholds(model.calibration, answers.shape[1]).tolist())
        fitted = Calibration(1.0, model.calibration.n, None, None, model.calibration.reason, limits)
        return self.task().on(model.targets).judged(logits, fitted)

    # ---------------------------------------------------------------- the card

    def title(self, targets: Targets) -> str:
        """How many labels there are."""
        return f"Multi-label image classifier of {self.counted(targets)}"

    def about(self, targets: Targets) -> str:
        """The labels."""
        return f"It says which of these labels an image has, any number of them: {listed(targets.names)}."

    def usage(self, fed: str) -> str:
        """Print the labels that are there, each with its probability."""
        return f"""outputs = session.run(["probabilities", "present"], {{"image": {fed}}})
names = json.loads(pathlib.Path("{LABELS}").read_text("utf-8"))
print({{name: float(chance) for name, chance, there in zip(names, *map(numpy.ravel, outputs)) if there}})"""

    def limits(self, targets: Targets) -> Sequence[str]:
        """What is no label is not seen."""
        return (
            f"It is for images like its training images, each with any of its {self.counted(targets)} or none.",
            "What else is on an image is not told, and a label that was often forgotten in the data is often missed.",
            "Each label is judged for itself, by its threshold; the probability of another label says nothing of it.",
            "Images unlike the training images get wrong answers, often with a high probability.",
        )

    def formula(self, model: Model) -> str:
        """Sigmoid at the temperature."""
        temperature = model.calibration.temperature
        scaled = "logits" if temperature == 1 else f"logits / {temperature!r}"
        return f"""of which probabilities = 1 / (1 + exp(-{scaled})), label by label.
A label is there from its threshold on: `calibration.thresholds` in `{METRICS}`, in the order of `{LABELS}`, and in
`autoft.calibration` in the metadata of `{MODEL}`."""

    def data(self, targets: Targets, metrics: MetricsReport) -> str:
        """How many images there are with each label."""
        rows = [(plain(one.label), f"{one.n:,}") for one in reports(metrics, LabelReport)]
        return first_of(("Label", f"Scored images of the {split_name(metrics.split)} split"), rows, self.noun)

    def worst(self, metrics: MetricsReport) -> str:
        """The labels of the smallest F1."""
        judged = [(one.f1, one) for one in reports(metrics, LabelReport) if one.f1 is not None]
        rows = [
            (
                plain(one.label),
                f"{one.n:,}",
                f"{f1:.4f}",
                figure(one.precision),
                figure(one.recall),
                figure(one.average_precision),
                f"{one.threshold:.3f}",
            )
            for f1, one in sorted(judged, key=lambda pair: pair[0])[:WORST]
        ]
        return f"""The labels of the smallest F1; `{METRICS}` has all:

{table(("Label", "Images", "F1", "Precision", "Recall", "Average precision", "Threshold"), rows)}"""

    def calibration(self, metrics: MetricsReport) -> str:
        """The thresholds, and why they are what they are."""
        found = metrics.calibration
        limits = thresholds(found, len(metrics.per_class))
        lowest, highest = limits.min(), limits.max()
        same = f"the same of all labels: {lowest:.3g}"
        own = f"the label's own: {lowest:.3g} to {highest:.3g}"
        whence = f"What is no default was {fitted_on(metrics)}." if found.is_fitted else "Nothing was fitted."
        return f"""`{MODEL}` divides logits by a temperature of {found.temperature:.4g}, and says that a label is there
from a probability on that is {own if lowest < highest else same}. {whence}
{plain(found.reason)}"""

    # ---------------------------------------------------------------- one image

    def prediction(self, image: str, answers: Answers, model: Model) -> Prediction:
        """The labels that are there, and the probabilities of all."""
        names, (there,) = model.targets.names, self.decisions(answers[None], model.calibration)
        labels = tuple(name for name, found in zip(names, there.tolist(), strict=True) if found)
        return Prediction(image, probabilities=dict(zip(names, answers.tolist(), strict=True)), labels=labels)

    def line(self, found: Prediction) -> str:
        """The labels with their probabilities, the surest first."""
        labels = sorted(found.labels, key=lambda label: -found.probabilities[label])
        return ", ".join(f"{label} {found.probabilities[label]:.4f}" for label in labels) or "no label"

    def record(self, found: Prediction) -> Mapping[str, object]:
        """The labels that are there, and the probabilities of all."""
        return {
            "image": found.image,
            "labels": found.labels,
            "probabilities": found.probabilities,
            "error": found.error,
        }

    def columns(self, targets: Targets) -> Sequence[str]:
        """The labels in one cell, and a column for the probability of each."""
        return ("image", "labels", *beside(("image", "labels", "error"), targets.names), "error")

    def cells(self, found: Prediction, targets: Targets) -> Sequence[object]:
        """The labels that are there, separated, and all probabilities."""
        chances = [found.probabilities.get(name) for name in targets.names]
        return (found.image, SEPARATOR.join(found.labels), *chances, found.error)


def thresholds(calibration: Calibration, labels: int) -> Answers:
    """The probability from which each label is there, `(labels,)`."""
    return np.array(calibration.thresholds or [DEFAULT_THRESHOLD] * labels, np.float32)


def _label(
    name: str, true: NDArray[np.bool_], found: NDArray[np.bool_], chances: Answers, threshold: float
) -> LabelReport:
    """The line of a label, of what holds, what was found and the probabilities, each `(n,)`."""
    from sklearn.metrics import average_precision_score

    hits, wholes = int((true & found).sum()), (int(found.sum()), int(true.sum()))
    precision, recall = (hits / whole if whole else None for whole in wholes)
    return LabelReport(
        label=name,
        n=wholes[1],
        precision=precision,
        recall=recall,
        f1=2 * hits / sum(wholes) if sum(wholes) else None,
        average_precision=float(average_precision_score(true, chances)) if wholes[1] else None,
        threshold=threshold,
    )
