"""Recipes: optimisers and schedules by name, each the same whether a trial pauses or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.mixup import Mixup
from timm.layers.drop import DropPath
from timm.loss.cross_entropy import SoftTargetCrossEntropy

from autoft.media.image.batches import Images, TrainingStream
from autoft.media.image.mix import Mix
from autoft.parts import optimizers
from autoft.parts.base import FreezeStrategy
from autoft.parts.guard import plan_problem
from autoft.parts.network import Network
from autoft.tasks.single_label import SingleLabel
from autoft.testing import FreezeStrategyConformance
from autoft.testing.training import everything, small_network
from autoft.train.captured import Captured
from autoft.train.classifier import Classifier
from autoft.train.dropout import Draws
from autoft.train.gradient import GradientRun
from autoft.train.optimizer import Optimizer
from autoft.train.readings import StepTaken
from autoft.train.stochastic_depth import drop_blocks
from autoft.train.vanishing import MANY, Vanishing
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


@pytest.mark.parametrize(("before", "now"), [("lion", "adamw"), ("adamw", "lion"), ("adamw", "sgd")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_optimiser_begins_its_memory_anew(before: str, now: str) -> None:
    again = paused(advanced(training(optimizer=before), 3), training(optimizer=now))
    assert again.without_moments
    advanced(again, 1)


def test_a_checkpoint_that_names_no_optimiser_was_made_by_the_usual_one() -> None:
    run = advanced(training(), 3)
    rest = {name: tensor for name, tensor in run.training_tensors().items() if name != "optimizer"}
    for again, begins_anew in ((training(), False), (training(optimizer="lion"), True)):
        again.go_on(run.passes, run.model_tensors(), rest)
        assert bool(again.without_moments) == begins_anew


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
        classifier.prepare(plan, 32)
        ours, weight = Optimizer(classifier, plan), classifier.head.weight.detach().clone().requires_grad_()
        theirs = torch.optim.SGD([weight], lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=nesterov)
        for _ in range(3):
            for one in (weight, classifier.head.weight):
                one.grad = torch.ones_like(one)
            ours.step()
            theirs.step()
        torch.testing.assert_close(classifier.head.weight, weight)


@pytest.mark.parametrize("name", sorted(optimizers.names()))
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the optimisers themselves
def test_what_gets_its_first_gradient_later_than_others_of_its_group_moves_as_if_they_had_waited(name: str) -> None:
    """A block that is left out in some steps, or one that a trial's group has got since its last slice."""

    def moved(*steps: tuple[bool, bool]) -> torch.Tensor:
        classifier = Classifier.of(small_network(), CLASSES)
        plan = Plan((), GradientHead(0.1, 0.1), recipe=Recipe(optimizer=name))
        classifier.prepare(plan, 32)
        one = Optimizer(classifier, plan)
        for step in steps:
            for has_gradient, parameter in zip(step, classifier.head.parameters(), strict=True):
                parameter.grad = torch.ones_like(parameter) if has_gradient else None
            one.step()
        return classifier.head.bias.detach()

    late = moved((True, False), (True, True), (False, True), (True, True))
    assert late.isfinite().all() and (late != 0).all()
    if name in ("sgd", "momentum", "nesterov"):
        assert torch.equal(late, moved((False, True), (True, True), (True, True)))


