"""The worker: slices of trials, over every freeze strategy and several families of networks."""

from __future__ import annotations

import copy
import csv
import errno
import math
import random
import re
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from parts.small_run import small_run

from autoft.errors import RunFolderError
from autoft.media.image.batches import TrainingStream
from autoft.parts.base import FreezeStrategy
from autoft.parts.metric import Metric
from autoft.runners.search import problem_of
from autoft.store import Checkpoint
from autoft.study.run import Run
from autoft.study.shortlist import candidates
from autoft.system.disk_cache import cache_root
from autoft.system.signals import Cancelled
from autoft.tasks.statistics import proportion
from autoft.train import precision
from autoft.train.arithmetic import Arithmetic
from autoft.train.classifier import Classifier
from autoft.train.features import FeatureCache
from autoft.train.gradient import GradientRun
from autoft.train.heads import seen_by_heads
from autoft.train.job import Job, TooLate
from autoft.train.precision import Timing
from autoft.train.views import out_of_fold
from autoft.train.worker import Worker
from autoft.train.workshop import TRIED_RESAMPLES, WeightsChanged, Workshop
from autoft.values.codec import encode
from autoft.values.ledger import Kept, Ledger
from autoft.values.plan import GradientHead, ParameterGroup, Plan, Recipe
from autoft.values.space import Circumstances
from autoft.values.target import MetricFacts
from autoft.values.trial import Allowance, Clock, Lost, Parent, Queued, Report, Slice, Trial

FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
FOREVER = 1e12


@pytest.fixture
def run(tiny_images, tmp_path):
    return small_run(tiny_images, tmp_path / "run")


@pytest.fixture
def worker(run):
    return Worker(shop_of(run))


def shop_of(run, cancelled=lambda: False):
    host = run.host()
    return Workshop(run, host, cancelled)


def trial(run, number, backbone, freeze, **changes):
    candidates = [c for c in run.record.candidates if (c.backbone, c.freeze) == (f"small/{backbone}", freeze)]
    start = candidates[0].space.starts[0] if candidates[0].space.starts else {}
    return candidates[0].trial(number, {**start, **changes}, seed=5)


def execute(worker, of: Trial, start: float, until: float, deadline=FOREVER):
    return worker.run(Job(Slice(of, start, until, deadline), origin=time.time()))


def saved(run, number: int) -> Checkpoint:
    """The trial's latest checkpoint."""
    steps = [float(path.stem.partition("-")[2]) for path in run.folder.checkpoints.glob(f"{number:05d}-*.json")]
    found = run.checkpoints.load(Parent(number, max(steps)))
    assert found is not None
    return found


def classifier_of(run, worker, of: Trial):
    return worker.shop.restored(saved(run, of.id))


def logits_of(worker, classifier, of: Trial):
    shop = worker.shop
    return shop.outputs(classifier, shop.images(of).batches(shop.dataset.rows("val")))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("freeze", ["full", "last_stages", "bias_norm"])
def test_what_trains_is_what_the_plan_says(run, worker, family, freeze):
    before = {
        name: tensor.clone() for name, tensor in worker.shop.network(f"small/{family}").module.state_dict().items()
    }
    of = trial(run, 0, family, freeze)
    report = execute(worker, of, 0.0, 3.0)
    assert report.error is None
    assert report.event == "paused"
    network = worker.shop.network(f"small/{family}")
    plan = run.host().part(FreezeStrategy, freeze).plan(network.stages, of.params)
    assert report.horizon == plan.recipe.passes
    planned = {name for group in plan.groups for name in group.names}
    after = classifier_of(run, worker, of).backbone.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved <= planned  # nothing else moves, BatchNorm statistics included
    assert len(moved) > len(planned) / 2
    assert set(saved(run, 0).model) == {f"backbone.{name}" for name in planned} | {"head.weight", "head.bias"}
    assert all(torch.equal(network.module.state_dict()[name], tensor) for name, tensor in before.items())


def with_precision(run, asked: str):
    return replace(run, record=replace(run.record, study=replace(run.record.study, precision=asked)))


def faster(monkeypatch, arithmetic: Arithmetic) -> None:
    """From now on, steps are measured to be fastest so."""
    usually = Arithmetic("fp32", "channels_last")
    timings = (Timing(usually, 0.2), Timing(arithmetic, 0.2 if arithmetic == usually else 0.1))
    monkeypatch.setattr(precision, "measure", lambda subject, most, check: timings)


