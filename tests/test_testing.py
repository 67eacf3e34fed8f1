"""The built-ins pass what is asked of anyone's parts, and the checks notice parts that are wrong."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import autoft
from autoft.host import BUILTINS, Host
from autoft.plugins import builtin_ref
from autoft.testing import (
    ExporterConformance,
    FreezeStrategyConformance,
    SearcherConformance,
    ZooConformance,
    candidates,
    simulate,
)
from autoft.types import Parent

HOST = Host.from_refs(map(builtin_ref, BUILTINS))


def checks(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


@functools.cache
def freeze_suite(name: str) -> FreezeStrategyConformance:
    class Suite(FreezeStrategyConformance):
        def part(self) -> autoft.FreezeStrategy:
            return HOST.freeze_strategy(name)

    return Suite()


@functools.cache
def searcher_suite(name: str) -> SearcherConformance:
    class Suite(SearcherConformance):
        def part(self) -> autoft.Searcher:
            return HOST.searcher(name)

    return Suite()


@pytest.mark.parametrize("check", checks(FreezeStrategyConformance))
@pytest.mark.parametrize("name", sorted(HOST.freeze_strategies()))
def test_a_builtin_freeze_strategy_passes(name: str, check: str) -> None:
    getattr(freeze_suite(name), check)()


@pytest.mark.parametrize("check", checks(SearcherConformance))
@pytest.mark.parametrize("name", sorted(HOST.searchers()))
def test_a_builtin_searcher_passes(name: str, check: str) -> None:
    getattr(searcher_suite(name), check)()


class TestBuiltinExporter(ExporterConformance):
    def part(self) -> autoft.Exporter:
        return HOST.exporter("onnx")


# ---------------------------------------------------------------- the checks notice what is wrong


class Plain(autoft.Searcher):
    """A correct searcher: one slice a trial, the candidates in turn."""

    name = "plain"

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        number = len(ledger.trials)
        if clock.remaining == 0 or number >= (problem.trials or 20):
            return autoft.DONE
        candidate = problem.candidates[number % len(problem.candidates)]
        params = candidate.space.sample(random.Random(f"{problem.seed} {number}"))
        return autoft.Slice(candidate.trial(number, params, problem.seed), 0.0, 1.0, clock.deadline)


class Heir(Plain):
    """Every trial after the first starts from the first one's weights, as they were at `step` passes."""

    def __init__(self, step: float) -> None:
        self.step = step

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        answer = super().ask(replace(problem, candidates=problem.candidates[:1]), ledger, clock)
        if not isinstance(answer, autoft.Slice) or answer.trial.id == 0:
            return answer
        if not ledger.trials[0].reports:
            return autoft.WAIT
        if 0 not in ledger.with_checkpoint():
            return autoft.WAIT if ledger.in_flight else autoft.DONE
        return replace(answer, trial=replace(answer.trial, parents=(Parent(0, self.step),)))


class Forgetful(Plain):
    """Draws from a generator of its own: not a function of the ledger."""

    drawn = random.Random(0)

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        answer = super().ask(problem, ledger, clock)
        if isinstance(answer, autoft.Slice):
            return replace(answer, until=1.0 + self.drawn.random())
        return answer


class Late(Plain):
    """Plans beyond the deadline."""

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        answer = super().ask(problem, ledger, clock)
        return replace(answer, deadline=clock.deadline + 1) if isinstance(answer, autoft.Slice) else answer


class Sleepy(Plain):
    """Waits for nothing."""

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        return autoft.WAIT


class TestPlainSearcher(SearcherConformance):
    def part(self) -> autoft.Searcher:
        return Plain()


class TestSearcherWithParents(SearcherConformance):
    def part(self) -> autoft.Searcher:
        return Heir(1.0)


def suite_of(searcher: Callable[[], Plain]) -> SearcherConformance:
    class Suite(SearcherConformance):
        def part(self) -> autoft.Searcher:
            return searcher()

    return Suite()


