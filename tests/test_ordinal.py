"""Ordinal: the order of classes, probabilities from steps, errors in steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED
from autoft.tasks.ordinal import Ordinal
from autoft.values.bundle import Calibration
from autoft.values.plan import Recipe
from autoft.values.target import Targets

ONE = ("label",)


def bound(classes: int) -> Ordinal:
    return bound_to(tuple(str(number) for number in range(classes)))


def bound_to(names: tuple[str, ...]) -> Ordinal:
    return Ordinal().on(Targets("ordinal", "one_of", names))


@pytest.mark.parametrize(
    "ordered",
    [
        ("-10", "-1", "0.5", "2"),
        ("grade 2", "grade 10"),
        ("grade-1", "grade-2"),
        ("t -5", "t 0", "t +5"),
        ("poor 1", "fair 2", "good 3"),
        ("1 poor", "2 fair", "10 excellent"),
        ("0-9", "10-19", "20+"),
    ],
)
def test_classes_stand_by_their_numbers(ordered: tuple[str, ...]) -> None:
    assert Ordinal().names(sorted(ordered), ONE) == ordered
    assert bound_to(ordered).remark() == f"classes in this order: {', '.join(ordered)}"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["excellent", "fair", "good", "poor"], "of the class 'excellent' nothing says where .*; number the classes"),
        (["grade 1", "none"], "of the class 'none' nothing says"),
        (["1", "2", "nan"], "of the class 'nan' nothing says"),
        (["1_2", "1_10", "2_1"], "the classes '1_10' and '1_2' are one number|'1_2' and '1_10' are one number"),
        (["4", "4|1"], r"'4\|1' stands for several labels, .* --task multi_label"),
    ],
)
def test_classes_without_an_order_are_refused(labels: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Ordinal().names(labels, ONE)


def test_no_order_is_claimed() -> None:
    assert not Ordinal().claims(["1", "2", "3"], ONE)


def test_two_spellings_of_one_number_are_refused() -> None:
    with pytest.raises(DataError, match=r"'1' and '1\.0' are one number"):
        Ordinal().names(["1", "1.0", "2"], ONE)


@st.composite
def steps(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 7))
    return (rng.normal(size=shape) * 10.0 ** draw(st.integers(-3, 4))).astype(np.float32)


@given(steps())
def test_any_outputs_are_probabilities_of_the_classes(outputs: np.ndarray) -> None:
    task = bound(outputs.shape[1] + 1)
    assert task.outputs == outputs.shape[1]
    probabilities = task.answers(outputs, UNCALIBRATED)
    assert probabilities.shape == (len(outputs), task.outputs + 1)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(outputs)), abs=1e-5)
    above = 1 - probabilities.cumsum(axis=1)[:, :-1]
    assert above == pytest.approx(expit(outputs.astype(float)).cumprod(axis=1), abs=1e-5)


@given(steps(), st.integers(0, 2**32 - 1))
def test_the_loss_is_the_log_loss_of_the_classes(outputs: np.ndarray, seed: int) -> None:
    """Without smoothing: the steps an image reaches are what its class's probability is made of."""
    task = bound(outputs.shape[1] + 1)
    targets = np.random.default_rng(seed).integers(0, task.outputs + 1, len(outputs))
    loss = task.loss(torch.from_numpy(outputs).double(), torch.from_numpy(targets), Recipe(label_smoothing=0))
    assert -float(loss) == pytest.approx(task.judged(outputs)[np.arange(len(targets)), targets].mean(), abs=1e-6)
    assert task.score("log_loss", outputs, targets) == pytest.approx(-float(loss), abs=1e-6)


def test_errors_are_counted_in_steps() -> None:
    """Of four classes: one right, one off by one, one by three."""
    outputs = np.array([[-9, 0, 0], [9, -9, 0], [9, 9, 9]], np.float32)
    targets = np.array([0, 2, 0])
    task = bound(4)
    assert task.answers(outputs, UNCALIBRATED).argmax(axis=1).tolist() == [0, 1, 3]
    assert task.metric("auto").name == "mae"
    assert task.metric("mae").facts.shown(task.score("mae", outputs, targets)) == pytest.approx(4 / 3)
    assert task.score("accuracy", outputs, targets) == pytest.approx(1 / 3)


def test_the_temperature_that_classes_were_drawn_at_is_found() -> None:
    rng = np.random.default_rng(0)
    outputs = (2 * rng.normal(size=(5000, 3))).astype(np.float32)
    task = bound(4)
    chances = task.answers(outputs, Calibration(3.0, 0, None, None, "")).astype(float).cumsum(axis=1)
    targets = (rng.random((5000, 1)) > chances[:, :-1]).sum(axis=1)
    assert task.calibrate(outputs, targets).temperature == pytest.approx(3, rel=0.05)
    assert task.calibrate(outputs[:50], targets[:50]).temperature == 1
