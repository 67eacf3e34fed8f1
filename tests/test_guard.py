"""Guards: what a plugin's part raises, or gives that it should not, names plugin, part and traceback."""

from __future__ import annotations

import copy
import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoft
from autoft.errors import BackboneUnavailable, DataError, PluginError, RunFailed
from autoft.parts import host as host_module
from autoft.parts.host import Host

SPEC = autoft.InputSpec(32)
BACKBONE = autoft.Backbone("odd/net", 10, SPEC)
STAGES = (autoft.Stage("stem", (autoft.ParameterInfo("stem.weight", 3, "weight"),)),)
PROBLEM = autoft.Problem((), 0, 1)
CLOCK = autoft.Clock(0.0, 9.0)


def methods_of(kind: type) -> set[str]:
    return {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}


class Odd:
    """A plugin with a part of each kind, whose methods all do `act`."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    @autoft.hookimpl
    def autoft_zoos(self) -> list[autoft.Zoo]:
        return [self._part(autoft.Zoo)]

    @autoft.hookimpl
    def autoft_freeze_strategies(self) -> list[autoft.FreezeStrategy]:
        return [self._part(autoft.FreezeStrategy)]

    @autoft.hookimpl
    def autoft_searchers(self) -> list[autoft.Searcher]:
        return [self._part(autoft.Searcher)]

    @autoft.hookimpl
    def autoft_exporters(self) -> list[autoft.Exporter]:
        return [self._part(autoft.Exporter)]

    def _part(self, kind: Any) -> Any:
        methods = dict.fromkeys(methods_of(kind), lambda part, *arguments: self.act())
        return type("Part", (kind,), {"name": "odd", **methods})()


CALLS = {
    "backbones": lambda host: host.backbones(),
    "build": lambda host: host.build(BACKBONE),
    "space": lambda host: host.part(autoft.FreezeStrategy, "odd").space(),
    "space_for": lambda host: host.part(autoft.FreezeStrategy, "odd").space_for(autoft.Circumstances()),
    "plan": lambda host: host.part(autoft.FreezeStrategy, "odd").plan(STAGES, {}),
    "ask": lambda host: host.part(autoft.Searcher, "odd").ask(PROBLEM, autoft.Ledger(), CLOCK),
    "export": lambda host: list(host.part(autoft.Exporter, "odd").export(nn.Identity(), None, Path())),
    "prepare": lambda host: host.part(autoft.Exporter, "odd").prepare(nn.Identity(), 32, Path()),
    "export_prepared": lambda host: list(
        host.part(autoft.Exporter, "odd").export_prepared(nn.Identity(), None, Path(), Path())
    ),
}
KINDS = {
    "backbones": "zoo",
    "build": "zoo",
    "space": "freeze strategy",
    "space_for": "freeze strategy",
    "plan": "freeze strategy",
    "ask": "searcher",
    "export": "exporter",
    "prepare": "exporter",
    "export_prepared": "exporter",
}


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "BUILTINS", ())
    monkeypatch.setattr(host_module.plugins, "entry_point_refs", lambda: iter(()))


def odd(act: Callable[[], Any], tmp_path: Path) -> Host:
    host = Host.discover(objects=[Odd(act)])
    host.errors = tmp_path / "errors"
    return host


def slip() -> Any:
    raise KeyError("no such thing")


def leave() -> Any:
    raise SystemExit(3)


def half() -> Iterator[Any]:
    yield from ()
    raise KeyError("no such thing")


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(("act", "cause"), [(slip, "KeyError"), (leave, "SystemExit: 3"), (lambda: 7, "TypeError")])
def test_what_a_part_raises_is_blamed_on_its_plugin(
    tmp_path: Path, method: str, act: Callable[[], Any], cause: str
) -> None:
    if method == "prepare" and cause == "TypeError":
        pytest.skip("it gives nothing")
    with pytest.raises(PluginError) as caught:
        CALLS[method](odd(act, tmp_path))
    line = str(caught.value)
    assert re.search(rf"^plugin 'Odd' \(.*\) failed in {method}\(\).* of {KINDS[method]} 'odd': {cause}", line), line
    ways = "a new search takes another with --searcher, or does without" if method == "ask" else "switch it off with"
    assert ways in line and line.endswith("-p no:Odd")
    (traceback,) = re.findall(r"traceback in (\S+);", line)
    assert Path(traceback).parent == tmp_path / "errors"
    assert cause.partition(":")[0] in Path(traceback).read_text()


@pytest.mark.parametrize("method", ["backbones", "export"])
def test_what_a_generator_raises_later_is_blamed_too(tmp_path: Path, method: str) -> None:
    with pytest.raises(PluginError, match="KeyError"):
        CALLS[method](odd(half, tmp_path))


@pytest.mark.parametrize(
    ("method", "error"), [("build", BackboneUnavailable("odd/net: no weights")), ("export", RunFailed("no way works"))]
)
def test_what_a_part_may_raise_goes_through(tmp_path: Path, method: str, error: Exception) -> None:
    def act() -> Any:
        raise error

    with pytest.raises(type(error)):
        CALLS[method](odd(act, tmp_path))
    assert not (tmp_path / "errors").exists()


def test_what_could_not_be_stored_is_blamed_at_once(tmp_path: Path) -> None:
    backbone = autoft.Backbone("odd/net", 1e6, SPEC)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"backbones\(\) of zoo 'odd'.*Backbone: parameters: .*integer"):
        odd(lambda: [backbone], tmp_path).backbones()


def test_every_method_of_a_part_is_guarded() -> None:
    for kind in host_module._KINDS.values():
        if kind.part not in (autoft.Task, autoft.Metric):
            forgotten = methods_of(kind.part) - set(vars(kind.guard))
            assert not forgotten, f"{kind.guard} hides {forgotten} of the part"


class OddTask(autoft.SingleLabel):
    name = "odd"

    def loss(self, outputs: Any, targets: Any, recipe: autoft.Recipe) -> Any:
        raise KeyError("no such thing")

    def names(self, labels: Any, columns: Any) -> Any:
        raise DataError("two classes, please")


def test_a_task_blames_its_plugin_for_what_the_plugin_wrote_also_once_it_knows_its_targets(tmp_path: Path) -> None:
    class Odd:
        @autoft.hookimpl
        def autoft_tasks(self) -> list[autoft.Task]:
            return [OddTask()]

    host = Host.discover(objects=[Odd()])
    host.errors = tmp_path / "errors"
    task = host.task("odd").on(autoft.Targets("odd", "one_of", ("a", "b")))
    with pytest.raises(PluginError, match=r"plugin 'Odd' .* failed in loss\(\) of task 'odd': KeyError"):
        task.loss(None, None, autoft.Recipe())  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        task.encode(["c"])  # what the user's data is to blame for
    with pytest.raises(DataError, match="please"):
        task.names(["a", "b"], ["label"])


def test_a_full_disk_is_not_the_plugins_fault(tmp_path: Path) -> None:
    def act() -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        CALLS["export"](odd(act, tmp_path))


def plan(names: tuple[str, ...] = ("stem.weight",), rate: float = 1e-3, **recipe: Any) -> autoft.Plan:
    group = autoft.ParameterGroup(names, rate)
    return autoft.Plan((group,), autoft.GradientHead(1e-3), recipe=autoft.Recipe(**recipe))


def groups(*names: tuple[str, ...], from_pass: float = 0.0) -> autoft.Plan:
    made = tuple(autoft.ParameterGroup(one, 1e-3, from_pass=from_pass) for one in names)
    return autoft.Plan(made, autoft.GradientHead(1e-3))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            plan(("stem.wieght",)),
            "group 0 (stem.wieght) names 'stem.wieght', which is no parameter of the backbone; did",
        ),
        (plan(("stem",)), "that is a stage: name its parameters, such as 'stem.weight'"),
        (plan(("head.bias.of.another",)), "take names from the `stages` that plan() is given"),
        (plan(("stem.weight", "stem.weight")), "names 'stem.weight', which group 0 (stem.weight, stem.weight) has"),
        (groups(("stem.weight",), ("stem.weight",)), "group 1 (stem.weight) names 'stem.weight', which group 0 (stem"),
        (groups(("stem.weight",), ()), "group 1 (empty) names no parameter; leave out empty groups"),
        (plan(rate=-1e-3), "the learning rate of group 0 (stem.weight) is positive and finite, not -0.001"),
        (plan(rate=0.0), "the learning rate of group 0 (stem.weight) is positive and finite, not 0"),
        (autoft.Plan((), autoft.GradientHead(-1.0)), "the learning rate of the head is positive and finite, not -1"),
        (autoft.Plan((), autoft.GradientHead(1.0, -1.0)), "the weight decay of the head is 0 or more and finite"),
        (plan(batch_size=0), "batch size"),
        (plan(passes=0.0), "passes"),
        (plan(passes=1.0, warmup_passes=2.0), "warm-up"),
        (plan(label_smoothing=1.0), "label_smoothing lies in [0, 1), not 1"),
        (plan(dropout=1.0), "dropout lies in [0, 1), not 1"),
        (plan(drop_path=-0.5), "drop_path lies in [0, 1), not -0.5"),
        (plan(l2_sp=-1.0), "l2_sp is 0 or more and finite, not -1"),
        (plan(mixup=-1.0), "mixup is 0 or more and finite, not -1"),
        (groups(("stem.weight",), from_pass=27.0), "group 0 (stem.weight) begins within the 27 passes of the recipe"),
        (groups(("stem.weight",), from_pass=-1.0), "group 0 (stem.weight) begins within the 27 passes of the recipe"),
        (plan(augment="flip"), "augment"),
        (plan(batch_size=16.5), "batch_size"),
        (autoft.Plan((), autoft.GradientHead(True)), "learning_rate: Input should be a valid number"),
        (plan(batch_size=True), "recipe.batch_size: Input should be a valid integer"),
        (plan(momentum=True), "recipe.momentum: Input should be a valid number"),
        (autoft.Plan((autoft.ParameterGroup(("stem.weight",), 1e-3),), autoft.ClosedFormHead()), "closed-form"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_blamed(tmp_path: Path, given: autoft.Plan, says: str) -> None:
    with pytest.raises(PluginError) as caught:
        CALLS["plan"](odd(lambda: given, tmp_path))
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [None, 0, ("mit",)])
def test_a_licence_that_is_no_text_is_blamed_in_a_line(tmp_path: Path, given: Any) -> None:
    says = r"failed in backbones\(\) of zoo 'odd': ValueError: .*license: Input should be a valid string"
    with pytest.raises(PluginError, match=says):
        CALLS["backbones"](odd(lambda: [autoft.Backbone("odd/net", 10, SPEC, license=given)], tmp_path))


@pytest.mark.parametrize("prior", [-0.1, 1.5, 80])
def test_a_prior_is_a_share_of_images(tmp_path: Path, prior: float) -> None:
    with pytest.raises(PluginError, match=r"the prior of odd/net is a share of images, from 0 to 1, and not"):
        CALLS["backbones"](odd(lambda: [autoft.Backbone("odd/net", 10, SPEC, prior=prior)], tmp_path))


@pytest.mark.parametrize("head", [None, 1e-3, autoft.GradientHead])
def test_a_head_that_is_none_is_told_what_a_head_can_be(tmp_path: Path, head: Any) -> None:
    with pytest.raises(PluginError, match=r"plan\(\).*is ClosedFormHead\(\) or GradientHead\(learning_rate\), not"):
        CALLS["plan"](odd(lambda: autoft.Plan((), head), tmp_path))


def test_a_module_in_place_of_a_network_is_named_by_its_type(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(PluginError, match=r"it gave a value of type Sequential, not an autoft\.Network;"):
        CALLS["build"](odd(lambda: module, tmp_path))


def test_a_plan_without_warm_up_is_a_plan(tmp_path: Path) -> None:
    given = plan(warmup_passes=0.0)
    assert CALLS["plan"](odd(lambda: given, tmp_path)) == given


class Picky(nn.Module):
    """Takes one size only, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(3 * 32 * 32, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inside(images.flatten(1))


def test_what_a_forward_raises_says_whose_network_it_is(tmp_path: Path) -> None:
    host = odd(lambda: autoft.Network.of(Picky(), SPEC), tmp_path)
    module = copy.deepcopy(host.build(BACKBONE).module)  # as training copies it
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(RuntimeError) as caught:
        module(torch.zeros(2, 3, 48, 48))
    line = host.describe(caught.value)
    assert re.search(r"in the network of 'odd/net', plugin 'Odd' \(.*\); switch it off with -p no:Odd", line)
    assert "traceback in" in line


def test_an_error_that_is_being_handled_is_not_the_networks(tmp_path: Path) -> None:
    module = odd(lambda: autoft.Network.of(Picky(), SPEC), tmp_path).build(BACKBONE).module
    try:
        raise OSError("disk")
    except OSError as error:
        module(torch.zeros(2, 3, 32, 32))
        assert not hasattr(error, "__notes__")
