"""Ctrl-C and SIGTERM as a flag that the search looks at, and an end to what does not look; a second signal ends the
process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 1.0
EPSILON = 1e-3  # a timer of 0 never ends
LONGEST_SECONDS = 1e9  # thirty years; the system refuses ten times as much


class Cancelled(Exception):
    """The run is being stopped; the slice stays open in the journal and runs again on resume."""


class StopFlag:
    """Remembers the first signal. Calling it says whether there was one."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at_once = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While the block runs a signal raises `KeyboardInterrupt` in it: for what nobody asks between its steps."""
        self._at_once = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        if self._at_once:
            raise KeyboardInterrupt


class TimeOver(BaseException):
    """What `time_limit` raises. No `Exception`, which the block might take for a failure of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeOver` in the block after so many seconds, and again each second that it goes on nevertheless.

    It reaches what Python executes or waits in, not a library's own loop. Outside the main thread there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    over = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not over:
            raise TimeOver

    began, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    try:
        try:
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, min(max(seconds, EPSILON), LONGEST_SECONDS), AGAIN_SECONDS)
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        put_back({signal.SIGALRM: handler})
        if left:  # somebody's own alarm
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), EPSILON), interval)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM raise while the block runs. Outside the main thread, where Python hears no
    signals, a flag that stays down.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    before = {number: signal.signal(number, flag.remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        put_back(before)


def put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give signals the handlers they had; one that was not installed from Python cannot be put back."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)
