"""The built-ins pass what is asked of anyone's parts, and the checks notice parts that are wrong."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable
from dataclasses import replace

import pytest

import autoft
from autoft.host import BUILTINS, Host
from autoft.plugins import builtin_ref
from autoft.testing import (
    ExporterConformance,
    FreezeStrategyConformance,
    SearcherConformance,
    candidates,
    simulate,
)

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


def suite_of(searcher: type[Plain]) -> SearcherConformance:
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
    ],
)
def test_a_wrong_searcher_is_told_what_is_wrong(searcher: type[Plain], check: str, word: str) -> None:
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
        (Freezing(autoft.ParameterGroup(("nowhere",), 1e-3)), "test_groups_name_parameters", "nowhere"),
        (Freezing(autoft.ParameterGroup((), 1e-3)), "test_groups_name_parameters", "empty"),
        (Freezing(autoft.ParameterGroup(("stem.0.weight",), 0.0)), "test_learning_rates", "learning rate"),
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