@pytest.mark.parametrize("name", ["adan", "lamb", "adamw"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_moments_go_on_with_what_was_counted_for_them_or_begin_anew(name: str) -> None:
    """Some optimisers count the steps of a group, of which the parameters may be others now, or in another order."""

    def regrouped(run: GradientRun, *groups: tuple[str, ...]) -> GradientRun:
        rates = run.plan.groups[0].learning_rate
        plan = replace(run.plan, groups=tuple(ParameterGroup(names, rates) for names in groups))
        return GradientRun(Classifier.of(small_network(), CLASSES), plan, run.stream, run._task)

    of = training(optimizer=name, augment="none")
    every = everything(small_network()).groups[0].names
    whole = advanced(regrouped(of, every), 3)
    parts = paused(whole, regrouped(of, every[:2], every[:1:-1]))
    assert not parts.without_moments
    assert_same(advanced(parts, 3), advanced(whole, 3))
    fewer = advanced(regrouped(of, every[2:]), 3)
    more = paused(fewer, regrouped(of, every))
    counts = name != "adamw"
    assert more.without_moments == tuple(f"backbone.{name}" for name in (every if counts else every[:2]))
    assert any(".exp_avg" in key for key in more.training_tensors() if every[2] in key) != counts


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
        ({"momentum": 1.0}, "momentum lies above 0 and below 1"),
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


# ---------------------------------------------------------------- regularisers


def test_they_are_off_until_they_are_asked_for() -> None:
    classifier = Classifier.of(small_network(), CLASSES)
    wanted = {name for name, _ in classifier.named_modules()}
    classifier.prepare(everything(small_network()), 32)
    assert {name for name, _ in classifier.named_modules()} == wanted
    assert isinstance(classifier.dropout, torch.nn.Identity)
    run = training(augment="none")
    images, _ = run.stream.batch(0)
    assert run._start is None
    assert torch.equal(images, run.stream.images.normalised(run.stream.images.raw(run.stream._rows_of(0))))


@pytest.mark.parametrize("recipe", [{"dropout": 0.5}, {"l2_sp": 0.1}, {"mixup": 0.4}, {"cutmix": 1.0, "mixup": 0.2}])
def test_with_a_regulariser_too_a_pause_changes_nothing(recipe: dict[str, object]) -> None:
    straight, halting = (training(**recipe) for _ in range(2))
    advanced(straight, 7)
    again = advanced(paused(advanced(halting, 4), training(**recipe)), 3)
    assert_same(straight, again)
    plain = advanced(training(), 7)
    assert not torch.equal(plain.classifier.head.weight, straight.classifier.head.weight)


def test_dropout_is_of_features_in_training_alone() -> None:
    run = training(dropout=0.5)
    seen: list[torch.Tensor] = []
    run.classifier.head.register_forward_pre_hook(lambda _, taken: seen.append(taken[0].detach()))
    run.advance()
    assert 0.2 < (seen[0] == 0).float().mean().item() < 0.8
    features = run.scored().backbone(run.stream.batch(0)[0])
    assert torch.equal(run.scored().dropout(features), features)


def test_l2_sp_adds_the_gradient_of_half_the_squared_distance_to_the_pretrained_weights() -> None:
    strength, free, held = 0.3, training(), training(l2_sp=0.3)
    for run in (free, held):
        with torch.no_grad():
            for parameter in run.classifier.backbone.parameters():
                parameter.add_(0.5)
        run._begin_groups()
        run._accumulate(*run.stream.batch(0))
    assert held._start is not None
    held._start.pull()
    start, others = (dict(run.named_parameters()) for run in (small_network().module, free.classifier.backbone))
    pulled = {name: one for name, one in held.classifier.backbone.named_parameters() if one.grad is not None}
    for name, one in pulled.items():
        wanted = others[name].grad + strength * (one.detach() - start[name].detach())  # type: ignore[operator]
        torch.testing.assert_close(one.grad, wanted)
    assert pulled.keys() == {*held.plan.groups[0].names}  # the second group has not begun
    torch.testing.assert_close(held.classifier.head.weight.grad, free.classifier.head.weight.grad)


def test_l2_sp_pulls_a_child_to_the_pretrained_weights_and_not_to_its_parents() -> None:
    network, of = small_network(), training()
    plan = replace(everything(network), recipe=Recipe(batch_size=4, l2_sp=0.1))
    child = Classifier.of(network, CLASSES)
    with torch.no_grad():
        for parameter in child.backbone.parameters():
            parameter.add_(1.0)
    run = GradientRun(child, plan, of.stream, of._task, network=network)
    assert run._start is not None
    for parameter, start in run._start._pairs:
        torch.testing.assert_close(parameter.detach() - start, torch.ones_like(start))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_images_are_mixed_as_timm_mixes_them(mixup: float, cutmix: float) -> None:
    theirs = Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=3)
    recipe, images = Recipe(mixup=mixup, cutmix=cutmix), torch.randn(6, 3, 20, 20)
    targets, outputs = torch.tensor([0, 1, 2, 2, 1, 1]), torch.randn(6, 3)
    task = SingleLabel().on(Targets("single_label", "one_of", ("a", "b", "c")))
    kinds, state = set(), np.random.get_state()
    try:
        for seed in range(12):
            np.random.seed(seed)
            wanted, soft = theirs(images.clone(), targets)
            draw = np.random.RandomState(seed)
            draw.rand()  # by which timm decides whether to mix at all, which here is always
            mix = Mix.drawn(recipe, 20, draw)
            kinds.add(mix.box is None)
            torch.testing.assert_close(mix.of(images), wanted)
            losses = [task.loss(outputs, each, recipe) for each in (targets, targets.flip(0))]
            ours = mix.share * losses[0] + (1 - mix.share) * losses[1]
            torch.testing.assert_close(ours, SoftTargetCrossEntropy()(outputs, soft))
    finally:
        np.random.set_state(state)
    assert kinds == ({True} if not cutmix else {False} if not mixup else {True, False})


@pytest.mark.parametrize("at_once", [4, 1])
def test_the_loss_of_mixed_images_is_that_of_both_targets_by_their_shares(at_once: int) -> None:
    """In parts too, whose images are mixed with those of other parts."""
    run, again = advanced(training(mixup=1.0), 5), advanced(training(mixup=1.0), 5)
    run.at_once = at_once
    (step,) = run.advance()
    images, targets = again.stream.batch(5)
    share = again.stream.mix(5).share
    with torch.no_grad():
        outputs = again.classifier(images)
    losses = [again._task.loss(outputs, each, again.plan.recipe).item() for each in (targets, targets.flip(0))]
    assert 0 < share < 1
    assert step.loss == pytest.approx(share * losses[0] + (1 - share) * losses[1], rel=1e-4)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "vit_tiny_patch16_224", "resnet26"])
