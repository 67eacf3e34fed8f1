"""`Host`: the plugins of one run. It finds them, collects their parts, and blames the right one when one fails."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import pluggy

from autoft.errors import (
    AutoftError,
    BackboneUnavailable,
    DataError,
    Interrupted,
    PluginError,
    RunFailed,
    StudyError,
    unknown_name,
)
from autoft.parts import hookspecs, plugins
from autoft.parts.base import Exporter, FreezeStrategy, Named, Searcher, Task, Zoo
from autoft.parts.guard import (
    Blame,
    GuardedExporter,
    GuardedFreezeStrategy,
    GuardedSearcher,
    GuardedZoo,
    guarded_metric,
    guarded_task,
)
from autoft.parts.metric import Metric
from autoft.parts.network import Network
from autoft.parts.plugins import PluginRef
from autoft.system import faults
from autoft.system.files import DISK_ERRORS, as_text
from autoft.system.signals import Cancelled
from autoft.values.backbone import Backbone

BUILTINS = (
    "autoft.builtin.timm_zoo",
    "autoft.builtin.freeze",
    "autoft.builtin.searchers",
    "autoft.builtin.onnx_exporter",
    "autoft.builtin.tasks",
)
DISABLE = "AUTOFT_DISABLE_PLUGINS"
# Kinds of plugins that the user named: one that is not there is an error, not a warning.
BY_HAND: tuple[plugins.Kind, ...] = ("file", "object")
# What a part may raise on purpose, and what has been blamed already.
PASSED_ON = (BackboneUnavailable, RunFailed, PluginError, DataError, Interrupted, Cancelled)

log = logging.getLogger("autoft")


P = TypeVar("P", bound=Named)
Facts = ParamSpec("Facts")


@dataclass(frozen=True)
class PluginStatus:
    """One line of `autoft plugins`; `adds` holds what it offers ("zoo timm"), `cause` why it does not."""

    name: str
    kind: plugins.Kind
    distribution: str | None
    version: str | None
    status: Literal["ok", "disabled", "failed"]
    adds: tuple[str, ...] = ()
    cause: str | None = None
    traceback: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a plugin is not there: one line, what to do, and the traceback where there is one."""

    ref: PluginRef
    cause: str
    advice: str
    traceback: str | None = None

    def __str__(self) -> str:
        """The line a user sees."""
        return f"{self.ref} failed to load: {self.cause}; {self.advice}"


@dataclass(frozen=True)
class _Kind(Generic[P]):
    noun: str
    hook: str
    part: type[P]
    guard: Callable[[P, Blame, PluginRef], P]
    opening: Callable[[Any], object] = lambda part: None
    """What a search asks a guarded part for before anything else."""
    option: str = ""
    """How a study names one, where a run keeps to the one that it began with: it cannot go on without."""


@dataclass(frozen=True)
class _Offer(Generic[P]):
    part: P
    ref: PluginRef


_KINDS: Mapping[type, _Kind[Any]] = {
    kind.part: kind
    for kind in (
        _Kind("zoo", "autoft_zoos", Zoo, GuardedZoo, GuardedZoo.backbones),
        _Kind(
            "freeze strategy",
            "autoft_freeze_strategies",
            FreezeStrategy,
            GuardedFreezeStrategy,
            GuardedFreezeStrategy.space,
        ),
        _Kind("searcher", "autoft_searchers", Searcher, GuardedSearcher, option="--searcher"),
        _Kind("exporter", "autoft_exporters", Exporter, GuardedExporter),
        _Kind("task", "autoft_tasks", Task, guarded_task, option="--task"),
        _Kind("metric", "autoft_metrics", Metric, guarded_metric, option="--metric"),
    )
}


