"""`Host`: the plugins of one run. It finds them, collects their parts, and blames the right one when one fails."""

from __future__ import annotations

import functools
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import pluggy

from autoft import hookspecs, plugins
from autoft.errors import AutoftError, PluginError, StudyError, unknown_name
from autoft.network import Network
from autoft.parts import Exporter, FreezeStrategy, Part, Searcher, Zoo
from autoft.plugins import PluginRef
from autoft.summary import Summary
from autoft.types import Backbone, Report, Trial

BUILTINS = (
    "autoft.builtin.timm_zoo",
    "autoft.builtin.freeze",
    "autoft.builtin.searchers",
    "autoft.builtin.onnx_exporter",
)
DISABLE = "AUTOFT_DISABLE_PLUGINS"

log = logging.getLogger("autoft")

P = TypeVar("P", bound=Part)


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
    """Why a plugin is not there: one line, and the traceback where there is one."""

    ref: PluginRef
    cause: str
    traceback: str | None = None

    def __str__(self) -> str:
        """The line a user sees."""
        return f"{self.ref} failed to load: {self.cause}; fix it or switch it off with -p no:{self.ref.name}"


@dataclass(frozen=True)
class _Kind(Generic[P]):
    noun: str
    hook: str
    part: type[P]


@dataclass(frozen=True)
class _Offer(Generic[P]):
    part: P
    ref: PluginRef


_ZOO = _Kind("zoo", "autoft_zoos", Zoo)  # type: ignore[type-abstract]
_FREEZE = _Kind("freeze strategy", "autoft_freeze_strategies", FreezeStrategy)  # type: ignore[type-abstract]
_SEARCHER = _Kind("searcher", "autoft_searchers", Searcher)  # type: ignore[type-abstract]
_EXPORTER = _Kind("exporter", "autoft_exporters", Exporter)  # type: ignore[type-abstract]
_KINDS: tuple[_Kind[Any], ...] = (_ZOO, _FREEZE, _SEARCHER, _EXPORTER)


