"""A file that asks workers in other processes to stop: it reaches every machine that sees the run folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 2.0  # for what cannot be interrupted, such as fitting a head


class StopFile:
    """`.stop` in a run folder, there while its workers are being stopped."""

    def __init__(self, run: Path) -> None:
        self._path = run / ".stop"

    def write(self) -> None:
        """Ask all workers to stop."""
        with suppress(OSError):  # a folder that is gone or full stops them anyway
            self._path.touch()

    def remove(self) -> None:
        """Take the request back."""
        with suppress(OSError):
            self._path.unlink()

    def watch(self) -> Callable[[], bool]:
        """In a worker: whether it is asked to stop. One that goes on for `PATIENCE_SECONDS` is ended."""
        asked = threading.Event()

        def look() -> None:
            while not self._path.exists():
                time.sleep(LOOK_SECONDS)
            asked.set()
            time.sleep(PATIENCE_SECONDS)
            os._exit(0)  # what it is doing is lost anyway; files are replaced as a whole or not at all

        threading.Thread(target=look, daemon=True).start()
        return asked.is_set
