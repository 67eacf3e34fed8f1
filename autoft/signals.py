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

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM raise while the block runs. Outside the main thread, where Python hears no
    signals, a flag that stays down.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if flag.signal is not None:
            os._exit(128 + number)
        flag.signal = number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        put_back(before)


def put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give signals the handlers they had; one that was not installed from Python cannot be put back."""
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)
