"""One of a thing is not called as several are."""

from __future__ import annotations

import pytest

from autoft.bundle.standalone.verify import measured_line
from autoft.study.record import Machine
from autoft.tasks.forms.table import FORMS
from autoft.tasks.multi_label import MultiLabel
from autoft.values.bundle import Training
from autoft.values.counts import counted, passes
from autoft.values.summary import Scores
from autoft.values.target import Form, Targets


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "image", "1 image"),
        (0, "image", "0 images"),
        (1200, "image", "1,200 images"),
        (1, "class", "1 class"),
        (2, "more class", "2 more classes"),
        (2, "column of numbers", "2 columns of numbers"),
    ],
)
def test_a_noun_goes_with_its_number(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


@pytest.mark.parametrize(("step", "said"), [(1.0, "1 pass"), (0.9999, "1 pass"), (0.5, "0.5 passes"), (3, "3 passes")])
def test_what_is_one_by_rounding_is_one_pass(step: float, said: str) -> None:
    assert passes(step) == said


@pytest.mark.parametrize(
    ("said", "one"),
    [
        (str(Machine("inline", 1, 1, "cpu")), "1 worker of 1 thread on cpu"),
        (Scores(1, None, {}, None).counted(), "1 image"),
        (measured_line(1, 0.0), "1 test vector,"),
        (str(Training(0.999, 1)), "1 pass, 1 step"),
        (str(Training(1234.5, 2000)), "1,234.5 passes, 2,000 steps"),
    ],
)
def test_one_of_a_kind_is_said_so(said: str, one: str) -> None:
    assert one in said


@pytest.mark.parametrize(("form", "one"), [("any_of", "1 label"), ("numbers", "1 number")])
def test_a_card_of_one_name_is_of_one(form: Form, one: str) -> None:
    assert FORMS[form].title(Targets(MultiLabel.name, form, ("cat",))).endswith(f"of {one}")
