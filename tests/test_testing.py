"""The built-ins pass what is asked of anyone's parts, and the checks notice parts that are wrong."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import autoft
from autoft.parts.host import BUILTINS, Host
from autoft.parts.plugins import builtin_ref
from autoft.testing import (
    ExporterConformance,
    FreezeStrategyConformance,
    SearcherConformance,
    ZooConformance,
    candidates,
    simulate,
)
from autoft.testing.__main__ import loaded, suites
from autoft.testing.__main__ import main as command
from autoft.train.gradient import GradientRun
from autoft.values.trial import Parent

HOST = Host.from_refs(map(builtin_ref, BUILTINS))


def checks(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


@functools.cache
def freeze_suite(name: str) -> FreezeStrategyConformance:
    class Suite(FreezeStrategyConformance):
        def part(self) -> autoft.FreezeStrategy:
            return HOST.part(autoft.FreezeStrategy, name)

    return Suite()


@functools.cache
def searcher_suite(name: str) -> SearcherConformance:
    class Suite(SearcherConformance):
        def part(self) -> autoft.Searcher:
            return HOST.part(autoft.Searcher, name)

    return Suite()


@pytest.mark.parametrize("check", checks(FreezeStrategyConformance))
@pytest.mark.parametrize("name", sorted(HOST.parts(autoft.FreezeStrategy)))
def test_a_builtin_freeze_strategy_passes(name: str, check: str) -> None:
    getattr(freeze_suite(name), check)()


@pytest.mark.parametrize("check", checks(SearcherConformance))
@pytest.mark.parametrize("name", sorted(HOST.parts(autoft.Searcher)))
def test_a_builtin_searcher_passes(name: str, check: str) -> None:
    getattr(searcher_suite(name), check)()


class TestBuiltinExporter(ExporterConformance):
    def part(self) -> autoft.Exporter:
        return HOST.part(autoft.Exporter, "onnx")


# ---------------------------------------------------------------- the checks notice what is wrong


class Plain(autoft.Searcher):
    """A correct searcher: one slice a trial, the candidates in turn."""

    name = "plain"
    tries_starts = False

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


class Trusting(Plain):
    """Goes on with whatever is paused, whether its checkpoint is kept or not."""

    def ask(
        self, problem: autoft.Problem, ledger: autoft.Ledger, clock: autoft.Clock
    ) -> autoft.Slice | autoft.Wait | autoft.Done:
        paused = [one for one in ledger.trials.values() if one.state == "paused" and one.step < 2]
        if len(ledger.trials) < 6 or not paused or clock.remaining == 0:
            return super().ask(problem, ledger, clock)
        return autoft.Slice(paused[0].trial, paused[0].step, 2.0, clock.deadline)


class Deaf(Plain):
    """Says that it begins with starts, and does not."""

    tries_starts = True


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
        (Deaf, "test_a_candidate_begins_with_its_first_start", "not the first of space.starts"),
        (Sleepy, "test_it_ends", "WAIT with nothing in flight"),
        (Trusting, "test_it_ends", "has no checkpoint to go on from"),
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

    def __init__(self, group: autoft.ParameterGroup) -> None:
        self.group = group

    def space(self) -> autoft.Space:
        return autoft.Space({"depth": autoft.Int(1, 3)}, ({"depth": 1},))

    def plan(self, stages: tuple[autoft.Stage, ...], params: autoft.Params) -> autoft.Plan:
        return autoft.Plan((self.group,), autoft.GradientHead(1e-3))


@pytest.mark.parametrize(
    ("strategy", "check", "word"),
    [
        (Freezing(autoft.ParameterGroup(("nowhere",), 1e-3)), "test_its_plans_can_be_carried_out", "nowhere"),
        (Freezing(autoft.ParameterGroup((), 1e-3)), "test_its_plans_can_be_carried_out", "empty"),
        (Freezing(autoft.ParameterGroup(("stem.0.weight",), 0.0)), "test_its_plans_can_be_carried", "learning rate"),
    ],
)
def test_a_wrong_strategy_is_told_what_is_wrong(strategy: Freezing, check: str, word: str) -> None:
    class Suite(FreezeStrategyConformance):
        def part(self) -> autoft.FreezeStrategy:
            return strategy

    (method,) = [name for name in dir(Suite) if name.startswith(check)]
    with pytest.raises(AssertionError, match=word):
        getattr(Suite(), method)()


class Thawing(autoft.FreezeStrategy):
    """Everything trains once two passes are over."""

    name = "thawing"

    def space(self) -> autoft.Space:
        return autoft.Space({}, ({},))

    def plan(self, stages: tuple[autoft.Stage, ...], params: autoft.Params) -> autoft.Plan:
        names = tuple(parameter.name for stage in stages for parameter in stage.parameters)
        return autoft.Plan((autoft.ParameterGroup(names, 1e-3, from_pass=2.0),), autoft.GradientHead(1e-3))


class TestThawing(FreezeStrategyConformance):
    def part(self) -> autoft.FreezeStrategy:
        return Thawing()


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (
            lambda run: [p.requires_grad_(False) for p in run.classifier.backbone.parameters()],
            "can train and should not",
        ),
        (lambda run: setattr(run._optimizer, "step", lambda: None), "nothing moved of"),
        (lambda run: [p.data.add_(1.0) for p in run.classifier.backbone.parameters()], "moved, of no group that began"),
    ],
)
def test_what_moves_too_early_or_never_is_noticed(
    breaks: Callable[[GradientRun], object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = GradientRun._begin_groups
    monkeypatch.setattr(GradientRun, "_begin_groups", lambda run: (begin(run), breaks(run)))
    with pytest.raises(AssertionError, match=says):
        TestThawing().test_its_plans_train_real_networks()


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


OWN = random.Random(0)


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
        (
            lambda x: x * random.choice((1, 1)),
            "test_its_forward_pass_draws",
            "eval mode.* draws from Python's `random`",
        ),
        (lambda x: x + np.random.rand(), "test_its_forward_pass_draws", "numpy's global generator; draw from torch's"),
        (lambda x: x + OWN.random(), "test_its_forward_pass_draws", "draws from a generator of its own"),
    ],
)
def test_a_wrong_network_is_told_what_is_wrong(wrong: Callable[..., torch.Tensor], check: str, word: str) -> None:
    suite = zoo_suite(lambda: Net(wrong))
    (method,) = [name for name in dir(suite) if name.startswith(check)]
    with pytest.raises(Exception, match=word):
        getattr(suite, method)()


def test_weights_that_nobody_seeded_are_noticed() -> None:
    class Unseeded(autoft.Zoo):
        name = "net"

        def backbones(self) -> list[autoft.Backbone]:
            return [autoft.Backbone("net/one", 112, autoft.InputSpec(32))]

        def build(self, backbone: autoft.Backbone) -> autoft.Network:
            with torch.random.fork_rng(devices=[]):  # and its seed is forgotten
                return autoft.Network.of(Net(torch.relu), backbone.input)

    suite = type("Suite", (ZooConformance,), {"part": lambda _: Unseeded()})()
    with pytest.raises(AssertionError, match=r"two builds differ, look at \['stem\.weight'.*; seed what is drawn"):
        suite.test_building_twice_gives_the_same_weights()


@pytest.mark.parametrize("check", checks(ZooConformance))
def test_a_network_of_one_size_that_says_so_passes(check: str) -> None:
    getattr(zoo_suite(lambda: Net(one_size), fixed_size=True), check)()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, list[str], list[str]]]:
    """`run(source, name="kind.py")`: exit code and lines on stdout and stderr of the checks of a file."""

    def run(source: str | None, name: str = "kind.py") -> tuple[int, list[str], list[str]]:
        if source is not None:
            (tmp_path / name).write_text("from autoft import *\nfrom autoft import hookimpl\n" + source)
        with pytest.raises(SystemExit) as ended:
            command([str(tmp_path / name) if name.endswith(".py") else name], prog_name="autoft.testing")
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out.splitlines(), out.err.splitlines()

    return run


Run = Callable[..., tuple[int, list[str], list[str]]]
STRATEGY = """
class Mine(FreezeStrategy):
    name = "{name}"
    def space(self): return Space({{}})
    def plan(self, stages, params): return {plan}

