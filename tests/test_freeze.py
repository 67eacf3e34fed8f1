"""The built-in freeze strategies: conformance, and what each is for."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autoft.builtin.freeze import BiasNorm, Full, LastStages, Probe, autoft_freeze_strategies, batch_sizes
from autoft.testing import FreezeStrategyConformance
from autoft.values.backbone import ParameterInfo, Stage
from autoft.values.plan import ClosedFormHead
from autoft.values.space import Circumstances


def stages(count=5):
    def stage(number):
        infos = [("conv.weight", 100, "weight"), ("conv.bias", 10, "bias"), ("bn.weight", 10, "norm")]
        return Stage(f"s{number}", tuple(ParameterInfo(f"s{number}.{name}", size, role) for name, size, role in infos))

    return tuple(stage(number) for number in range(count))


class TestProbe(FreezeStrategyConformance):
    def part(self):
        return Probe()


class TestLastStages(FreezeStrategyConformance):
    def part(self):
        return LastStages()


class TestBiasNorm(FreezeStrategyConformance):
    def part(self):
        return BiasNorm()


class TestFull(FreezeStrategyConformance):
    def part(self):
        return Full()


def trained(plan):
    return {name for group in plan.groups for name in group.names}


def test_probe_trains_nothing():
    plan = Probe().plan(stages(), {})
    assert isinstance(plan.head, ClosedFormHead)
    assert not trained(plan)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_last_stages_counts_from_the_head(k):
    params = {**LastStages().space().starts[0], "stages": k}
    plan = LastStages().plan(stages(), params)
    assert trained(plan) == {info.name for stage in stages()[-k:] for info in stage.parameters}


def test_last_stages_of_a_shallow_network_is_all_of_it():
    params = {**LastStages().space().starts[0], "stages": 4}
    assert trained(LastStages().plan(stages(2), params)) == {
        info.name for stage in stages(2) for info in stage.parameters
    }


def test_bias_norm_leaves_weights_alone():
    plan = BiasNorm().plan(stages(), BiasNorm().space().starts[0])
    assert trained(plan) == {f"s{n}.{name}" for n in range(5) for name in ("conv.bias", "bn.weight")}


def test_full_slows_down_towards_the_input():
    params = {**Full().space().starts[0], "learning_rate": 1e-3, "layer_decay": 0.6}
    plan = Full().plan(stages(), params)
    rates = {name: group.learning_rate for group in plan.groups for name in group.names}
    assert [rates[f"s{n}.conv.weight"] for n in range(5)] == pytest.approx([1e-3 * 0.6 ** (4 - n) for n in range(5)])
    decayed = {name for group in plan.groups if group.weight_decay for name in group.names}
    assert decayed <= {f"s{n}.conv.weight" for n in range(5)}


def test_batch_norm_statistics_stay_frozen_by_default():
    for strategy in autoft_freeze_strategies():
        plan = strategy.plan(stages(), strategy.space().sample(random.Random(0)))
        assert plan.batch_norm == "frozen"


@given(st.integers(0, 10**7))
@example(511)
@example(512)
def test_a_gpu_has_larger_batches_but_no_pass_of_a_few_steps(images):
    sizes = batch_sizes(Circumstances("cuda", images))
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] <= 256
    assert sizes[-1] == 32 or images // sizes[-1] >= 8
    assert sizes[-1] == 256 or images // (2 * sizes[-1]) < 8  # and as large as may be
    assert batch_sizes(Circumstances("cpu", images)) == (16, 32)


@pytest.mark.parametrize("strategy", [Full(), LastStages(), BiasNorm()], ids=str)
def test_the_rate_of_everything_goes_with_the_root_of_the_batch(strategy):
    space = strategy.space_for(Circumstances("cuda", 100_000))
    one, four = (strategy.plan(stages(), {**space.starts[0], "batch_size": size}) for size in (32, 128))
    assert one.groups[0].learning_rate == space.starts[0]["learning_rate"]  # as it is at 32
    assert four.recipe.batch_size == 128
    for before, after in zip((*one.groups, one.head), (*four.groups, four.head), strict=True):
        assert after.learning_rate == pytest.approx(2 * before.learning_rate)
