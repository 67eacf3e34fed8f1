"""Regression: numbers in labels, moments, figures held against scikit-learn, strata."""

from __future__ import annotations

import csv
import io
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

import autoft
from autoft.errors import DataError
from autoft.parts.base import UNCALIBRATED
from autoft.parts.host import Host
from autoft.tasks.forms.table import FORMS
from autoft.tasks.regression import MAX_CLASSES, Regression, numbers_in
from autoft.values.codec import decode, encode
from autoft.values.plan import Recipe
from autoft.values.target import Targets

ONE = ("weight",)
LARGE = 1e18


def bound(values: np.ndarray, *names: str) -> Regression:
    """The task of training images with these values `(n, columns)`."""
    plain = Targets("regression", "numbers", names or tuple(f"c{number}" for number in range(values.shape[1])))
    return Regression().on(Regression().with_moments(plain, values))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("odd", ["1e12", "-3e11"])
def test_a_value_beside_which_the_others_are_one_is_named(odd: str) -> None:
    labels = [f"{number / 2},{number}" for number in range(1, 8)]
    assert Regression().names([*labels, "1e5,8"], ("a", "b")) == ("a", "b")
    with pytest.raises(DataError, match=f"a is .* where the label is '{odd},3', and most others lie from"):
        Regression().names([*labels, f"{odd},3"], ("a", "b"))


@pytest.mark.parametrize("label", ["1", "-2.5", " 3 ", "1e-3", "0", "1.5,2", "-0.0,1e18", "١٢"])
def test_numbers_have_no_problem(label: str) -> None:
    assert Regression().problem(label) is None


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "it has no number"),
        ("  ", "it has no number"),
        ("abc", "'abc' is no number"),
        ("1.5,", "'' is no number"),
        ('"1,5",2', "'1,5' is no number"),
        ("1.2.3", "'1.2.3' is no number"),
        ("12 kg", "'12 kg' is no number"),
        ("nan", "'nan' is not finite"),
        ("1,-inf", "'-inf' is not finite"),
        ("1e39", "'1e39' is too large"),
        ("1_2", "'1_2' is no number"),
        ("0x10", "'0x10' is no number"),
        ("infinity", "'infinity' is not finite"),
        ("1,-1.1e18", "'-1.1e18' is too large; 1e+18 is the most"),
        ("1\n2", "is no number"),
        ("1\r2", "is no number"),
    ],
)
def test_what_is_no_number_is_said(label: str, said: str) -> None:
    found = Regression().problem(label)
    assert found is not None
    assert said in found
    assert "\n" not in found


def test_of_a_data_set_a_label_has_one_number_a_column() -> None:
    form = FORMS["numbers"]
    one, two = bound(np.ones((2, 1)), "weight").targets, bound(np.ones((2, 2)), "weight", "height").targets
    assert form.problem("80", one) is form.problem("80,1.8", two) is None
    assert form.problem("80,1.8", one) == "'80,1.8' holds 2 and not 1: weight"
    assert form.problem("80", two) == "'80' holds 1 and not 2: weight, height"


@given(st.text())
def test_of_any_text_it_is_known_whether_it_can_be_used(label: str) -> None:
    if Regression().problem(label) is None:
        assert np.isfinite(np.array(numbers_in(label), np.float32)).all()


@given(
    st.integers(1, 4).flatmap(
        lambda columns: st.lists(
            st.lists(st.floats(-LARGE, LARGE), min_size=columns, max_size=columns), min_size=1, max_size=20
        )
    )
)
def test_encoding_gives_the_numbers_of_a_line_of_csv(rows: list[list[float]]) -> None:
    labels = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text).writerow(row)
        labels.append(text.getvalue().rstrip("\r\n"))
    task = Regression().on(Targets("regression", "numbers", tuple(f"c{number}" for number in range(len(rows[0])))))
    assert np.array_equal(task.encode(labels), np.array(rows, np.float32))


def test_the_names_are_the_columns() -> None:
    assert Regression().names(["1,2", "3,2"], ("x", "y")) == ("x", "y")
    assert Regression().names(["1,0.1", "3,0.1", "4,0.1"], ("x", "y")) == ("x", "y")  # whose deviation is 1e-17


def test_a_decimal_comma_among_several_columns_is_said_with_what_to_write() -> None:
    assert Regression().problem('"0,5",3') == "'0,5' is no number; write a point, 0.5"


