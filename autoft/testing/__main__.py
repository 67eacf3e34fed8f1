"""`python -m autoft.testing FILE.py|MODULE...`: every check of every part of a plugin, without pytest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from autoft import plugins
from autoft.faults import record
from autoft.testing import (
    ExporterConformance,
    FreezeStrategyConformance,
    SearcherConformance,
    ZooConformance,
)
from autoft.testing.base import Conformance

SUITES: dict[str, Any] = {  # the classes are abstract until they know their part
    "autoft_zoos": ZooConformance,
    "autoft_freeze_strategies": FreezeStrategyConformance,
    "autoft_searchers": SearcherConformance,
    "autoft_exporters": ExporterConformance,
}


def suites(plugin: Any) -> Iterator[Conformance[Any]]:
    """One suite for each part that a plugin's hooks give."""
    for hook, suite in SUITES.items():
        give = getattr(plugin, hook, list)
        for number, _ in enumerate(give()):
            part = lambda suite, give=give, number=number: list(give())[number]  # noqa: E731
            yield type(suite.__name__, (suite,), {"part": part})()


def failures(suite: Conformance[Any]) -> Iterator[str]:
    """A line for each check of the suite that fails, as soon as it has."""
    for name in sorted(name for name in dir(suite) if name.startswith("test_")):
        try:
            getattr(suite, name)()
        except AssertionError as error:
            yield f"{name.removeprefix('test_')}: {error}"
        except Exception as error:
            yield f"{name.removeprefix('test_')}: {record(error)}"


def main(names: Iterable[str]) -> int:
    """Check the plugins and print what fails; how many checks did."""
    failed = 0
    for name in names:
        plugin = plugins.load(plugins.file_ref(name)) if name.endswith(".py") else importlib.import_module(name)
        for suite in suites(plugin):
            found = 0
            for found, line in enumerate(failures(suite), 1):  # noqa: B007
                click.echo(f"{suite.part().name}: {line}")
            click.echo(f"{suite.part().name}: {type(suite).__name__} {f'failed {found}' if found else 'passed'}")
            failed += found
    return failed


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python -m autoft.testing FILE.py|MODULE...")
    sys.exit(1 if main(sys.argv[1:]) else 0)
