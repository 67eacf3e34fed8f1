"""`python -m autoft.testing FILE.py|MODULE...`: every check of every part of a plugin, without pytest."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import click

from autoft.errors import AutoftError, PluginError
from autoft.parts.host import Host
from autoft.parts.plugins import file_ref, object_ref
from autoft.system import faults
from autoft.testing import (
    ExporterConformance,
    FreezeStrategyConformance,
    MetricConformance,
    SearcherConformance,
    TaskConformance,
    ZooConformance,
)
from autoft.testing.base import Conformance

SUITES: dict[str, Any] = {  # the classes are abstract until they know their part
    "autoft_zoos": ZooConformance,
    "autoft_freeze_strategies": FreezeStrategyConformance,
    "autoft_searchers": SearcherConformance,
    "autoft_exporters": ExporterConformance,
    "autoft_tasks": TaskConformance,
    "autoft_metrics": MetricConformance,
}


def loaded(name: str) -> tuple[Host, str]:
    """The plugins of a search with this one, a file or a module, among them, and its name.

    Raises `StudyError` and `PluginError` for what would end that search before it begins.
    """
    if name.endswith(".py"):
        host, plugin = Host.discover([name]), file_ref(name).name
    else:
        host = Host.discover()
        plugin = next((ref.name for ref in host.refs if ref.location == name), "")
        if not plugin:  # it is not installed
            module = _module(name)
            host, plugin = Host.discover(objects=[module]), object_ref(module).name
    host.check()
    return host, plugin


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        advice = "give the path of a .py file, or the name of a module that can be imported here"
        raise PluginError(f"plugin {name!r} failed to load: {faults.record(error)}; {advice}") from error


def suites(host: Host, plugin: str) -> Iterator[Conformance[Any]]:
    """One suite for each part of a loaded plugin, which is guarded as in a search. Raises `PluginError` without any."""
    made = [(SUITES[hook], make) for hook, make in host.makers(plugin)]
    if not made:
        hooks = ", ".join(host.hooks(plugin))
        raise PluginError(f"plugin {plugin!r} offers no part: nothing was checked but that it loads, with {hooks}")
    for suite, make in made:
        yield type(suite.__name__, (suite,), {"part": lambda _, make=make: make()})()


def failures(suite: Conformance[Any]) -> Iterator[tuple[str, Exception]]:
    """The name of each check of the suite that fails or is skipped, and of what, as soon as it has."""
    for name in sorted(name for name in dir(suite) if name.startswith("test_")):
        try:
            getattr(suite, name)()
        except Exception as error:
            yield name.removeprefix("test_"), error


def said(suite: Conformance[Any]) -> int:
    """Print what fails in a suite, each cause once, and how it ends; how many checks failed."""
    name, causes = suite.part().name, Counter[tuple[type, str]]()
    for check, error in failures(suite):
        if (cause := _root(error)) not in causes:
            click.echo(f"{name}: {check}: {_line(error)}")
        causes[cause] += 1
    skipped = sum(count for (kind, _), count in causes.items() if kind is SkipTest)
    failed = causes.total() - skipped
    again = failed - sum(kind is not SkipTest for kind, _ in causes)
    folded = f", {again} of them for a cause that stands above" if again else ""
    click.echo(
        f"{name}: {type(suite).__name__} {f'failed {failed}{folded}' if failed else 'passed'}"
        f"{f', {skipped} not checked' if skipped else ''}"
    )
    return failed


def _line(error: Exception) -> str:
    if isinstance(error, SkipTest):
        return f"not checked: {error}"
    return str(error) if isinstance(error, AssertionError) else faults.record(error)


def _root(error: BaseException) -> tuple[type, str]:
    """What an error came of: the same for all checks that one mistake fails, whatever they were doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error), str(error)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("plugins", metavar="FILE.py|MODULE...", nargs=-1, required=True)
def main(plugins: tuple[str, ...]) -> None:
    """Check every part of the plugins as the built-in parts are checked.

    Exit code 1 when a check fails, 2 when a search would refuse a plugin or when it has no part to check; of several
    plugins each is checked, and the greatest code counts.
    """
    sys.exit(max(map(_checked, plugins)))


def _checked(name: str) -> int:
    """Print what becomes of one plugin; its exit code."""
    try:
        host, plugin = loaded(name)
        return min(1, sum(said(suite) for suite in suites(host, plugin)))
    except AutoftError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code


if __name__ == "__main__":
    main(prog_name="python -m autoft.testing")