@pytest.mark.parametrize("family", ["test_resnet", "test_vit"])
def test_a_trial_goes_on_in_the_arithmetic_that_it_began_in(run, monkeypatch, family):
    run = with_precision(run, "auto")
    worker = Worker(shop_of(run))
    began, later = Arithmetic("bf16", "contiguous"), Arithmetic("fp32", "channels_last")
    faster(monkeypatch, began)
    halting, straight = (trial(run, number, family, "full", augment="none") for number in (0, 1))
    first = execute(worker, halting, 0.0, 1.0)
    at_once = execute(worker, straight, 0.0, 2.0)
    shutil.rmtree(cache_root() / "precision")
    faster(monkeypatch, later)
    other_process = Worker(shop_of(run))
    second, plain = execute(other_process, halting, 1.0, 2.0), trial(run, 2, family, "full", augment="none")
    assert [first.facts["precision"], second.facts["precision"]] == [str(began)] * 2
    assert (second.facts["precision_why"], second.score) == ("as the trial began", pytest.approx(at_once.score))
    assert execute(other_process, plain, 0.0, 2.0).facts["precision"] == str(later)
    weights = {number: saved(run, number).model for number in (0, 1, 2)}
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert any(not torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


def test_what_a_study_asks_for_is_what_its_trials_train_in(run):
    report = execute(Worker(shop_of(with_precision(run, "bf16"))), trial(run, 0, "test_resnet", "full"), 0.0, 1.0)
    assert (report.facts["precision"], report.facts["precision_why"]) == ("bf16, channels last", "asked for")


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_pausing_changes_nothing(run, worker, augment):
    straight = trial(run, 0, "test_resnet", "full", augment=augment)
    halting = trial(run, 1, "test_resnet", "full", augment=augment)
    at_once = execute(worker, straight, 0.0, 3.0)
    execute(worker, halting, 0.0, 1.0)
    other_process = Worker(shop_of(run))
    in_parts = execute(other_process, halting, 1.0, 3.0)
    assert in_parts.score == pytest.approx(at_once.score, abs=1e-6)
    one, other = saved(run, 0).model, saved(run, 1).model
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


REGULARISED = {"dropout": 0.3, "drop_path": 0.2, "l2_sp": 0.01, "mixup": 0.4, "cutmix": 1.0}


@pytest.fixture
def regularised(run, monkeypatch):
    """All plans of `full` have all regularisers, and another optimiser and schedule."""
    strategy = type(run.host().part(FreezeStrategy, "full"))
    plain = strategy.plan

    def plan(*given):
        made = plain(*given)
        return replace(made, recipe=replace(made.recipe, optimizer="sgd", schedule="cosine", **REGULARISED))

    monkeypatch.setattr(strategy, "plan", plan)


@pytest.mark.parametrize("family", ["test_vit", "test_resnet"])
def test_a_pause_changes_nothing_under_a_recipe_of_everything(run, worker, regularised, family):
    straight, halting = (trial(run, number, family, "full", batch_size=8) for number in (0, 1))
    at_once = execute(worker, straight, 0.0, 3.0)
    execute(worker, halting, 0.0, 1.0)
    in_parts = execute(Worker(shop_of(run)), halting, 1.0, 3.0)
    assert at_once.error is None
    assert in_parts.score == pytest.approx(at_once.score, abs=1e-6)
    one, other = saved(run, 0).model, saved(run, 1).model
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)
    assert at_once.facts["optimizer"] == "sgd"
    assert at_once.facts["schedule"] == "cosine over 27 passes"
    assert at_once.facts["prefix"] == "not kept: images are mixed"
    assert not {"drop_path", "mixing", "vanishing_gradients"} & at_once.facts.keys()


def test_images_are_not_mixed_where_answers_are_numbers(run, worker, regularised, monkeypatch):
    job = Job(Slice(trial(run, 0, "test_resnet", "full"), 0.0, 1.0, FOREVER), time.time())
    assert worker.shop.bench(job).plan.recipe.is_mixing
    monkeypatch.setattr(worker.shop.task, "form", "numbers")
    bench = worker.shop.bench(job)
    assert not bench.plan.recipe.is_mixing
    assert bench.plan.recipe.dropout == REGULARISED["dropout"]
    report = execute(worker, job.slice.trial, 0.0, 1.0)
    assert (report.error, report.facts["mixing"]) == (None, "left out: answers are numbers")


def test_a_curve_has_each_step_once_over_pauses_and_kills(run, worker):
    of = trial(run, 7, "test_resnet", "full", head_init="zero")
    execute(worker, of, 0.0, 1.0)
    execute(Worker(shop_of(run)), of, 1.0, 2.0)
    for path in run.folder.checkpoints.glob("00007-*"):  # as after a kill before the first checkpoint
        path.unlink()
    execute(Worker(shop_of(run)), of, 0.0, 3.0)
    rows = list(csv.DictReader(run.folder.curve(7).read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["passes"]) == 3.0
    assert len(rows) == round(3 / float(rows[0]["passes"]))
    assert all(float(row[name]) > 0 for row in rows for name in row)
    assert float(rows[0]["loss"]) == pytest.approx(math.log(3), rel=0.2)  # a head of zeros knows nothing
    assert not run.folder.curve(8).exists()


def test_training_learns_and_finishes_at_its_horizon(run, worker):
    of = trial(run, 0, "test_resnet", "full", head_init="ridge")
    report = execute(worker, of, 0.0, 1e9)
    assert report.event == "finished"
    assert report.step == 27.0
    assert report.score == 1.0


def test_probe_is_one_finished_slice_with_a_tiny_checkpoint(run, worker):
    report = execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)
    assert report.event == "finished"
    assert report.score == 1.0
    assert set(saved(run, 0).model) == {"head.weight", "head.bias"}
    assert 0 <= report.facts["loo_accuracy"] <= 1


def test_probe_scores_what_its_classifier_says(run, worker):
    of = trial(run, 0, "test_resnet", "probe")
    report = execute(worker, of, 0.0, 1.0)
    dataset = worker.shop.dataset
    logits = logits_of(worker, classifier_of(run, worker, of), of)
    assert (logits.argmax(axis=1) == dataset.targets("val")).mean() == pytest.approx(report.score)


def test_a_fine_tune_says_in_which_numbers_the_head_was_fitted_that_it_begins_with(run, worker):
    rough = Worker(shop_of(with_precision(run, "bf16")))
    fitted, zero = (
        trial(run, number, "test_vit", "bias_norm", head_init=how) for number, how in enumerate(("ridge", "zero"))
    )
    facts = execute(rough, fitted, 0.0, 1.0).facts
    assert (facts["features_precision"], facts["features_precision_why"]) == ("bf16", "asked for")
    assert "features_precision" not in execute(rough, zero, 0.0, 1.0).facts


