"""Every error autoft raises on purpose.

    AutoftError
    ├── UserError            what was asked cannot be done: one line, exit code 2
    │   ├── DataError        the images or their folders
    │   ├── StudyError       a flag, a configuration key, an unknown name
    │   ├── PluginError      a plugin; the message names its distribution
    │   └── RunFolderError   a run folder that is missing, locked, damaged or another study's
    ├── BackboneUnavailable  one backbone cannot be had; the search goes on without it
    ├── UnreadableImage      one image cannot be decoded; the search goes on without it
    │   └── ReadFailed       it could not be read this time: disk, permission, memory; it may be sound
    ├── RunFailed            the run ended without a model: exit code 1
    ├── GateFailed           a model exists but misses a promise (parity, --fail-under): exit code 3
    └── Interrupted          Ctrl-C or SIGTERM: exit code 130 or 143

The command line prints an `AutoftError` as one line. Anything else is a bug and gets its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoft.values.summary import Summary

NAMES_SHOWN = 8


class AutoftError(Exception):
    """The root of the tree; `exit_code` is what the process ends with."""

    exit_code = 1


class UserError(AutoftError):
    """What was asked cannot be done; the message says what, where and what to do next."""

    exit_code = 2


class DataError(UserError):
    """The images or their folders cannot be used as they are."""


class StudyError(UserError):
    """A flag, a configuration key or a name is wrong."""


class PluginError(UserError):
    """A plugin cannot be loaded or clashes with another; the message names its distribution."""


class RunFolderError(UserError):
    """A run folder is missing, locked, damaged or belongs to another study."""


class BackboneUnavailable(AutoftError):
    """One backbone cannot be had here; the message names it and says what to do."""


class UnreadableImage(AutoftError):
    """One image cannot be decoded; the message is the reason, without the path."""


class ReadFailed(UnreadableImage):
    """An image could not be read this time, for want of memory or by a fault of the disk; the file may be sound."""


class RunFailed(AutoftError):
    """The run ended without a model that can be exported."""


class GateFailed(AutoftError):
    """A model exists but misses a promise: parity with torch, or `--fail-under`; then `summary` is the run's."""

    exit_code = 3

    def __init__(self, message: str, summary: Summary | None = None) -> None:
        super().__init__(message)
        self.summary = summary


class TooSlow(GateFailed):
    """A network takes longer than `--max-latency`: so many `milliseconds`."""

    def __init__(self, message: str, milliseconds: float) -> None:
        super().__init__(message)
        self.milliseconds = milliseconds


class Interrupted(AutoftError):
    """The run was stopped by a signal; the message holds the command that goes on with it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def unknown_name(kind: str, name: str, known: Iterable[str], most: int = 1) -> StudyError:
    """An error for a name nobody offers: the near ones if there are any, at `most` so many, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.5)
    listed = first_names(names) or "none"
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {listed}"
    return StudyError(f"no {kind} is called {name!r}; {hint}")


def first_names(names: Sequence[str]) -> str:
    """The names as a list, the first of them if there are many."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
