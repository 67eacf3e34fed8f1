"""Text of others in Markdown: it shows as it is, and breaks no table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def plain(value: object) -> str:
    """`value` so that Markdown shows it as it is, within a line or a table's cell; control characters as escapes."""
    visible = "".join(letter if letter.isprintable() else _escape(letter) for letter in str(value))
    return re.sub(r"([\\`*_\[\]<>&|~#$!])", r"\\\1", visible)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