def test_a_score_comes_with_its_interval_where_it_is_of_few_images(run, worker, monkeypatch):
    targets, classes = worker.shop.dataset.targets("val"), worker.shop.task.outputs
    for part in (0.0, 0.5):  # of the images that are wrong
        is_wrong = np.arange(len(targets)) < part * len(targets)
        outputs = np.eye(classes, dtype=np.float32)[np.where(is_wrong, (targets + 1) % classes, targets)]
        # not that of a bootstrap, which is of no width where all are right
        assert worker.shop.interval(outputs) == pytest.approx(proportion(int((~is_wrong).sum()), len(targets)))
    reports = [execute(worker, trial(run, n, "test_vit", kind), 0.0, 1.0) for n, kind in enumerate(("probe", "full"))]
    for report in reports:
        low, high = proportion(round(report.score * len(targets)), len(targets))
        assert (report.bound, report.standard_error) == pytest.approx((low, (high - low) / 3.92))
    monkeypatch.setattr("autoft.train.workshop.FEW", len(targets) - 1)
    assert worker.shop.interval(outputs) is None


@pytest.mark.parametrize("few", [0, 10_000], ids=["many images", "a slow metric"])
def test_a_score_past_the_target_has_its_interval_in_any_case(worker, monkeypatch, few):
    """It decides whether the search is over. Of a loss the target is what people know, a positive figure."""
    monkeypatch.setattr("autoft.train.workshop.FEW", few)
    targets, classes = worker.shop.dataset.targets("val"), worker.shop.task.outputs
    outputs = np.eye(classes, dtype=np.float32)[np.where(np.arange(len(targets)) < 2, (targets + 1) % classes, targets)]
    loss = MetricFacts("errors", is_loss=True)
    shop = by_metric(worker.shop, Metric.of(loss, lambda judged, truth: -(judged.argmax(axis=1) != truth).mean()))
    shop._is_resampled = False
    found = 2 / len(targets)
    for target, is_past in ((None, False), (0.9 * found, False), (found, True), (2 * found, True)):
        shop.record = replace(shop.record, study=replace(shop.record.study, target=target))
        ends = shop.interval(outputs)
        assert (ends is not None) is is_past
        assert ends is None or ends[0] < -found <= ends[1]


def test_a_head_on_few_images_is_judged_out_of_fold_too(run, worker, monkeypatch):
    of, dataset = trial(run, 0, "test_vit", "probe"), worker.shop.dataset
    order = dataset.stratified("train+val", run.record.study.seed)
    network, images = worker.shop.network(of.backbone), worker.shop.images(of)
    features = worker.shop.features.features(network, images, dataset.rows("train+val")[order])
    targets = dataset.targets("train+val")[order]
    expected = (out_of_fold(dataset.task, features, targets, lambda: None).argmax(axis=1) == targets).mean()
    assert execute(worker, of, 0.0, 1.0).folds == pytest.approx(expected)
    assert execute(worker, trial(run, 1, "test_vit", "full"), 0.0, 1.0).folds is None
    monkeypatch.setattr("autoft.train.closed_form.MANY", len(dataset.rows("train")))
    assert execute(worker, trial(run, 2, "test_vit", "probe"), 0.0, 1.0).folds is None


def by_metric(shop, metric):
    """The workshop of a run that is searched by a metric of one's own."""
    record = replace(shop.record, metric=metric.facts)
    other = copy.copy(shop)
    other.task, other.record, other._is_resampled = shop.task.with_metrics([metric]), record, None
    return other


@pytest.mark.parametrize("fault", [ValueError("a class is missing"), MemoryError("no more"), TooLate("late")])
def test_a_fault_in_the_folds_costs_a_head_no_score(run, worker, monkeypatch, fault):
    def fails(*_):
        raise fault

    monkeypatch.setattr("autoft.train.closed_form.out_of_fold", fails)
    report = execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)
    assert (report.event, report.score, report.folds) == ("finished", 1.0, None)
    assert str(fault) in report.facts["folds_left_out"]


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Cancelled(), Cancelled),
        (OSError(errno.ENOSPC, "full"), RunFolderError),
        (RunFolderError("gone"), RunFolderError),
    ],
)
def test_a_run_that_is_stopped_or_cannot_be_written_in_the_folds_leaves_the_slice_open(
    run, worker, monkeypatch, fault, raised
):
    def fails(*_):
        raise fault

    monkeypatch.setattr("autoft.train.closed_form.out_of_fold", fails)
    with pytest.raises(raised):
        execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)


def test_no_slice_waits_for_a_thousand_resamples_of_a_slow_metric(worker, monkeypatch):
    outputs = np.eye(worker.shop.task.outputs, dtype=np.float32)[worker.shop.dataset.targets("val")]
    shop = by_metric(worker.shop, Metric.of(MetricFacts("slow"), lambda *_: sum(range(1_000_000)) * 0.0))
    monkeypatch.setattr("autoft.train.workshop.interval", lambda *_: pytest.fail("it resamples"))
    assert shop.interval(outputs) is None