@pytest.mark.parametrize(
    ("labels", "columns", "said"),
    [
        (["1,5", "2"], ONE, "'1,5' in weight has a decimal comma; write a point, 1.5"),
        (["0,0625", "0,4437"], ONE, "'0,0625' in weight has a decimal comma; write a point, 0.0625"),
        (["1,2,3", "2"], ONE, "'1,2,3' holds 3 numbers, and the columns are weight"),
        (["1", "2"], ("x", "y"), "'1' holds 1 number, and the columns are x, y"),
        (["1,2", "1.0,2"], ("x", "y"), "every image has the same x, y, 1,2"),
        (["1764160000.5", "1764160001", "1764160002"], ONE, "weight varies by 0.75 about 1.76416e+09"),
    ],
)
def test_numbers_of_which_nothing_can_be_learned_are_refused(
    labels: list[str], columns: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        Regression().names(labels, columns)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_float32_cannot_tell_apart_in_the_training_images_is_refused_whatever_else_there_is() -> None:
    assert Regression().names(["1000000", "1000001", "1001000"], ONE) == ONE
    training = np.repeat(np.float32([[1_000_000], [1_000_001]]), [60, 40], axis=0)
    with pytest.raises(DataError, match=r"c0 varies by 0\.49 about 1000000, .*; subtract 1000000 from it"):
        bound(training)
    assert bound(np.float32([[1_000_000], [1_000_001], [1_001_000]])).targets.deviation[0] > 400


def test_a_constant_column_has_a_deviation_that_float32_can_tell() -> None:
    assert bound(np.float32([[5], [5]])).targets.deviation == (1.0,)
    task = bound(np.full((4, 1), 1e9, np.float32))
    noise = np.float32([[0.4], [-0.4]])
    deviation, mean = map(np.float32, (task.targets.deviation, task.targets.mean))
    assert task.answers(noise, UNCALIBRATED) == pytest.approx(
        noise * deviation + mean, abs=0.02 * task.targets.deviation[0]
    )
    assert np.spacing(np.float32(1e9)) < 0.02 * task.targets.deviation[0]


ages = [str(age) for age in range(3, 90) if age % 7]


@pytest.mark.parametrize(
    ("labels", "columns", "claimed"),
    [
        (["0.5", "1", "2"], ONE, True),
        (ages, ONE, True),
        (["1,2", "3,4"], ("x", "y"), True),
        ([str(number) for number in range(MAX_CLASSES)], ONE, False),  # digits, stars
        ([str(number * 5) for number in range(MAX_CLASSES)], ONE, False),
        ([str(number) for number in range(1000)], ONE, False),  # a numbering of classes
        ([str(number) for number in range(1, 103)], ONE, False),
        (["1.0", "2.0", "3.0"], ONE, False),  # whole numbers, as pandas writes a column with gaps
        ([f"{number * 3:03}" for number in range(40)], ONE, False),  # identifiers
        ([*ages, "unknown"], ONE, True),
        ([*ages, "", "", " ", "nan"], ONE, True),
        ([*ages, *["none", "nan"] * 10], ONE, False),
        (["1,5", "2,5"], ONE, True),  # decimal commas: then names() says so
        (["0,0625", "0,4437", "007"], ONE, False),
        (["0,0625", "0,4437"], ONE, True),
        (['"0,5","1,5"', '"0,25",3'], ("x", "y"), True),  # then problem() says so
        (["", ""], ONE, False),
        (["1,a", "2,b"], ("x", "y"), False),
    ],
)
def test_numbers_that_cannot_be_classes_are_claimed(labels: list[str], columns: tuple[str, ...], claimed: bool) -> None:
    assert Regression().claims(labels, columns) == claimed
    assert Regression().claims(labels * 3, columns) == claimed


# ---------------------------------------------------------------- strata

numbers = st.floats(-1e6, 1e6).map(lambda number: float(np.float32(number)))


@given(st.lists(numbers, min_size=1, max_size=200), st.randoms())
def test_strata_are_ranges_and_do_not_depend_on_the_order(values: list[float], random: object) -> None:
    labels = list(map(str, values))
    strata = Regression().strata(labels)
    ranges = dict(zip(values, strata, strict=True))
    assert [ranges[value] for value in values] == list(strata)  # equal numbers stand together
    ordered = [ranges[value] for value in sorted(ranges)]
    assert ordered == sorted(ordered)
    random.shuffle(labels)  # type: ignore[attr-defined]
    assert [ranges[float(label)] for label in labels] == list(Regression().strata(labels))


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (19, [19]), (20, [10, 10]), (100, [10] * 10), (1000, [100] * 10)])
def test_strata_are_of_one_size(n: int, sizes: list[int]) -> None:
    strata = Regression().strata([str(number) for number in np.random.default_rng(0).permutation(n)])
    assert sorted(Counter(strata).values()) == sizes


def test_strata_of_several_columns_follow_what_they_have_in_common() -> None:
    """Whatever their units, and a constant column among them."""
    common = np.random.default_rng(0).permutation(100)
    strata = Regression().strata([f"{number / 1000},{-number * 1e6},7" for number in common])
    assert sorted(Counter(strata).values()) == [10] * 10
    order = np.argsort(common)
    assert len({tuple(np.array(strata)[order][start : start + 10]) for start in range(0, 100, 10)}) == 10


