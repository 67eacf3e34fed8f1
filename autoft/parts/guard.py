"""Guards: stand-ins for a plugin's parts that blame the plugin for what they raise, and for what they should not give.

`Host` hands out nothing else, so that nobody who uses a part has to think of it.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from autoft.errors import unknown_name
from autoft.parts import contract, optimizers
from autoft.parts.base import Adapter, Exporter, FreezeStrategy, Problem, Searcher, Task, Zoo
from autoft.parts.metric import ByClass, Counts, Floats, Metric, Statistic
from autoft.parts.network import Network
from autoft.parts.plugins import PluginRef, switch_off
from autoft.system import faults
from autoft.values.backbone import Backbone, Stage
from autoft.values.codec import encode
from autoft.values.counts import passes
from autoft.values.handoff import Artifact, Handoff
from autoft.values.ledger import Ledger
from autoft.values.plan import Balance, ClosedFormHead, GradientHead, Loss, ParameterGroup, Plan, Recipe
from autoft.values.schedule import SCHEDULES
from autoft.values.space import Circumstances, Params, Space
from autoft.values.target import Form, MetricFacts
from autoft.values.trial import Clock, Done, Slice, Wait

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

T = TypeVar("T")

NEAR_NAMES = 3
"""Names that are shown to one who has misspelt one."""

Blame = Callable[[str], AbstractContextManager[None]]
"""Given what is being done, such as "plan()": a context that turns what is raised in it into a `PluginError`."""


class GuardedZoo(Zoo):
    """A zoo; its networks note on what their forward raises whose they are."""

    def __init__(self, zoo: Zoo, blame: Blame, ref: PluginRef) -> None:
        self.name, self.summary = zoo.name, zoo.summary
        self._zoo, self._blame, self._ref = zoo, blame, ref

    def backbones(self) -> list[Backbone]:
        """As the zoo lists them, each once and under the zoo's name."""
        with self._blame("backbones()"):
            found = {}
            for backbone in self._zoo.backbones():
                name = _stored(backbone, Backbone).name
                if not name.removeprefix(f"{self.name}/") or not name.startswith(f"{self.name}/"):
                    raise ValueError(f"it lists {name!r}; the names of its backbones are '{self.name}/MODEL'")
                if backbone.prior is not None and not 0.0 <= backbone.prior <= 1.0:
                    prior = f"the prior of {name} is a share of images, from 0 to 1, and not {backbone.prior:g}"
                    raise ValueError(prior)
                if name in found:
                    raise ValueError(f"it lists {name!r} twice")
                found[name] = backbone
            return list(found.values())

    def build(self, backbone: Backbone) -> Network:
        """As the zoo builds it."""
        with self._blame(f"build() of {backbone.name!r}"):
            network = _checked(self._zoo.build(backbone), Network)
            note = f"in the network of {backbone.name!r}, {self._ref}; {switch_off(self._ref)}"
            network.module.register_forward_hook(functools.partial(_note, note), always_call=True)
        return network


class GuardedFreezeStrategy(FreezeStrategy):
    """A freeze strategy whose plans can be carried out."""

    def __init__(self, strategy: FreezeStrategy, blame: Blame, ref: PluginRef) -> None:
        self.name, self.summary, self.fit = strategy.name, strategy.summary, strategy.fit
        self.by_default = strategy.by_default
        self._strategy, self._blame = strategy, blame

    def space(self) -> Space:
        """As the strategy gives it."""
        with self._blame("space()"):
            return _stored(self._strategy.space(), Space)

    def space_for(self, circumstances: Circumstances) -> Space:
        """As the strategy gives it."""
        with self._blame("space_for()"):
            return _stored(self._strategy.space_for(circumstances), Space)

    def plan(self, stages: tuple[Stage, ...], params: Params) -> Plan:
        """As the strategy gives it."""
        with self._blame("plan()"):
            plan = _stored(self._strategy.plan(stages, params), Plan)
            if problem := plan_problem(plan, stages):
                raise ValueError(problem)
        return plan

    def adapter(self, params: Params) -> Adapter | None:
        """As the strategy gives it."""
        with self._blame("adapter()"):
            adapter = self._strategy.adapter(params)
            return None if adapter is None else GuardedAdapter(_checked(adapter, Adapter), self._blame)


