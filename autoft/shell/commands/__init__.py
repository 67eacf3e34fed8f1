"""The commands, one small module a group, and what they share.

Nothing here imports more than click at first: `autoft --help` is to cost what importing click costs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import DataclassInstance

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class BrokenPipe(Exception):
    """A `BrokenPipeError` under another name: for one of its own click ends the process at once, whatever the pipe."""


class Command(click.Command):
    """A command whose help shows examples before anything else."""

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        settings["context_settings"] = HELP_SETTINGS | (settings.get("context_settings") or {})
        super().__init__(*arguments, **settings)
        self.examples = tuple(examples)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, examples, what it does, options."""
        self.format_usage(ctx, formatter)
        write_examples(self.examples, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """The examples, one a line and never wrapped: they are there to be copied."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':{formatter.current_indent}}{example}\n")


plugin_option = click.option(
    "-p",
    "--plugin",
    "plugins",
    multiple=True,
    metavar="no:NAME|FILE.py",
    help="Switch a plugin off, or load one from a file; repeatable.",
)
moved_option = click.option(
    "--data", metavar="DIR", help="Where the run's images lie now, if they have moved: the folder, or the CSV file."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def require_one_form(as_json: bool, as_csv: bool) -> None:
    """Raise `UsageError` where both are asked for."""
    if as_json and as_csv:
        raise click.UsageError("--json and --csv are two forms of one output; choose one of them")


def split_list(values: Sequence[str]) -> tuple[str, ...]:
    """The names in a repeatable option that also takes them separated by commas."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def to_json(value: DataclassInstance | Mapping[str, object]) -> str:
    """JSON of a value or an object, on one line. Unlike `codec.encode` it needs no pydantic, and does not read back."""
    return _json(value)


def document(name: str, values: Sequence[DataclassInstance]) -> str:
    """A JSON document that holds a list of frozen values under one name."""
    return _json({name: list(values)})


def _json(data: object) -> str:
    """JSON that stdout can hold; a file name that is no text has its strange bytes as JSON escapes."""
    import codecs
    import json
    from dataclasses import asdict

    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    text = json.dumps(data, default=asdict, ensure_ascii=not unicode, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def say(text: str) -> None:
    """The text on stdout, in its own encoding: click would write UTF-8 where that is ASCII."""
    click.echo(text, file=sys.stdout)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their header in columns two blanks apart; nothing is cut off."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def shown(path: Path) -> str:
    """The path as a person would type it here: relative to this folder when it lies in it."""
    absolute, here = path.absolute(), type(path).cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


@contextlib.contextmanager
def talk_on_stderr() -> Iterator[None]:
    """While the block runs whatever a library prints goes to stderr: stdout is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
