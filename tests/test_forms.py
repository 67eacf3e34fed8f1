"""Bundles of every form of answers: what is in them, what the gate refuses, and what they say of images.

The networks are written as ONNX: their outputs depend on the mean colour of an image alone.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from parts.data import dataset as make_dataset
from parts.exported import MEAN, STD
from parts.exported import handoff as classifier_handoff
from PIL import Image
from test_standalone import node, seal

from autoft import Artifact, GateFailed
from autoft.bundle import build
from autoft.bundle.build import Bundle, write_bundle
from autoft.bundle.onnx_runtime import CoreModel, PixelModel
from autoft.bundle.order import Order
from autoft.bundle.parity import QUICK, difference, too_different
from autoft.bundle.predict import predict
from autoft.bundle.rescore import read_source
from autoft.bundle.standalone.verify import verify
from autoft.data.dataset import Dataset
from autoft.errors import DataError
from autoft.media.image.decode import normalise
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.parts.base import Task
from autoft.shell.cli import cli
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.forms.base import Model
from autoft.tasks.forms.one_of import OneOf
from autoft.tasks.forms.table import FORMS, answering
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.ordinal import Ordinal
from autoft.tasks.regression import Regression
from autoft.values.bundle import Calibration, MetricsReport
from autoft.values.codec import decode, encode
from autoft.values.target import Targets

SIZE = 16
CORE = """
    <ir_version: 8, opset_import: ["" : 18]>
    core (float[batch, 3, {size}, {size}] images) => (float[batch, {n}] logits)
    < int64[2] plane = {{2, 3}}, float[3, {n}] weights = {{{weights}}}, float[{n}] bias = {{{bias}}} >
    {{
        colour = ReduceMean <keepdims = 0> (images, plane)
        product = MatMul (colour, weights)
        logits = Add (product, bias)
    }}"""

Colour = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""


@dataclass(frozen=True)
class Kind:
    """A task, the columns of its manifest, the label of a colour, and weights `(3, n)` and bias `(n,)` for colours."""

    task: Task
    columns: str
    label: Callable[[Colour], str]
    network: Callable[[Targets], tuple[np.ndarray, np.ndarray]]


def seen(colour: Colour) -> str:
    return "|".join(name for name, part in zip(("red", "green", "blue"), colour, strict=True) if part > 0.5)


def measured(colour: Colour) -> str:
    return f"{1000 * colour[0] + 200:.3f},{colour[2] / 1000:.9f}"


def of_numbers(targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Grams by red, and kilometres by blue."""
    deviation, mean = np.array(targets.deviation), np.array(targets.mean)
    weights = np.array([[1000, 0], [0, 0], [0, 0.001]]) / deviation
    return weights, (np.array([200, 0]) - mean) / deviation


KINDS = {
    "any_of": Kind(MultiLabel(), "labels", seen, lambda _: (9 * np.eye(3)[:, [2, 1, 0]], np.full(3, -4.5))),
    "numbers": Kind(Regression(), "grams,kilometres", measured, of_numbers),
    "ordinal": Kind(
        Ordinal(),
        "grade",
        lambda colour: str(1 + (colour[0] > 1 / 3) + (colour[0] > 2 / 3)),
        lambda _: (np.array([[30, 30], [0, 0], [0, 0]]), np.array([-10, -20])),
    ),
}


def colours(n: int, seed: int) -> list[Colour]:
    """None is near a half, so that labels are clear."""
    parts = np.random.default_rng(seed).uniform(0.02, 0.4, (n, 3))
    high = np.random.default_rng(seed + 1).random((n, 3)) < 0.5
    return [tuple(row) for row in np.where(high, 1 - parts, parts).round(3).tolist()]


