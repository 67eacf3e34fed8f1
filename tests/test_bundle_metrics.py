from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

from autoft.parts.metric import Metric
from autoft.tasks.calibration import fit_temperature
from autoft.tasks.forms.class_report import BINS, MAX_CONFUSION_CLASSES, metrics_report
from autoft.tasks.forms.table import answering
from autoft.tasks.scores import scores
from autoft.tasks.single_label import SingleLabel
from autoft.tasks.statistics import proportion
from autoft.values.bundle import Calibration, Estimate, MetricsReport
from autoft.values.codec import decode, encode
from autoft.values.target import MetricFacts, Targets

METRICS = ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
DEFINED_IN = {"log_loss": (0.0, float("inf"))}

Outputs = tuple[np.ndarray, np.ndarray]


def at(temperature: float) -> Calibration:
    return Calibration(temperature, 500, 0.5, 0.4, "For a test.")


def report(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> MetricsReport:
    names = [f"class {index}" for index in range(logits.shape[1])]
    return metrics_report("test", logits.astype(np.float32), labels, answering(task_of(names), at(temperature)))


def task_of(names: Sequence[str]) -> SingleLabel:
    return SingleLabel().on(Targets("single_label", "one_of", tuple(names)))


def made(n: int, classes: int, seed: int, lift: float = 2.0) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += lift
    return logits.astype(np.float32), labels


def slow_ece(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    confidences, hits = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for rows in np.array_split(np.argsort(confidences), min(BINS, len(labels))):
        total += len(rows) / len(labels) * abs(hits[rows].mean() - confidences[rows].mean())
    return total


def confident(probability: float, n: int, right: int) -> Outputs:
    """Of two classes, always class 0 with `probability`, which is right `right` times."""
    logits = np.tile(np.log([probability, 1 - probability]), (n, 1))
    return logits, (np.arange(n) >= right).astype(np.int64)


@st.composite
def outputs(draw: st.DrawFn) -> Outputs:
    n, classes = draw(st.integers(1, 80)), draw(st.integers(1, 12))
    logits, labels = made(n, classes, draw(st.integers(0, 2**32 - 1)), draw(st.floats(-2, 5)))
    return logits * np.float32(draw(st.sampled_from([1e-3, 1, 5, 100]))), labels


@given(outputs(), st.floats(0.05, 20))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_scikit_learn(data: Outputs, temperature: float) -> None:
    logits, labels = data
    found = {name: estimate.value for name, estimate in report(logits, labels, temperature).metrics.items()}
    predicted, present = logits.argmax(axis=1), sorted(set(labels.tolist()))
    scaled = logits.astype(np.float64) / temperature
    # Of equal confidences, as where they saturate, either may be in a bin, which changes the error.
    assume(len(np.unique(softmax(scaled, axis=1).max(axis=1))) == len(labels))
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "balanced_accuracy": recall_score(labels, predicted, labels=present, average="macro"),
            "macro_f1": f1_score(labels, predicted, labels=present, average="macro", zero_division=0),
            "log_loss": -log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean(),
            "ece": slow_ece(logits, labels, temperature),
        }
    )


def test_the_log_loss_is_that_of_scikit_learn() -> None:
    logits, labels = made(300, 7, seed=1)
    expected = log_loss(labels, softmax(logits.astype(np.float64) / 1.5, axis=1), labels=range(7))
    assert report(logits, labels, 1.5).metrics["log_loss"].value == pytest.approx(expected)


@given(outputs(), st.floats(0.05, 20))
@settings(max_examples=60, deadline=None)
def test_a_report_is_whole_and_survives_json(data: Outputs, temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = report(*data, temperature)
    assert list(found.metrics) == METRICS
    assert decode(MetricsReport, encode(found)) == found
    for name, estimate in (*found.metrics.items(), ("ece", found.ece_before_temperature)):
        low, high = DEFINED_IN.get(name, (0.0, 1.0))
        assert low <= estimate.ci95[0] <= estimate.value <= estimate.ci95[1] <= high + 1e-12


@given(outputs())
@settings(max_examples=60, deadline=None)
def test_the_confusion_matrix_adds_up(data: Outputs) -> None:
    logits, labels = data
    found = report(logits, labels)
    predicted = logits.argmax(axis=1)
    cells = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    every = range(logits.shape[1])
    assert found.confusion == tuple(tuple(cells[i, j] for j in every) for i in every)
    assert np.sum(found.confusion) == found.n == len(labels)
    assert np.trace(found.confusion) == found.correct == (predicted == labels).sum()
    assert [one.n for one in found.per_class] == np.sum(found.confusion, axis=1).tolist()
    assert sum(one.n * (one.recall or 0.0) for one in found.per_class) == pytest.approx(found.correct)


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
def test_an_interval_is_the_one_in_the_summary(metric: str) -> None:
    """With so many images that resamples are drawn in more than one go."""
    logits, labels = made(700, 3, seed=1)
    assert report(logits, labels).metrics[metric].ci95 == pytest.approx(
        scores(SingleLabel.metrics, SingleLabel().metric(metric), logits, labels).ci95
    )


def test_intervals_widen_with_fewer_images() -> None:
    def widths(n: int) -> np.ndarray:
        found = report(*made(n, 4, seed=5), temperature=3.0)
        return np.array([estimate.ci95[1] - estimate.ci95[0] for estimate in found.metrics.values()])

    few, more, many = widths(60), widths(600), widths(6000)
    assert (few > more).all()
    assert (more > many).all()


def test_the_same_outputs_have_the_same_report() -> None:
    assert report(*made(50, 3, seed=1)) == report(*made(50, 3, seed=1))


def test_the_calibration_error_of_certain_and_right_answers_is_zero() -> None:
    labels = np.arange(60) % 3
    found = report(1000 * np.eye(3)[labels], labels)
    assert found.metrics["ece"] == Estimate(0.0, (0.0, 0.0))
    assert found.ece_bins == f"{BINS} of equal mass"
    assert report(1000 * np.eye(3)[labels[:9]], labels[:9]).ece_bins == "9 of equal mass"
    assert found.metrics["log_loss"] == Estimate(0.0, (0.0, 0.0))


def test_the_calibration_error_of_confidences_that_come_true_is_zero() -> None:
    """As many confidences as bins, each of 40 images, of which as many are right as it says."""
    bins = [confident(right / 40, 40, right) for right in range(21, 21 + BINS)]
    logits, labels = (np.concatenate(parts) for parts in zip(*bins, strict=True))
    found = report(logits, labels).metrics["ece"]
    assert found.value == pytest.approx(0, abs=1e-6)
    assert found.ci95[0] == 0


def test_the_calibration_error_of_certain_and_wrong_answers_is_one() -> None:
    logits, labels = confident(1 - 1e-16, 50, right=0)
    assert report(logits, labels).metrics["ece"].value == pytest.approx(1)


def test_equal_confidences_are_not_binned_in_the_order_of_the_images() -> None:
    """One answer to everything, half of it right, first the right half: in order, every bin would be off by a half."""
    assert report(*confident(0.500001, 4000, right=2000)).metrics["ece"].value < 0.05


def test_the_interval_of_the_calibration_error_of_a_calibrated_model_comes_near_zero() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(2000, 5))
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((2000, 1))).argmax(axis=1)
    found = report(logits, labels).metrics["ece"]
    assert found.ci95[0] < found.value / 2


