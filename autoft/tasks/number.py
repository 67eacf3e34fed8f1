"""`number`: a number as people write it."""

from __future__ import annotations


def number(text: str) -> float:
    """The number that a text is, in any digits; spaces around it do not count. Raises `ValueError` when it is none.

    `float` also takes "1_2" for 12, as Python writes large numbers; in data that is a name, or two numbers.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)