def manifest(folder: Path, kind: Kind, n: int = 60, seed: int = 0) -> Path:
    """A CSV file of flat images."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"image,{kind.columns},split"]
    for number, colour in enumerate(colours(n, seed)):
        Image.new("RGB", (20 + number % 5, 17), tuple(round(255 * part) for part in colour)).save(
            folder / f"{number}.png"
        )
        lines.append(f"{number}.png,{kind.label(colour)},{('train', 'val', 'test')[number % 3]}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    return folder / "data.csv"


def without_splits(file: Path) -> Path:
    """The manifest, as somebody who has other images would write it."""
    file.write_text(re.sub(r",(split|train|val|test)$", "", file.read_text(), flags=re.MULTILINE))
    return file


@dataclass(frozen=True)
class Made:
    """What a bundle is made of, and the bundle."""

    kind: Kind
    order: Order
    folder: Path

    @cached_property
    def task(self) -> Task:
        return self.order.task

    @property
    def targets(self) -> Targets:
        return self.task.targets

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


def linear(order_task: Task, network: Callable[[Targets], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Weights and bias for normalised colours, of those for colours from 0 to 1."""
    weights, bias = network(order_task.targets)
    return np.array(STD)[:, None] * weights, bias + np.array(MEAN) @ weights


def write_core(folder: Path, order: Order, weights: np.ndarray, bias: np.ndarray) -> Iterator[Artifact]:
    shown = {"weights": ", ".join(map(repr, weights.ravel().tolist())), "bias": ", ".join(map(repr, bias.tolist()))}
    model = onnx.parser.parse_model(CORE.format(size=SIZE, n=len(bias), **shown))
    facts = {"schema": "1", "labels": json.dumps(order.handoff.labels), "targets": encode(order.handoff.targets)}
    facts["preprocess"] = encode(order.handoff.preprocess)
    onnx.helper.set_model_props(model, {f"autoft.{key}": value for key, value in facts.items()})
    onnx.save(model, folder / "model.core.onnx")
    yield Artifact("b/model.core.onnx", "onnx", 18, 1, "0" * 64, "by hand")


def order_of(kind: Kind, dataset: Dataset) -> Order:
    weights, bias = linear(dataset.task, kind.network)
    handoff = dataclasses.replace(
        classifier_handoff(SIZE),
        targets=dataset.task.targets,
        metric=dataset.task.metrics[0].name,
        outputs=dataset.task.outputs,
    )

    def reference(images: np.ndarray) -> np.ndarray:
        return (images.mean((2, 3)) @ weights + bias).astype(np.float32)

    return Order(handoff, reference, dataset, "test", QUICK, "image", {})


def written(kind: Kind, order: Order, folder: Path) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    core = write_core(folder, order, *linear(order.task, kind.network))
    return write_bundle(order, core, folder, Stopwatch(0))


