"""Counts for people."""

from __future__ import annotations


def counted(number: int | str, noun: str) -> str:
    """The number with its noun: `1 image`, `1,200 images`, `0.5 passes`. Text stands as it is: `1` of it is one."""
    shown = number if isinstance(number, str) else f"{number:,}"
    return f"{shown} {noun if shown == '1' else plural(noun)}"


def passes(step: float, digits: int = 3) -> str:
    """So many passes over the images to train on, to so many digits."""
    return counted(f"{step:.{digits}g}", "pass")


def milliseconds(number: float) -> str:
    """A time as people read it: `7.25 ms`."""
    return f"{number:.4g} ms" if number < 1000 else f"{number:,.0f} ms"


def plural(noun: str) -> str:
    """The noun as it is behind any number but 1; of `column of numbers` the first word."""
    head, of, rest = noun.partition(" of ")
    return f"{head}{'es' if head.endswith('s') else 's'}{of}{rest}"
