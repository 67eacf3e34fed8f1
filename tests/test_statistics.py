"""Scores as people see them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, recall_score

from autoft.parts.metric import Metric
from autoft.tasks.multi_label import METRICS as MULTI_LABEL
from autoft.tasks.scores import estimates, interval, scores
from autoft.tasks.single_label import METRICS, SingleLabel
from autoft.tasks.statistics import log_odds, percentiles, proportion
from autoft.values.target import MetricFacts


def test_a_loss_is_positive_for_people_and_greater_is_better_inside() -> None:
    logits, labels = np.log(np.array([[0.5, 0.5], [0.25, 0.75]])), np.array([0, 1])
    loss = -(np.log(0.5) + np.log(0.75)) / 2
    assert SingleLabel().score("log_loss", logits, labels) == pytest.approx(-loss)
    found = scores(METRICS, SingleLabel().metric("log_loss"), logits, labels)
    assert found.metrics["log_loss"] == pytest.approx(loss)
    low, high = found.ci95
    assert 0 < low <= loss <= high
    assert [metric.name for metric in METRICS if metric.facts.is_loss] == ["log_loss"]


def test_no_loss_at_all_is_plain_zero() -> None:
    log_loss = SingleLabel().metric("log_loss").facts
    assert str(log_loss.shown(0.0)) == str(log_loss.shown(-0.0)) == "0.0"


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of up to 12 classes, of which some may never occur and some may never be predicted."""
    n, classes = draw(st.integers(1, 60)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    occur, predicted = (draw(st.sets(st.integers(0, classes - 1), min_size=1)) for _ in range(2))
    logits = rng.standard_normal((n, classes)).astype(np.float32)
    logits[:, [label for label in range(classes) if label not in predicted]] -= 50
    return logits, rng.choice(sorted(occur), n)


@given(answers())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = data
    predicted, present = logits.argmax(axis=1), sorted(set(labels.tolist()))
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": recall_score(labels, predicted, labels=present, average="macro"),
        "macro_f1": f1_score(labels, predicted, labels=present, average="macro", zero_division=0),
        "log_loss": log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean(),
    }
    found = {metric.name: SingleLabel().score(metric.name, logits, labels) for metric in METRICS}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_answers_that_are_all_right_are_not_certain() -> None:
    """Every resample of them is the same; the interval is as wide as that of a proportion."""
    low, high = percentiles(1.0, np.full(1000, 1.0), 18)
    assert (low, high) == proportion(18, 18)
    assert 0.8 < low < 0.9 < high == 1.0
    assert percentiles(0.0, np.zeros(1000), 18) == (0.0, 0.0)  # a loss


def test_a_metric_of_a_plain_function_has_the_interval_of_one_made_for_resamples() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((90, 3)).astype(np.float32), rng.integers(0, 3, 90)
    own = Metric.of(
        MetricFacts("own"), lambda logits, labels: recall_score(labels, logits.argmax(axis=1), average="macro")
    )
    built_in = SingleLabel().metric("balanced_accuracy")
    assert own.score(logits, labels) == pytest.approx(built_in.score(logits, labels))
    same = {"bootstrap": built_in.bootstrap, "by_class": built_in.by_class}
    assert interval(replace(own, **same), logits, labels) == pytest.approx(interval(built_in, logits, labels))


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_of_a_rare_class_all_right_is_no_certainty(name: str) -> None:
    """Of two images of two every resample is right; the large class's ten say nothing of them."""
    metric, labels = SingleLabel().metric(name), np.repeat([0, 1], [10, 2])
    low, high = interval(metric, np.eye(2)[labels], labels)
    ends = [proportion(size, size)[0] for size in (10, 2)]
    assert low == pytest.approx(1 - np.hypot(*(1 - end for end in np.array(ends))) / 2)
    assert (low < proportion(12, 12)[0] - 0.05, high) == (True, 1.0)
    found = estimates((metric,), np.eye(2)[labels], labels)[name]
    assert found.ci95 == (low, high)


def test_nearly_all_right_leaves_room_for_a_rare_class() -> None:
    """The bootstrap takes 5 of 5 for certain, whatever the 100 are, and held a recall of .8 in 65 of 100 sets."""
    metric, labels = SingleLabel().metric("balanced_accuracy"), np.repeat([0, 1], [100, 5])
    predicted = labels.copy()
    predicted[:3] = 1
    low, _ = interval(metric, np.eye(2)[predicted], labels)
    assert low < (0.97 + 0.8) / 2 < interval(replace(metric, by_class=None), np.eye(2)[predicted], labels)[0]


@pytest.mark.parametrize("name", ["map", "macro_f1"])
def test_a_rare_label_widens_as_a_rare_class_does(name: str) -> None:
    (metric,) = (one for one in MULTI_LABEL if one.name == name)
    marks = np.zeros((30, 2))
    marks[:20, 0] = marks[:2, 1] = 1
    assert interval(metric, marks - 0.5, marks)[0] < proportion(30, 30)[0] - 0.1
    none = np.zeros((30, 2))
    assert interval(metric, none - 0.5, none)[0] == 0.0


@given(answers())
@settings(max_examples=50, deadline=None)
def test_what_a_mean_over_classes_is_made_of_has_its_mean(data: tuple[np.ndarray, np.ndarray]) -> None:
    for name in ("balanced_accuracy", "macro_f1"):
        metric = SingleLabel().metric(name)
        assert metric.by_class is not None
        figures, _ = metric.by_class(*data)
        assert figures.mean() == pytest.approx(metric.score(*data))


def test_the_interval_of_mean_average_precision_covers_what_many_images_have() -> None:
    """Of few images of rare labels it is too high, and resamples are higher still: percentiles cover a third."""

    def drawn(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        often, clear = np.geomspace(0.02, 0.4, 12), np.linspace(1.2, 3.5, 12)
        marks = rng.random((n, 12)) < often
        return rng.standard_normal((n, 12)) + clear * marks, marks

    precision, truth = MULTI_LABEL[0], MULTI_LABEL[0].score(*drawn(1000, 50_000))
    covered = [low <= truth <= high for low, high in (interval(precision, *drawn(seed, 60)) for seed in range(40))]
    assert sum(covered) >= 32


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1), st.integers(1, 1000))
def test_an_interval_in_log_odds_holds_the_figure_and_keeps_to_0_and_1(
    value: float, drawn: list[float], n: int
) -> None:
    low, high = log_odds(value, np.array(drawn), n)
    assert 0 <= low <= value <= high <= 1