def test_whether_scores_have_standard_errors_goes_by_stacks_of_resamples_and_is_settled_once(worker, monkeypatch):
    outputs = np.eye(worker.shop.task.outputs, dtype=np.float32)[worker.shop.dataset.targets("val")]
    asked = []

    def statistic(judged, targets):
        def of_stacks(counts):  # what a stack costs does not depend on how high it is
            asked.append(len(counts))
            sum(range(300_000))
            return counts @ (judged.argmax(axis=1) != targets) / len(targets)

        return of_stacks

    shop = by_metric(worker.shop, Metric(MetricFacts("stacks"), statistic))
    assert shop.interval(outputs) == (0.0, 0.0)
    assert asked[:2] == [1, TRIED_RESAMPLES]
    monkeypatch.setattr("autoft.train.workshop.MOST_RESAMPLING", 0.0)  # as on a machine that has become busy
    del asked[:]
    assert shop.interval(outputs) == (0.0, 0.0)
    assert TRIED_RESAMPLES not in asked


def test_a_refit_has_no_interval_to_find(run, worker):
    outputs = np.eye(worker.shop.task.outputs, dtype=np.float32)[worker.shop.dataset.targets("val")]
    of = trial(run, 0, "test_vit", "probe")
    for refit, found in ((of, True), (replace(of, train_on="train+val", twin=Parent(1, 1.0)), False)):
        bench = worker.shop.bench(Job(Slice(refit, 0.0, 1.0, 1e12), time.time()))
        report = bench.with_certainty(Report(0, "finished", 1.0, None, 1.0), outputs)
        assert [one is not None for one in (report.standard_error, report.bound)] == [found, found]


def test_a_probe_that_is_fitted_in_bf16_is_scored_in_fp32(run, worker):
    rough = Worker(shop_of(with_precision(run, "bf16")))
    of, other = (trial(run, number, "test_resnet", "probe") for number in (0, 1))
    assert execute(rough, of, 0.0, 1.0).facts["features_precision"] == "bf16"
    assert execute(worker, other, 0.0, 1.0).facts["features_precision"] == "fp32"
    heads = [saved(run, number).model["head.weight"] for number in (0, 1)]
    assert not torch.equal(*heads)
    torch.testing.assert_close(*heads, rtol=0.2, atol=0.2 * float(heads[1].abs().max()))
    for one in (of, other):
        logits = logits_of(worker, classifier_of(run, worker, one), one)
        np.testing.assert_allclose(saved(run, one.id).logits, logits, atol=1e-5)


def test_a_report_says_which_rates_the_plan_came_to(run, worker):
    of = trial(run, 0, "test_resnet", "full", batch_size=8, learning_rate=1e-3, head_init="zero")
    facts = execute(worker, of, 0.0, 1.0).facts
    used = {"learning_rate": 0.5e-3, "head_learning_rate": 0.5e-2, "batch_size": 8}  # the root of 8 / 32
    assert {name: facts[name] for name in used} == pytest.approx(used)
    assert "learning_rate" not in execute(worker, trial(run, 1, "test_resnet", "probe"), 0.0, 1.0).facts


def test_a_run_of_a_gpu_goes_on_without_one_with_the_batches_it_had(run):
    host, on_gpu = run.host(), Circumstances("cuda", 100_000)
    searched = candidates(run.record.study, [host.part(FreezeStrategy, "full")], run.record.backbones, 64, on_gpu)
    machine = replace(run.record.machine, device="cuda")
    begun = replace(run.record, candidates=searched, machine=machine)
    run.folder.study.write_text(encode(begun), encoding="utf-8")
    again = Run.open(run.folder.path).on("cpu")
    of = trial(again, 0, "test_resnet", "full")
    assert of.params["batch_size"] == 256
    assert problem_of(Slice(of, 0.0, 1.0, FOREVER), again.problem(Ledger(), host), Ledger()) is None
    report = execute(Worker.open(run.folder.path, 1, "cpu", host.refs), of, 0.0, 1.0)
    assert (report.event, report.step) == ("paused", 1.0)


def test_deadline_ends_a_slice_with_a_score_and_a_checkpoint(run, worker):
    of = trial(run, 0, "test_resnet", "full", batch_size=1)  # many steps
    worker.shop.network(of.backbone)  # a busy machine takes a second to build it
    report = execute(worker, of, 0.0, 27.0, deadline=3.0)
    assert report.event == "paused"
    assert 0 < report.step < 27
    assert report.score is not None
    assert saved(run, 0).step == pytest.approx(report.step)
    assert report.costs.a_pass > 0
    assert report.costs.scoring > 0
    assert report.costs.saving > 0


def test_a_slice_that_comes_too_late_is_given_back(run, worker):
    report = execute(worker, trial(run, 0, "test_resnet", "full"), 0.0, 27.0, deadline=0.0)
    assert (report.event, report.step, report.score) == ("paused", 0.0, None)
    assert report.error == "there was no time for a step and its score"
    assert not list(run.folder.path.glob("checkpoints/*"))


def test_a_step_that_would_end_late_is_not_begun_once_the_run_has_a_model(run, worker):
    """Reckoned by forward passes of the network: a step of 32 images takes about as long as those of 96."""
    slow = worker.shop.network("small/test_resnet")
    given, taken = slow.module.forward, []

    def forward(images):
        taken.append(len(images))
        time.sleep(0.06 * len(images))
        return given(images)

    slow.module.forward = forward
    one, other = (trial(run, n, "test_resnet", "full", batch_size=32, head_init="zero") for n in range(2))
    first = execute(worker, one, 0.0, 27.0, deadline=3.0)
    assert (first.event, first.score is not None, first.error) == ("paused", True, None)  # late rather than never
    taken.clear()
    report = execute(worker, other, 0.0, 27.0, deadline=3.0)
    assert (report.event, report.step, report.score) == ("paused", 0.0, None)
    assert report.error == "there was no time for a step and its score"
    assert sum(taken) < 32


