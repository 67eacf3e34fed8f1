"""Tasks of plugins: what one gives that cannot be used is blamed on it, before anything trains where that can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autoft
from autoft import LinearHead, Regression, SingleLabel, Targets, Task
from autoft.bundle.tail import tail_problem
from autoft.errors import PluginError
from autoft.parts.contract import head_problem, names_problem, targets_problem
from autoft.parts.host import Host
from autoft.tasks.forms.table import answering

NUMBERS = Targets("own", "numbers", ("low", "mid", "high"), (0.0, 1.0, 2.0), (1.0, 1.0, 3.0))
CLASSES = Targets("own", "one_of", ("a", "b", "c"))
FEATURES = torch.zeros(4, 5)


def host_of(task: Task) -> Host:
    class Plugin:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[Task]:
            return [task]

    return Host.discover(objects=[Plugin()])


def guarded(base: type[Task], targets: Targets = NUMBERS, **methods: Any) -> Task:
    """A task of a plugin, as a search has it: `base` with other methods."""
    own = type("Own", (base,), {"name": "own", "__module__": __name__, **methods})
    return host_of(own()).task("own").on(targets)


def gives(value: Any) -> Callable[..., Any]:
    return lambda self, *asked: value


def head(**wrong: Any) -> LinearHead:
    return LinearHead(**{"weight": torch.zeros(3, 5), "bias": torch.zeros(3), "facts": {}, **wrong})


def encode(task: Task) -> object:
    return task.encode(["1", "2"])


def names(task: Task) -> object:
    return task.names(["1", "2"], ["label"])


def loss(task: Task) -> object:
    return task.loss(torch.zeros(2, 3), torch.zeros(2, 3), autoft.Recipe())


def closed_form(task: Task) -> object:
    return task.closed_form(FEATURES, torch.zeros(4, 3), lambda: None)


@pytest.mark.parametrize(
    ("call", "value", "says"),
    [
        (encode, np.zeros((2, 1), np.float32), r"float32 \(2, 1\); .*\(n, names\) for 2 labels and the 3 of names"),
        (encode, np.zeros((2, 3)), r"float64 \(2, 3\)"),
        (encode, [[0.0] * 3] * 2, "not an array"),
        (encode, np.full((2, 3), np.nan, np.float32), "not finite"),
        (names, "label", r"it gives 'label'; give a tuple of texts"),
        (names, ["a", "b"], r"\['a', 'b'\]; give a tuple"),
        (names, ("a", "a"), "distinct"),
        (loss, torch.zeros(2), r"a loss of shape \(2,\); take the mean"),
        (loss, 0.5, "0.5, not a scalar of torch"),
        (closed_form, (torch.zeros(3, 5), torch.zeros(3)), r"not an autoft\.LinearHead\(weight, bias, facts\)"),
        (closed_form, head(weight=torch.zeros(5, 3)), r"weight of its head is torch\.float32 \(5, 3\); .*\(3, 5\)"),
        (closed_form, head(weight=torch.zeros(3, 5).double()), r"torch\.float64"),
        (closed_form, head(bias=torch.zeros(1)), r"bias of its head is torch\.float32 \(1,\); .*\(3,\)"),
        (closed_form, head(weight=np.zeros((3, 5))), "not a tensor"),
        (closed_form, head(bias=torch.full((3,), torch.nan)), "bias of its head is not finite"),
        (closed_form, None, "closed_form = Task.closed_form"),
    ],
)
def test_what_it_gives_that_cannot_be_used_is_blamed_on_it(
    call: Callable[[Task], object], value: Any, says: str
) -> None:
    task = guarded(Regression, **{call.__name__: gives(value)})
    where = rf"plugin 'Plugin' .* failed in {call.__name__}\(\) of task 'own': ValueError: .*{says}.*-p no:Plugin"
    with pytest.raises(PluginError, match=where):
        call(task)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, r"it gives True; give None or an autoft\.Imbalance"),
        (0.1, "it gives 0.1; give None"),
        (("cat", 9, "dog", 1), "give None or an"),
        (autoft.Imbalance("cat", 9.5, "dog", 1), "most: Input should be a valid integer"),  # type: ignore[arg-type]
        (autoft.Imbalance(0, 9, 1, 1), "common: Input should be a valid string"),  # type: ignore[arg-type]
    ],
)
def test_what_it_says_of_uneven_classes_is_checked(value: object, says: str) -> None:
    with pytest.raises(PluginError, match=rf"failed in imbalance\(\) of task 'own': ValueError: .*{says}"):
        guarded(SingleLabel, CLASSES, imbalance=gives(value)).imbalance(["cat", "dog"])


@pytest.mark.parametrize("value", [None, autoft.Imbalance("cat", 9, "dog", 1)])
def test_even_classes_and_uneven_ones_go_through(value: object) -> None:
    assert guarded(SingleLabel, CLASSES, imbalance=gives(value)).imbalance(["cat", "dog"]) == value


@pytest.mark.parametrize(
    ("base", "value", "says"),
    [
        (SingleLabel, "sampling", "a tuple of 'sampling', 'logits', 'weights', not 'sampling'"),
        (SingleLabel, ("smote",), r"not \('smote',\)"),
        (SingleLabel, ("none", "weights"), r"not \('none', 'weights'\)"),
        (SingleLabel, None, "not None"),
        (SingleLabel, (1,), r"not \(1,\)"),
        (Regression, ("weights",), "there are none in the form 'numbers'"),
        (autoft.MultiLabel, ("sampling",), "there are none in the form 'any_of'"),
    ],
)
def test_remedies_that_training_does_not_know_are_blamed_on_it(base: type[Task], value: object, says: str) -> None:
    with pytest.raises(PluginError, match=rf"plugin 'Plugin' .* failed in the attributes of task 'own'.*{says}"):
        guarded(base, balances=value)


@pytest.mark.parametrize("value", [(), ["weights"], ("weights", "sampling", "logits")])
def test_remedies_that_training_knows_go_through(value: Sequence[str]) -> None:
    assert guarded(SingleLabel, CLASSES, balances=value).balances == value


@pytest.mark.parametrize(
    ("indices", "says"), [([0, 3], "classes from 0 to 3; of 3 names they are 0 to 2"), ([-1, 0], "from -1 to 0")]
)
def test_classes_without_a_name_are_blamed_on_it(indices: list[int], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        encode(guarded(SingleLabel, CLASSES, encode=gives(np.array(indices))))


def test_an_inherited_method_that_no_longer_fits_is_blamed_on_it_too() -> None:
    with pytest.raises(PluginError, match=r"encode\(\) of task 'own'.*float32 \(2, 1\)"):
        encode(guarded(Regression, names=gives(("low", "mid", "high"))))


@pytest.mark.parametrize("labels", [["1,2,3", "4,5,6"], []])
def test_what_fits_goes_through(labels: Sequence[str]) -> None:
    task = guarded(Regression, encode=lambda self, labels: Regression.encode(self, labels))
    assert task.encode(labels).shape == (len(labels), 3)


@pytest.mark.parametrize("form", [autoft.MultiLabel, Regression, SingleLabel, autoft.Ordinal])
def test_built_in_tasks_give_what_is_asked_of_anyones(form: type[Task]) -> None:
    task, labels = form(), ["1", "2", "10", "4"]
    found = task.names(labels, ["label"])
    assert names_problem(task, found) is None
    bound = task.on(Targets(task.name, task.form, found))
    encoded = bound.encode(labels)
    assert targets_problem(bound, encoded, labels) is None
    ready = bound.on(bound.with_moments(bound.targets, encoded))
    assert (
        head_problem(ready, ready.closed_form(torch.rand(4, 5), torch.from_numpy(encoded), lambda: None), FEATURES)
        is None
    )


def test_a_subclass_says_that_it_has_no_closed_form() -> None:
    assert guarded(Regression).has_closed_form
    without = guarded(Regression, closed_form=Task.closed_form)
    assert not without.has_closed_form
    assert without.closed_form(FEATURES, torch.zeros(4, 3), lambda: None) is None


# ---------------------------------------------------------------- the tail

OUTPUTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (
            "answers = Mul (outputs, outputs)",
            r"they differ, .* of outputs \(.*\) tail\(\) makes \(.*\), answers\(\) \(",
        ),
        ("rows = Constant <value_int = 1> () answers = Gather <axis = 1> (outputs, rows)", "differ in rank"),
        ("answers = outputs * 2", "no valid ONNX: in 'answers = outputs \\* 2': Expected character \\( not found"),
        ("one = Abs (outputs)\n  answers = Abs (one", r"in 'answers = Abs \(one': Expected character \) not found"),
        ("values = Identity (outputs)", "nothing gives 'answers' before it is used; its lines make `answers`"),
        ("answers = Nonsense (outputs)", "No Op registered for Nonsense"),
    ],
)
def test_a_tail_that_is_not_its_answers_is_told_what_differs(tail: str, says: str) -> None:
    task = guarded(Regression, tail=gives(tail))
    problem = tail_problem(answering(task), OUTPUTS)
    assert problem is not None
    assert re.search(says, problem), problem
    assert "\n" not in problem and "b'" not in problem and "column:" not in problem


def test_answers_of_another_shape_are_told() -> None:
    task = guarded(Regression, answers=lambda self, outputs, calibration: outputs[:, :1])
    problem = tail_problem(answering(task), OUTPUTS)
    assert problem == "answers() gives (6, 1), tail() (6, 3); of 6 images both are (6, 3)"


def test_numbers_differ_in_deviations_of_their_column() -> None:
    """What is 1e-3 of a deviation is much of one answer and nothing of another."""
    targets = Targets("own", "numbers", ("small",), (0.0,), (1e-6,))
    tail = "scale = Constant <value = float {1.001e-6}> () answers = Mul (outputs, scale)"
    assert "differ" in (tail_problem(answering(guarded(Regression, targets, tail=gives(tail))), OUTPUTS[:, :1]) or "")
    assert tail_problem(answering(guarded(Regression, targets)), OUTPUTS[:, :1]) is None


# ---------------------------------------------------------------- a search


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A manifest of forty images and their brightness."""
    (tmp_path / "data").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 20, number)).save(tmp_path / "data" / f"{number}.png")
    rows = "".join(f"{number}.png,{6.5 * number}\n" for number in range(40))
    (tmp_path / "data" / "data.csv").write_text(f"image,brightness\n{rows}")
    return tmp_path / "data" / "data.csv"


