"""Metrics of plugins: known to every task of their form, wherever figures stand, and blamed when they fail."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autoft
from autoft.errors import PluginError, StudyError
from autoft.parts.host import Host
from autoft.study.run import Run
from autoft.tasks.scores import scores
from autoft.testing import MetricConformance
from autoft.values.bundle import CARD
from autoft.values.codec import decode, encode
from autoft.values.summary import Scores

Score = Callable[[NDArray[Any], NDArray[Any]], float]


def worst_recall(logits: NDArray[Any], classes: NDArray[Any]) -> float:
    """The recall of the class that is found least often."""
    found = logits.argmax(axis=1)
    return min(float((found[classes == one] == one).mean()) for one in np.unique(classes))


def metric(score: Score = worst_recall, name: str = "worst_recall", form: Any = "one_of") -> autoft.Metric:
    return autoft.Metric.of(autoft.MetricFacts(name), score, form)


class Offers:
    """A plugin with metrics."""

    def __init__(self, *metrics: autoft.Metric) -> None:
        self.metrics = metrics

    @autoft.hookimpl
    def autoft_metrics(self) -> list[autoft.Metric]:
        return list(self.metrics)


class OffersMore(Offers):
    pass


class TestWorstRecall(MetricConformance):
    def part(self) -> autoft.Metric:
        return metric()


class TestMacroF1(MetricConformance):
    """Of which `by_class` is checked too."""

    def part(self) -> autoft.Metric:
        return replace(autoft.SingleLabel().metric("macro_f1"), form="one_of")


def needs_company(targets: np.ndarray) -> float:
    """A metric that does not know what to do without a class."""
    if len(np.unique(targets)) < 2:
        raise ValueError("no image of class 1")
    return 0.5


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (metric(lambda judged, targets: -worst_recall(judged, targets)), "better_outputs_score_better"),
        (metric(lambda judged, targets: 100 * worst_recall(judged, targets)), "no_figure_is_above_the_greatest"),
        (metric(lambda judged, targets: float(np.random.default_rng().random())), "the_same_gives_the_same"),
        (metric(form=None), "better_outputs_score_better"),
        (metric(lambda judged, targets: needs_company(targets)), "a_draw_without_a_class_raises_nothing"),
        (
            autoft.Metric(autoft.MetricFacts("one"), lambda judged, targets: lambda counts: np.ones(1), form="one_of"),
            "it_judges_resamples",
        ),
        (
            replace(metric(), by_class=lambda judged, targets: (np.ones(2), np.bincount(targets))),
            "figures_of_classes_make_the_score",
        ),
    ],
)
def test_the_checks_notice_what_is_wrong(wrong: autoft.Metric, check: str) -> None:
    suite = type("Wrong", (MetricConformance,), {"part": lambda self: wrong})()
    with pytest.raises((AssertionError, ValueError)):
        getattr(suite, f"test_{check}")()


def test_every_task_of_the_form_knows_it_after_its_own_and_no_other_task() -> None:
    tasks = Host.discover(objects=[Offers(metric(), metric(name="furthest", form="numbers"))]).tasks()
    last = {name: task.metrics[-1].name for name, task in tasks.items()}
    assert last == {
        "single_label": "worst_recall",
        "ordinal": "worst_recall",
        "multi_label": "subset_accuracy",
        "regression": "furthest",
    }
    assert tasks["single_label"].metric("auto").name == "accuracy"
    assert autoft.SingleLabel().metrics[-1].name == "log_loss"  # nothing is left behind


@pytest.mark.parametrize(
    ("plugins", "says"),
    [
        (
            [Offers(metric(name="accuracy"))],
            r"distribution 'autoft'.* and plugin 'Offers'.*metric 'accuracy'.*-p no:",
        ),
        ([Offers(metric()), OffersMore(metric())], r"'Offers'.* and plugin 'OffersMore'.* both offer metric"),
        ([Offers(metric(), metric())], r"plugin 'Offers' .* offers two parts called 'worst_recall', each a metric"),
        ([Offers(metric(form=None))], r"plugin 'Offers'.*of metric 'worst_recall': ValueError: `form` says which"),
        (
            [Offers(metric(name="two words"))],
            r"plugin 'Offers'.*autoft_metrics must return a list of Metric, .*one word; got the name 'two words';",
        ),
    ],
)
def test_a_metric_that_cannot_be_told_apart_is_refused_before_anything_begins(plugins: list[Any], says: str) -> None:
    with pytest.raises(PluginError, match=says):
        Host.discover(objects=plugins).check_names()


def one_over_zero(judged: NDArray[Any], targets: NDArray[Any]) -> float:
    raise KeyError("no such class")


OUTPUTS, CLASSES = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]], np.array([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("score", "cause"),
    [
        (one_over_zero, "KeyError: 'no such class'"),
        (lambda judged, targets: -math.inf, "of 4 images it gives -inf, which is no finite number"),
        (lambda judged, targets: [1.0, 2.0], "of shape"),
    ],
)
def test_one_that_fails_or_gives_no_number_is_blamed_on_its_plugin(score: Score, cause: str) -> None:
    task = Host.discover(objects=[Offers(metric(score))]).task("single_label")
    task = task.on(autoft.Targets("single_label", "one_of", ("a", "b", "c")))
    with pytest.raises(PluginError) as caught:
        task.score("worst_recall", OUTPUTS, CLASSES)
    line = str(caught.value)
    assert line.startswith("plugin 'Offers' ")
    assert "failed in the score of metric 'worst_recall': " in line
    assert cause in line
    assert line.endswith("-p no:Offers")


def by_class_of(found: Any) -> autoft.Metric:
    return replace(metric(), by_class=lambda judged, targets: found() if callable(found) else found)


def missing() -> Any:
    raise KeyError("no such class")


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (missing, "KeyError: 'no such class'"),
        (np.ones(3), "two arrays of numbers (classes,)"),
        ((["all", "none"], [2, 2]), "it gives (['all', 'none'], [2, 2]); give the figure of each class that occurs"),
        (([1.0, 0.5], [4]), "figures of shape (2,) and sizes of shape (1,)"),
        (([[1.0]], [[4]]), "figures of shape (1, 1)"),
        (([1.0, math.nan], [2, 2]), "that of a class is from 0 to 1"),
        (([1.0, 0.0], [4, 0]), "leave out those that do not occur"),
    ],
)
def test_what_a_mean_over_classes_is_made_of_is_checked_too(found: Any, cause: str) -> None:
    class Odd(autoft.SingleLabel):
        name = "odd"
        metrics = (replace(by_class_of(found), form=None),)

    class Plugin:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[autoft.Task]:
            return [Odd()]

    for plugin, name, part in (
        (Offers(by_class_of(found)), "single_label", "by_class() of the score of metric 'worst_recall'"),
        (Plugin(), "odd", "by_class() of metric 'worst_recall' of task 'odd'"),
    ):
        task, whose = Host.discover(objects=[plugin]).task(name), type(plugin).__name__
        with pytest.raises(PluginError) as caught:
            scores(task.metrics, task.metric("worst_recall"), OUTPUTS, CLASSES)
        line = str(caught.value)
        assert line.startswith(f"plugin '{whose}' ")
        assert f"failed in {part}: " in line
        assert cause in line
        assert line.endswith(f"-p no:{whose}")


def test_of_classes_a_metric_says_nothing_of_a_diverged_network() -> None:
    task = Host.discover(objects=[Offers(by_class_of(missing))]).task("single_label")
    own = task.metric("worst_recall").by_class
    assert own is not None
    assert [len(part) for part in own(np.full((4, 3), math.nan, np.float32), CLASSES)] == [0, 0]


def test_a_mean_over_classes_is_as_wide_as_its_classes_say() -> None:
    rare = replace(metric(), by_class=lambda judged, targets: ([1.0, 1.0], [10, 2]))
    task, classes = Host.discover(objects=[Offers(rare)]).task("single_label"), np.repeat([0, 1], [10, 2])
    found = scores(task.metrics, task.metric("worst_recall"), np.eye(2, dtype=np.float32)[classes], classes)
    assert found.ci95[0] == pytest.approx(0.64, abs=0.01)


def test_the_metric_of_a_plugins_task_is_blamed_on_the_plugin_too() -> None:
    class Odd(autoft.SingleLabel):
        name = "odd"
        metrics = (metric(one_over_zero, form=None),)

    class Plugin:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[autoft.Task]:
            return [Odd()]

    with pytest.raises(PluginError, match=r"plugin 'Plugin'.*failed in metric 'worst_recall' of task 'odd': KeyError"):
        Host.discover(objects=[Plugin()]).task("odd").score("auto", OUTPUTS, CLASSES)


def test_a_diverged_network_is_not_the_metrics_fault() -> None:
    task = Host.discover(objects=[Offers(metric(one_over_zero))]).task("single_label")
    assert math.isnan(task.score("worst_recall", np.full((4, 3), math.nan, np.float32), CLASSES))


def test_resamples_without_a_figure_are_left_out_of_the_interval() -> None:
    def only_with_class_0(judged: NDArray[Any], targets: NDArray[Any]) -> float:
        return worst_recall(judged, targets) if (targets == 0).any() else math.nan

    task = Host.discover(objects=[Offers(metric(only_with_class_0))]).task("single_label")
    found = scores(task.metrics, task.metric("worst_recall"), OUTPUTS, CLASSES)
    assert found.ci95[0] <= found.metrics["worst_recall"] == 0.5 <= found.ci95[1]
    assert all(map(math.isfinite, found.ci95))


def undefined(judged: NDArray[Any], targets: NDArray[Any]) -> float:
    return math.nan


def test_one_without_a_figure_is_left_out_and_has_no_interval() -> None:
    task = Host.discover(objects=[Offers(metric(undefined))]).task("single_label")
    found = scores(task.metrics, task.metric("accuracy"), OUTPUTS, CLASSES)
    assert "worst_recall" not in found.metrics and found.metrics["accuracy"] == 0.75
    alone = decode(Scores, encode(scores(task.metrics, task.metric("worst_recall"), OUTPUTS, CLASSES)))
    assert (alone.metrics, alone.ci95) == (found.metrics, None)
    assert alone.text("worst_recall") == "undefined"


def test_a_plugins_metric_does_not_say_which_images_are_right() -> None:
    near = replace(
        metric(lambda values, targets: float((abs(values - targets) < 1).mean()), "near", "numbers"), is_proportion=True
    )
    task = Host.discover(objects=[Offers(near)]).task("regression")
    values = np.float64([[1], [2], [9]])
    found = scores(task.metrics, task.metric("near"), values, np.float64([[1], [5], [9.5]]))
    assert (found.correct, found.metrics["near"]) == (None, pytest.approx(2 / 3))
    first = replace(near, form="one_of", statistic=lambda judged, targets: lambda counts: np.zeros(len(counts)))
    own = autoft.SingleLabel.metrics
    assert scores([first, *own], own[0], OUTPUTS, CLASSES).correct == 3


@pytest.mark.parametrize(
    ("name", "own", "correct"),
    [("top2", True, 4), ("top2", False, 3), ("accuracy", False, 3), ("macro_f1", True, 3)],
)
def test_the_count_beside_a_score_is_its_own_or_that_of_the_tasks_first(name: str, own: bool, correct: int) -> None:
    def top2(logits: NDArray[Any], classes: NDArray[Any]) -> float:
        return float((np.argsort(-logits, axis=1)[:, :2] == classes[:, None]).any(axis=1).mean())

    form = None if own else "one_of"
    task = autoft.SingleLabel().with_metrics(
        [autoft.Metric.of(autoft.MetricFacts("top2"), top2, form, is_proportion=True)]
    )
    logits = np.array([[3, 2, 1], [1, 3, 2], [1, 2, 3], [1, 2, 3]], np.float32)
    found = scores(task.metrics, task.metric(name), logits, CLASSES)
    assert (found.correct, found.metrics["accuracy"], found.metrics["top2"]) == (correct, 0.75, 1.0)


def test_a_proportion_is_no_more_than_all() -> None:
    own = autoft.Metric.of(autoft.MetricFacts("percent"), lambda *_: 50.0, "one_of", is_proportion=True)
    with pytest.raises(PluginError, match=r"it gives 50\.0; with `is_proportion` it is a part of the images, 0 to 1"):
        Host.discover(objects=[Offers(own)]).task("single_label").score("percent", OUTPUTS, CLASSES)


def search(images: Path, own: autoft.Metric, **options: Any) -> Any:
    return autoft.search(
        images,
        time="60s",
        trials=1,
        runner="inline",
        backbones=["small/test_resnet"],
        freeze=["probe"],
        image_size=32,
        metric=own.name,
        no_refit=True,
        out=images.parent / "run",
        plugins=[Path(__file__).parent / "parts" / "small_zoo.py", Offers(own)],
        **options,
    )


def test_a_search_by_it_shows_it_everywhere(tiny_images: Path) -> None:
    summary = search(tiny_images, metric())
    run = tiny_images.parent / "run"
    assert summary.metric == "worst_recall"
    figure = summary.test.metrics["worst_recall"]
    assert {"accuracy", "worst_recall"} < summary.test.metrics.keys()
    assert summary.test.ci95[0] <= figure <= summary.test.ci95[1]
    assert json.loads((run / "export" / "metrics.json").read_text())["metrics"]["worst_recall"]["value"] == figure
    assert f"worst_recall | {figure:.4f} |" in (run / "export" / CARD).read_text().replace("\\", "")
    (row,) = csv.DictReader((run / "leaderboard.csv").read_text().splitlines())
    opened = Run.open(run)
    with pytest.raises(StudyError, match=r"no metric is called 'worst_recall'.*plugin 'Offers'.* is switched off"):
        opened.task(opened.host(["no:Offers"]))
    assert float(row["score"]) == pytest.approx(summary.validation.metrics["worst_recall"], abs=1e-3)


def test_one_that_fails_ends_the_search_before_it_begins(tiny_images: Path) -> None:
    for own in (metric(one_over_zero), by_class_of(missing)):
        with pytest.raises(PluginError, match=r"plugin 'Offers'.*KeyError"):
            search(tiny_images, own)
        assert not (tiny_images.parent / "run").exists()


def test_one_without_a_figure_is_nothing_to_search_by(tiny_images: Path) -> None:
    why = r"plugin 'Offers'.* failed in the score of metric 'worst_recall': .*has no figure for \d+ validation images"
    with pytest.raises(PluginError, match=why):
        search(tiny_images, metric(undefined))
    assert not (tiny_images.parent / "run").exists()


def test_one_that_gives_nothing_is_told_so(tiny_images: Path) -> None:
    """As of a function without its `return`; numpy takes None for NaN."""
    with pytest.raises(
        PluginError, match=r"plugin 'Offers'.* failed in the score of metric .*TypeError: it gives None"
    ):
        search(tiny_images, metric(lambda judged, targets: None))  # type: ignore[arg-type, return-value]


def test_an_unknown_one_is_named_with_the_near_one(tiny_images: Path) -> None:
    with pytest.raises(StudyError, match="no metric is called 'worst_recal'; did you mean 'worst_recall'"):
        autoft.search(tiny_images, metric="worst_recal", plugins=[Offers(metric())])