def test_child_starts_from_its_parent(run, worker):
    parent = trial(run, 0, "test_resnet", "full", head_init="ridge")
    execute(worker, parent, 0.0, 9.0)
    slow = {**parent.params, "learning_rate": 5e-5, "layer_decay": 0.6}
    child = Trial(1, parent.backbone, parent.freeze, parent.image_size, slow, 1, parents=(Parent(0, 9.0),))
    report = execute(worker, child, 0.0, 1.0)
    assert report.score == 1.0


def test_a_child_holds_what_its_parent_trained(run, worker):
    """It trains fewer tensors: over the pristine ones it would be another model than the one that was scored."""
    parent = trial(run, 0, "test_resnet", "full", head_init="ridge")
    execute(worker, parent, 0.0, 2.0)
    trained = set(saved(run, 0).model)
    params = trial(run, 1, "test_resnet", "bias_norm").params
    child = Trial(1, parent.backbone, "bias_norm", parent.image_size, params, 1, parents=(Parent(0, 2.0),))
    for start, until in ((0.0, 1.0), (1.0, 2.0)):
        report = execute(worker, child, start, until)
        checkpoint = saved(run, 1)
        assert trained <= set(checkpoint.model)
        dataset = worker.shop.dataset
        logits = logits_of(worker, worker.shop.restored(checkpoint), child)
        np.testing.assert_allclose(logits, checkpoint.logits, atol=1e-4)
        assert (logits.argmax(axis=1) == dataset.targets("val")).mean() == pytest.approx(report.score)
        run.checkpoints.prune({1: Kept(frozenset({until}), until)}, set())  # its second slice does without the parent


def test_other_pretrained_weights_are_refused(run, worker):
    of = trial(run, 0, "test_resnet", "full")
    execute(worker, of, 0.0, 1.0)
    other = shop_of(run)
    network = seen_by_heads(other.host.build(other._backbones[of.backbone]), run.record.features_of)
    with torch.no_grad():
        next(network.module.parameters()).add_(0.1)
    other._networks[of.backbone] = network
    with pytest.raises(WeightsChanged, match="are not those that trial 0 was trained from"):
        other.restored(saved(run, 0))
    with pytest.raises(WeightsChanged):  # the slice stays open: to put them back is enough to go on
        execute(Worker(other), of, 1.0, 2.0)


def test_a_probe_takes_the_images_there_is_time_for(run, worker, monkeypatch):
    """Its features stop coming when the time is over; the result says so, and it is still a model."""
    of = trial(run, 0, "test_resnet", "probe")
    execute(worker, trial(run, 1, "test_vit", "probe"), 0.0, 1.0)  # another network, to load what is slow once
    monkeypatch.setattr("autoft.train.features.SECONDS_A_BATCH", 1e-6)  # one image at a time
    monkeypatch.setattr("autoft.train.closed_form.FEWEST_FITTED", 6)
    report = execute(worker, of, 0.0, 1.0, deadline=0.0)
    assert (report.event, report.error) == ("finished", None)
    assert 0.25 <= report.share < 1  # at least the fewest
    again = execute(worker, trial(run, 2, "test_resnet", "probe"), 0.0, 1.0)
    assert (again.score, again.share) == (1.0, 1.0)  # what the first computed is kept


@pytest.fixture
def slowly(monkeypatch):
    """Four images, then one at a time; at a pace that gives no hope, which to measure takes none."""
    monkeypatch.setattr("autoft.train.features.SECONDS_A_BATCH", 1e-6)
    monkeypatch.setattr(FeatureCache, "row_seconds", lambda *_: 60.0)


def test_a_probe_whose_validation_features_come_too_late_is_given_back(run, worker, slowly):
    """All trials are scored on the same images; what was computed stays, so another try goes on."""
    execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)
    late = execute(worker, trial(run, 1, "test_resnet", "probe"), 0.0, 1.0, deadline=0.0)
    assert (late.event, late.step, late.score) == ("paused", 0.0, None)
    scored = len(worker.shop.dataset.rows("val"))
    assert late.error == f"there was time for 4 of {scored} validation images, and it needs them all"
    assert not list(run.folder.checkpoints.glob("00001-*"))
    again = execute(worker, trial(run, 2, "test_resnet", "probe"), 0.0, 1.0, deadline=0.0)
    assert (again.event, again.score is not None) == ("finished", True)


def test_a_probe_that_is_nearly_done_with_the_validation_images_is_not_given_back(run, worker, slowly, monkeypatch):
    """One was at the end of its share of the time, with 1,400 of 1,410 images done and most of the run to come."""
    execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)
    monkeypatch.setattr(FeatureCache, "row_seconds", lambda *_: 1e-3)
    report = execute(worker, trial(run, 1, "test_resnet", "probe"), 0.0, 1.0, deadline=0.0)
    assert (report.event, report.error) == ("finished", None)


@pytest.mark.parametrize(("fewest", "least"), [(6, "at least 6"), (10_000, "them all")])
def test_the_fewest_images_that_make_a_head_come_two_seconds_late_and_no_more(
    fewest, least, run, worker, slowly, monkeypatch
):
    monkeypatch.setattr("autoft.train.closed_form.FEWEST_FITTED", fewest)
    execute(worker, trial(run, 0, "test_vit", "probe"), 0.0, 1.0)
    for number in (1, 2):
        late = execute(worker, trial(run, number, "test_resnet", "probe"), 0.0, 1.0, deadline=-60.0)
    assert (late.event, late.score) == ("paused", None)
    images = len(worker.shop.dataset.rows("train"))
    assert re.fullmatch(rf"there was time for \d+ of {images} training images, and it needs {least}", late.error)


