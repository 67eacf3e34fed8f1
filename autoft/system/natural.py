"""Natural order: as people sort names."""

from __future__ import annotations

import re
from typing import Final

_DIGITS: Final = re.compile(r"([0-9]+)")

NaturalKey = tuple[tuple[str | tuple[int, str], ...], str]


def natural_key(name: str) -> NaturalKey:
    """Sorting key that puts 2 before 10 and `a` beside `A`; names that differ never compare equal."""
    pieces = _DIGITS.split(name.casefold())
    return tuple(_number(piece) if index % 2 else piece for index, piece in enumerate(pieces)), name


def _number(digits: str) -> tuple[int, str]:
    """What sorts as the number does; a label may have more digits than Python reads as one."""
    significant = digits.lstrip("0")
    return len(significant), significant
