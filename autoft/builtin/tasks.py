"""The tasks autoft comes with. The first is the one of images whose labels no other task claims."""

from __future__ import annotations

from collections.abc import Iterable

from autoft import MultiLabel, Ordinal, Regression, SingleLabel, Task, hookimpl


@hookimpl
def autoft_tasks() -> Iterable[Task]:
    """What can be predicted."""
    return [SingleLabel(), MultiLabel(), Regression(), Ordinal()]
