"""Ctrl-C and SIGTERM as a flag that the search looks at; a second signal ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


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
