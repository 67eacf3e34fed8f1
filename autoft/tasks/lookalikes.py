"""Labels that a person takes for one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from autoft.errors import DataError


def printed(name: str) -> str:
    """The name as it appears: accents composed, without characters that take no room (category Cf)."""
    shown = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFC", shown).strip()


def loosely(name: str) -> str:
    """The name as it appears, whatever the case and the width of its spaces."""
    return " ".join(printed(name).casefold().split())


def twins(names: Iterable[str], reading: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """Each name that a `reading` takes for an earlier one, after that one."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(reading(name), name)
        if other != name:
            yield other, name


def refuse_lookalikes(names: Sequence[str], reading: Callable[[str], str]) -> None:
    """Raise `DataError` for two names that a `reading` takes for one."""
    for one, other in twins(names, reading):
        raise DataError(f"the labels {one!a} and {other!a} look alike; give them one name")
