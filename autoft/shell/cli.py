"""The command line: which commands there are. Each is imported when it is called, so that help costs nothing."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from typing import Any

import click

from autoft import __version__
from autoft.shell.commands import HELP_SETTINGS, BrokenPipe, write_examples

# Command: its module below autoft.shell.commands, and the first line of its help, repeated here to import nothing.
COMMANDS = {
    "search": ("run", "Find the best fine-tuned backbone for the images in DATA and export it."),
    "resume": ("run", "Go on with a run that was interrupted, or give one more time."),
    "leaderboard": ("results", "Show every trial of a run, best first."),
    "export": ("handoff", "Write the bundle of any trial that is still exportable."),
    "verify": (
        "handoff",
        "Check a bundle: every file by its hash, both models on the test vectors.",
    ),
    "predict": ("handoff", "Say what an exported model sees in images."),
    "backbones": ("inventory", "List the backbones that can be searched."),
    "plugins": ("inventory", "List the plugins, and what each adds."),
    "doctor": ("inventory", "Check this machine and say how to mend what is wrong."),
}
EXAMPLES = (
    "autoft search photos/ --time 10m     photos/ holds one folder of images a class",
    "autoft predict runs/photos-... new/  what the exported model sees in new images",
    "autoft resume runs/photos-...        go on after an interruption",
)


@contextlib.contextmanager
def _pipes_past_click() -> Iterator[None]:
    """Raise `BrokenPipe` for a `BrokenPipeError`, of which click would leave nothing."""
    try:
        yield
    except BrokenPipeError as error:
        raise BrokenPipe(str(error)) from error


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """The context of a call; here help is printed."""
        with _pipes_past_click():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it returns."""
        with _pipes_past_click():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"autoft.shell.commands.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` begin with. Raises `click.UsageError` that suggests the near one."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is called {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, examples, what it is, commands, options."""
        self.format_usage(ctx, formatter)
        write_examples(EXAMPLES, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with the first line of its help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings=HELP_SETTINGS, no_args_is_help=False)
@click.version_option(__version__, "-V", "--version", message="autoft %(version)s")
def cli() -> None:
    """Labelled images in, a fine-tuned ONNX model with an honest score out."""