class GuardedAdapter(Adapter):
    """An adapter."""

    def __init__(self, adapter: Adapter, blame: Blame) -> None:
        self._adapter, self._blame = adapter, blame

    def adapt(self, module: nn.Module) -> nn.Module:
        """As the adapter does it."""
        with self._blame("adapt()"):
            return self._adapter.adapt(module)

    def merge(self, adapted: nn.Module) -> nn.Module:
        """As the adapter does it."""
        with self._blame("merge()"):
            return self._adapter.merge(adapted)


class GuardedSearcher(Searcher):
    """A searcher."""

    def __init__(self, searcher: Searcher, blame: Blame, ref: PluginRef) -> None:
        self.name, self.summary, self.tries_starts = searcher.name, searcher.summary, searcher.tries_starts
        self._searcher, self._blame, self._ref = searcher, blame, ref

    def __str__(self) -> str:
        return f"{self.name!r} of {self._ref}"

    def ask(self, problem: Problem, ledger: Ledger, clock: Clock) -> Slice | Wait | Done:
        """As the searcher answers."""
        with self._blame("ask()"):
            answer = self._searcher.ask(problem, ledger, clock)
            if isinstance(answer, Wait | Done):
                return answer
            if not isinstance(answer, Slice):
                raise TypeError(f"it gave {faults.shown(answer)}, not a Slice, WAIT or DONE")
            return _stored(answer, Slice)

    def remark(self, problem: Problem) -> str:
        """As the searcher gives it."""
        with self._blame("remark()"):
            return _checked(self._searcher.remark(problem), str)


class GuardedExporter(Exporter):
    """An exporter."""

    def __init__(self, exporter: Exporter, blame: Blame, ref: PluginRef) -> None:
        self.name, self.summary = exporter.name, exporter.summary
        self._exporter, self._blame = exporter, blame

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        """As the exporter yields them."""
        with self._blame("export()"):
            artifact = None
            exported = self._exporter.export(classifier, handoff, folder)
            if not isinstance(exported, Iterable):
                raise TypeError(f"it gave {faults.shown(exported)}; it yields each autoft.Artifact that is written")
            for artifact in exported:
                yield _checked(artifact, Artifact)
            if artifact is None:
                raise TypeError("it yielded no autoft.Artifact")

    def prepare(self, classifier: nn.Module, image_size: int, folder: Path) -> None:
        """As the exporter does it."""
        with self._blame("prepare()"):
            self._exporter.prepare(classifier, image_size, folder)

    def export_prepared(
        self, classifier: nn.Module, handoff: Handoff, prepared: Path, folder: Path
    ) -> Iterator[Artifact]:
        """As the exporter yields them."""
        with self._blame("export_prepared()"):
            for artifact in self._exporter.export_prepared(classifier, handoff, prepared, folder):
                yield _checked(artifact, Artifact)


def guarded_task(task: Task, blame: Blame, ref: PluginRef) -> Task:
    """The task, whose methods and metrics blame the plugin they come from; so do the copies that `Task.on` makes.

    What a method gives is the plugin's also where it has inherited the method and changed what that goes by.
    """
    own = type(task)
    methods = {name: _blamed(blame, name, getattr(own, name)) for name in _methods_of(own)}
    guarded = copy.copy(task)
    if not own.__module__.startswith("autoft."):
        if problem := contract.balances_problem(task):
            raise ValueError(problem)
        guarded.metrics = [_judging(metric, blame, f"metric {metric.name!r}") for metric in task.metrics]
        given = [name for name in contract.PROBLEMS if getattr(own, name) is not getattr(Task, name)]
        methods |= {name: _required(blame, name, methods.get(name, getattr(own, name))) for name in given}
    if methods:
        guarded.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, **methods})
    return guarded


def guarded_metric(metric: Metric, blame: Blame, ref: PluginRef) -> Metric:
    """The metric of a plugin, known to be of a form."""
    if metric.form not in get_args(Form):
        raise ValueError(
            f"`form` says which answers it judges, one of {', '.join(get_args(Form))}, not {metric.form!r}"
        )
    _stored(metric.facts, MetricFacts)
    return _judging(metric, blame, "the score")


