from __future__ import annotations

import dataclasses
import json
import math
import re
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.values.backbone import Backbone, InputSpec, ParameterInfo, Stage
from autoft.values.codec import decode, encode, encode_python, encode_readable
from autoft.values.dataset import DatasetInfo, Listing, Sample
from autoft.values.handoff import Artifact, Handoff, Preprocess
from autoft.values.plan import ClosedFormHead, GradientHead, ParameterGroup, Plan, Recipe
from autoft.values.space import Choice, Float, Int, Space
from autoft.values.summary import Best, Scores, Summary
from autoft.values.trial import Candidate, Clock, Event, Lost, Parent, Queued, Report, Slice, Started, Stopped, Trial

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12)
scalars = finite | st.integers() | st.booleans() | texts
params = st.dictionaries(texts, scalars, max_size=5)
trials = st.builds(
    Trial, st.integers(0), texts, texts, st.integers(1), params, st.integers(0), st.just((Parent(1, 2.0),))
)
slices = st.builds(Slice, trials, finite, finite, finite)
floats = st.tuples(finite, finite).map(lambda pair: Float(min(pair), max(pair)))
ints = st.tuples(st.integers(), st.integers()).map(lambda pair: Int(min(pair), max(pair)))
choices = st.lists(scalars, min_size=1, max_size=4, unique=True).map(lambda options: Choice(tuple(options)))
spaces = st.dictionaries(texts, floats | ints | choices, max_size=4).map(Space)

VALUE_TYPES = (
    Artifact, Backbone, Candidate, Clock, DatasetInfo, Handoff, InputSpec, Listing, ParameterGroup, ParameterInfo,
    Plan, Preprocess, Queued, Recipe, Report, Sample, Slice, Stage, Started, Stopped, Summary, Best, Scores,
    GradientHead,
)  # fmt: skip


def same(left: object, right: object) -> bool:
    """Equal, and of equal types all the way down (`1 == 1.0 == True` is not enough)."""
    return left == right and repr(left) == repr(right)


def plain_dicts(annotation: Any) -> st.SearchStrategy[dict[Any, Any]]:
    return st.dictionaries(*(st.from_type(argument) for argument in annotation.__args__), max_size=3)


st.register_type_strategy(Space, spaces)
st.register_type_strategy(Mapping, plain_dicts)


@pytest.fixture
def only_finite_floats() -> Iterator[None]:
    st.register_type_strategy(float, finite)
    yield
    st.register_type_strategy(float, st.floats())


@pytest.mark.usefixtures("only_finite_floats")
@pytest.mark.parametrize("cls", VALUE_TYPES, ids=lambda cls: cls.__name__)
def test_every_value_survives_json(cls: type) -> None:
    @settings(max_examples=30)
    @given(st.builds(cls))
    def check(value: object) -> None:
        assert same(decode(cls, encode(value)), value)

    check()


@given(params)
def test_params_keep_int_float_and_bool_apart(drawn: dict[str, Any]) -> None:
    trial = Trial(0, "z/b", "f", 32, drawn, 1)
    back = decode(Trial, encode(trial))
    assert {name: type(value) for name, value in back.params.items()} == {n: type(v) for n, v in drawn.items()}
    assert same(back, trial)


def test_three_numbers_that_are_equal_stay_what_they_are() -> None:
    back = decode(Trial, encode(Trial(0, "z/b", "f", 32, {"a": 1, "b": 1.0, "c": True, "d": "1"}, 1)))
    assert [type(value) for value in back.params.values()] == [int, float, bool, str]


@given(spaces)
def test_a_space_keeps_its_kinds_of_dimension(space: Space) -> None:
    assert same(decode(Space, encode(space)), space)


@given(st.builds(Queued, st.integers(0), slices, st.builds(Clock, finite, finite)))
def test_a_line_of_one_kind_is_told_from_the_others(queued: Queued) -> None:
    assert same(decode(Event, encode(queued)), queued)
    started = Started(queued.trial, queued.clock.elapsed)
    assert same(decode(Event, encode(started)), started)
    stopped = Stopped(queued.clock.elapsed)
    assert same(decode(Event, encode(stopped)), stopped)
    lost = Lost(queued.trial, "memory", "gone", queued.clock.elapsed)
    assert same(decode(Event, encode(lost)), lost)