@hookimpl
def autoft_freeze_strategies(): return {given}
"""


def strategy(name: str = "mine", plan: str = "Plan((), GradientHead(1e-3))", given: str = "[Mine()]") -> str:
    return STRATEGY.format(name=name, plan=plan, given=given)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("@hookimpl\ndef autoft_freeze_strategy(): return []", "did you mean 'autoft_freeze_strategies'?"),
        ("@hookimpl\ndef freeze_strategies(): return []", "did you mean 'autoft_freeze_strategies'?"),
        ("@hookimpl\ndef autoft_slice_ended(trials): pass", "Argument(s) {'trials'} are declared"),
        ("x = 1", "no function in it is marked @autoft.hookimpl"),
        ("@hookimpl\ndef autoft_slice_ended(trial): pass", "nothing was checked but that it loads"),
        ("@hookimpl\ndef autoft_zoos(): return []", "nothing was checked but that it loads"),
        (strategy(name="probe"), "both offer freeze strategy 'probe'"),
        (strategy(given="[Mine(), Mine()]"), "two parts called 'mine'"),
        (strategy(given="None"), "it must return a list of parts, not None"),
        (strategy(given="[FreezeStrategy()]"), "TypeError: Can't instantiate abstract class FreezeStrategy"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        (None, "there is no such file"),
    ],
)
def test_what_a_search_refuses_is_one_line_and_exit_code_2(run: Run, source: str | None, says: str) -> None:
    code, out, err = run(source)
    assert (code, out) == (2, [])
    (line,) = err
    assert line.startswith("error: ")
    assert says in line


def test_a_module_that_is_not_there_is_one_line_and_exit_code_2(run: Run) -> None:
    code, out, (line,) = run(None, "no_such_module_at_all")
    assert (code, out) == (2, [])
    assert "give the path of a .py file, or the name of a module" in line


def test_after_a_plugin_that_is_refused_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = {"bad": "x = 1", "wrong": strategy(plan="Plan((), None)"), "worse": "import no_such_module_at_all"}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(f"from autoft import *\nfrom autoft import hookimpl\n{source}\n")
    with pytest.raises(SystemExit) as ended:
        command([str(tmp_path / f"{name}.py") for name in sources], prog_name="autoft.testing")
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "mine: FreezeStrategyConformance failed" in said.out
    assert [line.split("'")[1] for line in said.err.splitlines()] == ["bad", "worse"]


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--such", 2)])
def test_an_option_is_no_module(run: Run, option: str, code: int) -> None:
    found, out, err = run(None, option)
    assert found == code
    assert "FILE.py|MODULE..." in (out or err)[0]


@pytest.mark.parametrize(
    ("source", "checks", "says"),
    [
        (strategy(plan="Plan((), None)"), 5, "is ClosedFormHead() or GradientHead(learning_rate), not None"),
        (
            strategy(plan="Plan((), GradientHead(0.0))"),
            5,
            "the learning rate of the head is positive and finite, not 0",
        ),
    ],
)
def test_one_mistake_is_told_once(run: Run, source: str, checks: int, says: str) -> None:
    code, (line, verdict), _ = run(source)
    assert code == 1
    assert says in line
    assert (
        verdict
        == f"mine: FreezeStrategyConformance failed {checks}, {checks - 1} of them for a cause that stands above"
    )


ZOO = """
class Own(Zoo):
    name = "own"
    def backbones(self): return [Backbone("own/x", 112, InputSpec(32))]
    def build(self, backbone):
        from torch import nn
        return {network}