def test_the_first_model_of_a_run_comes_late_rather_than_never(run, worker, slowly):
    report = execute(worker, trial(run, 0, "test_resnet", "probe"), 0.0, 1.0, deadline=-60.0)
    assert (report.event, report.error) == ("finished", None)
    assert report.score is not None


@pytest.mark.parametrize("freeze", ["probe", "full"])
def test_logits_that_are_not_finite_fail_the_trial(run, worker, freeze):
    """The first class would win every comparison with NaN."""
    of = trial(run, 0, "test_resnet", freeze)
    batches = worker.shop.images(of).batches(worker.shop.dataset.rows("val"))
    validation = {image.numpy().tobytes() for batch in batches for image in batch}

    def break_validation(module, given, features):
        broken = [image.numpy().tobytes() in validation for image in given[0]]
        return torch.where(torch.tensor(broken)[:, None], torch.nan, features)

    worker.shop.network(of.backbone).module.register_forward_hook(break_validation)
    report = execute(worker, of, 0.0, 1.0)
    assert (report.event, report.score) == ("failed", None)
    assert "validation images are not finite" in report.error


def test_training_that_needs_no_warm_up(run, worker):
    stream = worker.shop.images(trial(run, 0, "test_resnet", "full"))
    recipe = Recipe(warmup_passes=0.0)
    plan = Plan((), GradientHead(1e-3), recipe=recipe)
    dataset = worker.shop.dataset
    training = TrainingStream(stream, dataset.rows("train"), dataset.targets("train"), recipe, 0)
    classifier = Classifier.of(worker.shop.network("small/test_resnet"), 3)
    (step,) = GradientRun(classifier, plan, training, worker.shop.task).advance()
    assert math.isfinite(step.loss)


def thawing(worker) -> GradientRun:
    """The last stage trains at once, the others after two passes."""
    network, dataset = worker.shop.network("small/test_resnet"), worker.shop.dataset
    *below, last = network.stages
    groups = (
        ParameterGroup(tuple(one.name for one in last.parameters), 1e-3),
        ParameterGroup(tuple(one.name for stage in below for one in stage.parameters), 1e-3, 0.05, from_pass=2.0),
    )
    plan = Plan(groups, GradientHead(1e-2), recipe=Recipe(batch_size=8, augment="none"))
    images = worker.shop.images(trial(worker.shop, 0, "test_resnet", "full"))
    stream = TrainingStream(images, dataset.rows("train"), dataset.targets("train"), plan.recipe, 0)
    return GradientRun(Classifier.of(network, 3), plan, stream, worker.shop.task)


def test_a_group_is_frozen_until_its_pass_and_has_moments_from_then_on(worker):
    going = thawing(worker)
    later, begins = going.plan.groups[1], 2 * going.stream.steps_per_pass
    before = {name: tensor.clone() for name, tensor in going.classifier.backbone.named_parameters()}
    while going.step < begins:
        going.advance()
    after = dict(going.classifier.backbone.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in later.names)  # not by weight decay either
    assert any(not torch.equal(after[name], before[name]) for name in going.plan.groups[0].names)
    trained = len(going.plan.groups[0].names) + 2  # and the head
    assert sum(name.endswith(".exp_avg") for name in going.training_tensors()) == trained
    assert set(going.model_tensors()) >= {f"backbone.{name}" for name in later.names}  # what will train is kept
    weights = [name for name in later.names if before[name].ndim > 1]
    going.advance()
    first = max((after[name] - before[name]).abs().max().item() for name in weights)
    assert 0 < first < 1e-3 / (going.plan.recipe.warmup_passes * going.stream.steps_per_pass) * 1.5  # it warms up
    assert sum(name.endswith(".exp_avg") for name in going.training_tensors()) == trained + len(later.names)


def grouped(worker, groups: list[list[str]]) -> GradientRun:
    """Training of these parameters, in these groups."""
    network, dataset = worker.shop.network("small/test_resnet"), worker.shop.dataset
    plan = Plan(
        tuple(ParameterGroup(tuple(names), 1e-3, 0.05) for names in groups),
        GradientHead(1e-2),
        recipe=Recipe(batch_size=8, augment="none"),
    )
    images = worker.shop.images(trial(worker.shop, 0, "test_resnet", "full"))
    stream = TrainingStream(images, dataset.rows("train"), dataset.targets("train"), plan.recipe, 0)
    return GradientRun(Classifier.of(network, 3), plan, stream, worker.shop.task)


def test_moments_go_by_names_whatever_groups_a_later_version_makes(worker):
    names = [one.name for stage in worker.shop.network("small/test_resnet").stages for one in stage.parameters]
    straight = grouped(worker, [names])
    for _ in range(3):
        straight.advance()
    kept = (straight.passes, straight.model_tensors(), straight.training_tensors())
    kept = (kept[0], *({name: tensor.clone() for name, tensor in tensors.items()} for tensors in kept[1:]))
    straight.advance()

    regrouped = grouped(worker, [names[5:], names[4::-1]])
    regrouped.go_on(*kept)
    regrouped.advance()
    assert not regrouped.without_moments
    for name, tensor in straight.model_tensors().items():
        torch.testing.assert_close(regrouped.model_tensors()[name], tensor, rtol=1e-5, atol=1e-6)

    fewer = grouped(worker, [names[3:]])
    fewer.advance()
    more = grouped(worker, [names])
    more.go_on(fewer.passes, fewer.model_tensors(), fewer.training_tensors())
    more.advance()
    assert more.without_moments == tuple(f"backbone.{name}" for name in names[:3])


