"""Loading one plugin: built-in, entry point, file or object, all through `load`."""

from __future__ import annotations

import importlib.util
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import autoft
from autoft.errors import PluginError, StudyError
from autoft.system.files import as_path, as_text, sha256

GROUP = "autoft"

Kind = Literal["builtin", "entry_point", "file", "object"]


@dataclass(frozen=True)
class PluginRef:
    """Where a plugin comes from: enough for another process to load the very same one.

    `location` is a module, `module:attribute` or the absolute path of a file. `distribution` and `version` are None
    for a file and for an object. An object with `importable` False lives in the process that made it. `sha256` is that
    of a file; runs of older versions did not record it. `earlier` is what the run used in its place before, oldest
    first, as `described` says it.
    """

    name: str
    kind: Kind
    location: str
    distribution: str | None = None
    version: str | None = None
    importable: bool = True
    sha256: str | None = None
    earlier: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        """How messages call the plugin."""
        if self.distribution is None:
            return f"plugin {self.name!r} ({self.location})"
        return f"plugin {self.name!r} of distribution {self.distribution!r} {self.version}"


def builtin_ref(module: str) -> PluginRef:
    """The reference of a built-in: `autoft.builtin.timm_zoo` is called `timm`."""
    name = module.rpartition(".")[2].partition("_")[0]
    return PluginRef(name, "builtin", module, GROUP, autoft.__version__)


def entry_point_refs() -> Iterator[PluginRef]:
    """The installed plugins, by name; nothing of them is imported."""
    points = metadata.entry_points(group=GROUP)
    found = [(point.name, point.dist.name if point.dist else "unknown", point) for point in points]
    for name, distribution, point in sorted(found, key=lambda item: item[:2]):
        yield PluginRef(name, "entry_point", point.value, distribution, point.dist.version if point.dist else "unknown")


def file_ref(path: str) -> PluginRef:
    """The reference of an unpackaged plugin. Raises `StudyError` when there is no such file, or it cannot be read."""
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise StudyError(f"-p {path}: there is no such file; give the path of a Python file, or no:NAME")
    try:
        digest = sha256(file)
    except OSError as error:
        raise StudyError(f"-p {path} cannot be read: {error.strerror}; look at its permissions") from None
    return PluginRef(as_text(Path(file.stem)), "file", as_text(file), sha256=digest)


def object_ref(plugin: Any) -> PluginRef:
    """The reference of a module or object given from Python, importable where a worker could import it."""
    module = plugin.__name__ if hasattr(plugin, "__spec__") else type(plugin).__module__
    if hasattr(plugin, "__spec__"):
        return PluginRef(module.rpartition(".")[2], "object", module, importable=module != "__main__")
    names = vars(sys.modules[module]) if module in sys.modules else {}
    attribute = next((name for name, value in names.items() if value is plugin), None)
    importable = attribute is not None and module != "__main__"
    name = attribute or type(plugin).__name__
    return PluginRef(name, "object", f"{module}:{name}", importable=importable)


def load(ref: PluginRef) -> object:
    """The plugin behind `ref`: a module or an object. Raises whatever its import raises."""
    if ref.kind == "file":
        return _load_file(as_path(ref.location))
    return metadata.EntryPoint(ref.name, ref.location, GROUP).load()


def found(ref: PluginRef) -> PluginRef:
    """A recorded plugin as it is here: the version or the content found. Raises `PluginError` when it is not here."""
    if not ref.importable:
        raise PluginError(
            f"{ref} lives in the program that made it; give the object again, move it to a file, or {without(ref)}"
        )
    if ref.kind == "file":
        try:
            return in_place_of(ref, replace(ref, sha256=sha256(as_path(ref.location))))
        except OSError as error:
            lost = isinstance(error, FileNotFoundError | NotADirectoryError)
            gone = "is not there any more" if lost else f"cannot be read ({error.strerror})"
            again = f"say where it is with -p FOLDER/{Path(ref.location).name}, or {without(ref)}"
            raise PluginError(f"the run uses {ref}, which {gone}; {again}") from None
    if ref.kind != "entry_point" or ref.distribution is None:
        return ref
    try:
        return in_place_of(ref, replace(ref, version=metadata.version(ref.distribution)))
    except metadata.PackageNotFoundError:
        wanted = f"pip install '{ref.distribution}=={ref.version}', or {without(ref)}"
        raise PluginError(f"the run uses {ref}, which is not installed here; {wanted}") from None


