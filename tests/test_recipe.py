"""Recipes: optimisers and schedules by name, each the same whether a trial pauses or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoft.media.image.batches import Images, TrainingStream
from autoft.parts import optimizers
from autoft.parts.base import FreezeStrategy
from autoft.parts.guard import plan_problem
from autoft.tasks.single_label import SingleLabel
from autoft.testing import FreezeStrategyConformance
from autoft.testing.training import everything, small_network
from autoft.train.captured import Captured
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.train.optimizer import Optimizer
from autoft.values.backbone import Stage
from autoft.values.plan import GradientHead, ParameterGroup, Plan, Recipe
from autoft.values.schedule import SCHEDULES, share
from autoft.values.space import Choice, Float, Params, Space
from autoft.values.target import Targets

CPU = torch.device("cpu")
IMAGES, CLASSES = 16, 2


def training(**recipe: object) -> GradientRun:
    """Of all of a small network, in batches of four; the norms of the first stage begin after a pass."""
    network = small_network()
    names = everything(network).groups[0].names
    groups = (ParameterGroup(names[2:], 1e-2, 0.01), ParameterGroup(names[:2], 1e-2, from_pass=1.0))
    plan = Plan(groups, GradientHead(1e-2), recipe=Recipe(batch_size=4, **recipe))  # type: ignore[arg-type]
    assert plan_problem(plan, network.stages) is None
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    images = Images(pixels, network.input, CPU)  # type: ignore[arg-type]  # an array will do
    stream = TrainingStream(images, np.arange(IMAGES), np.arange(IMAGES) % CLASSES, plan.recipe, 0)
    task = SingleLabel().on(Targets("single_label", "one_of", ("a", "b")))
    return GradientRun(Classifier.of(network, CLASSES), plan, stream, task)


def advanced(run: GradientRun, steps: int) -> GradientRun:
    for _ in range(steps):
        run.advance()
    return run


def paused(run: GradientRun, again: GradientRun) -> GradientRun:
    """The run in another process, by way of its checkpoint."""
    model, rest = run.model_tensors(), run.training_tensors()
    again.go_on(run.passes, *({name: one.detach().clone() for name, one in each.items()} for each in (model, rest)))
    return again


def assert_same(one: GradientRun, other: GradientRun) -> None:
    for name, tensor in one.classifier.state_dict().items():
        assert torch.equal(other.classifier.state_dict()[name], tensor), name
    for name, tensor in one.model_tensors().items():
        assert torch.equal(other.model_tensors()[name], tensor), name


# ---------------------------------------------------------------- optimisers


@pytest.mark.parametrize("name", sorted(optimizers.names()))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the optimisers themselves
def test_whatever_moves_the_weights_a_pause_changes_nothing(name: str) -> None:
    """Before and after the pass in which a group begins."""
    straight, first = (advanced(training(optimizer=name, augment="none"), 3) for _ in range(2))
    again = paused(advanced(paused(first, training(optimizer=name, augment="none")), 3), training(optimizer=name))
    again.stream = straight.stream
    start = small_network().module.state_dict()
    assert_same(advanced(straight, 6), advanced(again, 3))
    assert not again.without_moments
    moved = straight.classifier.backbone.state_dict()
    assert any(not torch.equal(moved[key], tensor) for key, tensor in start.items())


def test_the_usual_optimiser_is_torchs_fused_adamw() -> None:
    run = training(augment="none")
    assert isinstance(run._optimizer._torch, torch.optim.AdamW)
    group = run._optimizer._torch.param_groups[0]
    wanted = torch.optim.AdamW([torch.zeros(1)], lr=1.0, weight_decay=0.01, fused=True).param_groups[0]
    assert {key: group[key] for key in wanted if key not in ("params", "lr")} == {
        key: wanted[key] for key in wanted if key not in ("params", "lr")
    }


def test_sgd_is_torchs_with_the_momentum_of_the_recipe() -> None:
    """Nesterov's for "sgd", the classical one for "momentum"; a step is that of torch's own formula."""
    for name, nesterov in (("sgd", True), ("momentum", False)):
        classifier = Classifier.of(small_network(), CLASSES)
        plan = Plan((), GradientHead(0.5, 0.1), recipe=Recipe(optimizer=name, momentum=0.8))
        classifier.prepare(plan)
        ours, weight = Optimizer(classifier, plan), classifier.head.weight.detach().clone().requires_grad_()
        theirs = torch.optim.SGD([weight], lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=nesterov)
        for _ in range(3):
            for one in (weight, classifier.head.weight):
                one.grad = torch.ones_like(one)
            ours.step()
            theirs.step()
        torch.testing.assert_close(classifier.head.weight, weight)


def test_rates_of_groups_and_of_steps_reach_whoever_reads_them() -> None:
    """On the device, or as numbers of Python's."""
    for name in ("adamw", "sgd", "lion", "lamb"):
        run = advanced(training(optimizer=name, warmup_passes=2.0), 3)
        rates = [float(group["lr"]) for group in run._optimizer._torch.param_groups]
        assert rates == pytest.approx([1e-2 * 3 / 8, 0.0, 1e-2 * 3 / 8]), name