def test_blocks_are_left_out_where_timm_leaves_them_out(name: str) -> None:
    """As of a network that timm built with that rate."""

    def rates(module: torch.nn.Module) -> dict[str, float]:
        found = {at: one.drop_prob for at, one in module.named_modules() if isinstance(one, DropPath)}
        return {at: rate for at, rate in found.items() if rate}

    ours, theirs = (timm.create_model(name, num_classes=0, drop_path_rate=rate) for rate in (0.0, 0.3))
    keys = [*ours.state_dict()]
    size = ours.default_cfg["input_size"][-1]
    assert drop_blocks(ours, 0.3, torch.randn(2, 3, size, size), Draws()) > 1
    found, wanted = rates(ours), rates(theirs)
    assert max(found.values()) == pytest.approx(0.3)
    assert [*ours.state_dict()] == keys
    if "convnext" in name:  # timm's rates go by stage there
        assert found.keys() >= wanted.keys()
    else:
        assert found == pytest.approx(wanted)


def test_a_network_without_places_to_leave_out_says_so() -> None:
    assert training(drop_path=0.2).facts["drop_path"] == "no block of this network can be left out"
    assert "drop_path" not in training().facts


class Block(torch.nn.Module):
    """Can be left out, as those of timm; only with a `shortcut` does it let something through then."""

    def __init__(self, shortcut: bool = True, is_called: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.drop_path = torch.nn.Conv2d(8, 8, 1), torch.nn.Identity()
        self.shortcut, self.is_called = shortcut, is_called

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = self.layer(values)
        inner = self.drop_path(inner) if self.is_called else inner
        return inner + values if self.shortcut else inner


class Around(torch.nn.Module):
    """Has the shortcut that a block has not."""

    def __init__(self, inner: Block) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.inner(values)


def blocks(*those: torch.nn.Module, **recipe: float) -> GradientRun:
    """Training of a network with these blocks in its middle."""
    return watched(lambda body: torch.nn.Sequential(body, *those), **recipe)


def test_blocks_whose_leaving_out_makes_all_images_one_are_never_left_out() -> None:
    """Nor is the first one, so that of a single one nothing is, and a fact says so."""
    nothing = "no block of this network can be left out"
    assert blocks(Block(), drop_path=0.5).facts["drop_path"] == nothing
    assert blocks(Block(), Block(shortcut=False), drop_path=0.5).facts["drop_path"] == nothing
    assert blocks(Block(), Block(is_called=False), drop_path=0.5).facts["drop_path"] == nothing
    assert blocks(Block(), Around(Block(shortcut=False)), drop_path=0.5).classifier.droppable == 1
    run = blocks(Block(), Block(shortcut=False), Block(), drop_path=0.5)
    assert "drop_path" not in run.facts and run.classifier.droppable == 1
    kinds = [type(one.drop_path) for one in run.classifier.modules() if isinstance(one, Block)]
    assert [issubclass(kind, DropPath) for kind in kinds] == [True, False, True]


def test_what_timm_left_without_a_shortcut_is_found() -> None:
    images = torch.randn(2, 3, 64, 64)
    vovnet = timm.create_model("ese_vovnet39b", num_classes=0)
    places = sum("drop_path" in one.__dict__ or "drop_path" in one._modules for one in vovnet.modules())
    with_shortcut = sum(bool(getattr(one, "residual", False)) for one in vovnet.modules())
    assert drop_blocks(vovnet, 0.5, images, Draws()) == with_shortcut < places


@pytest.mark.parametrize("fails_first", [False, True])
def test_what_is_left_out_is_the_same_in_whatever_parts_a_batch_goes_through(fails_first: bool) -> None:
    """As where memory ran out, in this step or for the process before."""
    run, parts = (blocks(*(Block() for _ in range(3)), drop_path=0.6, dropout=0.5) for _ in range(2))
    in_parts, sizes = parts._in_parts, []

    def failing(images: torch.Tensor, targets: torch.Tensor, size: int) -> torch.Tensor:
        sizes.append(size)
        if len(sizes) == 1:
            parts.classifier.draws.part(0, 2)
            parts._forward(images[:2])
            raise torch.OutOfMemoryError
        return in_parts(images, targets, size)

    if fails_first:
        parts._in_parts = failing  # type: ignore[method-assign]
    else:
        parts.at_once = 1
    for one in (run, parts):
        torch.nn.init.constant_(one.classifier.head.weight, 0.5)
        advanced(one, 3)
    assert parts.at_once < run.at_once
    for name, tensor in run.classifier.state_dict().items():
        torch.testing.assert_close(parts.classifier.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_masks_of_parts_are_those_of_the_whole_batch() -> None:
    """Also of those whose images have several rows; a batch later they are others."""
    values, draws = torch.ones(12, 5), Draws()

    def masks(*parts: tuple[int, int]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        with draws.batch(6):
            found = []
            for start, count in parts:
                draws.part(start, count)
                rows = values[: 2 * count]
                found.append((draws.mask(rows, (5,), 0.5), draws.mask(rows[:count], (1,), 0.2)))
        return [torch.cat(each) for each in zip(*found, strict=True)]

    whole, again = masks((0, 6)), masks((0, 4), (4, 2))
    assert all(torch.equal(*pair) for pair in zip(whole, again, strict=True))
    assert {*whole[0].unique().tolist()} == {0.0, 2.0} and {*whole[1].unique().tolist()} <= {0.0, 1.25}
    assert not torch.equal(draws.mask(values, (5,), 0.5), whole[0])


# ---------------------------------------------------------------- gradients


def watched(change: Callable[[torch.nn.Module], torch.nn.Module], **recipe: float) -> GradientRun:
    """Training of all of a small network with its stages watched; `change` is what the middle one becomes."""
    stem, body, neck = small_network().module.children()
    network, of = Network.of(torch.nn.Sequential(stem, change(body), neck), small_network().input), training()
    plan = replace(everything(network), recipe=Recipe(batch_size=4, augment="none", **recipe))  # type: ignore[arg-type]
    stream = replace(of.stream, recipe=plan.recipe)
    return GradientRun(Classifier.of(network, CLASSES), plan, stream, of._task, network=network)


class Blocked(torch.nn.Module):
    """Lets next to nothing through on the way back."""

    def __init__(self, inner: torch.nn.Module, through: float) -> None:
        super().__init__()
        self.inner, self.through = inner, through

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.inner(images)
        return values * self.through + (values * (1.0 - self.through)).detach()


@pytest.mark.parametrize("through", [0.0, 1e-9])
def test_stages_that_no_gradient_reaches_are_named_after_many_steps(through: float) -> None:
    run = advanced(watched(lambda body: Blocked(body, through)), MANY - 1)
    assert "vanishing_gradients" not in run.facts
    assert advanced(run, 1).facts["vanishing_gradients"] == "0, 1"


def test_of_a_sound_network_no_stage_is_named_though_its_head_begins_with_zeros() -> None:
    assert "vanishing_gradients" not in advanced(watched(lambda body: body), MANY + 5).facts


def test_a_stage_that_has_not_begun_is_not_named_nor_one_that_comes_to_life() -> None:
    vanishing = Vanishing(["early", "late"])
    for _ in range(MANY):
        vanishing.note([StepTaken(1, 1.0, 0.1, 1.0, 0.1, (1e-9, float("nan")))])
    assert vanishing.stages == ("early",)
    vanishing.note([StepTaken(1, 1.0, 0.1, 1.0, 0.1, (0.5, 0.0))])
    assert vanishing.stages == ()


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    run, wanted = (watched(lambda body: body) for _ in range(2))
    for one in (run, wanted):
        with torch.no_grad():
            one.classifier.head.weight.copy_(torch.linspace(-50, 50, 16).view(2, 8).sin() * 50)
        one._begin_groups()
        one._accumulate(*one.stream.batch(0))
    run._accumulate = lambda *_: torch.zeros(())  # type: ignore[method-assign]  # they are there
    run._optimizer.zero_grad = lambda: None  # type: ignore[method-assign]
    _, (total, *stages) = run._take(*run.stream.batch(0))
    assert torch.equal(total, torch.nn.utils.clip_grad_norm_(wanted.classifier.parameters(), 1.0)) and total > 1.0
    for parameter, other in zip(run.classifier.parameters(), wanted.classifier.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)  # type: ignore[arg-type]
    children = [*run.classifier.backbone.children()]
    clipped = [torch.nn.utils.get_total_norm([one.grad for one in each.parameters()]) for each in children]  # type: ignore[misc]
    for stage, norm in zip(stages, clipped, strict=True):
        torch.testing.assert_close(stage / total, norm, rtol=1e-4, atol=1e-6)


def test_l2_sp_pulls_before_gradients_are_clipped_and_is_none_of_those_that_reach_a_stage() -> None:
    run, free = (watched(lambda body: Blocked(body, 0.0), l2_sp=strength) for strength in (1e3, 0.0))
    norms = []
    for one in (run, free):
        with torch.no_grad():
            for parameter in one.classifier.parameters():
                parameter.add_(0.5)
        one._begin_groups()
        norms.append(one._take(*one.stream.batch(0))[1])
    assert torch.equal(*norms) and (norms[0][1:3] == 0).all() and 0 < norms[0][0] < 100
    clipped = torch.nn.utils.get_total_norm([one.grad for one in run.classifier.parameters() if one.grad is not None])
    assert clipped.item() == pytest.approx(1.0, abs=1e-3)


class Named(FreezeStrategy):
    """Searches what moves the weights, and how fast, with all regularisers there are."""

    name = "named"
    summary = "optimisers and schedules by name"

    def space(self) -> Space:
        choices = {"optimizer": Choice(("sgd", "adam", "lion")), "schedule": Choice(tuple(SCHEDULES))}
        start = {"optimizer": "sgd", "schedule": "one_cycle", "rate": 1e-2}
        return Space({**choices, "rate": Float(1e-3, 1e-1, log=True)}, starts=(start,))

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        rate = float(params["rate"])
        names = tuple(parameter.name for stage in stages for parameter in stage.parameters)
        regularisers = {"dropout": 0.2, "l2_sp": 0.01, "mixup": 0.2, "cutmix": 1.0, "drop_path": 0.1}
        moved = {"optimizer": str(params["optimizer"]), "schedule": str(params["schedule"])}
        recipe = Recipe(passes=9.0, **moved, **regularisers)  # type: ignore[arg-type]
        return Plan((ParameterGroup(names, rate),), GradientHead(rate), recipe=recipe)


class TestNamed(FreezeStrategyConformance):
    def part(self) -> FreezeStrategy:
        return Named()
