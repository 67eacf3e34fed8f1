"""Imports point one way, and a foreign framework lives in one file."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

import autoft

ROOT = Path(autoft.__file__).parent

# What may be imported where, and nowhere else in the package; paths from autoft/.
HOMES = {
    "ray": {"runners/ray.py"},
    "onnx": {"builtin/onnx_exporter.py", "media/image/raw_pixels.py"},
    "onnxscript": {"builtin/onnx_exporter.py"},
    "onnxruntime": {"bundle/onnx_runtime.py", "testing/exporters.py", "bundle/standalone/*.py"},
    "timm": {"builtin/timm_zoo.py"},
    "click": {"__main__.py", "shell/*.py", "shell/commands/*.py"},
    "pluggy": {"parts/hookspecs.py", "parts/host.py"},
    "pydantic": {"values/codec.py"},
}
# Helpers without its model registry.
TIMM_UTILITIES = (
    "timm.layers",
    "timm.optim",
    "timm.scheduler",
    "timm.utils",
    "timm.loss",
    "timm.data",
)  # not its model registry


@dataclass(frozen=True)
class Import:
    module: str
    names: tuple[str, ...]


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("autoft", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST) -> Iterator[Import]:
    """Every import below `node`, in functions too, but for those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, ()) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield Import(child.module or "", tuple(alias.name for alias in child.names))
        else:
            yield from imports(child)


def imports_of(path: Path) -> list[Import]:
    return list(imports(ast.parse(path.read_text(encoding="utf-8"))))


def inner_imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports; `from autoft import host` is one of autoft.parts.host."""
    found = set()
    for one in imports_of(path):
        full = {f"{one.module}.{name}" for name in one.names}
        found |= (full & known) or ({one.module} & known)
    return found - {"autoft", module_of(path)}


def test_imports_go_round_in_no_circle() -> None:
    known = {module_of(path) for path in files()}
    graph = {module_of(path): inner_imports(path, known) for path in files()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_imports_point_down_from_room_to_room() -> None:
    """The contract in pyproject.toml, of which no module is left out."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("framework", HOMES)
def test_a_foreign_framework_lives_in_one_file(framework: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in files()
        for one in imports_of(path)
        if one.module.split(".")[0] == framework and not one.module.startswith(TIMM_UTILITIES)
    }
    assert not {user for user in users if not any(PurePosixPath(user).match(home) for home in HOMES[framework])}


@pytest.mark.parametrize("path", sorted((ROOT / "builtin").rglob("*.py")), ids=module_of)
def test_a_builtin_imports_what_a_third_party_may(path: Path) -> None:
    ours = [one for one in imports_of(path) if one.module.split(".")[0] == "autoft"]
    own = ".".join(module_of(path).split(".")[:3])  # the plugin, which may be a package
    inside = {one.module for one in ours if one.module != own and not one.module.startswith(f"{own}.")} - {"autoft"}
    assert not inside, f"import from autoft itself, not from {inside}"
    private = {name for one in ours if one.module == "autoft" for name in one.names} - set(autoft.__all__)
    assert not private, f"not among the public names: {private}"


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_no_module_imports_relatively(path: Path) -> None:
    relative = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "level", 0)]
    assert not relative


def test_every_light_module_imports_alone() -> None:
    """Each in an interpreter that has imported nothing else of autoft; those that need torch at once are left out."""
    heavy = {"torch", "timm", "ray", "onnx", "onnxruntime", "sklearn", "torchvision"}
    code = (
        "import sys, importlib, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        f"    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {heavy!r}: raise ModuleNotFoundError('heavy', name='heavy')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "for name in sys.argv[1:]:\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] == 'autoft']: del sys.modules[known]\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        if error.name != 'heavy': raise\n"
    )
    names = [module_of(path) for path in files() if path.stem != "__main__"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_those_declared() -> None:
    assert set(dir(autoft)) == set(autoft.__all__)
    assert set(autoft.__all__) - {"__version__"} == set(autoft._HOME_OF)


@pytest.mark.parametrize("name", sorted(autoft._HOME_OF))
def test_each_public_name_resolves_to_its_home(name: str) -> None:
    assert getattr(autoft, name) is getattr(importlib.import_module(autoft._HOME_OF[name]), name)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = autoft.no_such_name