def test_a_trial_whose_moments_cannot_be_told_apart_begins_them_anew_and_says_so(run, worker):
    """Checkpoints of older versions number them by the groups of then."""
    of = trial(run, 0, "test_resnet", "full")
    assert "optimiser_begun_anew" not in execute(worker, of, 0.0, 1.0).facts
    before = run.checkpoints.load_latest(0)
    numbers: dict[str, int] = {}

    def numbered(key: str) -> str:
        name, _, kind = key.removeprefix("moment.").rpartition(".")
        return f"moment.{numbers.setdefault(name, len(numbers))}.{kind}" if key.startswith("moment.") else key

    run.checkpoints.save(replace(before, training={numbered(key): one for key, one in before.training.items()}))
    report = execute(Worker(shop_of(run)), of, 1.0, 2.0)
    assert (report.event, report.step, report.error) == ("paused", 2.0, None)
    assert report.facts["optimiser_begun_anew"].startswith(f"{len(numbers)} parameters, e.g. backbone.")
    assert "optimiser_begun_anew" not in execute(Worker(shop_of(run)), of, 2.0, 3.0).facts


@pytest.mark.parametrize("pause", [1.0, 2.0, 2.5])
def test_a_pause_before_at_or_after_the_pass_changes_nothing(worker, pause):
    straight, halting = thawing(worker), thawing(worker)
    a_pass = straight.stream.steps_per_pass
    while straight.step < 3 * a_pass:
        straight.advance()
    while halting.step < round(pause * a_pass):
        halting.advance()
    again = thawing(worker)
    again.go_on(halting.passes, halting.model_tensors(), halting.training_tensors())
    while again.step < 3 * a_pass:
        again.advance()
    for name, tensor in straight.model_tensors().items():
        torch.testing.assert_close(again.model_tensors()[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_failure_is_a_report_with_its_cause(run, worker):
    broken = trial(run, 0, "test_resnet", "full", learning_rate=1e30)
    report = execute(worker, broken, 0.0, 5.0)
    assert report.event == "failed"
    assert report.score is None
    assert "the loss became" in report.error or "the validation score" in report.error


def test_a_missing_parent_is_a_report(run, worker):
    orphan = Trial(
        3, "small/test_resnet", "full", 64, trial(run, 0, "test_resnet", "full").params, 0, parents=(Parent(9, 1.0),)
    )
    assert "trial 9 has no whole checkpoint" in execute(worker, orphan, 0.0, 1.0).error


def test_cancelling_leaves_the_slice_open(run):
    countdown = iter([False] * 3)
    worker = Worker(shop_of(run, cancelled=lambda: next(countdown, True)))
    with pytest.raises(Cancelled):
        execute(worker, trial(run, 0, "test_resnet", "full"), 0.0, 27.0)


def test_a_full_disk_is_no_fault_of_the_trial(run, worker, monkeypatch):
    """A file-size limit makes the real write fail as a full disk does."""
    import resource
    import signal

    of = trial(run, 0, "test_resnet", "full")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunFolderError, match=r"File too large; make room there .*: autoft resume .*run"):
            execute(worker, of, 0.0, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert execute(worker, of, 0.0, 1.0).event == "paused"  # the slice was left open


def test_batches_depend_on_seed_and_step_alone(run, worker):
    rng = random.Random(0)
    dataset, images = worker.shop.dataset, worker.shop.images(trial(run, 0, "test_resnet", "full"))
    recipe = Recipe(batch_size=8, augment="crop_flip")
    one, other = (
        TrainingStream(images, dataset.rows("train"), dataset.targets("train"), recipe, seed) for seed in (1, 1)
    )
    steps = list(range(6))
    drawn = {step: one.batch(step) for step in rng.sample(steps, 6)}
    for step in steps:
        torch.testing.assert_close(drawn[step][0], other.batch(step)[0])
    seen = np.concatenate([one._order(0).ravel()])
    assert len(set(seen.tolist())) == len(seen)


def lost(number: int, why: str = "memory") -> Allowance:
    return Allowance({}, number * (Lost(0, why, "gone", 1.0),))


def test_a_slice_that_has_cost_processes_is_the_same_in_smaller_parts(run, worker):
    whole, halved = (trial(run, number, "test_resnet", "full", batch_size=16) for number in (0, 1))
    one = execute(worker, whole, 0.0, 2.0)
    other = worker.run(Job(Slice(halved, 0.0, 2.0, FOREVER), time.time(), lost(2)))
    assert "images_at_once" not in one.facts
    assert (other.facts["images_at_once"], other.facts["device"]) == (4, worker.shop.device_name)
    assert other.score == pytest.approx(one.score, abs=1e-6)
    weights = saved(run, 1).model
    for name, tensor in saved(run, 0).model.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_what_fits_in_one_process_is_where_another_begins(run, worker):
    """By way of the ledger alone."""
    found, later = (trial(run, number, "test_resnet", "full", batch_size=16) for number in (0, 1))
    ledger = Ledger([Queued(0, Slice(found, 0.0, 1.0, FOREVER), Clock(0.0, FOREVER))])
    ledger.record(worker.run(Job(Slice(found, 0.0, 1.0, FOREVER), time.time(), lost(1))))
    other_process = Worker(shop_of(run))
    report = other_process.run(Job(Slice(later, 0.0, 1.0, FOREVER), time.time(), ledger.allowance(later)))
    assert (report.event, report.facts["images_at_once"]) == ("paused", 8)


def test_a_probe_that_has_cost_a_process_looks_at_fewer_images_at_a_time(run, worker):
    probe = trial(run, 0, "test_resnet", "probe")
    sizes = [
        worker.shop.bench(Job(Slice(probe, 0.0, 1.0, FOREVER), 0.0, lost(number))).images.forward_size
        for number in (0, 1, 2)
    ]
    assert sizes == [64, 32, 16]


@pytest.mark.parametrize(("why", "event"), [("memory", "failed"), ("unknown", "paused")])
def test_batches_that_must_be_whole_do_not_fit_a_second_time(run, worker, monkeypatch, why, event):
    strategy = type(run.host().part(FreezeStrategy, "full"))
    held = strategy.plan
    monkeypatch.setattr(strategy, "plan", lambda *given: replace(held(*given), batch_norm="train"))
    of = trial(run, 0, "test_resnet", "full", batch_size=16)
    report = worker.run(Job(Slice(of, 0.0, 1.0, FOREVER), time.time(), lost(1, why)))
    assert report.event == event
    assert "images_at_once" not in report.facts
    assert ("BatchNorm that trains needs all 16 images of a batch at a time" in (report.error or "")) == (
        why == "memory"
    )


def test_parts_of_a_batch_add_up_to_the_whole(run, worker):
    from autoft.train.by_gradient import _beginning, _run_of

    of = trial(run, 0, "test_resnet", "full", head_init="ridge")
    bench = worker.shop.bench(Job(Slice(of, 0.0, 1.0, FOREVER), 0.0))
    training = _run_of(bench, None, _beginning(bench).classifier, Arithmetic())
    images, labels = training.stream.batch(0)

    def gradients():
        training._optimizer.zero_grad()
        loss = training._accumulate(images, labels)
        return loss.item(), [parameter.grad.clone() for parameter in training.classifier.parameters()]

    whole = gradients()
    training.at_once = 5
    parts = gradients()
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for one, other in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("init", ["zero", "ridge"])
def test_a_head_on_every_stage_comes_out_plain_and_goes_on_as_if_it_had_not_stopped(run, init):
    """What is scored and kept is the plain head, and a trial in two slices is to the bit that in one."""
    whole, parted = (trial(run, number, "test_efficientnet", "full", head_init=init) for number in (0, 1))
    worker = Worker(shop_of(run))
    assert worker.shop.network(whole.backbone).tapped > 0
    execute(worker, whole, 0.0, 2.0)
    execute(worker, parted, 0.0, 1.0)
    execute(Worker(shop_of(run)), parted, 1.0, 2.0)
    one, other = saved(run, 0), saved(run, 1)
    assert one.model.keys() == other.model.keys() >= {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, other.model[name]) for name, tensor in one.model.items())
    restored, images = worker.shop.restored(one), worker.shop.images(whole).batches(worker.shop.dataset.rows("val"))
    assert type(restored.head) is torch.nn.Linear
    np.testing.assert_allclose(worker.shop.outputs(restored, images), one.logits, rtol=1e-4, atol=1e-4)


def test_a_trial_of_an_older_version_goes_on_with_the_head_it_had(run, worker):
    of = trial(run, 0, "test_efficientnet", "full", head_init="zero")
    execute(worker, of, 0.0, 1.0)
    checkpoint = saved(run, 0)
    older = {name: one for name, one in checkpoint.training.items() if not name.startswith(("standard.", "averaged."))}
    run.checkpoints.save(replace(checkpoint, training=older))
    report = execute(Worker(shop_of(run)), of, 1.0, 2.0)
    assert report.error is None and report.step == 2.0
    assert not any(name.startswith("standard.") for name in saved(run, 0).training)


def test_a_head_on_all_images_is_solved_for_once_a_process(run, worker, monkeypatch):
    """The fine-tune begins from the probe's, which can take seconds; another process, or other images, solve anew."""
    solved, closed_form = [], type(worker.shop.task).closed_form

    def counted(task, features, *rest):
        solved.append(len(features))
        return closed_form(task, features, *rest)

    monkeypatch.setattr(type(worker.shop.task), "closed_form", counted)
    monkeypatch.setattr("autoft.train.closed_form._out_of_fold", lambda bench, solved: None)
    execute(worker, trial(run, 0, "test_resnet", "probe"), 0.0, 1.0)
    execute(worker, trial(run, 1, "test_resnet", "full", head_init="ridge"), 0.0, 1.0)
    assert solved == [len(worker.shop.dataset.rows("train"))]
    execute(worker, trial(run, 2, "test_vit", "probe"), 0.0, 1.0)
    execute(Worker(shop_of(run)), trial(run, 3, "test_resnet", "bias_norm", head_init="ridge"), 0.0, 1.0)
    assert len(solved) == 3
    assert torch.equal(
        saved(run, 0).model["head.weight"], worker.shop.solved[("small/test_resnet", 64), "train"].head.weight
    )


def test_a_head_that_would_take_the_time_of_training_is_not_begun_unless_it_is_there(run, worker, monkeypatch):
    monkeypatch.setattr("autoft.train.by_gradient.SOLVING_SECONDS", 1.0)
    soon = time.time() + 60.0
    of = trial(run, 0, "test_resnet", "full", head_init="ridge")
    late = worker.run(Job(Slice(of, 0.0, 1.0, soon), origin=0.0))
    assert (late.event, late.step) == ("paused", 0.0) and "the head to begin from" in (late.error or "")
    execute(worker, trial(run, 1, "test_resnet", "probe"), 0.0, 1.0)
    assert worker.run(Job(Slice(of, 0.0, 1.0, soon), origin=0.0)).step == 1.0