@pytest.mark.parametrize(
    ("searcher", "check", "word"),
    [
        (Forgetful, "test_the_same_ledger_gives_the_same_answer", "a new searcher answers"),
        (Late, "test_slices_end_by_the_deadline", "deadline"),
        (Sleepy, "test_it_ends", "WAIT with nothing in flight"),
        (lambda: Heir(0.4), "test_it_ends", "a parent, has no checkpoint at 0.4 passes"),
    ],
)
def test_a_wrong_searcher_is_told_what_is_wrong(searcher: Callable[[], Plain], check: str, word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        getattr(suite_of(searcher), check)()


def test_a_simulation_is_the_same_every_time() -> None:
    problem = autoft.Problem(candidates(), 0, 2)
    one, two = simulate(Plain(), problem), simulate(Plain(), problem)
    assert one.events == two.events
    assert one.done


class Freezing(autoft.FreezeStrategy):
    name = "wrong"

    def __init__(self, group: autoft.ParameterGroup, starts: Iterable[autoft.Params] = ({"depth": 1},)) -> None:
        self.group, self.starts = group, tuple(starts)

    def space(self) -> autoft.Space:
        return autoft.Space({"depth": autoft.Int(1, 3)}, self.starts)

    def plan(self, stages: tuple[autoft.Stage, ...], params: autoft.Params) -> autoft.Plan:
        return autoft.Plan((self.group,), autoft.GradientHead(1e-3))


@pytest.mark.parametrize(
    ("strategy", "check", "word"),
    [
        (Freezing(autoft.ParameterGroup(("nowhere",), 1e-3)), "test_its_plans_can_be_carried_out", "nowhere"),
        (Freezing(autoft.ParameterGroup((), 1e-3)), "test_its_plans_can_be_carried_out", "empty"),
        (Freezing(autoft.ParameterGroup(("stem.0.weight",), 0.0)), "test_its_plans_can_be_carried", "learning rate"),
        (Freezing(autoft.ParameterGroup(("a",), 1.0), starts=()), "test_its_space_has_a_start", "start"),
    ],
)
def test_a_wrong_strategy_is_told_what_is_wrong(strategy: Freezing, check: str, word: str) -> None:
    class Suite(FreezeStrategyConformance):
        def part(self) -> autoft.FreezeStrategy:
            return strategy

    (method,) = [name for name in dir(Suite) if name.startswith(check)]
    with pytest.raises(AssertionError, match=word):
        getattr(Suite(), method)()


def test_a_part_that_hangs_fails_and_says_where() -> None:
    class Hanging(Plain):
        def ask(self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock) -> autoft.Done:
            while True:
                time.sleep(0.01)

    suite = suite_of(Hanging)
    type(suite).seconds = 0.2
    with pytest.raises(
        AssertionError, match=r"not done after 0\.2 s; it hangs .* at .*test_testing\.py:\d+, in ask\(\)"
    ):
        suite.test_it_starts_something()


class Net(nn.Module):
    """Convolution, pooling, and a way to go wrong."""

    def __init__(self, wrong: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.wrong, self.stem = wrong, nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.wrong(self.stem(images)).mean((2, 3))


def zoo_suite(net: Callable[[], nn.Module], fixed_size: bool = False) -> ZooConformance:
    spec = autoft.InputSpec(32, fixed_size=fixed_size)

    class NetZoo(autoft.Zoo):
        name = "net"

        def backbones(self) -> list[autoft.Backbone]:
            return [autoft.Backbone("net/one", 112, spec)]

        def build(self, backbone: autoft.Backbone) -> autoft.Network:
            if backbone.name != "net/one":
                raise autoft.BackboneUnavailable(f"{backbone.name}: there is only net/one")
            torch.manual_seed(0)
            return autoft.Network.of(net(), spec)

    class Suite(ZooConformance):
        def part(self) -> autoft.Zoo:
            return NetZoo()

    return Suite()


def one_size(features: torch.Tensor) -> torch.Tensor:
    return features + torch.zeros(4, 32, 32)


@pytest.mark.parametrize(
    ("wrong", "check", "word"),
    [
        (
            one_size,
            "test_it_takes_other_sizes_unless_it_says_that_it_does_not",
            r"64 px.*InputSpec\(32, fixed_size=True",
        ),
        (torch.detach, "test_it_trains", "no gradient"),
        (lambda x: x.view(len(x), -1)[:, :4, None, None], "test_features_of_an_image_do_not_depend", "view size"),
        (lambda x: x - x.mean(0), "test_features_of_an_image_do_not_depend", "others are in its batch"),
        (lambda x: x / 0, "test_it_trains", "loss became nan"),
    ],
)
def test_a_wrong_network_is_told_what_is_wrong(wrong: Callable[..., torch.Tensor], check: str, word: str) -> None:
    suite = zoo_suite(lambda: Net(wrong))
    (method,) = [name for name in dir(suite) if name.startswith(check)]
    with pytest.raises(Exception, match=word):
        getattr(suite, method)()


@pytest.mark.parametrize("check", checks(ZooConformance))
def test_a_network_of_one_size_that_says_so_passes(check: str) -> None:
    getattr(zoo_suite(lambda: Net(one_size), fixed_size=True), check)()


def test_the_checks_run_on_a_file_without_pytest_and_hypothesis(tmp_path: Path) -> None:
    """As a plugin's author may: nothing but autoft is installed."""
    example = Path(__file__).parents[1] / "examples" / "custom_backbone" / "my_backbone.py"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(example.read_text().replace('"mine/tiny", parameters', '"yours/tiny", parameters'))
    code = (
        "import runpy, sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None;"
        "runpy.run_module('autoft.testing', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, example, wrong], capture_output=True, text=True, check=False)
    right, failed, *_ = done.stdout.splitlines()
    assert right == "mine: ZooConformance passed", done.stderr
    assert "addresses_are_unique_and_start_with_the_zoo: every name is mine/MODEL; look at ['yours/tiny']" in failed
    assert done.returncode == 1
