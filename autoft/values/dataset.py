"""A data set: what a reader found, samples, and what is known of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autoft.values.target import Targets

SplitName = Literal["train", "val", "test"]
TrainOn = Literal["train", "train+val"]
"""The splits that a trial trains on."""
ValueRange = tuple[float, float]
"""The values of float and 32-bit integer images that become 0 and 255."""


@dataclass(frozen=True)
class Entry:
    """One image file as a reader found it: `path` relative to the data folder (posix), label as text, given split.

    Images of one `group` belong together, those of a patient, say; "" is none.
    """

    path: str
    label: str
    split: SplitName | None = None
    group: str = ""

    @property
    def side(self) -> SplitName:
        """Where it is as long as nothing is carved: what was given, else it trains."""
        return self.split or "train"


@dataclass(frozen=True)
class DataProblem:
    """One file with which something is wrong, and what: in most places, why it is not used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Repeat:
    """A further line on the image of the entry `first`, which counts; `reason` says how the two differ in their text.

    Whether they mean the same is for the task to say.
    """

    entry: Entry
    first: Entry
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a reader found, before any image is opened.

    Paths are relative to the folder `root`; `manifest` is the file that lists them, if there is one. `classes` stand in
    natural order where folders name them, else there are none. `columns` are the names of what a label holds: of
    several columns it is one line of CSV. Each image has one entry; `repeats` are what else was said of some.
    `left_alone` are folders that no class or split was taken of, and `remarks` say what was taken for what.
    """

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[DataProblem, ...] = ()
    columns: tuple[str, ...] = ("label",)
    manifest: str = ""
    repeats: tuple[Repeat, ...] = ()
    left_alone: tuple[DataProblem, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """What was read: the manifest, or the folder."""
        return self.manifest or self.root


@dataclass(frozen=True)
class Sample:
    """One readable image: its `row` in the pixel caches, path, label as text, split, content hash, group or ""."""

    row: int
    path: str
    label: str
    split: SplitName
    digest: str
    group: str = ""


@dataclass(frozen=True)
class Imbalance:
    """The classes of the most and of the fewest training images, and how many these are."""

    common: str
    most: int
    rare: str
    fewest: int


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set: what is predicted, images per split, fingerprint, median short side in pixels.

    `aspect` is the median of long side / short side, at least 1. `problems` are the files that are not used.
    `value_range` is the one scale for its float and 32-bit integer images, None where there are none. `contradictions`
    are images that stand in several classes, and are used as all of them. `unseen` are float images that are used
    though some of their pixels hold no number (the least value stands there, for infinity the greatest), or though the
    one scale leaves a single grey of them. `split_digest` is the SHA-256 of split.csv, empty in runs of older versions.
    `left_alone` are folders that no class or split was taken of. Some images belong to one of so many `groups`.
    """

    root: str
    targets: Targets
    counts: Mapping[str, int]
    fingerprint: str
    short_side: int
    aspect: float
    problems: tuple[DataProblem, ...] = ()
    value_range: ValueRange | None = None
    contradictions: tuple[DataProblem, ...] = ()
    unseen: tuple[DataProblem, ...] = ()
    manifest: str = ""
    split_digest: str = ""
    left_alone: tuple[DataProblem, ...] = ()
    groups: int = 0

    @property
    def source(self) -> str:
        """What was read: the manifest, or the folder `root`."""
        return self.manifest or self.root
