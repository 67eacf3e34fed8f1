"""Parting images into splits by whole groups: those of a patient, say, of whom no split may know what another tells.

Groups are dealt out one by one, the largest first, each to the split whose share of every class it brings nearest; of a
few groups all ways are tried. That is the greedy way of scikit-learn's `StratifiedGroupKFold`, for shares that differ.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from autoft.errors import DataError
from autoft.values.counts import counted
from autoft.values.dataset import SplitName

Sizes = Mapping[str, Counter[Hashable]]
"""How many images of each stratum a group has."""

_FEW: Final = 7
"""So many groups can be dealt out in all ways."""


def dealt_out(sizes: Sizes, shares: Mapping[SplitName, float], rank: Callable[[str], bytes]) -> Mapping[str, SplitName]:
    """The split of each group, so that each split has about its share of every stratum, the first one some of each.

    `rank` puts groups of one size in order. Raises `DataError` for fewer groups than splits, and where no stratum is in
    two groups.
    """
    if len(sizes) < len(shares):
        raise DataError(f"{counted(len(sizes), 'group')} cannot be parted into {len(shares)} splits; {_HINT}")
    if max(Counter(itertools.chain.from_iterable(sizes.values())).values()) == 1 < len(shares):
        raise DataError(f"{counted(len(sizes), 'group')} cannot be parted, as no class is in two of them; {_HINT}")
    order = sorted(sizes, key=lambda group: (-sizes[group].total(), rank(group), group))
    if len(order) <= _FEW:
        return _best_of_all(sizes, shares, order)
    found = _one_by_one(sizes, shares, order, _of_first(sizes, shares))
    if len(set(found.values())) < len(shares):
        found = _one_by_one(sizes, shares, order, lambda *_: False)
    return _with_none_empty(found, sizes, shares)


_HINT: Final = "add groups, or say in a column split which images are to train, to validate and to test"


def _best_of_all(sizes: Sizes, shares: Mapping[SplitName, float], order: Sequence[str]) -> Mapping[str, SplitName]:
    """The first of the ways in which the first split lacks fewest strata, and all are nearest to their shares."""
    names, total = list(shares), _added_up(sizes.values())
    strata = list(total)
    count = np.array([total[one] for one in strata], float)
    parts = np.array([[sizes[group][one] for one in strata] for group in order], float) / count
    ways = np.array(
        [way for way in itertools.product(range(len(names)), repeat=len(order)) if len({*way}) == len(names)]
    )
    held = np.stack([(ways == number) @ parts for number in range(len(names))], axis=1)  # (ways, splits, strata)
    off = ((held - np.array(list(shares.values()))[:, None]) ** 2 @ count).sum(axis=1)
    best = np.lexsort((off.round(9), (held[:, 0] == 0).sum(axis=1)))[0]
    return {group: names[number] for group, number in zip(order, ways[best], strict=True)}


def _one_by_one(
    sizes: Sizes,
    shares: Mapping[SplitName, float],
    order: Sequence[str],
    is_of_first: Callable[[str, Counter[Hashable]], bool],
) -> Mapping[str, SplitName]:
    """Each group to the first split where that has to be, else to the one that it brings nearest to its shares."""
    total, first = _added_up(sizes.values()), next(iter(shares))
    held = {name: Counter[Hashable]() for name in shares}
    found: dict[str, SplitName] = {}

    def gain(name: SplitName, size: Counter[Hashable]) -> float:
        before, share = held[name], shares[name]
        return sum(more * (2 * (before[one] - share * total[one]) + more) / total[one] for one, more in size.items())

    for group in order:
        size = sizes[group]
        found[group] = first if is_of_first(group, held[first]) else min(shares, key=lambda name: gain(name, size))
        held[found[group]].update(size)
    return found


def _with_none_empty(
    found: Mapping[str, SplitName], sizes: Sizes, shares: Mapping[SplitName, float]
) -> Mapping[str, SplitName]:
    """An empty split gets the smallest group of the split with most groups, if possible one that leaves some of all."""
    filled = dict(found)
    for name in shares:
        if name in filled.values():
            continue
        fullest, _ = Counter(filled.values()).most_common(1)[0]
        there = [group for group in filled if filled[group] == fullest]
        left = _added_up(sizes[group] for group in there)
        lacking = {group: any(left[one] == sizes[group][one] for one in sizes[group]) for group in there}
        filled[min(there, key=lambda group: (lacking[group], sizes[group].total(), group))] = name
    return filled


def _of_first(sizes: Sizes, shares: Mapping[SplitName, float]) -> Callable[[str, Counter[Hashable]], bool]:
    """Whether a group has the last images of a stratum of which the first split has none yet, asked for each in turn.

    Strata of fewer images than splits count for nothing: such are sets of labels that hardly occur.
    """
    left, total = Counter(itertools.chain.from_iterable(sizes.values())), _added_up(sizes.values())

    def is_last(group: str, held: Counter[Hashable]) -> bool:
        left.subtract(dict.fromkeys(sizes[group], 1))
        return any(not left[one] and not held[one] and total[one] >= len(shares) for one in sizes[group])

    return is_last


def _added_up(sizes: Iterable[Counter[Hashable]]) -> Counter[Hashable]:
    total = Counter[Hashable]()
    for size in sizes:
        total.update(size)
    return total
