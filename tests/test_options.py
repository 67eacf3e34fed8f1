"""The options of a study: declared once, and the same from the command line, TOML and Python."""

from __future__ import annotations

import datetime
import inspect
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import click
import pytest

import autoft
from autoft import api
from autoft.__main__ import _run
from autoft.engine import engine
from autoft.errors import StudyError
from autoft.shell.cli import cli
from autoft.study.options import Declared, options_of
from autoft.study.study import Study

DECLARED = options_of(Study)
OPTIONS = [one for one in DECLARED if one.option]
PAGE = (Path(autoft.__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
ARGUMENTS = {"data", "plugins"}  # the positional one, and the `-p` of all commands

# Another value than the default of each, as a person writes it, and as TOML and Python may have it too.
WRITTEN: dict[str, tuple[str, Any]] = {
    "time": ("1m30s", 90),
    "trials": ("4", 4),
    "target": ("0.95", 0.95),
    "out": ("runs/a", "runs/a"),
    "seed": ("7", 7),
    "task": ("regression", "regression"),
    "metric": ("mae", "mae"),
    "fail_under": ("0.5", 0.5),
    "fail_above": ("2", 2),
    "backbones": ("lite/*, mine/*", ["lite/*", "mine/*"]),
    "freeze": ("probe,full", ["probe", "full"]),
    "image_size": ("96", 96),
    "view": ("pad", "pad"),
    "searcher": ("random", "random"),
    "from_": ("runs/before", "runs/before"),
    "offline": ("", True),
    "licenses": ("MIT,any", ["mit", "any"]),
    "max_params": ("2.5M", 2_500_000),
    "max_latency": ("0.02s", 20.0),
    "runner": ("inline", "inline"),
    "workers": ("3", 3),
    "gpus_per_trial": ("0.5", 0.5),
    "precision": ("bf16", "bf16"),
    "keep": ("2", 2),
    "no_refit": ("", True),
    "exporter": ("onnx,mine", ["onnx", "mine"]),
    "strict": ("", True),
    "batched": ("", True),
    "full_parity": ("", True),
}

# Whatever TOML can say, and more.
ANYTHING = (
    *(True, False, -1, 0, 10**400, -1.5, 1e300, math.inf, math.nan, "", " , ", "x", "9" * 5000, "\udce9"),
    *([], [[]], [1], ["a", 1], [None], {}, {"a": "b"}, datetime.date(2026, 1, 1), datetime.time(1), Path("x"), b"x"),
)


@pytest.fixture
def studied(monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """The studies that `engine.search` is asked for, which goes no further."""
    studies: list[Study] = []

    def search(study: Study, *others: object) -> None:
        studies.append(study)
        raise StudyError("far enough")

    monkeypatch.setattr(engine, "search", search)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return studies


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["autoft", "search", *arguments])
    assert _run() == 2


def test_every_field_of_a_study_is_an_option_with_help() -> None:
    assert [one.name for one in DECLARED] == [field.name for field in fields(Study)]
    assert {one.name for one in DECLARED if not one.option} == ARGUMENTS
    for one in OPTIONS:
        assert one.option is not None
        assert one.option.help.endswith(".")
        assert (one.option.metavar is None) == (one.type is bool), one.name


def test_the_flags_are_the_options_in_their_order() -> None:
    command = cli.get_command(click.Context(cli), "search")
    assert command is not None
    flags = [parameter.opts[-1] for parameter in command.params if isinstance(parameter, click.Option)]
    assert flags == [*(one.flag for one in OPTIONS), "--config", "--plugin", "--json"]


@pytest.mark.parametrize("one", OPTIONS, ids=lambda one: one.name)
def test_an_option_means_the_same_everywhere(
    one: Declared, studied: list[Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, value = WRITTEN[one.name]
    command_line(monkeypatch, "photos", one.flag, *([] if one.type is bool else [text]))
    for number, written in enumerate([value] if one.type is bool else [value, text] if one.many else [value]):
        file = tmp_path / f"{number}.toml"
        shown = str(written).lower() if isinstance(written, bool) else repr(written)
        file.write_text(f"{one.flag.removeprefix('--')} = {shown}\n")
        command_line(monkeypatch, "photos", "--config", str(file))
        with pytest.raises(StudyError, match="far enough"):
            api.search("photos", **{one.name: written})
    assert len(set(studied)) == 1
    assert getattr(studied[0], one.name) != one.default


@pytest.mark.parametrize(
    "one",
    [
        one
        for one in OPTIONS
        if one.default_in_words() and one.name not in ("out", "task", "metric", "freeze", "workers")
    ],
    ids=lambda one: one.name,
)
def test_the_default_that_help_names_is_the_default(
    one: Declared, studied: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    command_line(monkeypatch, "photos", one.flag, one.default_in_words())
    assert studied == [Study("photos")]


def test_a_flag_that_is_given_twice_is_one_with_commas(
    studied: list[Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text('backbones = "a/*"\nfreeze = "full"\nplugins = ["no:timm"]\n')
    given = ("--backbones", "b/*,c/*", "--backbones", "d/*", "--config", str(tmp_path / "study.toml"))
    command_line(monkeypatch, "photos", *given)
    command_line(monkeypatch, "photos", *given, "-p", "a,b.py")
    expected = Study("photos", backbones=("b/*", "c/*", "d/*"), freeze=("full",), plugins=("no:timm",))
    assert studied[0] == expected
    assert studied[1].plugins == ("a,b.py",)


@pytest.mark.parametrize("one", DECLARED, ids=lambda one: one.name)
def test_whatever_stands_there_is_a_study_or_one_line(one: Declared) -> None:
    for anything in ANYTHING:
        try:
            Study.parse({"data": "photos", one.name: anything})
        except StudyError as error:
            assert len(str(error).splitlines()) == 1, (one.name, anything)


def test_the_page_of_options_says_what_they_declare() -> None:
    rows = ["| option | default | |", "|---|---|---|"]
    for one in OPTIONS:
        assert one.option is not None
        flag = " ".join(filter(None, (one.flag, one.option.metavar)))
        rows.append(f"| `{flag}` | {one.default_in_words()} | {one.option.help} |")
    table = "\n".join(rows)
    assert f"\n\n{table}\n\n" in PAGE, f"docs/options.md is to hold\n\n{table}"


def test_the_examples_on_the_page_are_one_study(
    studied: list[Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, code = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0] for language in ("toml", "python"))
    (tmp_path / "search.toml").write_text(file)
    command_line(monkeypatch, "photos/", "--config", str(tmp_path / "search.toml"))
    with pytest.raises(StudyError, match="far enough"):
        exec(code, {})
    assert studied[0] == studied[1] != Study("photos/")


def test_python_has_every_option_by_name_type_and_default() -> None:
    """`api.Options` is what editors and type checkers see; it says what `Study` reads."""
    hints, kept = get_type_hints(api.Options), get_type_hints(Study)
    assert list(hints) == [one.name for one in OPTIONS]
    for one in OPTIONS:
        assert one.option is not None
        expected = {Sequence[str], str} if one.many else set(get_args(kept[one.name]) or (kept[one.name],))
        expected |= {str} if one.option.read else set()
        expected |= {Path} if one.option.metavar in ("DIR", "RUN") else set()
        assert set(get_args(hints[one.name]) or (hints[one.name],)) == expected, one.name
        assert (NoneType in expected) == (one.default is None)


def test_help_in_python_spells_the_options_out() -> None:
    shown = inspect.signature(api.search).parameters
    assert list(shown) == ["data", "plugins", "screen", *(one.name for one in OPTIONS)]
    assert {name: shown[name].default for name in api.Options.__annotations__} == {
        one.name: one.default for one in OPTIONS
    }


def test_an_option_that_python_does_not_have_is_our_error() -> None:
    with pytest.raises(StudyError, match="no option is called 'tirals'; did you mean 'trials'"):
        api.search("photos", tirals=3)


def test_a_plugin_of_python_may_stand_alone(studied: list[Study]) -> None:
    with pytest.raises(StudyError, match="far enough"):
        api.search("photos", plugins="no:timm")
    assert studied == [Study("photos", plugins=("no:timm",))]
