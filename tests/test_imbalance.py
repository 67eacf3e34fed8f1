"""Classes of unlike size: found, said, searched by what weighs them alike, and trained for."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from parts.data import dataset
from parts.small_run import ZOO, small_run
from torch.nn.functional import cross_entropy

import autoft
from autoft.builtin.freeze import BiasNorm, Full, LastStages, Probe
from autoft.engine.engine import _circumstances, _to_search_by
from autoft.engine.review import said_of
from autoft.media.image.batches import TrainingStream
from autoft.parts.base import FreezeStrategy, Task
from autoft.parts.guard import plan_problem
from autoft.study.record import Machine
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.screen import Silent
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.ordinal import Ordinal
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import IMBALANCED, SingleLabel
from autoft.train.arithmetic import Arithmetic
from autoft.train.balance import balanced
from autoft.train.by_gradient import _run_of, _untouched
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop, _taken
from autoft.values.plan import Balance, GradientHead, Plan, Recipe
from autoft.values.space import Circumstances
from autoft.values.target import Targets
from autoft.values.trial import Report, Slice

MOST = int(IMBALANCED)
EVEN, UNEVEN = ["cat"] * (MOST * 4 - 1) + ["dog"] * 4, ["cat"] * (MOST * 4) + ["dog"] * 4
REMEDIES = tuple(one for one in get_args(Balance) if one not in ("auto", "none"))


# ---------------------------------------------------------------- found, and said


def test_classes_are_uneven_from_one_ratio_on() -> None:
    found = SingleLabel().imbalance(UNEVEN)
    assert found is not None
    assert (found.common, found.most, found.rare, found.fewest) == ("cat", MOST * 4, "dog", 4)
    assert SingleLabel().imbalance(EVEN) is None
    assert SingleLabel().imbalance([]) is None


@pytest.mark.parametrize("task", [Regression(), MultiLabel()], ids=lambda task: task.name)
def test_a_task_without_classes_has_none(task: Task) -> None:
    assert task.imbalance(UNEVEN) is None
    assert task.balances == ()


def training(task: Task, labels: list[str]) -> Any:
    """A data set of images to train on with these labels."""
    return SimpleNamespace(task=task, labels={"train": labels}.__getitem__)


@pytest.mark.parametrize(
    ("task", "asked", "labels", "by"),
    [
        (SingleLabel(), "auto", UNEVEN, "balanced_accuracy"),
        (SingleLabel(), "auto", EVEN, "accuracy"),
        (SingleLabel(), "accuracy", UNEVEN, "accuracy"),
        (SingleLabel(), "log_loss", UNEVEN, "log_loss"),
        (Ordinal(), "auto", UNEVEN, "macro_mae"),
        (Ordinal(), "auto", EVEN, "mae"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | Task) else str(len(value)),
)
def test_the_metric_weighs_classes_alike_unless_one_was_chosen(
    task: Task, asked: str, labels: list[str], by: str
) -> None:
    assert _to_search_by(Study("data", metric=asked), training(task, labels), Silent()).name == by


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("auto", "searching by balanced_accuracy, to which each class counts alike; --metric accuracy has each image"),
        ("macro_f1", "searching by macro_f1, to which each class counts alike"),
        ("accuracy", "costs little; --metric balanced_accuracy has each class count alike"),
    ],
)
def test_one_line_says_so_and_how_to_choose(asked: str, says: str) -> None:
    task, uneven = SingleLabel(), SingleLabel().imbalance(UNEVEN)
    assert uneven is not None
    by = _to_search_by(Study("data", metric=asked), training(task, UNEVEN), Silent())
    line = said_of(uneven, by, asked, task)
    assert line.startswith(f"'cat' has {MOST * 4} images to train on, 'dog' 4: ")
    assert says in line


# ---------------------------------------------------------------- what a search does


def thinned(images: Path, keep: int) -> Path:
    """With so few images of the last class."""
    for one in sorted((images / "red").iterdir())[keep:]:
        one.unlink()
    return images


def search(images: Path, **options: Any) -> Any:
    return autoft.search(
        images,
        time="60s",
        trials=1,
        runner="inline",
        backbones=["small/test_resnet"],
        freeze=["probe"],
        image_size=32,
        no_refit=True,
        out=images.parent / "run",
        plugins=[Path(__file__).parent / "parts" / "small_zoo.py"],
        **options,
    )


def test_a_search_keeps_what_it_went_by(tiny_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = search(thinned(tiny_images, 4))
    assert (summary.metric, summary.weighs_classes) == ("balanced_accuracy", True)
    run = Run.open(tiny_images.parent / "run")
    assert (run.record.study.metric, run.record.metric.name) == ("balanced_accuracy", "balanced_accuracy")
    (record,) = run.ledger().trials.values()
    assert record.balance == "weights"
    again = run.task(run.host())
    assert again.metric("auto").name == "balanced_accuracy"


@pytest.mark.parametrize(("is_older", "alike"), [(False, "loo_balanced_accuracy"), (True, "loo_accuracy")])
def test_heads_of_a_run_that_is_resumed_weigh_classes_as_they_did(
    tiny_images: Path, tmp_path: Path, is_older: bool, alike: str
) -> None:
    """A study.json of before knows nothing of it; what wrote that had every image count alike, whatever the metric."""
    begun = small_run(thinned(tiny_images, 4), tmp_path / "run")
    assert begun.record.metric.weighs_classes
    study = json.loads(begun.folder.study.read_text())
    if is_older:
        del study["weighs_classes"]
        begun.folder.study.write_text(json.dumps(study))
    run = Run.open(begun.folder.path)
    (candidate,) = [c for c in run.record.candidates if (c.backbone, c.freeze) == ("small/test_resnet", "probe")]
    worker = Worker(Workshop(run, run.host()))
    report = worker.run(Job(Slice(candidate.trial(0, {}, 5), 0.0, 1.0, 1e12), time.time()))
    assert alike in report.facts
    assert worker.shop.task.metric("auto").name == run.record.metric.name


@pytest.mark.parametrize(
    ("usable", "by"),
    [({"red": 4}, "balanced_accuracy"), ({"red": 4, "green": 4, "blue": 4}, "accuracy")],
    ids=["one class is small", "all are"],
)
def test_files_that_cannot_be_read_make_no_class_larger(tiny_images: Path, usable: dict[str, int], by: str) -> None:
    """A listing has twelve or more files of each class; what counts is what trains."""
    for name, count in usable.items():
        for one in sorted((tiny_images / name).iterdir())[count:]:
            one.write_bytes(b"no image")
    if by == "accuracy":
        for number in range(24):
            (tiny_images / "red" / f"none{number}.png").write_bytes(b"no image")
    assert search(tiny_images).metric == by


def test_a_named_metric_is_left_alone(tiny_images: Path) -> None:
    assert search(thinned(tiny_images, 4), metric="accuracy").metric == "accuracy"
    (record,) = Run.open(tiny_images.parent / "run").ledger().trials.values()
    assert record.balance == ""


def test_spaces_hear_of_remedies_where_they_are_to_be_decided(tiny_images: Path) -> None:
    machine, even = Machine("inline", 1, 1, "cpu"), dataset(tiny_images, [])
    images = even.info.counts["train"]
    assert _circumstances(even.towards("balanced_accuracy"), machine) == Circumstances(
        "cpu", images, features_of="every stage"
    )
    uneven = dataset(thinned(tiny_images, 3), [])
    assert _circumstances(uneven.towards("balanced_accuracy"), machine).balances == tuple(SingleLabel().balances)
    assert _circumstances(uneven.towards("accuracy"), machine).balances == ()


@pytest.mark.parametrize("strategy", [Full(), LastStages(), BiasNorm()], ids=str)
def test_strategies_search_them_and_begin_with_the_first(strategy: FreezeStrategy) -> None:
    plain = strategy.space_for(Circumstances())
    assert "balance" not in plain.dimensions
    space = strategy.space_for(Circumstances(balances=REMEDIES))
    assert space.dimensions["balance"] == autoft.Choice(("none", *REMEDIES))
    assert {start["balance"] for start in space.starts} == {REMEDIES[0]}
    assert Probe().space_for(Circumstances(balances=REMEDIES)).dimensions == {}


# ---------------------------------------------------------------- what training does


def test_a_head_of_classes_in_an_order_weighs_them_alike_where_the_goal_does() -> None:
    generator = torch.Generator().manual_seed(0)

    def features(of: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(of), 12, generator=generator) + of[:, None] * torch.tensor([1.5] * 2 + [0.0] * 10)

    classes, new = torch.tensor([0] * 300 + [1] * 12 + [2] * 6), torch.arange(3).repeat_interleave(200)
    known, unknown = features(classes), features(new)
    off = {}
    for goal in ("mae", "macro_mae"):
        task = Ordinal().on(Targets("ordinal", "one_of", ("1", "2", "3"))).towards(goal)
        head = task.closed_form(known, classes, lambda: None)
        assert head is not None
        outputs = (unknown @ head.weight.T + head.bias).numpy()
        off[goal] = -task.metric("mae").score(task.judged(outputs), new.numpy())
        assert head.facts.get("balance") == {"mae": None, "macro_mae": "weights"}[goal]
    assert off["macro_mae"] < 0.8 * off["mae"]


LABELS = torch.tensor([0] * 12 + [1] * 4 + [2] * 2)


def gradient(balance: Balance, outputs: torch.Tensor) -> torch.Tensor:
    found = outputs.clone().requires_grad_()
    cross_entropy(balanced(balance, LABELS, 3)(found, LABELS), LABELS).backward()
    assert found.grad is not None
    return found.grad


def test_weights_are_those_of_a_weighted_loss_whose_figure_stays_as_it_is() -> None:
    outputs = torch.randn(18, 3, generator=torch.Generator().manual_seed(0))
    weighted = outputs.clone().requires_grad_()
    weights = torch.tensor([0.5, 1.5, 3.0])  # n / (classes * images of the class)
    (cross_entropy(weighted, LABELS, reduction="none") * weights[LABELS]).mean().backward()
    torch.testing.assert_close(gradient("weights", outputs), weighted.grad)
    assert torch.equal(balanced("weights", LABELS, 3)(outputs, LABELS), outputs)


def test_adjusted_logits_carry_the_shares_that_the_network_then_need_not_learn() -> None:
    outputs = torch.zeros(18, 3)
    shares = balanced("logits", LABELS, 3)(outputs, LABELS).softmax(dim=1)
    torch.testing.assert_close(shares[0], torch.tensor([12.0, 4.0, 2.0]) / 18)
    torch.testing.assert_close(gradient("logits", outputs).sum(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("balance", ["logits", "weights"])
def test_a_class_without_training_images_does_no_harm(balance: Balance) -> None:
    outputs = torch.randn(18, 4, generator=torch.Generator().manual_seed(0))
    assert balanced(balance, LABELS, 4)(outputs, LABELS).isfinite().all()


@pytest.mark.parametrize("batch_size", [4, 7])
def test_sampling_draws_all_classes_alike_by_seed_and_step_alone(tiny_images: Path, batch_size: int) -> None:
    classes = np.array([0] * 60 + [1] * 5 + [2] * 1)
    recipe = Recipe(batch_size=batch_size, balance="sampling")
    one, other = (TrainingStream(None, np.arange(66), classes, recipe, 3) for _ in range(2))  # type: ignore[arg-type]
    steps = one.steps_per_pass
    for step in (steps + 1, 0, 2 * steps - 1):
        assert np.array_equal(one._chosen(step), other._chosen(step))
    drawn = np.concatenate([one._chosen(step) for step in range(steps)])
    sizes = Counter(classes[drawn].tolist())
    assert max(sizes.values()) - min(sizes.values()) <= 1
    common = drawn[classes[drawn] == 0]
    assert len(set(common.tolist())) == len(common)
    assert not np.array_equal(one._order(0), one._order(1))


def drawn_in_a_pass(classes: np.ndarray, batch_size: int, number: int = 0) -> np.ndarray:
    """The classes that one pass of sampling draws."""
    recipe = Recipe(batch_size=batch_size, balance="sampling")
    stream = TrainingStream(None, np.arange(len(classes)), classes, recipe, 3)  # type: ignore[arg-type]
    drawn: np.ndarray = classes[stream._order(number)]
    return drawn


def test_sampling_draws_from_the_classes_that_have_images() -> None:
    drawn = drawn_in_a_pass(np.array([0] * 20 + [3] * 4), 4)  # 1 and 2 have none
    assert Counter(drawn.ravel().tolist()) == {0: 12, 3: 12}


def test_of_more_classes_than_a_pass_has_images_each_has_its_turn() -> None:
    classes = np.array([*range(40), 0, 0])
    passes = [drawn_in_a_pass(classes, 32, number) for number in range(12)]
    assert all(drawn.shape == (1, 32) and len(np.unique(drawn)) == 32 for drawn in passes)
    assert len(np.unique(passes)) == 40


@pytest.mark.parametrize("balance", REMEDIES)
def test_a_trial_trains_so_and_pauses_anywhere(tiny_images: Path, tmp_path: Path, balance: Balance) -> None:
    run = small_run(thinned(tiny_images, 4), tmp_path / "run")
    worker = Worker(Workshop(run, run.host()))
    (candidate,) = [c for c in run.record.candidates if (c.backbone, c.freeze) == ("small/test_resnet", "full")]
    params = {**candidate.space.starts[0], "batch_size": 8, "balance": balance}
    straight, halting = (candidate.trial(number, params, 5) for number in (0, 1))

    def execute(slice_: Slice) -> Report:
        return worker.run(Job(slice_, time.time()))

    at_once = execute(Slice(straight, 0.0, 2.0, 1e12))
    assert at_once.error is None
    assert at_once.facts["balance"] == balance
    execute(Slice(halting, 0.0, 1.0, 1e12))
    in_parts = execute(Slice(halting, 1.0, 2.0, 1e12))
    assert in_parts.loss == pytest.approx(at_once.loss, abs=1e-6)
    plain = candidate.trial(2, {**params, "balance": "none"}, 5)
    unbalanced = execute(Slice(plain, 0.0, 2.0, 1e12))
    assert unbalanced.loss != pytest.approx(at_once.loss, abs=1e-4)
    assert "balance" not in unbalanced.facts


@pytest.mark.parametrize("task", [Regression(), Ordinal()], ids=lambda task: task.name)
def test_what_a_task_does_not_take_is_left_out_and_said(task: Task) -> None:
    recipe, left_out = _taken(Recipe(balance="logits"), task, "none")
    says = {"balance_left_out": f"logits: not for task {task.name!r}"}
    assert (recipe, left_out) == (Recipe(balance="none"), says)


@pytest.mark.parametrize(
    ("task", "by", "labels", "remedies"),
    [
        (SingleLabel(), "balanced_accuracy", UNEVEN, SingleLabel.balances),
        (SingleLabel(), "balanced_accuracy", EVEN, ()),
        (SingleLabel(), "accuracy", UNEVEN, ()),
        (Ordinal(), "macro_mae", UNEVEN, Ordinal.balances),
        (Regression(), "mae", UNEVEN, ()),
    ],
    ids=lambda value: str(value) if isinstance(value, str | Task) else str(len(value)),
)
def test_there_is_need_of_remedies_where_classes_are_uneven_and_count_alike(
    task: Task, by: str, labels: list[str], remedies: Sequence[Balance]
) -> None:
    assert task.towards(by).remedies(labels) == remedies


PLAIN_STRATEGY = """
from autoft import FreezeStrategy, GradientHead, Plan, Recipe, Space, hookimpl