# ---------------------------------------------------------------- moments and answers


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Numbers of some columns, of any size and offset, one of which may be constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, columns = draw(st.integers(2, 40)), draw(st.integers(1, 3))
    scale = 10.0 ** rng.integers(-6, 7, columns)
    values = (rng.normal(size=(n, columns)) + rng.normal(size=columns)) * scale
    values[:, 0] = values[0, 0] if draw(st.booleans()) else values[:, 0]
    return values.astype(np.float32)


@given(tables())
def test_standardised_inside_and_in_units_outside(values: np.ndarray) -> None:
    task = bound(values)
    standard = task.standardised(torch.from_numpy(values)).numpy()
    assert np.abs(standard.mean(axis=0)).max() < 1e-3
    deviation = standard.std(axis=0)
    constant = np.ptp(values, axis=0) == 0
    assert deviation[~constant] == pytest.approx(1, abs=1e-3)
    assert deviation[constant] == pytest.approx(0)
    back = task.answers(standard, UNCALIBRATED)
    assert back.dtype == np.float32
    assert (np.abs(back - values).max(axis=0) <= 1e-5 * np.abs(values).max(axis=0)).all()
    assert decode(Targets, encode(task.targets)) == task.targets


def test_a_mistyped_number_pulls_no_more_than_one_a_deviation_off() -> None:
    task = bound(np.array([[-1.0], [1.0]]))
    outputs = torch.zeros(3, 1, requires_grad=True)
    task.loss(outputs, torch.tensor([[0.5], [1.0], [1000.0]]), Recipe()).backward()
    assert outputs.grad is not None
    assert outputs.grad[:, 0].tolist() == pytest.approx([-0.5 / 3, -1 / 3, -1 / 3])


# ---------------------------------------------------------------- figures


@given(tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_figures_are_those_of_scikit_learn(targets: np.ndarray, seed: int) -> None:
    """But for columns that are constant, which R2 leaves out."""
    spread = targets.std(axis=0) + 1e-6
    values = targets + np.random.default_rng(seed).normal(size=targets.shape) * spread
    task = Regression()
    found = {metric.name: metric.facts.shown(metric.score(values, targets)) for metric in task.metrics}
    exact, varies = targets.astype(np.float64), np.ptp(targets, axis=0) > 0
    explained = r2_score(exact[:, varies], values[:, varies]) if varies.any() else 0.0
    assert found == pytest.approx(
        {
            "mae": mean_absolute_error(exact, values),
            "rmse": root_mean_squared_error(exact, values),
            "r2": explained,
        },
        rel=1e-6,
        abs=1e-9,
    )


@given(tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_resample_counts_images_as_often_as_it_holds_them(targets: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = targets + rng.normal(size=targets.shape) * (targets.std(axis=0) + 1e-6)
    counts = rng.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), size=3)
    repeated = [np.repeat(np.arange(len(targets)), row) for row in counts]
    spreads = np.array([targets[rows].astype(np.float64).var(axis=0) for rows in repeated])
    assume(((spreads == 0) | (spreads > 1e-6 * targets.var(axis=0))).all())
    for metric in Regression.metrics:
        drawn = [metric.score(values[rows], targets[rows]) for rows in repeated]
        assert metric.statistic(values, targets)(counts) == pytest.approx(drawn, rel=1e-5, abs=1e-6)


def test_several_columns_of_a_plugins_task_are_searched_by_what_has_no_unit_too() -> None:
    class Depth(Regression):
        name = "depth"

    class Plugin:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[autoft.Task]:
            return [Depth()]

    task = Host.discover(objects=[Plugin()]).task("depth")
    assert task.on(Targets("depth", "numbers", ("x", "y"))).metric("auto").name == "r2"
    assert task.on(Targets("depth", "numbers", ("x",))).metric("auto").name == "mae"


def test_one_column_is_searched_by_its_error_and_several_by_what_has_no_unit() -> None:
    one, two = bound(np.array([[1.0], [2.0]])), bound(np.array([[1.0, 2e6], [2.0, 3e6]]))
    assert (one.metric("auto").name, two.metric("auto").name) == ("mae", "r2")
    assert [metric.name for metric in two.metrics] == ["r2", "mae", "rmse"]
    assert Regression().metric("auto").name == "mae"


def test_all_right_is_no_error() -> None:
    values = np.array([[1.5], [2.5], [4.0]], np.float32)
    found = {metric.name: metric.facts.shown(metric.score(values, values)) for metric in Regression.metrics}
    assert found == {"mae": 0, "rmse": 0, "r2": 1}
    assert str(found["mae"]) == str(found["rmse"]) == "0.0"