def in_place_of(before: PluginRef, now: PluginRef) -> PluginRef:
    """`now`, which remembers what a run has used so far under its name."""
    used = (*before.earlier, *((described(before),) if is_another(before, now) else ()))
    return replace(now, earlier=tuple(one for one in dict.fromkeys(used) if one != described(now)))


def is_another(before: PluginRef, now: PluginRef) -> bool:
    """Whether two plugins of one name differ in content or version, as far as both are known."""
    unknown = before.kind == now.kind == "file" and before.sha256 is None
    return not unknown and described(before) != described(now)


def changed(before: PluginRef, now: PluginRef) -> str:
    """What to say where a process of a search finds another plugin than the search has."""
    return (
        f"{before} changed during the search, which began with {described(before)} and now finds {described(now)}; put "
        "it back as it was and go on with autoft resume, or go on with it as it is: card and manifest then name both"
    )


def switch_off(ref: PluginRef) -> str:
    """What to do about a plugin that is at fault."""
    return f"switch it off with -p no:{ref.name}"


def rename(ref: PluginRef) -> str:
    """What to do about a plugin whose name is another one's."""
    match ref.kind:
        case "file":
            return f"rename the file: {Path(ref.location).name!r} without its ending is the plugin's name"
        case "object":
            return "give the module or object another name"
        case _:
            return f"pip uninstall {ref.distribution}, or have its entry point renamed"


def clash(ref: PluginRef, first: PluginRef) -> tuple[str, str]:
    """Why a plugin whose name the `first` has cannot be there, and what to do."""
    if ref.kind == first.kind == "file" and ref.location == first.location:
        return "it is given twice", "give it once"
    return f"the name {ref.name!r} is taken by {first}", rename(ref)


def without(ref: PluginRef) -> str:
    """What to do when a plugin of a run is no longer wanted."""
    return f"go on without it, unless its metric, task or searcher is the run's own: -p no:{ref.name}"


def duplicates(refs: Iterable[PluginRef]) -> dict[PluginRef, PluginRef]:
    """Plugins whose name is taken, each with the one that took it first."""
    first: dict[str, PluginRef] = {}
    return {ref: first[ref.name] for ref in refs if first.setdefault(ref.name, ref) is not ref}


def plugin_versions(refs: Iterable[PluginRef]) -> dict[str, str]:
    """What was loaded besides autoft's own, for a stranger: distribution and version, or a file's name and SHA-256.

    Where a run has used others before in their place, these too.
    """
    return {f"plugin {ref.name}": _with_earlier(ref) for ref in refs if ref.kind != "builtin"}


def _with_earlier(ref: PluginRef) -> str:
    earlier = f"; earlier in this run: {'; '.join(ref.earlier)}" if ref.earlier else ""
    return f"{described(ref)}{earlier}"


def described(ref: PluginRef) -> str:
    """What tells this plugin from others of its name, wherever it lies."""
    match ref.kind:
        case "file":
            return f"{as_text(as_path(ref.location).name)}, SHA-256 {ref.sha256}"
        case "object":
            return "an object of the program that searched"
        case _:
            return f"{ref.distribution} {ref.version}"


def _load_file(path: Path) -> object:
    digest = f"{zlib.crc32(os.fsencode(path)):08x}"  # two files of one name are two modules
    name = f"autoft_plugin_{path.stem.encode('ascii', 'replace').decode()}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("this is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
