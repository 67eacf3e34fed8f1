"""The split: which images train, which validate, which test.

Decided by content, not by name or order: within a class the images are ordered by a keyed hash of their bytes; the low
end is the test split, the high end the validation split. So the order of listing does not matter, copies of one image
stay together, and a new image moves at most one other image across each border.

Where images belong to groups, whole groups are dealt out (`grouped`); the hash only puts those of one size in order.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoft.data.grouped import dealt_out
from autoft.errors import DataError
from autoft.parts.base import Task
from autoft.values.dataset import SplitName

SHARE: Final = 0.2
"""Part of a stratum that goes into each split that is carved from the training images."""


@dataclass(frozen=True)
class Unsplit:
    """An image before the split: content hash, what its label means to the task, its stratum by it, given split.

    Without a given split it is None. Images of one `group` are not parted; "" is none.
    """

    digest: str
    meaning: Hashable
    stratum: Hashable
    given: SplitName | None
    group: str = ""

    @property
    def trains(self) -> bool:
        """Whether it may train: no other split was given."""
        return self.given in (None, "train")


def split(images: Sequence[Unsplit], seed: int) -> list[SplitName]:
    """The split of each image.

    A given validation or test split is kept; one that is missing is carved from the rest: 20 % of each stratum, at
    least one image where it has enough; strata that have not are taken together. An image with several labels
    contradicts itself and trains. Groups stay whole.
    """
    carved = missing_splits(images)
    if any(image.group for image in images):
        return _split_groups(images, carved, seed)
    chosen: dict[str, SplitName] = {}
    small: set[str] = set()
    for digests in _own_images(images).values():
        if len(digests) > len(carved):
            chosen |= _carve(digests, carved, seed)
        else:
            small |= digests
    chosen |= _carve(small, carved, seed)
    return [chosen.get(image.digest, "train") if image.trains else image.given or "train" for image in images]


def missing_splits(images: Sequence[Unsplit]) -> tuple[SplitName, ...]:
    """Which of validation and test have to be carved from the training images."""
    given = {image.given for image in images}
    held_out: tuple[SplitName, ...] = ("val", "test")
    return tuple(name for name in held_out if name not in given)


def require_enough(task: Task, images: Sequence[Unsplit], known: Sequence[Hashable]) -> None:
    """Raise `DataError` unless the images can be split: each split needs one, and the task may want more.

    `known` are all strata there should be, also without an image. Copies count once, and an image with several labels
    counts for none.
    """
    needed = 1 + len(missing_splits(images))
    own = _own_images(images)
    where = " in train" if any(image.given for image in images) else ""
    noun = "different images" if needed > 1 else "image"
    sizes = {stratum: len(own.get(stratum, ())) for stratum in dict.fromkeys(known)}
    if reason := task.too_few(sizes, needed):
        raise DataError(
            f"{reason} at least {needed} readable {noun}{where}{_not_counted(images)}; add images or take what has too "
            "few out of the data"
        )
    if (count := len({digest for digests in own.values() for digest in digests})) < needed:
        lacking = f"there are {count} different readable images{where}{_not_counted(images)}"
        raise DataError(f"{lacking}; at least {needed} are needed: add some")


def _not_counted(images: Sequence[Unsplit]) -> str:
    """Which images to train on count for nothing, and why; "" when all count."""
    training, said = [image for image in images if image.trains], _said(images)
    torn = sum(len(said[image.digest]) > 1 for image in training)
    copies = len(training) - torn - sum(len(meanings) == 1 for meanings in said.values())
    found = [f"{copies} that are copies of others"] * bool(copies) + [f"{torn} that have several labels"] * bool(torn)
    return f" (not counting {' and '.join(found)})" if found else ""


def stratified_order(strata: Sequence[Hashable], seed: int) -> NDArray[np.int64]:
    """The positions `(n,)` of `strata` `(n,)` in an order whose every beginning holds the strata as the whole does.

    As long as it can it holds each once. Shuffled within the strata by `seed`.
    """
    index = {stratum: number for number, stratum in enumerate(dict.fromkeys(strata))}
    numbers = np.array([index[stratum] for stratum in strata], np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    # Stable, so that within a stratum the shuffled order stays.
    grouped = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    sizes = np.bincount(numbers, minlength=len(index))
    within = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(numbers))
    place[grouped] = within / np.repeat(sizes, sizes)
    order: NDArray[np.int64] = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order


def _said(images: Sequence[Unsplit]) -> Mapping[str, set[Hashable]]:
    """What the labels of each distinct training image mean."""
    said: defaultdict[str, set[Hashable]] = defaultdict(set)
    for image in images:
        if image.trains:
            said[image.digest].add(image.meaning)
    return said


def _own_images(images: Sequence[Unsplit]) -> Mapping[Hashable, set[str]]:
    """Stratum to the distinct training images in it that have one label."""
    said = _said(images)
    own: defaultdict[Hashable, set[str]] = defaultdict(set)
    for image in images:
        if image.trains and len(said[image.digest]) == 1:
            own[image.stratum].add(image.digest)
    return own


def _carve(images: set[str], carved: Sequence[SplitName], seed: int) -> Mapping[str, SplitName]:
    if len(images) <= len(carved):
        return {}
    count = max(1, round(SHARE * len(images)))
    ordered = sorted(images, key=lambda digest: (_rank(digest, seed), digest))
    ends: Mapping[SplitName, list[str]] = {"test": ordered[:count], "val": ordered[-count:]}
    return {digest: name for name in carved for digest in ends[name]}


def _split_groups(images: Sequence[Unsplit], carved: Sequence[SplitName], seed: int) -> list[SplitName]:
    """As `split`, for images of which some belong to groups; one that does not is a group of its own."""
    images = _as_their_groups(images)
    group_of = _joined(images)
    sizes: defaultdict[str, Counter[Hashable]] = defaultdict(Counter)
    for stratum, digests in _own_images(images).items():
        for digest in digests:
            sizes[group_of[digest]][stratum] += 1
    shares: dict[SplitName, float] = {"train": 1 - SHARE * len(carved), **dict.fromkeys(carved, SHARE)}
    chosen = dealt_out(sizes, shares, partial(_rank, seed=seed))
    return [chosen.get(group_of[image.digest], "train") if image.trains else image.given or "train" for image in images]


def _as_their_groups(images: Sequence[Unsplit]) -> list[Unsplit]:
    """The images, one of no given split in that of its group, where the group has one."""
    given: defaultdict[str, set[SplitName]] = defaultdict(set)
    for image in images:
        if image.group and image.given:
            given[image.group].add(image.given)
    of_group = {group: splits.pop() for group, splits in given.items() if len(splits) == 1}
    return [image if image.given else replace(image, given=of_group.get(image.group)) for image in images]


def _joined(images: Sequence[Unsplit]) -> Mapping[str, str]:
    """What the group of each distinct image is called; groups that have an image in common are one."""
    from scipy.cluster.hierarchy import DisjointSet  # takes a tenth of a second to import

    parts = DisjointSet(f"image {image.digest}" for image in images)
    for image in images:
        if image.group:
            parts.add(f"group {image.group}")
            parts.merge(f"image {image.digest}", f"group {image.group}")
    called = {name: min(part) for part in parts.subsets() for name in part}
    return {image.digest: called[f"image {image.digest}"] for image in images}


def _rank(digest: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8).digest()
