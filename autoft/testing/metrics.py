"""Checks of a metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoft.parts.base import Task
from autoft.parts.metric import Metric
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import SingleLabel
from autoft.testing.base import Conformance
from autoft.testing.tasks import Sight, labels_of
from autoft.values.target import Form

_TASKS: dict[Form, Callable[[], Task]] = {"one_of": SingleLabel, "any_of": MultiLabel, "numbers": Regression}


class MetricConformance(Conformance[Metric]):
    """Checks of a `Metric` of a plugin, on what the built-in task of its form has it judge."""

    def judged(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Good predictions of 400 images, in the form that the metric judges, and the targets."""
        form = self.part().form
        assert form in _TASKS, f"`form` says which answers it judges, one of {', '.join(_TASKS)}, not {form!r}"
        sight = Sight.of(_TASKS[form](), labels_of(form), ("label",))
        return sight.task.judged(sight.trained()[1]), sight.targets

    def test_better_outputs_score_better(self) -> None:
        """Of a loss too: its score is the negative."""
        judged, targets = self.judged()
        shuffled = np.random.default_rng(0).permutation(judged)
        good, bad = (self.part().score(outputs, targets) for outputs in (judged, shuffled))
        assert good > bad, f"{good:.4g} when trained and {bad:.4g} when shuffled; greater is better, also of a loss"

    def test_no_figure_is_above_the_greatest(self) -> None:
        """`--fail-under` goes by it."""
        metric, (judged, targets) = self.part(), self.judged()
        figure, greatest = metric.facts.shown(metric.score(judged, targets)), metric.facts.greatest
        assert greatest is None or figure <= greatest, f"it gives {figure:.4g}; `greatest` is {greatest:g}"
        if metric.is_proportion:
            assert 0 <= figure <= 1, f"it gives {figure:.4g}; with `is_proportion` it is a part of the images, 0 to 1"

    def test_it_judges_resamples(self) -> None:
        """A figure for each resample, of most a number: its interval is made of them."""
        judged, targets = self.judged()
        n = len(targets)
        drawn = np.random.default_rng(0).integers(n, size=(20, n))
        counts = np.stack([np.bincount(rows, minlength=n) for rows in drawn])
        figures = self.part().statistic(judged, targets)(counts)
        assert figures.shape == (20,), f"of 20 resamples it gives figures {figures.shape}"
        assert np.isfinite(figures).mean() > 0.5, f"of most resamples it gives no finite figure: {figures}"

    def test_a_draw_without_a_class_raises_nothing(self) -> None:
        """Validation images may lack one, and resamples do; where it has no figure then, it gives NaN."""
        judged, targets = self.judged()
        rows = np.flatnonzero((targets == targets[0]) if targets.ndim == 1 else (targets == targets[0]).all(axis=1))
        figure = self.part().score(judged[rows], targets[rows])
        assert isinstance(figure, float), f"of images of one class it gives {figure!r}, not a number or NaN"

    def test_figures_of_classes_make_the_score(self) -> None:
        """`by_class` gives those of the classes that occur, with their images; their mean is what is shown."""
        metric, (judged, targets) = self.part(), self.judged()
        if metric.by_class is None:
            return
        figures, sizes = (np.asarray(one, np.float64) for one in metric.by_class(judged, targets))
        assert figures.ndim == 1 and figures.shape == sizes.shape, (
            f"`by_class` gives figures {figures.shape} and sizes {sizes.shape}, not two of (classes,)"
        )
        assert (sizes > 0).all(), f"`by_class` gives classes of {sizes} images; leave out those that do not occur"
        shown, mean = metric.facts.shown(metric.score(judged, targets)), figures.mean()
        assert np.isclose(mean, shown), f"the score is {shown:.4g}, and the mean of `by_class` {mean:.4g}"

    def test_the_same_gives_the_same(self) -> None:
        """Nothing is drawn at random, and nothing that is handed in changes."""
        metric, (judged, targets) = self.part(), self.judged()
        before = judged.copy(), targets.copy()
        first, second = metric.score(judged, targets), metric.score(judged, targets)
        assert first == second, f"it gives {first} and then {second}"
        same = np.array_equal(judged, before[0]) and np.array_equal(targets, before[1])
        assert same, "what it judges, or targets, were changed in place"