class Host:
    """The plugins of a run; made with `discover`, with `recorded` for a run that goes on, and `from_refs` in workers.

    The parts it gives are guarded: what a plugin raises in one is a `PluginError` that names the plugin, the part, how
    to switch it off, and the file with the traceback. Such files go to the folder `errors`, without one to the cache.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("autoft")
        self._manager.add_hookspecs(hookspecs)
        self._loaded: dict[str, PluginRef] = {}
        self._failures: list[Failure] = []
        self._disabled: list[PluginRef] = []
        self._left_out: list[str] = []
        self._notes: list[str] = []
        self._offers: dict[tuple[str, str], list[_Offer[Any]]] = {}
        self._complained: set[tuple[str, str]] = set()
        self.errors: Path | None = None

    @classmethod
    def discover(cls, selections: Sequence[str] = (), objects: Sequence[object] = ()) -> Host:
        """Built-ins, entry points, the files in `selections` and `objects`, less those switched off.

        A selection is `no:NAME` or the path of a Python file, as `-p` takes them; AUTOFT_DISABLE_PLUGINS=a,b switches
        off too. Raises `StudyError` for a name nobody has or a file that is not there. A plugin that fails to load is
        no error here: see `check` and `warnings`.
        """
        host = cls()
        given = {plugins.object_ref(plugin): plugin for plugin in objects}
        files = [plugins.file_ref(selection) for selection in selections if not selection.startswith("no:")]
        refs = [*map(plugins.builtin_ref, BUILTINS), *plugins.entry_point_refs(), *files, *given]
        taken = plugins.duplicates(refs)
        known = {ref.name for ref in refs}
        off = host._switched_off(selections, known)
        for ref, first in taken.items():
            if ref.name in off:
                raise StudyError(f"{off[ref.name]} would switch off both {first} and {ref}; {plugins.rename(ref)}")
        host._notes += [f"{DISABLE}: {unknown_name('plugin', name, known)}" for name in sorted(off.keys() - known)]
        host._disabled = [ref for ref in refs if ref.name in off]
        for ref in (ref for ref in refs if ref.name not in off):
            if ref in taken:
                host._failures.append(Failure(ref, *plugins.clash(ref, taken[ref])))
            else:
                host._load(ref, given)
        return host

    @classmethod
    def from_refs(cls, refs: Iterable[PluginRef], objects: Sequence[object] = ()) -> Host:
        """Exactly these plugins, as a worker needs them; `objects` are those that only live in this process.

        Raises `PluginError`, naming distribution and version, for one that is missing, fails to load, or is of another
        version or content: what comes of it would go under the name of what the search has.
        """
        host = cls()
        given = {plugins.object_ref(plugin): plugin for plugin in objects}
        for ref in refs:
            here = plugins.found(ref) if ref not in given else ref
            if plugins.is_another(ref, here):
                raise PluginError(plugins.changed(ref, here))
            host._load(here, given)
            if host._failures:
                cause = host._failures[0].cause
                raise PluginError(f"the run uses {ref}, which failed to load: {cause}; {plugins.without(ref)}")
        return host

    @classmethod
    def recorded(
        cls, refs: Iterable[PluginRef], selections: Sequence[str] = (), objects: Sequence[object] = ()
    ) -> Host:
        """The plugins of a run that goes on, but for `selections`, as `-p` takes them, and AUTOFT_DISABLE_PLUGINS.

        A file or an object takes the place of the recorded plugin of its name, wherever that was, or comes on top; one
        that differs from what the run has used is a warning, and one of a built-in's name, or two of one name, an
        error. Raises as `discover`, `from_refs` and `check_names` do.
        """
        recorded = {ref.name: ref for ref in refs}
        files = [plugins.file_ref(selection) for selection in selections if not selection.startswith("no:")]
        given = [*files, *map(plugins.object_ref, objects)]
        builtins = [ref for ref in recorded.values() if ref.kind == "builtin"]
        for ref, first in plugins.duplicates([*builtins, *given]).items():
            raise PluginError(f"{ref}: {'; '.join(plugins.clash(ref, first))}")
        replaced = {ref.name: plugins.in_place_of(recorded.get(ref.name, ref), ref) for ref in given}
        wanted = recorded | replaced
        off = cls._switched_off(selections, set(wanted))
        used = {name: ref for name, ref in wanted.items() if name not in off}
        host = cls.from_refs([replaced.get(name) or plugins.found(ref) for name, ref in used.items()], objects)
        for ref in host.refs:
            host._note_change(recorded.get(ref.name, ref), ref)
        host._disabled = [ref for ref in wanted.values() if ref.name in off]
        host._left_out = [name for name in recorded if name in off]
        host._notes += [f"{ref} is switched off; what the run has of it cannot go on" for ref in host._disabled]
        host.check_names()
        return host

    @property
    def refs(self) -> tuple[PluginRef, ...]:
        """What is loaded, for `study.json`."""
        return tuple(self._loaded.values())

    @property
    def without(self) -> str:
        """What to add to a command that is to go on without the same plugins of the run as this one: " -p no:kinds"."""
        return "".join(f" -p {shlex.quote(f'no:{name}')}" for name in self._left_out)

    @property
    def inline_only(self) -> tuple[str, ...]:
        """Names of plugins that other processes cannot import, such as objects made in `__main__`."""
        return tuple(ref.name for ref in self.refs if not ref.importable)

    def check_names(self) -> None:
        """Find out, before anything slow, whether each part can be had by its name; no part is asked for anything.

        Raises `PluginError` when a file or object that the user gave failed to load, a hook fails, or two parts of one
        kind have one name.
        """
        for failure in self._failures:
            if failure.ref.kind in BY_HAND:
                raise PluginError(str(failure))
        for kind in _KINDS.values():
            self._collect(kind)

    def check(self) -> None:
        """Find out, before anything slow, what would end a new search later: as `check_names`, and what parts answer.

        Raises `PluginError` also when a zoo cannot list its backbones or a freeze strategy has no space, of a plugin
        that was given by hand. Others are asked when a search needs them: listing timm's backbones takes seconds, and
        an installed strategy need not work where it is not used. In a run that goes on nothing is asked of parts.
        """
        self.check_names()
        for kind in _KINDS.values():
            for offer in self._collect(kind).values():
                if offer.ref.kind in BY_HAND:
                    kind.opening(offer.part)

    def warnings(self) -> list[str]:
        """One line for each plugin that is not there although nobody switched it off, or is not the one recorded."""
        return [str(failure) for failure in self._failures] + self._notes

    # ------------------------------------------------------------ parts

    def parts(self, kind: type[P]) -> dict[str, P]:
        """Every part of a kind by name, as in `parts(Zoo)`. Raises `PluginError` when a hook fails or names clash."""
        return {name: offer.part for name, offer in self._collect(_KINDS[kind]).items()}

    def part(self, kind: type[P], name: str) -> P:
        """The part of that kind and name. Raises `StudyError` with the near name and the failed plugins."""
        parts = self.parts(kind)
        if name not in parts:
            raise StudyError(f"{unknown_name(_KINDS[kind].noun, name, parts)}{self.suspects()}")
        return parts[name]

    def tasks(self) -> dict[str, Task]:
        """Every task by name, with the metrics that plugins have for its form after its own.

        The first is the one of images whose labels nobody claims.
        """
        metrics = self.parts(Metric).values()
        return {
            name: task.with_metrics(metric for metric in metrics if metric.form == task.form)
            for name, task in self.parts(Task).items()
        }

    def task(self, name: str) -> Task:
        """The task `name`, as `tasks` has it. Raises `StudyError` as `part` does."""
        self.part(Task, name)
        return self.tasks()[name]

    def backbones(self) -> list[Backbone]:
        """Every backbone of every zoo. Raises `PluginError` when a zoo fails or an address is not `zoo/model`."""
        return [backbone for zoo in self.parts(Zoo).values() for backbone in zoo.backbones()]

    def has(self, backbone: str, freeze: str) -> bool:
        """Whether there is the zoo of a backbone, and the freeze strategy: whether trials of both can be trained."""
        return self.has_zoo(backbone) and freeze in self.parts(FreezeStrategy)

    def has_zoo(self, backbone: str) -> bool:
        """Whether there is the zoo of a backbone, so that weights can be put into its network."""
        return backbone.partition("/")[0] in self.parts(Zoo)

    def build(self, backbone: Backbone) -> Network:
        """The backbone's network. Raises `BackboneUnavailable`, or `PluginError` when its zoo fails."""
        return self.part(Zoo, backbone.name.partition("/")[0]).build(backbone)

    @property
    def zoos_by_hand(self) -> frozenset[str]:
        """Names of the zoos that come from a file or object the user gave, rather than from an installed plugin."""
        return frozenset(name for name, offer in self._collect(_KINDS[Zoo]).items() if offer.ref.kind in BY_HAND)

    def makers(self, plugin: str) -> Iterator[tuple[str, Callable[[], Named]]]:
        """For each part of a loaded plugin: the hook that offers it, and what asks that hook for a new one."""
        for kind, impl in self._implemented(plugin):
            for number, _ in enumerate(self._offered(kind, impl)):
                yield kind.hook, partial(self._new, kind, impl, number)

    def hooks(self, plugin: str) -> list[str]:
        """The names of the hooks that a loaded plugin implements."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(plugin)) or ()
        return [caller.name for caller in callers]

    def describe(self, error: BaseException) -> str:
        """The error in one line, with the file that holds its traceback; for whatever went wrong in a run."""
        return faults.record(error, self.errors)

    def traceback(self, error: BaseException) -> str:
        """In which file the traceback of an error is, for what a line has already said."""
        return faults.kept(error, self.errors)

    def suspects(self) -> str:
        """What to add to "no ... is called ...": the plugins that could have had it, or nothing."""
        off = [f"{ref} is switched off" for ref in self._disabled if ref.kind != "builtin"]
        return "".join(f"; {line}" for line in [*map(str, self._failures), *off])

    def tell(self, hook: Callable[Facts, None], *facts: Facts.args, **named: Facts.kwargs) -> None:
        """Tell every listener of a hook, as in `tell(hookspecs.autoft_search_finished, summary)`.

        One that raises is a warning, once.
        """
        known = inspect.signature(hook).bind(*facts, **named).arguments
        for impl in self._impls(hook.__name__):
            try:
                impl.function(*(known[name] for name in impl.argnames))
            except (Exception, SystemExit) as error:
                if (hook.__name__, impl.plugin_name) not in self._complained:
                    self._complained.add((hook.__name__, impl.plugin_name))
                    ref = self._loaded[impl.plugin_name]
                    log.warning("%s failed in %s: %s; the run goes on", ref, hook.__name__, self.describe(error))

    def table(self, asked: Collection[plugins.Kind] = BY_HAND) -> list[PluginStatus]:
        """Every plugin with what it adds; nothing in it raises.

        Parts of plugins of the kinds that are `asked` have to answer what a search asks first.
        """
        taken: dict[tuple[str, str], PluginRef] = {}
        with suppress(AutoftError):  # which the lines below will say
            taken = {("metric", name): ref for name, ref in self._metrics_of_tasks().items()}
        lines = [self._status(ref, taken, asked) for ref in self.refs]
        lines += [_line(failure.ref, "failed", (), failure) for failure in self._failures]
        return lines + [_line(ref, "disabled", (), None) for ref in self._disabled]

    # ------------------------------------------------------------ inside

    @staticmethod
    def _switched_off(selections: Sequence[str], known: set[str]) -> dict[str, str]:
        """The names of the plugins that are not wanted, each with what said so."""
        named = [as_text(selection.removeprefix("no:")) for selection in selections if selection.startswith("no:")]
        for name in named:
            if name not in known:
                raise StudyError(f"-p no:{name}: {unknown_name('plugin', name, known)}")
        by_environment = filter(None, map(str.strip, os.environ.get(DISABLE, "").split(",")))
        return {name: f"{name!r} in {DISABLE}" for name in by_environment} | {name: f"-p no:{name}" for name in named}

    def _note_change(self, before: PluginRef, here: PluginRef) -> None:
        if plugins.is_another(before, here):
            was, now = plugins.described(before), plugins.described(here)
            self._notes.append(f"the run used {was} as plugin {before.name!r}; here it is {now}")

    def _load(self, ref: PluginRef, given: Mapping[PluginRef, object]) -> None:
        try:
            plugin = given[ref] if ref in given else plugins.load(ref)
        except (Exception, SystemExit) as error:
            trace = "".join(traceback.format_exception(error))
            self._failures.append(Failure(ref, self.describe(error), _fix(ref), trace))
            return
        try:
            self._manager.register(plugin, name=ref.name)
            cause = self._misfit(plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            cause = faults.cause(error)
        if cause is None:
            self._loaded[ref.name] = ref
            return
        self._failures.append(Failure(ref, cause, _fix(ref)))
        if self._manager.get_plugin(ref.name) is plugin:
            self._manager.unregister(plugin)

    def _misfit(self, plugin: object) -> str | None:
        """What of a registered plugin would never be called, though it looks as if it should."""
        callers = self._manager.get_hookcallers(plugin) or []
        known = [name for name in vars(hookspecs) if name.startswith("autoft_")]
        if lost := [caller.name for caller in callers if not caller.has_spec()]:
            return str(unknown_name("hook", lost[0], known))
        unmarked = [name for name in known if callable(getattr(plugin, name, None))]
        unmarked = [name for name in unmarked if name not in {caller.name for caller in callers}]
        if unmarked:
            return f"{unmarked[0]} is not marked @autoft.hookimpl"
        return None if callers else f"no function in it is marked @autoft.hookimpl; the hooks are {', '.join(known)}"

    def _impls(self, hook: str) -> list[pluggy.HookImpl]:
        """Implementations in the order their plugins were loaded."""
        order = list(self._loaded)
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return sorted(caller.get_hookimpls(), key=lambda impl: order.index(impl.plugin_name))

    def _collect(self, kind: _Kind[P]) -> dict[str, _Offer[P]]:
        found: dict[str, _Offer[P]] = {}
        taken = self._metrics_of_tasks() if kind.part is Metric else {}
        for impl in self._impls(kind.hook):
            for offer in self._offered(kind, impl):
                name = offer.part.name
                if first := taken.get(name):
                    raise PluginError(_clash(kind, name, first, offer.ref))
                found[name], taken[name] = offer, offer.ref
        return found

    def _metrics_of_tasks(self) -> dict[str, PluginRef]:
        """The names of the metrics that tasks bring along, each with the plugin of a task that does."""
        offers = self._collect(_KINDS[Task]).values()
        return {metric.name: offer.ref for offer in offers for metric in offer.part.metrics}

    def _offered(self, kind: _Kind[P], impl: pluggy.HookImpl) -> list[_Offer[P]]:
        """The parts one plugin offers, asked for once."""
        key = (kind.hook, impl.plugin_name)
        if key not in self._offers:
            ref = self._loaded[impl.plugin_name]
            self._offers[key] = [_Offer(part, ref) for part in self._given(kind, impl)]
        return self._offers[key]

    def _given(self, kind: _Kind[P], impl: pluggy.HookImpl) -> list[P]:
        """What a hook returns when it is called now, guarded."""
        ref = self._loaded[impl.plugin_name]
        with self._blaming(ref, kind.hook):
            parts = _as_parts(impl.function())
        for part in parts:
            if not isinstance(part, kind.part) or not _is_name(getattr(part, "name", None)):
                what = f"a list of {kind.part.__name__}, each with a `name` of one word"
                got = f"got {_misfit_of(part, kind.part)}"
                raise PluginError(f"{ref}: {kind.hook} must return {what}; {got}; {plugins.switch_off(ref)}")
        return [self._guarded(kind, part, ref) for part in parts]

    def _new(self, kind: _Kind[P], impl: pluggy.HookImpl, number: int) -> P:
        return self._given(kind, impl)[number]

    def _guarded(self, kind: _Kind[P], part: P, ref: PluginRef) -> P:
        of = f"{kind.noun} {part.name!r}"

        def blame(doing: str) -> AbstractContextManager[None]:
            return self._blaming(ref, f"{doing} of {of}", _instead(kind, ref))

        with blame("the attributes"):
            return kind.guard(part, blame, ref)

    def is_builtin(self, kind: type[P], name: str) -> bool:
        """Whether a part, which there is, comes with autoft."""
        return self._collect(_KINDS[kind])[name].ref.kind == "builtin"

    def blaming(self, kind: type[P], name: str, doing: str) -> AbstractContextManager[None]:
        """A context in which whatever is raised is blamed on the part of that name, as if it had raised it `doing` so.

        For what shows only once several of its answers are held against each other.
        """
        known = _KINDS[kind]
        ref = self._collect(known)[name].ref
        return self._blaming(ref, f"{doing} of {known.noun} {name!r}", _instead(known, ref))

    @contextmanager
    def _blaming(self, ref: PluginRef, doing: str, instead: str = "") -> Iterator[None]:
        """What is raised in the block becomes a `PluginError` that names the plugin and what it was doing.

        It says what to do, `instead` of switching the plugin off where that is no way on.
        """
        try:
            yield
        except PASSED_ON:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                error.add_note(f"in {doing}, {ref}")
                raise
            way = instead or plugins.switch_off(ref)
            raise PluginError(f"{ref} failed in {doing}: {self.describe(error)}; {way}") from error

    def _status(
        self, ref: PluginRef, taken: dict[tuple[str, str], PluginRef], asked: Collection[plugins.Kind]
    ) -> PluginStatus:
        """The plugin's line; `taken` holds who offers what so far, and learns what this one adds."""
        adds: list[str] = []
        try:
            for kind, impl in self._implemented(ref.name):
                for part in (offer.part for offer in self._offered(kind, impl)):
                    adds.append(f"{kind.noun} {part.name}")
                    if (first := taken.get((kind.noun, part.name))) is not None:
                        raise PluginError(_clash(kind, part.name, first, ref))
                    taken[kind.noun, part.name] = ref
                    if ref.kind in asked:
                        kind.opening(part)
        except AutoftError as error:
            return _line(ref, "failed", tuple(adds), Failure(ref, str(error), _fix(ref)))
        return _line(ref, "ok", tuple(adds), None)

    def _implemented(self, plugin: str) -> Iterator[tuple[_Kind[Any], pluggy.HookImpl]]:
        """The hooks for parts that a loaded plugin implements."""
        for kind in _KINDS.values():
            yield from ((kind, impl) for impl in self._impls(kind.hook) if impl.plugin_name == plugin)


