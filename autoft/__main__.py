"""`autoft` and `python -m autoft`: run a command, print an error as one line, end with its exit code."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from autoft.errors import AutoftError, Interrupted
from autoft.shell.commands import BrokenPipe
from autoft.system.process import prepare, too_little_memory
from autoft.system.signals import StopFlag

SUGGESTION = "this is a bug in autoft or in a plugin; `autoft plugins` lists them, -p no:NAME switches one off"


class Terminated(KeyboardInterrupt):
    """SIGTERM; a `KeyboardInterrupt`, so that nothing on the way takes it for a failure."""


def main() -> NoReturn:
    """Run the command in `sys.argv` and end the process."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_what_is_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # results are UTF-8 in every locale, as JSON and CSV want to be
    _leave(_run())


def _open_what_is_closed() -> None:
    """Give a standard stream that was closed, as with `2>&-`, to the null device.

    Otherwise its number would go to the next file that is opened, and a library's messages into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115  gets the lowest number that is free, its own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _run() -> int:
    """The exit code; after output that nobody reads any more, as with `| head`, that of a process SIGPIPE ended."""
    try:
        return _called()
    except (BrokenPipe, BrokenPipeError) as error:
        unread = [stream for stream in (1, 2) if _is_unread(stream)]
        if not unread:  # it was another pipe
            return _say_bug(error)
        for stream in unread:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)  # the flush at exit must not complain
        return 128 + signal.SIGPIPE


def _called() -> int:
    """The exit code. Raises `BrokenPipe` and `BrokenPipeError`."""
    try:
        from autoft.shell.cli import cli

        _escape_what_cannot_be_written()
        prepare()
        code = cli.main(prog_name="autoft", standalone_mode=False)
        sys.stdout.flush()  # a full disk or a closed pipe shows here, not in the interpreter's last breath
        return code if isinstance(code, int) else 0
    except Interrupted as stopped:
        return _say(str(stopped), stopped.exit_code)
    except AutoftError as error:
        said = too_little_memory(error) or error
        return _say(f"error: {said}", said.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "autoft"
        return _say(f"error: {error.format_message()} (see {command} --help)", 2)
    except click.ClickException as error:
        return _say(f"error: {error.format_message()}", error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stopped:
        terminated = isinstance(stopped.__cause__ or stopped, Terminated)
        return _say("stopped", 128 + (signal.SIGTERM if terminated else signal.SIGINT))
    except (BrokenPipe, BrokenPipeError):
        raise
    except Exception as error:
        return _say_fault(error)


def _is_unread(stream: int) -> bool:
    """Whether what a file descriptor is written to is a pipe without a reader."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _say_fault(error: Exception) -> int:
    """What the machine lacks, or is wrong with a path, is one line; anything else is a bug."""
    from autoft.system.faults import unusable_path, unwritable_disk  # brings what only tracebacks need

    known = too_little_memory(error) or unwritable_disk(error) or unusable_path(error)
    return _say(f"error: {known}", known.exit_code) if known else _say_bug(error)


def _say_bug(error: Exception) -> int:
    import traceback

    traceback.print_exception(error)
    return _say(SUGGESTION, 1)


def _escape_what_cannot_be_written() -> None:
    """Names come from anywhere: what stdout's encoding lacks is written as an escape, `\\xe9`, and is no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _say(text: str, code: int) -> int:
    click.echo(" ".join(text.splitlines()), err=True)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _leave(code: int) -> NoReturn:
    """End the process once its exit handlers have run.

    Nothing is unloaded and no thread is waited for: that takes seconds with torch, and as many with Ray, which a budget
    to the exit would pay for. `sys.exit` would wait for threads, and end at a handler of ours before those that were
    there first. A signal changes nothing any more; a second one ends what hangs.
    """
    leaving = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leaving.remember)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
