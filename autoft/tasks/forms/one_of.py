"""The form "one_of": probabilities that add up to 1, of which the greatest is the answer."""

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
    facts,
    figure,
    first_of,
    fitted_on,
    listed,
    reports,
    split_name,
)
from autoft.tasks.forms.class_report import metrics_report
from autoft.tasks.ordinal import Ordinal
from autoft.tasks.single_label import SingleLabel
from autoft.values.bundle import LABELS, METRICS, MODEL, Calibration, ClassReport, MetricsReport
from autoft.values.dataset import SplitName
from autoft.values.handoff import Ending, Output
from autoft.values.prediction import Prediction
from autoft.values.target import Targets

TOP: Final = 5
_LEAST: Final = 1e-12
"""The least probability that a logarithm is taken of."""


class OneOf(AnswerForm):
    """One class an image."""

    name = "one_of"
    output = "probabilities"
    compared = "probabilities"
    decided = "answers"
    noun = "class"
    intervals = (
        "of parts of the images, as accuracy is, Wilson's; of ece a basic (reflected) bootstrap over images; of the\n"
        "others its percentiles, widened for balanced accuracy and macro F1"
    )
    meanings: Mapping[str, str] = {
        "accuracy": "part of the images that is right",
        "balanced_accuracy": "mean recall of the classes",
        "macro_f1": "mean F1 of the classes",
        "log_loss": "natural logarithm; smaller is better",
        "mae": "mean number of classes that an answer is off by; smaller is better",
        "macro_mae": "mean over the classes of the mae of their images; smaller is better",
        "ece": "expected calibration error, over bins of equal mass; smaller is better",
    }

    def images_of(self, targets: Targets, truth: Rows) -> NDArray[np.int64]:
        """How many images each class has."""
        return np.bincount(truth, minlength=len(targets.names))

    def ending(self, task: Task, calibration: Calibration) -> Ending:
        """Probabilities, logits, and the indices of the best classes."""
        classes = len(task.targets.names)
        top = min(TOP, classes)
        results = (
            Output("probabilities", "answers", classes),
            Output("logits", "outputs", task.outputs),
            Output("top_k", "best", top, "int64"),
        )
        return Ending(
            tail=task.tail(calibration),
            further=f"""
                top = Constant <value = int64[1] {{{top}}}> ()
                chances, best = TopK <axis = -1> (answers, top)""",
            results=results,
            facts=facts(task, calibration, [one.name for one in results]),
        )

    def decisions(self, answers: Answers, calibration: Calibration) -> NDArray[np.int64]:
        """The class of each image, `(n, 1)`."""
        classes: NDArray[np.int64] = answers.argmax(axis=1)[:, None]
        return classes

    def clearness(self, answers: Answers, calibration: Calibration) -> Answers:
        """Half of how far the first is above the second, `(n, 1)`: both may move."""
        second, first = np.sort(answers, axis=1)[:, -2:].T
        halves: Answers = ((first - second) / 2)[:, None]
        return halves

    def report(self, split: SplitName, outputs: Rows, truth: Rows, answering: Answering) -> MetricsReport:
        """A line a class, the confusion matrix, and the calibration error with and without temperature."""
        return metrics_report(split, outputs, truth, answering)

    def task(self, name: str = "") -> Task:
        """Ordinal or single-label classification."""
        return Ordinal() if name == Ordinal.name else SingleLabel()

    def judged(self, answers: Answers, model: Model) -> NDArray[np.float32]:
        """Logits whose softmax gives the probabilities again."""
        logits: NDArray[np.float32] = np.log(np.maximum(answers, _LEAST))
        return logits

    # ---------------------------------------------------------------- the card

    def title(self, targets: Targets) -> str:
        """How many classes there are."""
        return f"Image classifier of {len(targets.names)} {'ordered ' * _has_order(targets)}classes"

    def about(self, targets: Targets) -> str:
        """The classes."""
        order = ", which have an order, the lowest first" if _has_order(targets) else ""
        return f"It tells images of these classes apart{order}: {listed(targets.names)}."

    def usage(self, fed: str) -> str:
        """Print the class and its probability."""
        return f"""probabilities = session.run(["probabilities"], {{"image": {fed}}})[0].ravel()
print(json.loads(pathlib.Path("{LABELS}").read_text("utf-8"))[probabilities.argmax()], probabilities.max())"""

    def limits(self, targets: Targets) -> Sequence[str]:
        """Every image gets a class."""
        return (
            f"It is for images like its training images, each of one of its {len(targets.names)} classes.",
            'Every image gets one of these classes; there is no answer "none of these".',
            "Images unlike the training images get wrong answers, often with a high probability.",
        )

    def formula(self, model: Model) -> str:
        """Softmax at the temperature, of an order behind the steps between classes."""
        temperature = model.calibration.temperature
        softmax = f"before the temperature: probabilities = softmax(logits / {temperature!r})."
        return f"""{_of_steps(temperature) if _has_order(model.targets) else softmax}
The temperature is `calibration.temperature` in `{METRICS}`, and `autoft.temperature` in the metadata of `{MODEL}`."""

    def data(self, targets: Targets, metrics: MetricsReport) -> str:
        """How many images there are of each class."""
        rows = [(plain(one.label), f"{one.n:,}") for one in reports(metrics, ClassReport)]
        return first_of(("Class", f"Scored images of the {split_name(metrics.split)} split"), rows, self.noun)

    def worst(self, metrics: MetricsReport) -> str:
        """The classes of the smallest recall."""
        recalls = [(one.recall, one) for one in reports(metrics, ClassReport) if one.recall is not None]
        rows = [
            (plain(one.label), f"{one.n:,}", f"{recall:.4f}", figure(one.precision), figure(one.f1))
            for recall, one in sorted(recalls, key=lambda pair: pair[0])[:WORST]
        ]
        return f"""The classes of the smallest recall; `{METRICS}` has all:

{table(("Class", "Images", "Recall", "Precision", "F1"), rows)}"""

    def calibration(self, metrics: MetricsReport) -> str:
        """The temperature, why it is what it is, and what it does to the calibration error."""
        found, before, after = metrics.calibration, metrics.ece_before_temperature, metrics.metrics.get("ece")
        fitted = f"`{MODEL}` has a temperature of {found.temperature:.4g} before its softmax, {fitted_on(metrics)}."
        if not found.is_fitted:
            fitted = "Nothing was fitted: the probabilities are the network's own, at a temperature of 1."
        figures = {"without the temperature": before, "with it": after} if found.is_fitted else {"": after}
        bins = f", over bins of the confidence, {metrics.ece_bins}" if metrics.ece_bins else ""
        errors = ", ".join(f"{one.value:.4f} {what}".rstrip() for what, one in figures.items() if one)
        return f"""{fitted}
{plain(found.reason)}{_losses(found)}

Expected calibration error on the {split_name(metrics.split)} split{bins}:
{errors or "undefined"}."""

    # ---------------------------------------------------------------- one image

    def prediction(self, image: str, answers: Answers, model: Model) -> Prediction:
        """The likeliest class, and the probabilities of all."""
        probabilities = dict(zip(model.targets.names, answers.tolist(), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        return Prediction(image, label, probabilities[label], probabilities)

    def line(self, found: Prediction) -> str:
        """Probability and class."""
        return f"{found.probability:.4f}  {found.label:<{max(map(len, found.probabilities))}}"

    def record(self, found: Prediction) -> Mapping[str, object]:
        """Label, probability, and the probabilities of all classes."""
        return {
            "image": found.image,
            "label": found.label,
            "probability": found.probability,
            "probabilities": found.probabilities,
            "error": found.error,
        }

    def columns(self, targets: Targets) -> Sequence[str]:
        """The same columns whatever the classes are."""
        return ("image", "label", "probability", "error")

    def cells(self, found: Prediction, targets: Targets) -> Sequence[object]:
        """Class and probability."""
        return (found.image, found.label, found.probability, found.error)


def _has_order(targets: Targets) -> bool:
    return targets.task == Ordinal.name


def _of_steps(temperature: float) -> str:
    """How logits of steps become probabilities of classes, as numpy computes it."""
    return f"""one for each step from a class to the next: logits[:, k] is the
logit of being above class k, counted from 0, of an image that is not below it (CORN). A class has the chance that all
steps below it are taken and the one above it is not; `p` holds these chances, before the temperature:

```python
taken, not_taken = 1 / (1 + numpy.exp(-logits)), 1 / (1 + numpy.exp(logits))
one = numpy.ones((len(logits), 1))
p = numpy.hstack([one, taken.cumprod(axis=1)]) * numpy.hstack([not_taken, one])
cooled = p ** (1 / {temperature!r})  # softmax(log(p) / temperature) is cooled, divided by its sum
probabilities = cooled / cooled.sum(axis=1, keepdims=True)
```
"""


def _losses(found: Calibration) -> str:
    if found.log_loss_before is None or found.log_loss_after is None:
        return ""
    before, after = found.log_loss_before, found.log_loss_after
    return f" Log loss, cross-fitted on those: {before:.4f} without a temperature, {after:.4f} with one."
