"""What is asked of every part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from autoft.parts import Part

P = TypeVar("P", bound=Part)


class Conformance(ABC, Generic[P]):
    """What is asked of every part."""

    @abstractmethod
    def part(self) -> P:
        """The part under test; a new one at every call."""

    def test_its_name_is_one_word(self) -> None:
        """The name stands in commands and addresses."""
        name = getattr(self.part(), "name", None)
        assert isinstance(name, str) and name, "give the class a `name`"
        assert not set(name) & set("/ \t\n,*?[]:"), f"the name {name!r} must hold no space, slash, comma, colon or glob"

    def test_its_summary_is_one_line(self) -> None:
        """The summary stands in a table."""
        assert "\n" not in self.part().summary, "keep `summary` to one line"
