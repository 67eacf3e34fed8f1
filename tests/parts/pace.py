"""Budgets for searches in processes of their own, which hold what this machine takes."""

from __future__ import annotations

from typing import Final

from autoft.system.starting import start_slowness

SLOWNESS: Final = start_slowness.__wrapped__()
"""Of this machine: what `conftest` has this process take it to be is 1."""


def seconds(number: float) -> str:
    """What takes so many seconds where they were measured, as `--time` takes it."""
    return f"{SLOWNESS * number:.0f}s"
