"""Checks of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from autoft.bundle.tail import tail_problem
from autoft.parts.base import UNCALIBRATED, Task
from autoft.parts.contract import head_problem, loss_problem, names_problem, targets_problem
from autoft.system.natural import natural_key
from autoft.tasks.forms.table import answering
from autoft.testing.base import Conformance
from autoft.values.bundle import Calibration
from autoft.values.codec import decode, encode
from autoft.values.plan import Recipe
from autoft.values.target import Form, Targets

if TYPE_CHECKING:
    from torch import Tensor

IMAGES, DIM, STEPS, EPOCHS = 400, 16, 50, 300


def labels_of(form: Form) -> Sequence[str]:
    """Labels of 400 images that suit most tasks of a form: four numbered classes, four labels, counts."""
    rng = np.random.default_rng(0)
    if form == "one_of":
        return [str(number) for number in rng.integers(1, 5, IMAGES)]
    if form == "any_of":
        marks = rng.random((IMAGES, 4)) < (0.5, 0.4, 0.3, 0.2)
        return ["|".join(name for name, mark in zip("abcd", row, strict=True) if mark) for row in marks]
    return [str(number) for number in rng.poisson(6, IMAGES)]


@dataclass(frozen=True)
class Sight:
    """A task bound to a data set: its labels, encoded, and `features` `(n, 16)` in which they can be seen."""

    task: Task
    labels: Sequence[str]
    targets: NDArray[Any]
    features: NDArray[np.float32]

    @classmethod
    def of(cls, task: Task, labels: Sequence[str], columns: Sequence[str]) -> Sight:
        """What is known of a data set before it trains."""
        names = task.names(sorted(set(labels), key=natural_key), columns)
        _require("names", names_problem(task, names))
        plain = Targets(task.name, task.form, names)
        encoded = task.on(plain).encode(labels)
        _require("encode", targets_problem(task.on(plain), encoded, labels))
        bound = task.on(task.with_moments(plain, encoded))
        return cls(bound, labels, encoded, _features(encoded))

    def trained(self, steps: int = EPOCHS) -> tuple[list[float], NDArray[np.float32]]:
        """The losses of a linear model, step by step, and its outputs `(n, outputs)` after them."""
        import torch

        features, targets = torch.from_numpy(self.features), torch.from_numpy(self.targets)
        weight = torch.zeros(DIM, self.task.outputs, requires_grad=True)
        bias = torch.zeros(self.task.outputs, requires_grad=True)
        optimizer, losses = torch.optim.Adam([weight, bias], 0.05), []
        for _ in range(steps):
            loss = self.task.loss(features @ weight + bias, targets, Recipe())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses, (features @ weight + bias).detach().numpy()


class TaskConformance(Conformance[Task]):
    """Checks of a `Task`: labels, loss, closed form, scores, and answers against the tail of the graph."""

    def labels(self) -> Sequence[str]:
        """The labels of some hundred images, each kind often enough to be learned; by default what suits the form."""
        return labels_of(self.part().form)

    def columns(self) -> Sequence[str]:
        """The columns that a label holds."""
        return ("label",)

    def sight(self) -> Sight:
        """The part, bound to `labels`."""
        return Sight.of(self.part(), self.labels(), self.columns())

    def test_its_labels_can_be_used(self) -> None:
        """No label has a problem, and encoding gives a row for each, with names to answer for."""
        sight = self.sight()
        for label in sight.labels:
            problem = sight.task.problem(label)
            assert problem is None, f"problem({label!r}) says {problem!r} of a label that labels() gives"

    def test_strata_group_the_labels(self) -> None:
        """One group a label, known before the data set is."""
        groups = self.part().strata(self.labels())
        assert len(groups) == len(self.labels()), f"strata() gives {len(groups)} groups for {len(self.labels())} labels"
        assert len(set(groups)) < len(groups), "strata() puts every label into a group of its own"

    def test_its_targets_survive_json(self) -> None:
        """Targets are recorded with the run and the bundle."""
        targets = self.sight().task.targets
        assert decode(Targets, encode(targets)) == targets, "the targets do not survive JSON"

    def test_its_loss_can_be_learned(self) -> None:
        """A finite scalar with gradients, that falls over fifty steps of a linear model."""
        import torch

        sight = self.sight()
        outputs = torch.zeros(len(sight.targets), sight.task.outputs, requires_grad=True)
        loss = sight.task.loss(outputs, torch.from_numpy(sight.targets), Recipe())
        _require("loss", loss_problem(sight.task, loss))
        assert bool(loss.isfinite()), f"loss() gives no finite number: {loss}"
        assert loss.requires_grad, "loss() gives no gradient: compute it of the outputs, with torch"
        loss.backward()  # type: ignore[no-untyped-call]
        moved = outputs.grad is not None and bool(outputs.grad.isfinite().all()) and bool(outputs.grad.any())
        assert moved, "loss() gives no finite gradient"
        losses, _ = sight.trained(STEPS)
        assert losses[-1] < losses[0], f"over {STEPS} steps the loss goes from {losses[0]:.4g} to {losses[-1]:.4g}"

    def test_better_outputs_score_better(self) -> None:
        """By every metric, each with a name of its own; the first is the default."""
        sight = self.sight()
        names = [metric.name for metric in sight.task.metrics]
        assert names and len(set(names)) == len(names), f"metrics need names of their own: {names}"
        assert sight.task.metric("auto").name == names[0], "the first metric is the one to search by"
        _, outputs = sight.trained()
        shuffled = np.random.default_rng(0).permutation(outputs)
        for name in names:
            good, bad = (sight.task.score(name, some, sight.targets) for some in (outputs, shuffled))
            assert good > bad, f"{name}: {good:.4g} when trained and {bad:.4g} when shuffled; greater is better"

    def test_its_closed_form_is_better_than_a_constant(self) -> None:
        """By the first metric."""
        import torch

        sight = self.sight()
        features, targets = torch.from_numpy(sight.features), torch.from_numpy(sight.targets)
        if not sight.task.has_closed_form:
            raise SkipTest("there is no closed form")
        head = sight.task.closed_form(features, targets, lambda: None)
        _require("closed_form", head_problem(sight.task, head, features))
        outputs: Tensor = features @ head.weight.T + head.bias  # type: ignore[union-attr]  # it is a head
        constant = outputs.mean(dim=0).expand_as(outputs)
        metric = sight.task.metrics[0].name
        good, bad = (sight.task.score(metric, some.numpy(), sight.targets) for some in (outputs, constant))
        assert good > bad, f"{metric}: {good:.4g} of the closed form and {bad:.4g} of a constant"

    def test_its_calibration_is_of_its_form(self) -> None:
        """It survives JSON; thresholds, between 0 and 1, are for labels of which any may be there."""
        sight = self.sight()
        found = _calibration(sight)
        assert decode(Calibration, encode(found)) == found, "the calibration does not survive JSON"
        wanted = (0, len(sight.task.targets.names)) if sight.task.form == "any_of" else (0,)
        assert len(found.thresholds) in wanted, f"{len(found.thresholds)} thresholds, of the form {sight.task.form!r}"
        assert all(0 < threshold < 1 for threshold in found.thresholds), f"thresholds {found.thresholds}"

    def test_its_answers_are_of_its_form(self) -> None:
        """Float32, one for each name: finite numbers, or probabilities; those of classes add up to 1."""
        sight = self.sight()
        for calibration in (UNCALIBRATED, _calibration(sight)):
            outputs = _random_outputs(sight)
            answers = sight.task.answers(outputs, calibration)
            shape = (len(outputs), len(sight.task.targets.names))
            kinds = f"answers() gives {answers.dtype} {answers.shape}, not float32 {shape}"
            assert answers.dtype == np.float32 and answers.shape == shape, kinds
            assert np.isfinite(answers).all(), "answers() gives what is not finite"
            if sight.task.form != "numbers":
                assert ((answers >= 0) & (answers <= 1)).all(), "probabilities lie between 0 and 1"
            if sight.task.form == "one_of":
                sums = answers.sum(axis=1)
                assert np.allclose(sums, 1, atol=1e-4), f"probabilities add up to {sums.min():.4g}..{sums.max():.4g}"

    def test_the_tail_computes_the_answers(self) -> None:
        """`tail` run by onnxruntime gives what `answers` gives, on one image and on many."""
        sight = self.sight()
        for calibration in (UNCALIBRATED, _calibration(sight)):
            problem = tail_problem(answering(sight.task, calibration), _random_outputs(sight))
            assert problem is None, problem

    def test_the_same_gives_the_same(self) -> None:
        """Nothing is drawn at random, and nothing that is handed in changes."""
        sight = self.sight()
        outputs, calibration = _random_outputs(sight), _calibration(sight)
        before = outputs.copy(), sight.targets.copy()
        task = sight.task
        computed: dict[str, Callable[[], NDArray[Any]]] = {
            "encode": lambda: task.encode(sight.labels),
            "strata": lambda: np.array([str(group) for group in task.strata(sight.labels)]),
            "judged": lambda: task.judged(outputs, calibration),
            "answers": lambda: task.answers(outputs, calibration),
            "calibrate": lambda: np.array([encode(task.calibrate(outputs, sight.targets))]),
            "score": lambda: np.array([task.score("auto", outputs, sight.targets)]),
        }
        for name, compute in computed.items():
            assert np.array_equal(compute(), compute()), f"{name}() gives something else the second time"
        same = np.array_equal(outputs, before[0]) and np.array_equal(sight.targets, before[1])
        assert same, "outputs or targets were changed in place"


def _require(method: str, problem: str | None) -> None:
    assert problem is None, f"{method}(): {problem}"


def _features(targets: NDArray[Any]) -> NDArray[np.float32]:
    """Noisy mixtures `(n, 16)` of what is in the targets."""
    rng = np.random.default_rng(0)
    columns = targets.reshape(len(targets), -1).astype(np.float64)
    if targets.dtype == np.int64:
        columns = np.hstack([columns, np.eye(int(targets.max()) + 1)[targets]])
    spread = columns.std(axis=0)
    standard = (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1)
    noise = 0.1 * rng.normal(size=(len(targets), DIM))
    mixed: NDArray[np.float64] = standard @ rng.normal(size=(standard.shape[1], DIM)) + noise
    return mixed.astype(np.float32)


def _random_outputs(sight: Sight) -> NDArray[np.float32]:
    outputs = np.random.default_rng(1).normal(0, 3, (len(sight.targets), sight.task.outputs))
    return outputs.astype(np.float32)


def _calibration(sight: Sight) -> Calibration:
    """Of outputs that are too sure of themselves."""
    _, outputs = sight.trained()
    noisy = outputs + outputs.std() * np.random.default_rng(2).standard_normal(outputs.shape, np.float32)
    return sight.task.calibrate(2 * noisy, sight.targets)
