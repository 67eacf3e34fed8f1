"""The built-in tasks and those of examples/ pass what is asked of anyone's; the checks notice tasks that are wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from unittest import SkipTest

import numpy as np
import pytest

import autoft
from autoft import MultiLabel, Ordinal, Regression, SingleLabel
from autoft.testing import TaskConformance

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(stem: str) -> autoft.Task:
    spec = importlib.util.spec_from_file_location(stem, EXAMPLES / f"{stem}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (task,) = module.autoft_tasks()
    return task


class TestSingleLabel(TaskConformance):
    def part(self) -> autoft.Task:
        return SingleLabel()


class TestMultiLabel(TaskConformance):
    def part(self) -> autoft.Task:
        return MultiLabel()


class TestRegression(TaskConformance):
    def part(self) -> autoft.Task:
        return Regression()


class TestRegressionOfSeveralColumns(TaskConformance):
    """In units far apart."""

    def part(self) -> autoft.Task:
        return Regression()

    def columns(self) -> Sequence[str]:
        return ("metres", "grams", "always 3")

    def labels(self) -> Sequence[str]:
        values = np.random.default_rng(0).normal(size=(300, 2)) * (1e-3, 1e5) + (0.5, 2e6)
        return [f"{metres},{grams},3" for metres, grams in values.tolist()]


class TestOrdinal(TaskConformance):
    def part(self) -> autoft.Task:
        return Ordinal()


class TestFocalLoss(TaskConformance):
    def part(self) -> autoft.Task:
        return example("focal_loss")


class TestCounts(TaskConformance):
    def part(self) -> autoft.Task:
        return example("count_regression")


def test_a_count_is_not_below_zero() -> None:
    task = example("count_regression")
    assert task.problem("3") is None
    assert "below 0" in str(task.problem("-3"))
    assert "no number" in str(task.problem("three"))
    assert not task.claims(["1.5", "2"], ["label"])


# ---------------------------------------------------------------- the checks notice what is wrong


class OtherTail(SingleLabel):
    def tail(self, calibration: autoft.Calibration) -> str:
        return "answers = Sigmoid (outputs)"


class NoGraph(SingleLabel):
    def tail(self, calibration: autoft.Calibration) -> str:
        return "answers = Softmax (logits)"


class Backwards(Regression):
    def loss(self, outputs, targets, recipe):
        return -super().loss(outputs, targets, recipe)


class Detached(Regression):
    def loss(self, outputs, targets, recipe):
        return super().loss(outputs.detach(), targets, recipe)


class Jumping(Regression):
    """It falls to one side of where training starts, and is greater everywhere on the other."""

    def loss(self, outputs, targets, recipe):
        return (outputs + 9 * (outputs < 0)).mean()


class Vector(Regression):
    def loss(self, outputs, targets, recipe):
        return (outputs - targets).square().mean(dim=0)


class Sums(SingleLabel):
    def answers(self, outputs, calibration):
        return super().answers(outputs, calibration) / 2


class Doubles(Regression):
    def answers(self, outputs, calibration):
        return self.judged(outputs)


class SmallerIsBetter(Regression):
    metrics = (
        autoft.Metric.of(autoft.MetricFacts("error"), lambda judged, targets: float(np.abs(judged - targets).mean())),
    )


class InPlace(Regression):
    def judged(self, outputs, calibration=None):
        outputs *= 2
        return super().judged(outputs)


class Moody(SingleLabel):
    def strata(self, labels):
        return np.random.default_rng().integers(3, size=len(labels)).tolist()


class Alone(SingleLabel):
    def strata(self, labels):
        return range(len(labels))


class Thresholds(SingleLabel):
    def calibrate(self, outputs, targets):
        return autoft.Calibration(1.0, 9, None, None, "", (0.5,) * 4)


class ThreeNames(Regression):
    def names(self, labels, columns):
        return ("low", "mid", "high")


class OneText(Regression):
    def names(self, labels, columns):
        return columns[0]


class Pair(Regression):
    def closed_form(self, features, targets, check):
        head = super().closed_form(features, targets, check)
        return head.weight, head.bias


class NoHead(Regression):
    def closed_form(self, features, targets, check):
        return None


class Infinite(Regression):
    def with_moments(self, targets, training):
        return autoft.Targets(self.name, "numbers", targets.names, (0.0,), (float("inf"),))


@pytest.mark.parametrize(
    ("part", "check", "said"),
    [
        (OtherTail, "test_the_tail_computes_the_answers", "differ"),
        (NoGraph, "test_the_tail_computes_the_answers", "nothing gives 'logits' before it is used"),
        (Backwards, "test_better_outputs_score_better", "greater is better"),
        (Detached, "test_its_loss_can_be_learned", "no gradient"),
        (Jumping, "test_its_loss_can_be_learned", "the loss goes from"),
        (Vector, "test_its_loss_can_be_learned", r"shape \(1,\); take the mean"),
        (Sums, "test_its_answers_are_of_its_form", "add up to"),
        (Doubles, "test_its_answers_are_of_its_form", "not float32"),
        (SmallerIsBetter, "test_better_outputs_score_better", "greater is better"),
        (InPlace, "test_the_same_gives_the_same", "second time"),
        (Moody, "test_the_same_gives_the_same", "strata"),
        (Alone, "test_strata_group_the_labels", "a group of its own"),
        (Thresholds, "test_its_calibration_is_of_its_form", "thresholds"),
        (ThreeNames, "test_its_labels_can_be_used", r"encode\(\): it gives float32 \(400, 1\)"),
        (OneText, "test_its_labels_can_be_used", r"names\(\): it gives 'label'; give a tuple"),
        (Pair, "test_its_closed_form_is_better", r"closed_form\(\): it gives .*not an autoft.LinearHead"),
        (NoHead, "test_its_closed_form_is_better", "closed_form = Task.closed_form"),
    ],
)
def test_a_wrong_task_is_told_what_is_wrong(part: type[autoft.Task], check: str, said: str) -> None:
    suite = type("Suite", (TaskConformance,), {"part": lambda _: part()})()
    (method,) = [name for name in dir(suite) if name.startswith(check)]
    with pytest.raises(AssertionError, match=said):
        getattr(suite, method)()


def test_targets_that_json_cannot_hold_are_noticed() -> None:
    suite = type("Suite", (TaskConformance,), {"part": lambda _: Infinite()})()
    with pytest.raises(ValueError, match="Targets"):
        suite.test_its_targets_survive_json()


def test_without_a_closed_form_there_is_nothing_to_check() -> None:
    class Without(SingleLabel):
        closed_form = autoft.Task.closed_form

    suite = type("Suite", (TaskConformance,), {"part": lambda _: Without()})()
    with pytest.raises(SkipTest):
        suite.test_its_closed_form_is_better_than_a_constant()
