"""A screen that remembers what is said."""

from __future__ import annotations

from autoft.system.screen import Silent


class Notes(Silent):
    """Its `lines` are what was noted, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)