class Host:
    """The plugins of one run; make one with `discover`, or with `from_refs` in a worker and on resume."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("autoft")
        self._manager.add_hookspecs(hookspecs)
        self._loaded: dict[str, PluginRef] = {}
        self._failures: list[Failure] = []
        self._disabled: list[PluginRef] = []
        self._notes: list[str] = []
        self._offers: dict[tuple[str, str], list[_Offer[Any]]] = {}
        self._complained: set[tuple[str, str]] = set()

    @classmethod
    def discover(cls, selections: Sequence[str] = (), objects: Sequence[object] = ()) -> Host:
        """Built-ins, entry points, the files in `selections` and `objects`, less those switched off.

        A selection is `no:NAME` or the path of a Python file, as `-p` takes them; AUTOFT_DISABLE_PLUGINS=a,b switches
        off too. Raises `StudyError` for a name nobody has or a file that is not there. A plugin that fails to load is
        no error here: see `warnings`.
        """
        host = cls()
        given = {plugins.object_ref(plugin): plugin for plugin in objects}
        files = [plugins.file_ref(selection) for selection in selections if not selection.startswith("no:")]
        refs = [*map(plugins.builtin_ref, BUILTINS), *plugins.entry_point_refs(), *files, *given]
        off = host._switched_off(selections, {ref.name for ref in refs})
        host._disabled = [ref for ref in refs if ref.name in off]
        wanted = [ref for ref in refs if ref.name not in off]
        taken = plugins.duplicates(wanted)
        for ref in wanted:
            if ref in taken:
                host._failures.append(Failure(ref, f"the name {ref.name!r} is taken by {taken[ref]}"))
            else:
                host._load(ref, given)
        return host

    @classmethod
    def from_refs(cls, refs: Iterable[PluginRef], objects: Sequence[object] = ()) -> Host:
        """Exactly the plugins a run recorded; `objects` are those that only live in this process.

        Raises `PluginError`, naming distribution and version, for one that is missing or fails to load.
        """
        host = cls()
        given = {plugins.object_ref(plugin): plugin for plugin in objects}
        for ref in refs:
            if not ref.importable and ref not in given:
                raise PluginError(
                    f"{ref} lives in the program that made it; give the object again, or move it to a file"
                )
            here = plugins.check_version(ref)
            if here.version != ref.version:
                host._notes.append(f"the run used {ref}; here it is {here.version}")
            host._load(here, given)
            if host._failures:
                raise PluginError(f"the run uses {ref}, which failed to load: {host._failures[0].cause}")
        return host

    @property
    def refs(self) -> tuple[PluginRef, ...]:
        """What is loaded, for `study.json`."""
        return tuple(self._loaded.values())

    @property
    def inline_only(self) -> tuple[str, ...]:
        """Names of plugins that other processes cannot import, such as objects made in `__main__`."""
        return tuple(ref.name for ref in self.refs if not ref.importable)

    def warnings(self) -> list[str]:
        """One line for each plugin that is not there although nobody switched it off, or is not the one recorded."""
        return [str(failure) for failure in self._failures] + self._notes

    # ------------------------------------------------------------ parts

    def zoos(self) -> dict[str, Zoo]:
        """Every zoo by name. Raises `PluginError`, as its three sisters do, when a hook fails or names clash."""
        return self._parts(_ZOO)

    def freeze_strategies(self) -> dict[str, FreezeStrategy]:
        """Every freeze strategy by name."""
        return self._parts(_FREEZE)

    def searchers(self) -> dict[str, Searcher]:
        """Every searcher by name."""
        return self._parts(_SEARCHER)

    def exporters(self) -> dict[str, Exporter]:
        """Every exporter by name."""
        return self._parts(_EXPORTER)

    def zoo(self, name: str) -> Zoo:
        """The zoo `name`. Raises `StudyError`, as its three sisters do, with the near name and the failed plugins."""
        return self._find(_ZOO, name).part

    def freeze_strategy(self, name: str) -> FreezeStrategy:
        """The freeze strategy `name`."""
        return self._find(_FREEZE, name).part

    def searcher(self, name: str) -> Searcher:
        """The searcher `name`."""
        return self._find(_SEARCHER, name).part

    def exporter(self, name: str) -> Exporter:
        """The exporter `name`."""
        return self._find(_EXPORTER, name).part

    def backbones(self) -> list[Backbone]:
        """Every backbone of every zoo. Raises `PluginError` when a zoo fails or an address is not `zoo/model`."""
        found: dict[str, Backbone] = {}
        for name, offer in self._collect(_ZOO).items():
            for backbone in self._blaming(offer.ref, f"zoo {name!r}", functools.partial(_listed, offer.part)):
                if not isinstance(backbone, Backbone) or not backbone.name.startswith(f"{name}/"):
                    raise PluginError(f"{offer.ref}: zoo {name!r} lists {backbone!r}; its names must be '{name}/MODEL'")
                if backbone.name in found:
                    raise PluginError(f"{offer.ref}: zoo {name!r} lists {backbone.name!r} twice")
                found[backbone.name] = backbone
        return list(found.values())

    def build(self, backbone: Backbone) -> Network:
        """The backbone's network. Raises `BackboneUnavailable`, or `PluginError` when its zoo fails."""
        offer = self._find(_ZOO, backbone.name.partition("/")[0])
        network = self._blaming(offer.ref, f"building {backbone.name!r}", lambda: offer.part.build(backbone))
        if not isinstance(network, Network):
            raise PluginError(f"{offer.ref}: building {backbone.name!r} gave {network!r}, not an autoft.Network")
        return network

    def suspects(self) -> str:
        """What to add to "no ... is called ...": the plugins that could have had it, or nothing."""
        off = [f"{ref} is switched off" for ref in self._disabled if ref.kind != "builtin"]
        return "".join(f"; {line}" for line in [*map(str, self._failures), *off])

    # ------------------------------------------------------------ trackers

    def notify_trial_finished(self, trial: Trial, report: Report) -> None:
        """Tell every tracker; one that raises is a warning, once."""
        self._tell("autoft_trial_finished", {"trial": trial, "report": report})

    def notify_search_finished(self, summary: Summary) -> None:
        """Tell every tracker; one that raises is a warning."""
        self._tell("autoft_search_finished", {"summary": summary})

    def table(self) -> list[PluginStatus]:
        """Every plugin with what it adds; nothing in it raises."""
        lines = [self._status(ref) for ref in self.refs]
        lines += [_line(failure.ref, "failed", (), failure) for failure in self._failures]
        return lines + [_line(ref, "disabled", (), None) for ref in self._disabled]

    # ------------------------------------------------------------ inside

    def _switched_off(self, selections: Sequence[str], known: set[str]) -> set[str]:
        named = [selection.removeprefix("no:") for selection in selections if selection.startswith("no:")]
        for name in named:
            if name not in known:
                raise StudyError(f"-p no:{name}: {unknown_name('plugin', name, known)}")
        inherited = [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
        self._notes += [f"{DISABLE}: {unknown_name('plugin', name, known)}" for name in inherited if name not in known]
        return {*named, *inherited}

    def _load(self, ref: PluginRef, given: Mapping[PluginRef, object]) -> None:
        try:
            plugin = given[ref] if ref in given else plugins.load(ref)
        except (Exception, SystemExit) as error:
            self._failures.append(Failure(ref, _cause(error), "".join(traceback.format_exception(error))))
            return
        try:
            self._manager.register(plugin, name=ref.name)
            self._manager.check_pending()
            cause = None if self._manager.get_hookcallers(plugin) else "no function in it is marked @autoft.hookimpl"
        except (pluggy.PluginValidationError, ValueError) as error:
            cause = _cause(error)
        if cause is None:
            self._loaded[ref.name] = ref
            return
        self._failures.append(Failure(ref, cause))
        if self._manager.get_plugin(ref.name) is plugin:
            self._manager.unregister(plugin)

    def _impls(self, hook: str) -> list[pluggy.HookImpl]:
        """Implementations in the order their plugins were loaded."""
        order = list(self._loaded)
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return sorted(caller.get_hookimpls(), key=lambda impl: order.index(impl.plugin_name))

    def _collect(self, kind: _Kind[P]) -> dict[str, _Offer[P]]:
        found: dict[str, _Offer[P]] = {}
        for impl in self._impls(kind.hook):
            for offer in self._offered(kind, impl):
                name = offer.part.name
                if name in found:
                    both = f"{found[name].ref} and {offer.ref}"
                    raise PluginError(f"two parts: {both} both offer a {kind.noun} {name!r}; {_off(offer.ref)}")
                found[name] = offer
        return found

    def _offered(self, kind: _Kind[P], impl: pluggy.HookImpl) -> list[_Offer[P]]:
        """The parts one plugin offers, asked for once."""
        key = (kind.hook, impl.plugin_name)
        if key not in self._offers:
            ref = self._loaded[impl.plugin_name]
            parts = self._blaming(ref, kind.hook, lambda: _as_parts(impl.function()))
            for part in parts:
                if not isinstance(part, kind.part) or not _is_name(getattr(part, "name", None)):
                    what = f"a list of {kind.part.__name__}, each with a `name` of one word"
                    raise PluginError(f"{ref}: {kind.hook} must return {what}; got {part!r}; {_off(ref)}")
            self._offers[key] = [_Offer(part, ref) for part in parts]
        return self._offers[key]

    def _parts(self, kind: _Kind[P]) -> dict[str, P]:
        return {name: offer.part for name, offer in self._collect(kind).items()}

    def _find(self, kind: _Kind[P], name: str) -> _Offer[P]:
        offers = self._collect(kind)
        if name not in offers:
            raise StudyError(f"{unknown_name(kind.noun, name, offers)}{self.suspects()}")
        return offers[name]

    def _blaming(self, ref: PluginRef, doing: str, call: Callable[[], Any]) -> Any:
        """The call's result; an exception of a plugin's own becomes a `PluginError` that names it."""
        try:
            return call()
        except AutoftError:
            raise
        except Exception as error:
            raise PluginError(f"{ref} failed in {doing}: {_cause(error)}; {_off(ref)}") from error

    def _tell(self, hook: str, facts: Mapping[str, object]) -> None:
        for impl in self._impls(hook):
            try:
                impl.function(*(facts[name] for name in impl.argnames))
            except (Exception, SystemExit) as error:
                if (hook, impl.plugin_name) not in self._complained:
                    self._complained.add((hook, impl.plugin_name))
                    ref = self._loaded[impl.plugin_name]
                    log.warning("%s failed in %s: %s; the run goes on", ref, hook, _cause(error))

    def _status(self, ref: PluginRef) -> PluginStatus:
        adds: list[str] = []
        try:
            for kind in _KINDS:
                mine = [impl for impl in self._impls(kind.hook) if impl.plugin_name == ref.name]
                adds += [f"{kind.noun} {offer.part.name}" for impl in mine for offer in self._offered(kind, impl)]
        except AutoftError as error:
            return _line(ref, "failed", tuple(adds), Failure(ref, str(error)))
        return _line(ref, "ok", tuple(adds), None)


def _line(
    ref: PluginRef, status: Literal["ok", "disabled", "failed"], adds: tuple[str, ...], failure: Failure | None
) -> PluginStatus:
    cause, trace = (failure.cause, failure.traceback) if failure else (None, None)
    return PluginStatus(ref.name, ref.kind, ref.distribution, ref.version, status, adds, cause, trace)


def _listed(zoo: Zoo) -> list[Backbone]:
    return list(zoo.backbones())


def _as_parts(returned: Any) -> list[Any]:
    if not isinstance(returned, Iterable) or isinstance(returned, str):
        raise TypeError(f"it must return a list of parts, not {returned!r}")
    return list(returned)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not set(name) & set("/ \t\n,*?[]:")


def _off(ref: PluginRef) -> str:
    return f"switch it off with -p no:{ref.name}"


def _cause(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
