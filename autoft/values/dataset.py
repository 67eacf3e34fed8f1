"""A data set: what a reader found, samples, and what is known of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SplitName = Literal["train", "val", "test"]
ValueRange = tuple[float, float]
"""The values of float and 32-bit integer images that become 0 and 255."""


@dataclass(frozen=True)
class Entry:
    """One image file as a reader found it: `path` relative to the data folder (posix), class index, given split."""

    path: str
    label: int
    split: SplitName | None = None


@dataclass(frozen=True)
class DataProblem:
    """One file with which something is wrong, and what: in most places, why it is not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a reader found in a folder, before any image is opened. `classes` in natural order."""

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[DataProblem, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One readable image: its `row` in the pixel caches, path, class index, split and content hash."""

    row: int
    path: str
    label: int
    split: SplitName
    digest: str


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set: class names, images per split, fingerprint, median short side in pixels.

    `aspect` is the median of long side / short side, at least 1. `problems` are the files that are not used.
    `value_range` is the one scale for its float and 32-bit integer images, None where there are none. `contradictions`
    are images that stand in several classes, and are used as all of them. `unseen` are float images that are used
    though some of their pixels hold no number (the least value stands there, for infinity the greatest), or though the
    one scale leaves a single grey of them.
    """

    root: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    fingerprint: str
    short_side: int
    aspect: float
    problems: tuple[DataProblem, ...] = ()
    value_range: ValueRange | None = None
    contradictions: tuple[DataProblem, ...] = ()
    unseen: tuple[DataProblem, ...] = ()
