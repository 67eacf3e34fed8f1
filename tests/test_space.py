from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.values.space import Choice, Float, Int, Space

finite = st.floats(-1e300, 1e300)
positive = st.floats(1e-300, 1e300)
scalars = finite | st.integers() | st.booleans() | st.text(max_size=5)
floats = st.tuples(finite, finite).map(lambda pair: Float(min(pair), max(pair)))
log_floats = st.tuples(positive, positive).map(lambda pair: Float(min(pair), max(pair), log=True))
ints = st.tuples(st.integers(), st.integers()).map(lambda pair: Int(min(pair), max(pair)))
counts = st.integers(1, 10**9)
log_ints = st.tuples(counts, counts).map(lambda pair: Int(min(pair), max(pair), log=True))
choices = st.lists(scalars, min_size=1, max_size=5, unique=True).map(lambda options: Choice(tuple(options)))
dimensions = floats | log_floats | ints | log_ints | choices
spaces = st.dictionaries(st.text(max_size=5), dimensions, max_size=5).map(Space)


@given(spaces, st.integers())
def test_a_sample_lies_in_its_space(space: Space, seed: int) -> None:
    sample = space.sample(random.Random(seed))
    assert space.problem(sample) is None


@given(spaces, st.integers())
def test_the_same_seed_draws_the_same(space: Space, seed: int) -> None:
    assert space.sample(random.Random(seed)) == space.sample(random.Random(seed))


@given(spaces, st.integers())
def test_a_sample_can_be_a_start(space: Space, seed: int) -> None:
    sample = space.sample(random.Random(seed))
    assert Space(space.dimensions, (sample,)).starts == (sample,)


@given(spaces, st.text(max_size=5), scalars, st.integers())
def test_a_name_too_many_is_a_problem(space: Space, name: str, value: Any, seed: int) -> None:
    if name in space.dimensions:
        return
    assert repr(name) in str(space.problem({**space.sample(random.Random(seed)), name: value}))


@given(spaces, st.integers())
def test_a_name_too_few_is_a_problem(space: Space, seed: int) -> None:
    sample = space.sample(random.Random(seed))
    for name in sample:
        left = {other: value for other, value in sample.items() if other != name}
        assert repr(name) in str(space.problem(left))


@pytest.mark.parametrize("dimension", [Float(0.0, 1.0), Int(0, 1)])
def test_a_truth_value_is_no_number(dimension: Float | Int) -> None:
    assert not dimension.contains(True)
    assert not dimension.contains("1")
    assert dimension.contains(1)


@pytest.mark.parametrize(("options", "value"), [((1, 2), True), ((0.0, 0.5), False), ((True, False), 1)])
def test_a_truth_value_is_no_option_that_is_a_number(options: Any, value: Any) -> None:
    assert not Choice(options).contains(value)
    assert all(Choice(options).contains(option) for option in options)


def test_a_fraction_is_no_whole_number() -> None:
    assert not Int(0, 5).contains(2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_lies_in_no_range(value: float) -> None:
    assert not Float(-1e308, 1e308).contains(value)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (math.nan, math.nan), ("0", 1)]
)
def test_bounds_must_be_finite_numbers_in_order_and_name_what_they_bound(low: Any, high: Any) -> None:
    with pytest.raises(ValueError, match=r"^lr: `low <= high`"):
        Space({"lr": Float(low, high)})


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_logarithmic_range_starts_above_zero(low: float) -> None:
    with pytest.raises(ValueError, match=r"^lr: .*above 0"):
        Space({"lr": Float(low, 1.0, log=True)})


def test_whole_numbers_have_whole_bounds() -> None:
    with pytest.raises(ValueError, match=r"^depth: .*whole numbers"):
        Space({"depth": Int(1.5, 3)})  # type: ignore[arg-type]


@pytest.mark.parametrize("dimension", [(1e-4, 1e-2), 3, None, Float])
def test_what_is_no_dimension_is_named(dimension: Any) -> None:
    with pytest.raises(TypeError, match=r"^lr: a dimension is a Float, an Int or a Choice"):
        Space({"lr": dimension})


def test_a_logarithmic_range_is_drawn_evenly_in_its_logarithm() -> None:
    rng = random.Random(0)
    drawn = [Float(1e-4, 1.0, log=True).sample(rng) for _ in range(4000)]
    assert 0.46 < sum(value < 1e-2 for value in drawn) / len(drawn) < 0.54


def test_whole_numbers_are_all_drawn() -> None:
    rng = random.Random(0)
    assert {Int(1, 4, log=True).sample(rng) for _ in range(500)} == {1, 2, 3, 4}
    assert {Int(-1, 1).sample(rng) for _ in range(200)} == {-1, 0, 1}


@pytest.mark.parametrize(
    ("options", "says"), [((), "at least one"), (("a", "a"), "distinct"), (([1],), "numbers, texts")]
)
def test_a_choice_needs_distinct_plain_options(options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^head: .*{says}"):
        Space({"head": Choice(options)})


def test_a_start_outside_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"lr=2\.0 lies outside"):
        Space({"lr": Float(0.0, 1.0)}, ({"lr": 2.0},))


def test_what_is_missing_is_named() -> None:
    assert "['lr'] missing" in (Space({"lr": Float(0.0, 1.0)}).problem({}) or "")


@given(spaces, st.integers())
def test_what_lies_in_a_space_fits_as_it_is(space: Space, seed: int) -> None:
    sample = space.sample(random.Random(seed))
    assert space.fitted(sample) == sample


@given(spaces, st.dictionaries(st.text(max_size=5), scalars, max_size=5), st.integers())
def test_of_another_spaces_parameters_what_fits_stays_and_the_first_start_completes_it(
    space: Space, others: dict[str, Any], seed: int
) -> None:
    start = space.sample(random.Random(seed))
    fitted = Space(space.dimensions, (start,)).fitted(others)
    assert fitted is not None and space.problem(fitted) is None
    for name, dimension in space.dimensions.items():
        fits = name in others and dimension.contains(others[name])
        assert fitted[name] == (others[name] if fits else start[name])


@given(spaces, st.dictionaries(st.text(max_size=5), scalars, max_size=5))
def test_without_a_start_nothing_is_made_up(space: Space, others: dict[str, Any]) -> None:
    fits = all(name in others and one.contains(others[name]) for name, one in space.dimensions.items())
    assert (space.fitted(others) is not None) is fits