class Spread(Regression):
    """Three answers for one number."""

    name = "own"

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{column}_{level}" for column in columns for level in ("low", "mid", "high"))


class OtherTail(Regression):
    name = "own"

    def tail(self, calibration: autoft.Calibration) -> str:
        return "answers = Mul (outputs, outputs)"


class Untempered(SingleLabel):
    """Right, but for a temperature."""

    name = "own"

    def names(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        return ("dark", "light")

    def encode(self, labels: Sequence[str]) -> Any:
        return np.array([float(label) > 130 for label in labels], np.int64)

    def strata(self, labels: Sequence[str]) -> Sequence[bool]:
        return [float(label) > 130 for label in labels]

    def calibrate(self, outputs: Any, targets: Any) -> autoft.Calibration:
        return autoft.Calibration(3.0, len(targets), None, None, "always")

    def tail(self, calibration: autoft.Calibration) -> str:
        return "answers = Softmax <axis = -1> (outputs)"


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Spread(), r"encode\(\) of task 'own': ValueError: it gives float32 \(\d+, 1\)"),
        (OtherTail(), r"tail\(\) of task 'own': ValueError: they differ, calibrated by a temperature of 1: "),
        (Untempered(), r"tail\(\) of task 'own': ValueError: they differ, calibrated by a temperature of 3: "),
    ],
)
def test_a_search_ends_before_it_begins_and_names_the_plugin(numbered: Path, task: Task, says: str) -> None:
    class Plugin:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[Task]:
            return [task]

    with pytest.raises(PluginError, match=rf"plugin 'Plugin' .* failed in {says}") as caught:
        autoft.search(
            numbered,
            task="own",
            time="60s",
            runner="inline",
            backbones=["small/test_resnet"],
            out=numbered.parents[1] / "run",
            plugins=[Path(__file__).parent / "parts" / "small_zoo.py", Plugin()],
        )
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 600
    assert not (numbered.parents[1] / "run").exists()