def test_a_report_line_is_told_from_a_started_one() -> None:
    report = Report(3, "paused", 1.0, 0.5, 2.0, {"ridge": 1e-3, "n": 3, "cached": True}, elapsed=4.0)
    assert same(decode(Event, json.loads(encode(report))), report)


def test_heads_without_a_tag_are_told_apart() -> None:
    for head in (ClosedFormHead(), GradientHead(1e-3)):
        assert same(decode(Plan, encode(Plan((), head))).head, head)


@given(st.lists(st.text() | st.integers() | st.lists(st.text())))
def test_readable_text_says_the_same_with_plain_lists_on_one_line(values: list[object]) -> None:
    assert json.loads(encode_readable(values)) == values
    assert encode_readable([[1, 2], [3, 4]]).splitlines() == ["[", " [ 1, 2 ],", " [ 3, 4 ]", "]"]


def test_text_and_parsed_data_read_alike() -> None:
    clock = Clock(1.0, 2.0)
    assert decode(Clock, encode(clock)) == decode(Clock, encode_python(clock)) == decode(Clock, encode(clock).encode())


def test_text_is_one_line_and_readable() -> None:
    text = encode(Trial(0, "z/b", "f", 32, {"note": "two\nlines é"}, 1))
    assert "\n" not in text
    assert "é" in text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(ValueError, match=r"facts\.loss"):
        encode(Report(0, "finished", 1.0, 0.5, 1.0, {"loss": bad}))
    with pytest.raises(ValueError, match="score"):
        encode(Report(0, "finished", 1.0, bad, 1.0))
    with pytest.raises(ValueError, match="elapsed"):
        decode(Clock, '{"elapsed": NaN, "deadline": 1.0}')


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Plan((), GradientHead(1e-3), recipe=Recipe(batch_size=True)), "recipe.batch_size"),
        (Plan((), GradientHead(1e-3), recipe=Recipe(dropout=False)), "recipe.dropout"),
        (Plan((), GradientHead(True)), "learning_rate"),
        (Plan((ParameterGroup(("a",), 1e-3, from_pass=True),), GradientHead(1e-3)), "groups.0.from_pass"),
        (Backbone("zoo/net", True, InputSpec(64)), "parameters"),
        (Backbone("zoo/net", 1, InputSpec(64, mean=(True, 0.5, 0.5))), "input.mean.0"),
        (Report(0, "finished", 1.0, True, 1.0), "score"),
        (Slice(Trial(0, "z/b", "f", 32, {}, 1), False, 1.0, 2.0), "start"),
    ],
)
def test_a_truth_value_where_a_number_belongs_is_refused_when_written(value: object, where: str) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(where)}: .*(number|integer)"):
        encode(value)


def test_what_json_cannot_hold_is_refused_when_written() -> None:
    wrong: Any = {"a": object()}
    with pytest.raises(ValueError, match="Report"):
        encode(Report(0, "finished", 1.0, 0.5, 1.0, wrong))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"elapsed": 1.0, "deadline": 2.0, "extra": 3}', "extra"),
        ('{"elapsed": 1.0}', "deadline"),
        ('{"elapsed": "1.0", "deadline": 2.0}', "elapsed"),
        ('{"elapsed": 1.0, "dead', "not JSON"),
        ("[]", "Clock"),
        ("null", "Clock"),
        ("", "not JSON"),
    ],
)
def test_what_is_no_value_is_refused_in_one_line(text: str, where: str) -> None:
    with pytest.raises(ValueError, match=where) as caught:
        decode(Clock, text)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value).lower()


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        decode(Clock, b"\xff\xfe\x00")


def test_a_wrong_report_is_explained_as_a_report() -> None:
    report = json.loads(encode(Report(3, "paused", 1.0, 0.5, 2.0)))
    with pytest.raises(ValueError, match="step"):
        decode(Event, {**report, "step": "far"})


def test_a_wrong_start_of_a_space_is_refused() -> None:
    text = encode(Space({"lr": Float(0.1, 1.0)}, ({"lr": 0.5},)))
    with pytest.raises(ValueError, match="outside"):
        decode(Space, text.replace("0.5", "5.0"))


@given(st.text(alphabet=string.printable, max_size=40))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        event = decode(Event, text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert dataclasses.is_dataclass(event)


def test_importing_the_codec_does_not_import_pydantic() -> None:
    code = "import autoft.values.codec, sys; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