@pytest.fixture(scope="module")
def quickly() -> Iterator[None]:
    """Speed is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_LATENCY_TIMEOUT", 0.01)
        yield


@pytest.fixture(scope="module")
def make(quickly: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    known: dict[str, Made] = {}

    def bundle(name: str) -> Made:
        if name not in known:
            kind, place = KINDS[name], tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("AUTOFT_CACHE_DIR", str(place / "cache"))
                dataset = make_dataset(manifest(place / "data", kind), {(SIZE, "bicubic", "crop")}, kind.task)
                known[name] = Made(kind, order_of(kind, dataset), place / "b")
                written(kind, known[name].order, place / "b")
        return known[name]

    return bundle


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, make: Callable[[str], Made]) -> Made:
    return make(request.param)


@pytest.fixture
def tags(make: Callable[[str], Made]) -> Made:
    return make("any_of")


@pytest.fixture
def numbers(make: Callable[[str], Made]) -> Made:
    return make("numbers")


# ---------------------------------------------------------------- the folder


def test_a_bundle_of_every_form_verifies_itself_and_says_what_it_is(made: Made) -> None:
    outcome = verify(made.folder)
    assert (outcome.problems, outcome.vectors > 6) == ([], True)
    assert outcome.worst_difference < 1e-3
    model = PixelModel(made.folder / "model.onnx")
    assert model.targets == made.targets and tuple(made.json("labels.json")) == made.targets.names
    assert model.calibration == decode(MetricsReport, (made.folder / "metrics.json").read_text()).calibration
    outputs = [value.name for value in onnx.load(made.folder / "model.onnx").graph.output]
    assert (
        outputs
        == {
            "one_of": ["probabilities", "logits", "top_k"],
            "any_of": ["probabilities", "logits", "present"],
            "numbers": ["values"],
        }[made.targets.form]
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_says_of_each_image_what_one_image_says(name: str, make: Callable[[str], Made], tmp_path: Path) -> None:
    made = make(name)
    ending = answering(made.task, PixelModel(made.folder / "model.onnx").calibration).ending()
    recipe = made.order.handoff.preprocess
    write_raw_pixel_model(made.folder / "model.core.onnx", tmp_path / "m.onnx", recipe, ending, "batch")
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    one, many = (PixelModel(path).answers(image) for path in (made.folder / "model.onnx", tmp_path / "m.onnx"))
    np.testing.assert_allclose(one, many, rtol=1e-6)


def test_the_metrics_are_those_of_the_task_and_of_every_name(made: Made) -> None:
    report = decode(MetricsReport, (made.folder / "metrics.json").read_text())
    assert {metric.name for metric in made.task.metrics} <= set(report.metrics)
    for name, estimate in report.metrics.items():
        assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1], name
    assert len(report.per_class) == len(made.targets.names)
    assert bool(report.confusion) == (made.targets.form == "one_of")


def test_labels_are_counted_at_their_thresholds(tags: Made) -> None:
    report = decode(MetricsReport, (tags.folder / "metrics.json").read_text())
    truth = tags.order.dataset.targets("test")
    assert (report.correct, report.n) == (len(truth), len(truth))  # the colours are clear
    assert [one.n for one in report.per_class] == truth.sum(axis=0).tolist()
    assert [one.f1 for one in report.per_class] == [1.0] * 3


def test_columns_have_figures_in_their_own_units(numbers: Made) -> None:
    report = decode(MetricsReport, (numbers.folder / "metrics.json").read_text())
    grams, kilometres = report.per_class
    assert (report.correct, grams.column, kilometres.column) == (None, "grams", "kilometres")
    assert 0 < grams.mae <= grams.rmse < 3 and 0 < kilometres.mae <= kilometres.rmse < 3e-6  # colours in 8 bits
    assert min(grams.r2, kilometres.r2) > 0.99


CARDS = {
    "any_of": ("Multi-label image classifier of 3 labels", "any number of them", "Threshold", "present", "Sigmoid"),
    "numbers": ("Image regression of 2 numbers", "in the units of its training data", "RMSE", "grams = output \\* "),
    "ordinal": (
        "Image classifier of 3 ordered classes",
        "classes apart, which have an order, the lowest first",
        "Recall",
        "logits[:, k]",
    ),
}


def test_the_card_tells_the_form(made: Made) -> None:
    card = (made.folder / "MODEL_CARD.md").read_text()
    title, *words = CARDS["ordinal" if made.targets.form == "one_of" else made.targets.form]
    assert card.startswith(f"# {title}\n")
    for word in words:
        assert word.replace("Sigmoid", "1 / (1 + exp(-").replace("\\*", "*") in card, word
    if made.targets.form != "one_of":
        assert "classes" not in card and "softmax" not in card and "top-1" not in card
    if made.targets.form == "any_of":
        assert re.search(r"got [0-9]+ with every label right", card)
    if made.targets.form == "numbers":
        assert "mean of the columns' mean absolute errors, whatever their units" in card
        assert "change." not in card  # nothing is decided
        report = decode(MetricsReport, (made.folder / "metrics.json").read_text())
        assert f"| mae | {report.metrics['mae'].value:.5g} |" in card
        grams = made.order.dataset.targets("train")[:, 0].astype(float)
        ends = f"| grams | {grams.min():.6g} | {grams.max():.6g} | {grams.mean():.6g} | {grams.std():.6g} |"
        training = "Least in the training split | Greatest there | Mean there | Deviation there |"
        of_test = "Scored images of the test split | Mean there | Deviation there |"
        for words in (training, ends, of_test, "Deviation in the test split |"):
            assert words in card


def python_in(document: Path) -> list[str]:
    """The code in a document, as it would be pasted."""
    return [textwrap.dedent(code) for code in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)]


@pytest.mark.parametrize("told_by", ["card", "docs"])
def test_the_formula_for_ordered_classes_makes_the_answers_of_the_core(
    told_by: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    made = make("ordinal")
    cooled = Calibration(1.75, 500, 0.5, 0.4, "For a test.")
    ending, recipe = answering(made.task, cooled).ending(), made.order.handoff.preprocess
    write_raw_pixel_model(made.folder / "model.core.onnx", tmp_path / "m.onnx", recipe, ending, "batch")
    (tmp_path / "card").write_text(OneOf().from_core(Model(made.targets, cooled)))
    documents = {"card": tmp_path / "card", "docs": Path(__file__).parents[1] / "docs" / "handoff.md"}
    (code,) = (one for one in python_in(documents[told_by]) if "cumprod" in one)
    images = np.repeat(np.arange(256, dtype=np.uint8), SIZE * SIZE * 3).reshape(-1, SIZE, SIZE, 3)
    logits = CoreModel(made.folder / "model.core.onnx").logits(normalise(images, recipe))
    given: dict[str, Any] = {"numpy": np, "logits": logits, "temperature": 1.75}
    exec(compile(code, told_by, "exec"), given)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(["probabilities"], {"image": images})
    assert set(expected.argmax(axis=1)) == {0, 1, 2}
    np.testing.assert_allclose(given["probabilities"], expected, atol=1e-5)


def test_the_snippet_of_the_card_runs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, *_ = python_in(made.folder / "MODEL_CARD.md")
    Image.new("RGB", (30, 20), (250, 10, 240)).save(tmp_path / "photo.png")
    monkeypatch.chdir(made.folder)
    exec(compile(code.replace("photo.jpg", str(tmp_path / "photo.png")), "card", "exec"), {})
    shown = capsys.readouterr().out
    expected = {
        "any_of": r"\{'blue': 0\.9\d+, 'red': 0\.9\d+\}",
        "one_of": r"3 0\.9",
        "numbers": r"\{'grams': 1180\.\d+, ",
    }
    assert re.match(expected[made.targets.form], shown)


# ---------------------------------------------------------------- the gate


def with_task(order: Order, task: Task) -> Order:
    return dataclasses.replace(order, dataset=dataclasses.replace(order.dataset, task=task))


def spoilt(task: Task, tail: str) -> Task:
    """The task, with another tail that is made of the right one, `answers` renamed `right`."""
    wrong = type("Wrong", (type(task),), {"tail": lambda self, calibration: right(calibration) + tail})
    right = lambda calibration: re.sub(r"\banswers\b", "right", task.tail(calibration))  # noqa: E731
    return wrong().on(task.targets)


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("any_of", "half = Constant <value = float {0.9}> () answers = Mul (right, half)"),
        ("numbers", "two = Constant <value = float {1.2}> () answers = Mul (right, two)"),
        ("ordinal", "half = Constant <value = float {0.9}> () answers = Mul (right, half)"),
    ],
)
def test_a_tail_that_is_not_the_arithmetic_of_its_task_is_refused(
    name: str, tail: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    made = make(name)
    with pytest.raises(GateFailed, match=r"its answers differ from Pillow and torch by up to .*; worst: \d+\.png"):
        written(made.kind, with_task(made.order, spoilt(made.task, tail)), tmp_path / "b")


@pytest.mark.parametrize("tail", ["answers = Nonsense (right)", "answers = right ("])
def test_a_tail_that_is_no_onnx_is_refused(tail: str, numbers: Made, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="no valid ONNX") as caught:
        written(numbers.kind, with_task(numbers.order, spoilt(numbers.task, tail)), tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_the_names_in_a_tail_are_its_own(numbers: Made, tmp_path: Path) -> None:
    tail = "batch_axis = Identity (right) values = Identity (batch_axis) answers = Identity (values)"
    assert written(numbers.kind, with_task(numbers.order, spoilt(numbers.task, tail)), tmp_path / "b").model_bytes


def apart(task: Task, calibration: Calibration, found: Sequence[Any], expected: Sequence[Any]) -> Any:
    of = answering(task, calibration)
    names = [str(row) for row in range(len(expected))]
    return difference(np.array(found, np.float32), np.array(expected, np.float32), names, of)


def test_numbers_are_compared_in_deviations_of_their_column() -> None:
    targets = Targets("regression", "numbers", ("t", "m"), (20.0, 0.0), (5.0, 1e-6))
    expected = np.random.default_rng(0).normal(size=(20, 2))
    same = apart(Regression().on(targets), Calibration(1.0, 0, None, None, ""), expected + 1e-5, expected)
    assert (too_different(same), same.flips) == (None, 0)
    assert same.answer_delta == pytest.approx(1e-5, rel=0.5)
    off = apart(Regression().on(targets), Calibration(1.0, 0, None, None, ""), expected + np.array([0, 0.01]), expected)
    assert off.answer_delta == pytest.approx(0.01, rel=0.1)
    assert too_different(off)


def test_a_label_that_comes_or_goes_at_its_threshold_is_a_flip() -> None:
    task = MultiLabel().on(Targets("multi_label", "any_of", ("a", "b")))
    at = Calibration(1.0, 300, None, None, "", (0.5, 0.9))
    expected = [[-3.0, 3.0], [3.0, -3.0], [0.0, 2.0]]  # .953 and .881 of the second
    assert apart(task, at, expected, expected).flips == 0
    assert apart(task, at, [[-3.0, 2.0], [3.0, -3.0], [0.0, 2.0]], expected).flips == 1
    half = dataclasses.replace(at, thresholds=())
    assert apart(task, half, [[-3.0, 2.0], [3.0, -3.0], [0.0, 2.0]], expected).flips == 0
    assert apart(task, half, [[-3.0, 2.0], [3.0, -3.0], [-0.001, 2.0]], expected).flips == 0  # none was clear


# ---------------------------------------------------------------- verify.py


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Made], Path]:
    def copy(made: Made) -> Path:
        return Path(shutil.copytree(made.folder, tmp_path / "copy"))

    return copy


def remade(made: Made, folder: Path, further: Callable[[str], str]) -> None:
    """model.onnx with another text after its tail."""
    ending = answering(made.task, PixelModel(folder / "model.onnx").calibration).ending()
    changed = dataclasses.replace(ending, further=further(ending.further))
    core, model = folder / "model.core.onnx", folder / "model.onnx"
    write_raw_pixel_model(core, model, made.order.handoff.preprocess, changed, "image")
    seal(folder)


def test_verify_finds_decisions_that_are_not_those_of_the_probabilities(
    tags: Made, copied: Callable[[Made], Path]
) -> None:
    folder = copied(tags)
    remade(tags, folder, lambda text: text.replace("GreaterOrEqual", "Less"))
    problems = verify(folder).problems
    assert all(re.fullmatch(r"model\.onnx on .*: label number \d is (there|missing), .* contrary", p) for p in problems)
    assert len(problems) > 20


@pytest.mark.parametrize("name", ["any_of", "numbers"])
def test_verify_finds_other_answers_and_another_core(
    name: str, make: Callable[[str], Made], copied: Callable[[Made], Path]
) -> None:
    made = make(name)
    folder, output = copied(made), FORMS[made.targets.form].output
    data = json.loads((folder / "test_vectors/vectors.json").read_text())
    first, second, *_ = data["vectors"]
    unit = made.targets.deviation[1] if made.targets.deviation else 1
    first[output][1] += 0.03 * unit
    second["logits"][0] += 1.0
    (folder / "test_vectors/vectors.json").write_text(json.dumps(data))
    seal(folder)
    what = {
        "any_of": "a probability is off by 0.0300",
        "numbers": "a value, in deviations of its column, is off by 0.0300",
    }
    wrong, other = verify(folder).problems
    assert wrong.startswith(f"model.onnx on {first['name']}: {what[name]}, allowed are 0.02")
    assert other.startswith(f"model.core.onnx on {second['name']}: a logit is off by ")


# ---------------------------------------------------------------- what is said of images


def photo(folder: Path, colour: tuple[int, int, int], name: str = "photo.png") -> str:
    Image.new("RGB", (30, 20), colour).save(folder / name)
    return str(folder / name)


def predicted(made: Made, *arguments: str) -> str:
    done = CliRunner().invoke(cli, ["predict", str(made.folder), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_columns_of_predictions_have_names_of_their_own() -> None:
    names = ("error", "image", "error_", "labels", "cat")
    labels, columns = (FORMS[form].columns(Targets("any", form, names)) for form in ("any_of", "numbers"))
    assert labels == ("image", "labels", "error__", "image_", "error_", "labels_", "cat", "error")
    assert columns == ("image", "error__", "image_", "error_", "labels", "cat", "error")


def test_labels_are_predicted(tags: Made, tmp_path: Path) -> None:
    red, black = photo(tmp_path, (250, 10, 240)), photo(tmp_path, (5, 5, 5), "black.png")
    table = predicted(tags, red, black).splitlines()
    assert re.fullmatch(rf"blue 0\.9\d+, red 0\.9\d+  {red}|red 0\.9\d+, blue 0\.9\d+  {red}", table[0])
    assert table[1] == f"no label  {black}"
    one = json.loads(predicted(tags, red, "--json"))
    assert list(one) == ["image", "labels", "probabilities", "error"]
    assert (one["labels"], set(one["probabilities"])) == (["blue", "red"], {"red", "green", "blue"})
    (row,) = csv.DictReader(io.StringIO(predicted(tags, red, "--csv")))
    assert (row["labels"], float(row["green"]) < 0.1) == ("blue|red", True)
    (found,) = predict(tags.folder, [red])
    assert (found.labels, found.label, found.values) == (("blue", "red"), None, {})


def test_numbers_are_predicted(numbers: Made, tmp_path: Path) -> None:
    image = photo(tmp_path, (51, 10, 255))
    assert re.fullmatch(rf"grams 400(\.\d+)?  kilometres 0\.001\d*  {image}\n", predicted(numbers, image))
    one = json.loads(predicted(numbers, image, "--json"))
    assert list(one) == ["image", "values", "error"]
    assert one["values"] == pytest.approx({"grams": 400, "kilometres": 0.001}, rel=1e-3)
    (row,) = csv.DictReader(io.StringIO(predicted(numbers, image, "--csv")))
    assert float(row["grams"]) == pytest.approx(400, rel=1e-3) and row["error"] == ""


def test_the_example_in_python_says_what_predict_says(made: Made, tmp_path: Path) -> None:
    image = photo(tmp_path, (250, 10, 240))

    def infer(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(made.folder / "examples/infer.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    said = {
        "any_of": r"blue 0\.9\d+, red 0\.9\d+",
        "numbers": r"grams 1180\.\d+, kilometres 0\.00094\d+",
        "one_of": r"3 0\.9\d+",
    }
    assert re.fullmatch(f"{image}: {said[made.targets.form]}\n", infer(image).stdout)
    assert re.fullmatch(r"PASS: \d+ vectors\n", infer().stdout)


@pytest.mark.parametrize("name", ["any_of", "numbers"])
def test_the_example_in_node_says_what_predict_says(name: str, make: Callable[[str], Made], node_place: Path) -> None:
    made = make(name)
    folder = Path(shutil.copytree(made.folder, node_place / name))
    said = node(folder)
    assert re.fullmatch(r"PASS: \d+ vectors\n", said.stdout), said.stderr
    for number, colour in enumerate([(250, 10, 240), (5, 5, 5)]):
        raw = folder / f"{number}.rgb"
        raw.write_bytes(bytes(colour) * 30 * 20)
        (found,) = predict(folder, [photo(folder, colour)])
        expected = found.values or {label: found.probabilities[label] for label in found.labels}
        shown = node(folder, raw, 30, 20).stdout.removeprefix(f"{raw}: ").strip().split(", ")
        pairs = dict(word.split() for word in shown) if shown != ["no label"] else {}
        assert {label: float(value) for label, value in pairs.items()} == pytest.approx(expected, rel=1e-3)
    edited = json.loads((folder / "test_vectors/vectors.json").read_text())
    edited["vectors"][0][FORMS[made.task.form].output][0] += 1e4
    (folder / "test_vectors/vectors.json").write_text(json.dumps(edited))
    assert node(folder).stderr.startswith(f"FAIL: {edited['vectors'][0]['name']} gives ")


# ---------------------------------------------------------------- scored again


def rescored(made: Made, file: Path) -> Any:
    done = CliRunner().invoke(cli, ["verify", str(made.folder), str(file), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["rescored"]


def test_a_manifest_of_other_images_is_scored_by_the_names_of_the_metrics(made: Made, tmp_path: Path) -> None:
    file = without_splits(manifest(tmp_path, made.kind, n=12, seed=7))
    found = rescored(made, file)
    scores = found["scores"]
    expected = {
        "any_of": {"subset_accuracy", "macro_f1", "micro_f1", "map"},
        "numbers": {"mae", "rmse", "r2"},
        "one_of": {"mae", "macro_mae", "accuracy", "balanced_accuracy", "macro_f1", "log_loss"},
    }
    assert (scores["n"], found["fresh"]) == (12, 12)
    assert scores["right"] == ("with every label right" if made.targets.form == "any_of" else "right")
    assert set(scores["metrics"]) == expected[made.targets.form]
    best = {"any_of": "map", "numbers": "r2", "one_of": "accuracy"}[made.targets.form]
    assert scores["metrics"][best] > 0.99


def test_the_manifest_of_the_run_scores_what_the_bundle_says(made: Made) -> None:
    found = rescored(made, Path(made.order.dataset.info.source))
    report = decode(MetricsReport, (made.folder / "metrics.json").read_text())
    assert found["scored"] == {"train": 0, "val": 0, "test": report.n}
    for name, value in found["scores"]["metrics"].items():
        if name in report.metrics:
            assert value == pytest.approx(report.metrics[name].value, abs=2e-3), name


@pytest.mark.parametrize(
    ("name", "cells", "problem"),
    [
        ("any_of", "red|purple", "'purple' is no label of the model"),
        ("numbers", "3,much", "'much' is no number"),
        ("ordinal", "4", "'4' is no label of the model"),
    ],
)
def test_a_label_that_the_model_does_not_know_is_named(
    name: str, cells: str, problem: str, make: Callable[[str], Made], tmp_path: Path
) -> None:
    made = make(name)
    photo(tmp_path, (1, 2, 3))
    (tmp_path / "other.csv").write_text(f"image,{made.kind.columns}\nphoto.png,{cells}\n")
    with pytest.raises(DataError, match=rf"other\.csv: photo\.png: {problem}"):
        read_source(PixelModel(made.folder / "model.onnx"), tmp_path / "other.csv")


def test_numbers_are_found_by_the_names_of_their_columns(numbers: Made, tmp_path: Path) -> None:
    file = without_splits(manifest(tmp_path, numbers.kind, n=12, seed=7))
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    lines = [f"{row['kilometres']},{row['image']},x,{row['grams']}" for row in rows]
    file.write_text("\n".join(["KILOMETRES,image,note,grams", *lines]))
    assert rescored(numbers, file)["scores"]["metrics"]["r2"] > 0.99
    model = PixelModel(numbers.folder / "model.onnx")
    assert read_source(model, file).notes == (
        f"{file}: the column 'note' is not used, as the model says nothing of it",
    )
    file.write_text(f"image,grams\n{rows[0]['image']},3\n")
    with pytest.raises(DataError, match=r"data\.csv: no column is called 'kilometres', only 'grams'"):
        read_source(model, file)


def test_a_line_that_contradicts_an_earlier_one_is_no_image_that_cannot_be_read(tags: Made, tmp_path: Path) -> None:
    photo(tmp_path, (1, 2, 3))
    file = tmp_path / "other.csv"
    file.write_text("image,labels\nphoto.png,red|blue\nphoto.png,blue|red\nphoto.png,red\ngone.png,red\n")
    found = read_source(PixelModel(tags.folder / "model.onnx"), file)
    assert ([one.label for one in found.images], found.unreadable) == (
        ["red|blue"],
        ("gone.png: no such file (line 5)",),
    )
    (note,) = found.notes
    assert note.startswith("photo.png: line 4 says 'red', line 2 'red|blue', which counts")


def test_data_that_the_task_of_a_plugin_reads_otherwise_is_said_in_a_line(numbers: Made, tmp_path: Path) -> None:
    model = PixelModel(numbers.folder / "model.onnx")
    model.targets = Targets("quantiles", "numbers", ("low", "mid", "high"))
    photo(tmp_path, (1, 2, 3))
    (tmp_path / "other.csv").write_text("image,grams\nphoto.png,3.5\n")
    end = "it was made by task 'quantiles' of a plugin, and cannot be scored from this data"
    with pytest.raises(DataError, match=rf"no column is called 'low', only 'grams'; name the columns so; {end}"):
        read_source(model, tmp_path / "other.csv")
    says = model.form.problem("3.5", model.targets)
    assert says == f"'3.5' holds 1 and not 3: low, mid, high; {end} here"
