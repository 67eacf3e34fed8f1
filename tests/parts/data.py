"""Data sets for tests."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from autoft.data.dataset import Dataset, Source, Square, bound, open_dataset
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.parts.base import Task
from autoft.parts.plugins import PluginRef
from autoft.tasks.single_label import SingleLabel

TASKS = PluginRef("tasks", "builtin", "autoft.builtin.tasks")


def source(path: Path, task: Task | None = None) -> Source:
    """What lies in a folder, or in what a manifest lists."""
    listing = read_labelled(path)
    return Source(scan(listing, 1), bound(task or SingleLabel(), listing))


def dataset(path: Path, squares: Collection[Square], task: Task | None = None, seed: int = 0) -> Dataset:
    """The data set of a folder or manifest."""
    return open_dataset(source(path, task), seed, squares, 1)