def _judging(metric: Metric, blame: Blame, doing: str) -> Metric:
    """The metric, whose figure of all images, each once, is finite, or NaN for none; of diverged outputs it is NaN.

    Of each class it gives a figure and a number of images; of diverged outputs of none.
    """
    import numpy as np

    def statistic(judged: NDArray[Any], targets: NDArray[Any]) -> Statistic:
        if not np.isfinite(judged).all():  # the network is to blame, and not who is asked about it
            return lambda counts: np.full(len(counts), math.nan)
        with blame(doing):
            figures = metric.statistic(judged, targets)

        def checked(counts: Counts) -> Floats:
            with blame(doing):
                found = np.asarray(figures(counts), np.float64)
                if found.shape != (len(counts),):
                    raise ValueError(f"of {len(counts)} resamples it gives figures of shape {found.shape}")
                if np.isinf(found[(counts == 1).all(axis=1)]).any():
                    raise ValueError(f"of {len(targets)} images it gives {found[0]}, which is no finite number")
                if metric.is_proportion and not ((found >= 0) & (found <= 1) | np.isnan(found)).all():
                    raise ValueError(f"it gives {found[0]}; with `is_proportion` it is a part of the images, 0 to 1")
            return found

        return checked

    def by_class(judged: NDArray[Any], targets: NDArray[Any]) -> ByClass:
        if not np.isfinite(judged).all():
            return np.empty(0), np.empty(0)
        with blame(f"by_class() of {doing}"):
            assert metric.by_class is not None
            return _of_classes(metric.by_class(judged, targets))

    return replace(metric, statistic=statistic, by_class=by_class if metric.by_class else None)


def _of_classes(found: Any) -> ByClass:
    """What was found, once it is a figure from 0 to 1 and a number of images for each class. Raises `ValueError`."""
    import numpy as np

    try:
        figures, sizes = (np.asarray(one, np.float64) for one in found)
    except (TypeError, ValueError):
        wanted = "the figure of each class that occurs and how many images it has, two arrays of numbers (classes,)"
        raise ValueError(f"it gives {faults.shown(found)}; give {wanted}") from None
    if figures.ndim != 1 or figures.shape != sizes.shape:
        raise ValueError(f"it gives figures of shape {figures.shape} and sizes of shape {sizes.shape}, not (classes,)")
    if not ((figures >= 0) & (figures <= 1)).all():
        raise ValueError(f"it gives the figures {figures}; that of a class is from 0 to 1")
    if not ((sizes > 0) & np.isfinite(sizes)).all():
        raise ValueError(f"it gives classes of {sizes} images; leave out those that do not occur")
    return figures, sizes


