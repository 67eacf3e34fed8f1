"""The split: which images train, which validate, which test.

Decided by content, not by name or order: within a class the images are ordered by a keyed hash of their bytes; the low
end is the test split, the high end the validation split. So the order of listing does not matter, copies of one image
stay together, and a new image moves at most one other image across each border.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from autoft.errors import DataError
from autoft.values.dataset import SplitName

SHARE: Final = 0.2
"""Part of a class that goes into each split that is carved from the training images."""


def split(
    digests: Sequence[str], labels: Sequence[int], given: Sequence[SplitName | None], seed: int
) -> list[SplitName]:
    """The split of each image, from its content hash, class index and given split (None for flat data).

    A given validation or test split is kept; one that is missing is carved from the rest: 20 % of each class, at
    least one image where the class has enough. An image that stands in several classes contradicts itself and trains.
    """
    carved = missing_splits(given)
    own = _own_images(digests, labels, given)
    chosen: dict[str, SplitName] = {}
    for images in own.values():
        chosen |= _carve(images, carved, seed)
    return [
        chosen.get(digest, "train") if wish in (None, "train") else wish
        for digest, wish in zip(digests, given, strict=True)
    ]


def missing_splits(given: Sequence[SplitName | None]) -> tuple[SplitName, ...]:
    """Which of validation and test have to be carved from the training images."""
    held_out: tuple[SplitName, ...] = ("val", "test")
    return tuple(name for name in held_out if name not in given)


def require_enough(
    classes: Sequence[str],
    digests: Sequence[str],
    labels: Sequence[int],
    given: Sequence[SplitName | None],
) -> None:
    """Raise `DataError` unless each class has one training image and one more for each split to be carved.

    Copies count once, and an image that stands in several classes counts for none.
    """
    needed = 1 + len(missing_splits(given))
    own = _own_images(digests, labels, given)
    small = [(name, len(own.get(index, ()))) for index, name in enumerate(classes)]
    small = [(name, count) for name, count in small if count < needed]
    if not small:
        return
    where = " in train" if any(given) else ""
    shown = ", ".join(f"{name!r} has {count}" for name, count in small[:5])
    more = f" and {len(small) - 5} more classes have too few" if len(small) > 5 else ""
    noun = "different images" if needed > 1 else "image"
    raise DataError(
        f"class {shown}{more}: each class needs at least {needed} readable {noun}{where}; "
        "add images or take the folder away"
    )


def stratified_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The positions `(n,)` of `labels` `(n,)` in an order whose every beginning holds the classes as the whole does.

    As long as it can it holds each class once. Shuffled within the classes by `seed`.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        where = shuffled[labels[shuffled] == label]
        place[where] = np.arange(len(where)) / len(where)
    order: NDArray[np.int64] = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order


def _own_images(
    digests: Sequence[str], labels: Sequence[int], given: Sequence[SplitName | None]
) -> Mapping[int, set[str]]:
    """Class index to the distinct training images that stand in no other class."""
    owners: defaultdict[str, set[int]] = defaultdict(set)
    for digest, label, wish in zip(digests, labels, given, strict=True):
        if wish in (None, "train"):
            owners[digest].add(label)
    own: defaultdict[int, set[str]] = defaultdict(set)
    for digest, standing_in in owners.items():
        if len(standing_in) == 1:
            own[min(standing_in)].add(digest)
    return own


def _carve(images: set[str], carved: Sequence[SplitName], seed: int) -> Mapping[str, SplitName]:
    if len(images) <= len(carved):
        return {}
    count = max(1, round(SHARE * len(images)))
    ordered = sorted(images, key=lambda digest: (_rank(digest, seed), digest))
    ends: Mapping[SplitName, list[str]] = {"test": ordered[:count], "val": ordered[-count:]}
    return {digest: name for name in carved for digest in ends[name]}


def _rank(digest: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{digest}".encode(), digest_size=8).digest()
