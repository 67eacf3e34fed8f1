"""`Stopwatch`: seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Adds up the seconds of named phases; `began` is the wall-clock time (`time.time()`) the total counts from."""

    def __init__(self, began: float) -> None:
        self.began = began
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside towards `name`."""
        entered = time.monotonic()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - entered

    def each(self, name: str, values: Iterator[T]) -> Iterator[T]:
        """The values, with the time that each takes to come counted towards `name`."""
        while True:
            with self.phase(name):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, and "total" since the beginning."""
        rounded = {name: round(value, 3) for name, value in self._phases.items()}
        return {"total": round(time.time() - self.began, 3), **rounded}
