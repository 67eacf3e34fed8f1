"""What labels mean: to a task, texts that differ may say the same ("cat|dog" and "dog|cat", "1.0" and "1")."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np

from autoft.errors import PluginError
from autoft.parts.base import Task
from autoft.values.dataset import DataProblem, Listing, Repeat


def meanings(task: Task, labels: Iterable[str]) -> Mapping[str, Hashable]:
    """What the task, bound to its targets, makes of each of the labels, which it can use."""
    texts = [*dict.fromkeys(labels)]
    rows = task.encode(texts) + 0 if texts else ()  # + 0, as -0 is 0
    return {text: row.tobytes() for text, row in zip(texts, rows, strict=True)}


def contradictions(task: Task, listing: Listing) -> Iterator[DataProblem]:
    """The lines that say something else of an image than the one that counts."""
    for one in listing.repeats:
        if one.entry.side != one.first.side or not _same_target(task, one):
            yield DataProblem(one.entry.path, one.reason)


def _same_target(task: Task, repeat: Repeat) -> bool:
    one, other = repeat.entry.label, repeat.first.label
    if one == other:
        return True
    if task.problem(one) or task.problem(other):
        return False
    try:
        return np.array_equal(*task.encode([one, other]))
    except (KeyError, ValueError, PluginError):  # a label that no line that counts has
        return False
