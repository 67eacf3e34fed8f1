"""Multi-label: labels, figures held against scikit-learn, thresholds."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from autoft.errors import DataError
from autoft.tasks.multi_label import METRICS, MultiLabel, names_in
from autoft.tasks.thresholds import BOUNDS, MIN_IMAGES, fit_thresholds
from autoft.values.bundle import Calibration
from autoft.values.codec import decode, encode
from autoft.values.plan import Recipe
from autoft.values.target import Targets

ONE = ("label",)


def bound(*names: str) -> MultiLabel:
    return MultiLabel().on(Targets("multi_label", "any_of", names))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("", ()),
        ("cat", ("cat",)),
        ("cat|red fox", ("cat", "red fox")),
        (" cat ; red fox;", ("cat", "red fox")),
        ("a||a", ("a",)),
        ("a, b", ("a, b",)),
        ("|", ()),
    ],
)
def test_a_cell_is_a_list_of_names(cell: str, names: tuple[str, ...]) -> None:
    assert names_in(cell) == names
    assert MultiLabel().problem(cell) is None


def test_names_are_all_labels_in_natural_order() -> None:
    assert MultiLabel().names(["", "b10|b2", "A", "b2"], ONE) == ("A", "b2", "b10")


@pytest.mark.parametrize(
    ("labels", "columns", "said"),
    [
        (["", "|"], ONE, "no image has a label"),
        (["a"], ONE, "every image has the one label 'a'"),
        (["a|b", "c;d"], ONE, "'a|b' separates labels by | and 'c;d' by ;"),
        (["Cat|dog", "cat"], ONE, "look alike"),
        (["caf\u00e9|dog", "cafe\u0301"], ONE, "look alike"),
        (["1,0"], ("cat", "dog"), "one column"),
    ],
)
def test_labels_of_which_nothing_can_be_learned_are_refused(
    labels: list[str], columns: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        MultiLabel().names(labels, columns)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_label_that_some_images_lack_can_be_learned() -> None:
    assert MultiLabel().names(["", "smoke"], ONE) == ("smoke",)


@pytest.mark.parametrize(
    ("labels", "columns", "claimed"),
    [
        (["cat", "cat|dog"], ONE, True),
        (["cat;dog"], ONE, True),
        (["cat", "red fox", "a, b", ""], ONE, False),
        (["1|2,3"], ("x", "y"), False),
    ],
)
def test_a_delimiter_claims_a_column(labels: list[str], columns: tuple[str, ...], claimed: bool) -> None:
    assert MultiLabel().claims(labels, columns) == claimed


name = (
    st.text(st.characters(exclude_characters="|;", exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
)


@given(st.lists(st.lists(name, max_size=4), min_size=1), st.sampled_from("|;"))
def test_encoding_marks_what_stands_in_the_cells(rows: list[list[str]], delimiter: str) -> None:
    labels = [delimiter.join(row) for row in rows]
    task = bound(*sorted({name for row in rows for name in row}))
    marks = task.encode(labels)
    found = [{task.targets.names[column] for column in np.flatnonzero(mark)} for mark in marks]
    assert found == [set(row) for row in rows]
    assert marks.dtype == np.float32
    assert set(np.unique(marks)) <= {0, 1}


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=4), min_size=1))
def test_an_image_is_in_the_stratum_of_its_rarest_label(rows: list[list[str]]) -> None:
    strata = MultiLabel().strata(["|".join(row) for row in rows])
    counts = Counter(name for row in rows for name in set(row))
    for row, stratum in zip(rows, strata, strict=True):
        assert stratum in (row or [""])
        assert all(counts[stratum] <= counts[name] for name in row)


def test_splits_by_strata_hold_rare_labels_as_the_whole_does() -> None:
    """A fifth of each stratum: no label is further off than rounding, where a draw is."""
    rng = np.random.default_rng(0)
    marks = rng.random((600, 6)) < (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
    labels = ["|".join(np.array(list("abcdef"))[row]) for row in marks]
    strata = np.array([str(group) for group in MultiLabel().strata(labels)])
    chosen = np.zeros(600, bool)
    for group in np.unique(strata):
        (members,) = np.where(strata == group)
        chosen[members[: round(len(members) / 5)]] = True
    rare = marks[:, 3:]
    assert np.abs(rare[chosen].sum(axis=0) - rare.sum(axis=0) / 5).max() <= 2


# ---------------------------------------------------------------- loss


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=20)
def test_the_loss_is_binary_cross_entropy_smoothed_alike_both_ways(seed: int, smoothing: float) -> None:
    rng = np.random.default_rng(seed)
    logits, marks = rng.normal(size=(5, 3)), (rng.random((5, 3)) < 0.5).astype(np.float64)
    loss = bound(*"abc").loss(torch.tensor(logits), torch.tensor(marks), Recipe(label_smoothing=smoothing))
    there, absent = -np.log(expit(logits)), -np.log(expit(-logits))
    part = marks * (1 - smoothing) + smoothing / 2
    assert float(loss) == pytest.approx((part * there + (1 - part) * absent).mean())
    mirrored = bound(*"abc").loss(torch.tensor(-logits), torch.tensor(1 - marks), Recipe(label_smoothing=smoothing))
    assert float(loss) == pytest.approx(float(mirrored))


# ---------------------------------------------------------------- figures


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Judged logits with many ties, and marks of labels that may be on no image or on all."""
    n, labels = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    logits = rng.integers(-levels, levels + 1, (n, labels)).astype(np.float32) / 7
    return logits, (rng.random((n, labels)) < rng.choice([0, 0.1, 0.5, 1], labels)).astype(np.float32)


