"""Natural order: as people sort names."""

from __future__ import annotations

import re
from typing import Final

_DIGITS: Final = re.compile(r"(\d+)")

NaturalKey = tuple[tuple[str | int, ...], str]


def natural_key(name: str) -> NaturalKey:
    """Sorting key that puts 2 before 10 and `a` beside `A`; names that differ never compare equal."""
    pieces = _DIGITS.split(name.casefold())
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)), name