def _instead(kind: _Kind[Any], ref: PluginRef) -> str:
    """What to do about a part at fault that a run cannot go on without; nothing of other kinds."""
    if not kind.option:
        return ""
    mended = "mend it, and a run that has begun goes on with it (autoft resume)"
    return f"{mended}; a new search takes another with {kind.option}, or does without: -p no:{ref.name}"


def _line(
    ref: PluginRef, status: Literal["ok", "disabled", "failed"], adds: tuple[str, ...], failure: Failure | None
) -> PluginStatus:
    cause, trace = (failure.cause, failure.traceback) if failure else (None, None)
    return PluginStatus(ref.name, ref.kind, ref.distribution, ref.version, status, adds, cause, trace)


def _fix(ref: PluginRef) -> str:
    return f"fix it or {plugins.switch_off(ref)}"


def _clash(kind: _Kind[Any], name: str, first: PluginRef, second: PluginRef) -> str:
    """Two parts of one name; of a built-in plugin's other parts too nobody wants to be rid."""
    if first == second:
        return f"{first} offers two parts called {name!r}, each a {kind.noun}; give one of them another `name`"
    both = f"{first} and {second} both offer {kind.noun} {name!r}"
    off = " or ".join(f"-p no:{ref.name}" for ref in (first, second) if ref.kind != "builtin")
    return f"two parts: {both}; give yours another `name`, or switch a plugin off with {off}"


def _as_parts(returned: Any) -> list[Any]:
    if not isinstance(returned, Iterable) or isinstance(returned, str):
        raise TypeError(f"it must return a list of parts, not {faults.shown(returned)}")
    return list(returned)


def _misfit_of(part: object, kind: type) -> str:
    """What is no part of a kind, as a line shows it: by its name where only that is none."""
    name = getattr(part, "name", None)
    return f"the name {faults.shown(name)}" if isinstance(part, kind) and name is not None else faults.shown(part)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not set(name) & set("/ \t\n,*?[]:")