def expected(logits: np.ndarray, marks: np.ndarray) -> dict[str, float]:
    """By scikit-learn, over the labels that occur."""
    occurs = marks.any(axis=0)
    found, columns = logits >= 0, np.flatnonzero(occurs)
    per_label = [f1_score(marks[:, c], found[:, c], zero_division=0) for c in columns]
    precisions = [average_precision_score(marks[:, c], logits[:, c]) for c in columns]
    return {
        "map": float(np.mean(precisions)) if precisions else 0.0,
        "macro_f1": float(np.mean(per_label)) if per_label else 0.0,
        "micro_f1": float(f1_score(marks.ravel(), found.ravel(), zero_division=0)),
        "subset_accuracy": accuracy_score(marks.astype(int).astype(str), found.astype(int).astype(str))
        if marks.shape[1] == 1
        else accuracy_score(marks.astype(int), found.astype(int)),
    }


@given(answers())
@settings(max_examples=150)
def test_figures_are_those_of_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    found = {metric.name: metric.score(*data) for metric in METRICS}
    assert found == pytest.approx(expected(*data), rel=1e-12, abs=1e-12)
    assert list(found) == ["map", "macro_f1", "micro_f1", "subset_accuracy"]


@given(answers(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_resample_counts_images_as_often_as_it_holds_them(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """One statistic of counts is the figure of the images repeated."""
    logits, marks = data
    counts = np.random.default_rng(seed).multinomial(len(marks), np.full(len(marks), 1 / len(marks)), size=3)
    for metric in METRICS:
        drawn = [metric.score(np.repeat(logits, row, axis=0), np.repeat(marks, row, axis=0)) for row in counts]
        assert metric.statistic(logits, marks)(counts) == pytest.approx(drawn, rel=1e-12, abs=1e-12)


# ---------------------------------------------------------------- calibration


def drawn(n: int, prevalence: np.ndarray, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which the sigmoid is the truth, and marks drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, len(prevalence))) * sharpness + logit(prevalence)
    return logits.astype(np.float32), (rng.random(logits.shape) < expit(logits)).astype(np.float32)


@pytest.mark.parametrize(("sharpness", "gain"), [(1.0, 0.05), (3.0, -0.003)])
@pytest.mark.parametrize("n", [100, 400])
def test_thresholds_do_not_cost_f1_on_new_images(n: int, sharpness: float, gain: float) -> None:
    """Nor where outputs are well calibrated and clear, and .5 is right already; on the mean of five draws."""
    task, prevalence, gains = bound(*"abcdefgh"), np.linspace(0.05, 0.5, 8), []
    for seed in range(5):
        found = task.calibrate(*drawn(n, prevalence, sharpness, seed))
        logits, marks = drawn(5000, prevalence, sharpness, seed + 100)
        with_, without = (
            task.metric("macro_f1").score(task.judged(logits, calibration), marks)
            for calibration in (found, replace(found, thresholds=()))
        )
        gains.append(with_ - without)
    assert np.mean(gains) > gain


def test_the_reason_says_of_which_labels_a_threshold_was_moved_and_why_not() -> None:
    few = bound("a", "b").calibrate(*drawn(20, np.array([0.2, 0.2]), 1.0, 0))
    assert not few.is_fitted
    assert "The threshold of each label is 0.5, the default: fewer than 10 validation images" in few.reason
    logits, marks = drawn(400, np.array([0.1, 0.1]), 1.0, 0)
    marks[:, 1] = 0
    some = bound("a", "b").calibrate(logits, marks)
    assert some.is_fitted
    assert "of 1 of 2 labels have a greater F1" in some.reason and "of the others it is 0.5" in some.reason


def test_a_threshold_goes_where_f1_is_best() -> None:
    """Of calibrated probabilities that is at half the best F1 (Lipton et al. 2014)."""
    logits, marks = drawn(20_000, np.array([0.1]), 1.0, 0)
    (threshold,) = fit_thresholds(logits, marks)
    best = max(f1_score(marks[:, 0], expit(logits[:, 0]) >= cut) for cut in np.linspace(0.05, 0.5, 91))
    assert f1_score(marks[:, 0], expit(logits[:, 0]) >= threshold) > best - 0.003
    assert threshold == pytest.approx(best / 2, abs=0.03)


@given(st.integers(0, MIN_IMAGES - 1), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_label_on_few_images_or_nearly_all_keeps_its_threshold(few: int, turned: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = rng.permutation(np.arange(200) < few)[:, None] ^ turned
    assert fit_thresholds(rng.normal(size=(200, 1)) - 3, marks) == (0.5,)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1e30]))
@settings(max_examples=40)
def test_any_outputs_can_be_calibrated_and_nothing_warns(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    marks = (rng.random((250, 4)) < (0, 0, 0.3, 1)).astype(np.float32)
    marks[rng.permutation(250)[:5], 1] = 1  # too few to set a threshold by
    logits = (rng.normal(size=(250, 4)) * scale).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bound(*"abcd").calibrate(logits, marks)
        answers = bound(*"abcd").answers(logits, found)
        judged = bound(*"abcd").judged(logits, found)
    assert decode(Calibration, encode(found)) == found
    assert len(found.thresholds) == 4
    assert (found.thresholds[0], found.thresholds[1], found.thresholds[3]) == (0.5, 0.5, 0.5)
    assert BOUNDS[0] <= found.thresholds[2] <= BOUNDS[1]
    # The graph compares probabilities, metrics compare logits: but for rounding that is one answer.
    thresholds = np.array(found.thresholds)
    clear = np.abs(answers - thresholds) > 1e-6
    assert ((judged >= 0) == (answers >= thresholds))[clear].all()


def test_the_temperature_that_marks_were_drawn_at_is_found() -> None:
    logits, marks = drawn(4000, np.linspace(0.1, 0.5, 5), 2.0, 3)
    found = bound(*"abcde").calibrate(3 * logits, marks)
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert found.log_loss_after == pytest.approx(log_loss(marks.ravel(), expit(logits.ravel().astype(float))), abs=0.01)