class Plain(FreezeStrategy):
    name, summary = "plain", "knows nothing of rare classes"

    def space(self):
        return Space({})

    def plan(self, stages, params):
        return Plan((), GradientHead(1e-3), recipe=Recipe(batch_size=8))

@hookimpl
def autoft_freeze_strategies():
    return [Plain()]
"""


@pytest.mark.parametrize("keep", [4, None], ids=["uneven", "even"])
def test_a_strategy_that_knows_nothing_of_it_trains_for_rare_classes(
    tiny_images: Path, tmp_path: Path, keep: int | None
) -> None:
    plugin = tmp_path / "plain.py"
    plugin.write_text(PLAIN_STRATEGY)
    images = tiny_images if keep is None else thinned(tiny_images, keep)
    run = small_run(images, tmp_path / "run", (ZOO, str(plugin)), ("plain",))
    shop = Workshop(run, run.host())
    (candidate,) = [one for one in run.record.candidates if one.backbone == "small/test_resnet"]
    job = Job(Slice(candidate.trial(0, {}, 5), 0.0, 1.0, 1e12), time.time())
    taken = "none" if keep is None else "sampling"
    assert shop.bench(job).plan.recipe.balance == taken
    report = Worker(shop).run(job)
    assert report.error is None
    assert report.facts.get("balance", "none") == taken


def test_macro_mae_is_the_mean_over_classes() -> None:
    task = Ordinal().on(Targets("ordinal", "one_of", ("1", "2", "3")))
    logits = np.log(np.array([[0.8, 0.1, 0.1]] * 5, np.float32))
    truth = np.array([0, 0, 0, 0, 2])
    assert task.metric("macro_mae").score(logits, truth) == pytest.approx(-1.0)
    assert task.metric("mae").score(logits, truth) == pytest.approx(-0.4)


@pytest.mark.parametrize(
    ("task", "targets"),
    [(SingleLabel(), torch.tensor([0, 1])), (MultiLabel(), torch.eye(2))],
    ids=["classes", "labels"],
)
def test_focal_loss_by_name_hardly_minds_easy_images(task: Task, targets: torch.Tensor) -> None:
    easy, unsure = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]), torch.zeros(2, 2)
    plain, focal = Recipe(label_smoothing=0.0), Recipe(label_smoothing=0.0, loss="focal")
    at_half = task.loss(unsure, targets, plain) / 4  # (1 - 1/2) ** 2
    torch.testing.assert_close(task.loss(unsure, targets, focal), at_half)
    assert task.loss(easy, targets, focal) < 0.01 * task.loss(easy, targets, plain)


@pytest.mark.parametrize(("recipe", "says"), [({"balance": "weight"}, "weights"), ({"loss": "fokal"}, "focal")])
def test_a_misspelt_name_in_a_recipe_is_refused_with_the_near_one(recipe: dict[str, Any], says: str) -> None:
    plan = Plan((), GradientHead(1e-3), recipe=Recipe(**recipe))
    assert re.search(f"did you mean '?{says}", plan_problem(plan, ()) or "")


def test_adjusted_logits_take_no_smoothed_labels(tiny_images: Path, tmp_path: Path) -> None:
    """Smoothed labels give a rare class more than its share: even of nothing but noise it would be named always."""
    run = small_run(thinned(tiny_images, 4), tmp_path / "run")
    shop = Workshop(run, run.host())
    (candidate,) = [c for c in run.record.candidates if (c.backbone, c.freeze) == ("small/test_resnet", "full")]
    for balance, smoothed in (("logits", 0.0), ("weights", 0.1)):
        trial = candidate.trial(0, {**candidate.space.starts[0], "batch_size": 8, "balance": balance}, 5)
        bench = shop.bench(Job(Slice(trial, 0.0, 1.0, 1e12), time.time()))
        asked = _run_of(bench, None, _untouched(bench), Arithmetic())._recipe
        assert (asked.balance, asked.label_smoothing) == (balance, smoothed)