def _required(blame: Blame, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, blamed for what it gives that cannot be used."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def required(task: Task, *args: Any, **kwargs: Any) -> Any:
        found = method(task, *args, **kwargs)
        with blame(f"{name}()"):
            _, *asked = signature.bind(task, *args, **kwargs).args
            if problem := contract.PROBLEMS[name](task, found, *asked):
                raise ValueError(problem)
        return found

    return required


def _methods_of(task: type[Task]) -> list[str]:
    """The methods of a task that a plugin has written."""
    named = [name for name in vars(Task) if not name.startswith("_") and callable(getattr(Task, name))]
    return [name for name in named if not getattr(task, name).__module__.startswith("autoft.")]


def _blamed(blame: Blame, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def blamed(*args: Any, **kwargs: Any) -> Any:
        with blame(f"{name}()"):
            return method(*args, **kwargs)

    return blamed


def plan_problem(plan: Plan, stages: tuple[Stage, ...]) -> str | None:
    """Why nothing can be trained by this plan; None when it can. What is wrong with a group names it."""
    closed, recipe = isinstance(plan.head, ClosedFormHead), plan.recipe
    if not optimizers.is_known(recipe.optimizer):
        return str(unknown_name("optimiser", recipe.optimizer, optimizers.names(), NEAR_NAMES))
    named: tuple[tuple[str, str, Collection[str]], ...] = (
        ("schedule", recipe.schedule, SCHEDULES),
        ("balance", recipe.balance, get_args(Balance)),
        ("loss", recipe.loss, get_args(Loss)),
    )
    for kind, name, known in named:
        if name not in known:
            return str(unknown_name(kind, name, known, NEAR_NAMES))
    rules = {
        "a closed-form head trains no parameter group": not (closed and plan.groups),
        **_rules_of_rates(plan),
        f"passes and batch size must be positive: {recipe}": 0 < recipe.passes < math.inf and recipe.batch_size >= 1,
        f"the warm-up lies within the passes: {recipe}": 0 <= recipe.warmup_passes <= recipe.passes,
        **_rules_of_regularisers(recipe),
        f"momentum lies above 0 and below 1, not {recipe.momentum:g}": 0 < recipe.momentum < 1,
        f"ema_passes is 0 or more and finite, not {recipe.ema_passes:g}": 0 <= recipe.ema_passes < math.inf,
    }
    broken = (rule for rule, kept in rules.items() if not kept)
    return next(itertools.chain(broken, _problems_of_groups(plan, stages)), None)


def _group(number: int, group: ParameterGroup) -> str:
    """A group by its place in `groups` and by the first of its names."""
    return f"group {number} ({', '.join(group.names[:2]) or 'empty'}{', ...' if len(group.names) > 2 else ''})"


def _problems_of_groups(plan: Plan, stages: tuple[Stage, ...]) -> Iterator[str]:
    """What is wrong with the names of each group, and with when it begins."""
    known = {parameter.name for stage in stages for parameter in stage.parameters}
    holders: dict[str, str] = {}
    for number, group in enumerate(plan.groups):
        this = _group(number, group)
        if not group.names:
            yield f"{this} names no parameter; leave out empty groups"
        for name in group.names:
            if name not in known:
                yield f"{this} names {name!r}, which is no parameter of the backbone; {_instead(name, stages)}"
            if name in holders:
                yield f"{this} names {name!r}, which {holders[name]} has already; a parameter stands in one group, once"
            holders[name] = this
        if not 0 <= group.from_pass < plan.recipe.passes:
            yield f"{this} begins within the {passes(plan.recipe.passes)} of the recipe, not at {group.from_pass:g}"


def _instead(lost: str, stages: tuple[Stage, ...]) -> str:
    """What may have been meant by the name of no parameter."""
    for stage in stages:
        if lost == stage.name and stage.parameters:
            return f"that is a stage: name its parameters, such as {stage.parameters[0].name!r}"
    names = [parameter.name for stage in stages for parameter in stage.parameters]
    near = difflib.get_close_matches(lost, names, n=1)
    return f"did you mean {near[0]!r}?" if near else "take names from the `stages` that plan() is given"


def _rules_of_regularisers(recipe: Recipe) -> dict[str, bool]:
    """For each what holds of it, and whether it does."""
    parts = {name: getattr(recipe, name) for name in ("label_smoothing", "dropout", "drop_path")}
    strengths = {name: getattr(recipe, name) for name in ("l2_sp", "mixup", "cutmix")}
    return {
        **{f"{name} lies in [0, 1), not {value:g}": 0 <= value < 1 for name, value in parts.items()},
        **{
            f"{name} is 0 or more and finite, not {value:g}": 0 <= value < math.inf for name, value in strengths.items()
        },
    }


def _rules_of_rates(plan: Plan) -> dict[str, bool]:
    """For each group and the head what holds of its rates, and whether it does."""
    rated: list[tuple[str, ParameterGroup | GradientHead]] = [
        (_group(number, group), group) for number, group in enumerate(plan.groups)
    ]
    if isinstance(plan.head, GradientHead):
        rated.append(("the head", plan.head))
    rules: dict[str, bool] = {}
    for whose, one in rated:
        rate, decay = one.learning_rate, one.weight_decay
        rules[f"the learning rate of {whose} is positive and finite, not {rate:g}"] = 0 < rate < math.inf
        rules[f"the weight decay of {whose} is 0 or more and finite, not {decay:g}"] = 0 <= decay < math.inf
    return rules


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"it gave {faults.shown(value)}, not an autoft.{kind.__name__}")
    return value


def _stored(value: object, kind: type[T]) -> T:
    """The value, once it is of its kind and holds nothing, in any field, that JSON would not give back."""
    checked = _checked(value, kind)
    encode(checked)
    return checked


def _note(text: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook, called with no output when forward raised: put `text` on the error that is under way."""
    if output is None and isinstance(error := sys.exc_info()[1], Exception):
        error.add_note(text)