def test_a_temperature_lowers_the_calibration_error_of_overconfident_logits() -> None:
    logits, labels = made(1500, 5, seed=3)
    logits *= 4
    found = metrics_report("val", logits, labels, answering(task_of("abcde"), fit_temperature(logits, labels)))
    assert found.calibration.temperature > 1.5
    assert found.metrics["ece"].ci95[1] < found.ece_before_temperature.ci95[0]
    assert found.ece_before_temperature == report(logits, labels).metrics["ece"]


def test_a_temperature_leaves_answers_alone() -> None:
    cold, hot = report(*made(80, 4, seed=1), temperature=0.2), report(*made(80, 4, seed=1), temperature=9)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert cold.metrics[name] == hot.metrics[name]
    assert (cold.confusion, cold.per_class) == (hot.confusion, hot.per_class)


def test_figures_of_a_class_are_none_where_they_are_nothing_of_nothing() -> None:
    logits = 5 * np.eye(4)[[0, 0, 1, 3]]
    right, missed, never, absent = report(logits, np.array([0, 1, 1, 0])).per_class
    assert (right.n, right.precision, right.recall, right.f1) == (2, 0.5, 0.5, 0.5)
    assert (missed.label, missed.n, missed.precision, missed.recall) == ("class 1", 2, 1.0, 0.5)
    assert (never.n, never.precision, never.recall, never.f1) == (0, None, None, None)
    assert (absent.n, absent.precision, absent.recall, absent.f1) == (0, 0.0, None, 0.0)


@given(outputs())
@settings(max_examples=30, deadline=None)
def test_figures_of_classes_are_those_of_scikit_learn(data: Outputs) -> None:
    logits, labels = data
    every, predicted = range(logits.shape[1]), logits.argmax(axis=1)
    found = report(logits, labels).per_class
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = score(labels, predicted, labels=every, average=None, zero_division=np.nan)
        assert [np.nan if (x := getattr(one, name)) is None else x for one in found] == pytest.approx(
            expected, nan_ok=True
        )


def test_very_many_classes_have_no_confusion_matrix_and_the_note_says_so() -> None:
    classes = MAX_CONFUSION_CLASSES + 1
    found = report(*made(30, classes, seed=1, lift=9))
    assert found.confusion == ()
    assert found.note == f"The confusion matrix of {classes} classes is left out."
    assert len(found.per_class) == classes
    assert found.correct > 0
    assert report(*made(30, 3, seed=1)).note == ""


def test_a_metric_without_a_figure_for_these_images_is_left_out() -> None:
    nothing = Metric.of(MetricFacts("nothing"), lambda judged, targets: float("nan"))
    task = task_of("abc")
    task.metrics = (*SingleLabel.metrics, nothing)
    logits, labels = made(40, 3, seed=1)
    found = metrics_report("test", logits, labels, answering(task, at(1.0)))
    assert list(found.metrics) == METRICS
    of_summary = scores(task.metrics, task.metric("accuracy"), logits, labels)
    assert set(of_summary.metrics) == {metric.name for metric in SingleLabel.metrics}
    assert decode(MetricsReport, encode(found)) == found


def test_one_image_is_enough_and_none_is_refused() -> None:
    assert report(np.array([[0.0, 1.0]]), np.array([1])).metrics["balanced_accuracy"] == Estimate(1.0, proportion(1, 1))
    with pytest.raises(ValueError):
        report(np.zeros((0, 2)), np.zeros(0, np.int64))


def test_other_names_than_classes_are_refused() -> None:
    with pytest.raises(ValueError):
        metrics_report("test", *made(30, 3, seed=1), answering(task_of("ab"), at(1.0)))