@hookimpl
def autoft_zoos(): return [Own()]
"""


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (
            "Network.of(nn.Conv2d(3, 4, 3), backbone.input)",
            "a backbone gives features (batch, dim), this one gives (2, 4",
        ),
        (
            "nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())",
            "it gave a value of type Sequential, not an autoft.Network",
        ),
    ],
)
def test_a_zoo_that_builds_nothing_is_told_so_once_and_not_that_it_knows_no_other(
    run: Run, network: str, says: str
) -> None:
    code, (unknown, line, verdict), _ = run(ZOO.format(network=network))
    assert code == 1
    assert unknown.endswith("not checked: own/x, which is there, cannot be built either")
    assert says in line
    assert verdict == "own: ZooConformance failed 9, 8 of them for a cause that stands above, 1 not checked"


BYTES = """
import hashlib

class Bytes(Exporter):
    name = "bytes"
    def export(self, classifier, handoff, folder):
        (folder / "model.bin").write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()
        yield Artifact("export/model.bin", "bytes", 0, 7, digest, "bytes")

@hookimpl
def autoft_exporters(): return [Bytes()]
"""


def test_an_exporter_need_not_write_onnx(run: Run) -> None:
    code, lines, _ = run(BYTES)
    assert code == 0
    assert lines[-1] == "bytes: ExporterConformance passed, 2 not checked"
    assert lines[0].endswith("not checked: bytes is not compared with torch: model.bin is not run here")


def test_a_module_is_checked_as_a_file_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "writes_bytes.py").write_text("from autoft import *\nfrom autoft import hookimpl\n" + BYTES)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, lines, _ = run(None, "writes_bytes")
    assert (code, lines[-1]) == (0, "bytes: ExporterConformance passed, 2 not checked")


def test_a_module_that_is_installed_is_the_one_of_a_search() -> None:
    host, plugin = loaded("autoft.builtin.freeze")
    assert plugin == "freeze"
    assert [suite.part().name for suite in suites(host, plugin)] == [
        *("probe", "full", "last_stages", "bias_norm"),
        *("lp_ft", "surgical", "gradual"),
    ]


def test_an_exporter_called_onnx_writes_the_core() -> None:
    class Elsewhere(ExporterConformance):
        def part(self) -> autoft.Exporter:
            real = HOST.part(autoft.Exporter, "onnx")

            class Renamed(autoft.Exporter):
                name = "onnx"

                def export(
                    self, classifier: nn.Module, handoff: autoft.Handoff, folder: Path
                ) -> Iterator[autoft.Artifact]:
                    artifact = next(real.export(classifier, handoff, folder))
                    (folder / "model.core.onnx").rename(folder / "model.onnx")
                    yield replace(artifact, path="export/model.onnx")

            return Renamed()

    with pytest.raises(AssertionError, match=r"the core is called model\.core\.onnx, not model\.onnx"):
        Elsewhere().test_the_file_has_its_place_in_the_bundle()


def test_the_checks_run_on_a_file_without_pytest_and_hypothesis(tmp_path: Path) -> None:
    """As a plugin's author may: nothing but autoft is installed."""
    example = Path(__file__).parents[1] / "examples" / "custom_backbone" / "my_backbone.py"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(example.read_text().replace("parameters=7_296", "parameters=7"))
    code = (
        "import runpy, sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None;"
        "runpy.run_module('autoft.testing', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, example, wrong], capture_output=True, text=True, check=False)
    right, failed, verdict = done.stdout.splitlines()
    assert right == "mine: ZooConformance passed", done.stderr
    assert "mine: the_network_is_what_the_list_said: mine/tiny: it has 7296 parameters, the list says 7," in failed
    assert verdict == "mine: ZooConformance failed 1"
    assert done.returncode == 1
