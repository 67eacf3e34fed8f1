"""images.json: the images of the run, by content, so that a bundle that has left its run knows them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from autoft.values.dataset import Sample, SplitName, TrainOn

DIGITS: Final = 12
"""Of a content hash: with a million images known, one stranger in 280 million is taken for one of them."""
MOST: Final = 100_000


@dataclass(frozen=True)
class KnownImages:
    """images.json: `splits` holds the first `DIGITS` hexadecimal digits of the hash of each image's file, end to end.

    `hash` is the algorithm, `train_on` the splits that the model has trained on. Of more than `MOST` images only those
    whose hash comes before `below` are listed, a random sample of each split; otherwise `below` is empty.
    """

    splits: Mapping[SplitName, str]
    below: str = ""
    hash: str = "blake2b-128"
    train_on: TrainOn = "train"

    def split_of(self, digest: str) -> SplitName | None:
        """The split an image was in, by its content hash in hex; None for one that is not listed."""
        return self._index.get(digest[:DIGITS])

    def may_list(self, digest: str) -> bool:
        """Whether an image of this hash would be listed if it were of the run."""
        return not self.below or digest[:DIGITS] < self.below

    @cached_property
    def _index(self) -> Mapping[str, SplitName]:
        return {
            digests[start : start + DIGITS]: split
            for split, digests in self.splits.items()
            for start in range(0, len(digests), DIGITS)
        }


def known_images(samples: Iterable[Sample], most: int = MOST, train_on: TrainOn = "train") -> KnownImages:
    """What images.json holds of a data set; copies of one image count once."""
    split_of = {sample.digest[:DIGITS]: sample.split for sample in samples}
    digests = sorted(split_of)
    listed: dict[SplitName, list[str]] = {"train": [], "val": [], "test": []}
    for digest in digests[:most]:
        listed[split_of[digest]].append(digest)
    below = digests[most] if len(digests) > most else ""
    return KnownImages({split: "".join(names) for split, names in listed.items()}, below, train_on=train_on)