def test_what_cannot_be_captured_is_never_tried_and_says_why() -> None:
    """A capture that fails half-way would have counted a step that it never took."""
    obstacles = {name: training(optimizer=name)._optimizer.obstacle for name in ("adamw", "adam", "sgd", "lion")}
    assert [bool(obstacle) for obstacle in obstacles.values()] == [False, False, False, True]
    lines: list[int] = []
    captured = Captured(lambda one, two: (lines.append(1), (one, two))[1], torch.device("cuda"), obstacles["lion"])
    for _ in range(6):
        captured(torch.ones(1), torch.ones(1))
    assert len(lines) == 6 and not captured.is_replaying
    assert captured.obstacle == "the optimiser 'lion' counts and computes in Python"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"optimizer": "sgdd"}, "no optimiser is called 'sgdd'; did you mean 'sgd'"),
        ({"optimizer": "fusedadam"}, "no optimiser is called 'fusedadam'; did you mean 'adam'"),  # needs apex
        ({"optimizer": "kron"}, "no optimiser is called 'kron'; "),
        ({"schedule": "cosin"}, "no schedule is called 'cosin'; did you mean 'cosine'?"),
        ({"schedule": "zigzag"}, "no schedule is called 'zigzag'; there are: constant, cosine, one_cycle"),
        ({"momentum": 1.0}, "momentum lies between 0 and 1"),
    ],
)
def test_a_recipe_that_names_what_is_not_there_is_told_what_is(recipe: dict[str, object], says: str) -> None:
    network = small_network()
    plan = everything(network)
    problem = plan_problem(replace(plan, recipe=replace(plan.recipe, **recipe)), network.stages)  # type: ignore[arg-type]
    assert problem is not None and says in problem


# ---------------------------------------------------------------- schedules

recipes = st.builds(
    Recipe,
    passes=st.floats(1.0, 50.0),
    warmup_passes=st.floats(0.0, 1.0),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)


@given(recipes, st.integers(1, 500), st.integers(0, 20_000), st.integers(0, 1_000))
def test_a_rate_is_a_share_of_the_peak_and_zero_before_its_group_begins(recipe, a_pass, step, begins):
    found = share(recipe, step, begins, a_pass)
    assert 0.0 <= found <= 1.0
    assert (found == 0.0) >= (step < begins)
    assert found == share(recipe, step, begins, a_pass)


@given(recipes, st.integers(1, 500), st.integers(0, 20_000), st.integers(2, 9))
def test_a_rate_goes_by_the_part_of_the_plan_that_is_done(recipe, a_pass, step, times):
    """However many steps make a pass, and so the plan."""
    bare = replace(recipe, warmup_passes=0.0)
    assert share(bare, step, 0, a_pass) == pytest.approx(share(bare, step * times, 0, a_pass * times), abs=1e-9)


@given(st.floats(1.0, 50.0), st.integers(1, 500))
def test_what_each_schedule_does(passes, a_pass):
    total = round(passes * a_pass)

    def rates(schedule: str) -> list[float]:
        recipe = Recipe(passes=passes, warmup_passes=0.0, schedule=schedule)
        return [share(recipe, step, 0, a_pass) for step in range(0, total + 1, max(1, total // 50))]

    assert set(rates("constant")) == {1.0}
    falling = rates("cosine")
    assert falling[0] == 1.0 and falling == sorted(falling, reverse=True)
    cycle = rates("one_cycle")
    peak = cycle.index(max(cycle))
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle[:peak] == sorted(cycle[:peak]) and cycle[peak:] == sorted(cycle[peak:], reverse=True)
    assert share(Recipe(passes=passes, schedule="one_cycle"), total, 0, a_pass) < 0.02 or total < 20
    assert share(Recipe(passes=passes, schedule="cosine"), 10 * total, 0, a_pass) == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_warm_up_comes_before_any_schedule(schedule: str) -> None:
    recipe = Recipe(passes=10.0, warmup_passes=2.0, schedule=schedule)
    bare = replace(recipe, warmup_passes=0.0)
    for step in range(20):
        assert share(recipe, step, 0, 10) == pytest.approx(share(bare, step, 0, 10) * (step + 1) / 20)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_under_every_schedule_a_trial_that_pauses_has_the_rates_of_one_that_does_not(schedule: str) -> None:
    def rates(run: GradientRun, steps: int) -> list[float]:
        return [run.advance()[0].learning_rate for _ in range(steps)]

    straight, halting = (training(schedule=schedule, passes=3.0) for _ in range(2))
    whole = rates(straight, 12)
    found = rates(halting, 5)
    again = paused(halting, training(schedule=schedule, passes=3.0))
    assert whole == found + rates(again, 7)
    assert_same(straight, again)


# ---------------------------------------------------------------- a strategy that uses it all


class Named(FreezeStrategy):
    """Searches what moves the weights, and how fast."""

    name = "named"
    summary = "optimisers and schedules by name"

    def space(self) -> Space:
        choices = {"optimizer": Choice(("sgd", "adam", "lion")), "schedule": Choice(tuple(SCHEDULES))}
        start = {"optimizer": "sgd", "schedule": "one_cycle", "rate": 1e-2}
        return Space({**choices, "rate": Float(1e-3, 1e-1, log=True)}, starts=(start,))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        rate = float(params["rate"])
        names = tuple(parameter.name for stage in stages for parameter in stage.parameters)
        recipe = Recipe(passes=9.0, optimizer=str(params["optimizer"]), schedule=str(params["schedule"]))
        return Plan((ParameterGroup(names, rate),), GradientHead(rate), recipe=recipe)


class TestNamed(FreezeStrategyConformance):
    def part(self) -> FreezeStrategy:
        return Named()
