"""The split: stable, stratified, and no image on two sides."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.data.split import SHARE, Unsplit, missing_splits, require_enough, split, stratified_order
from autoft.errors import DataError
from autoft.tasks.single_label import SingleLabel

SPLITS = ("train", "val", "test")
# class index -> how many distinct images it has
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
seeds = st.integers(0, 2**63)


def flat(counts, copies=1):
    pairs = [(f"{label}-{i}", label) for label, count in enumerate(counts) for i in range(count)] * copies
    return [digest for digest, _ in pairs], [label for _, label in pairs]


def unsplit(digests, labels, given=None):
    given = given or [None] * len(digests)
    return [Unsplit(*one) for one in zip(digests, map(str, labels), labels, given, strict=True)]


def flat_split(digests, labels, seed):
    return split(unsplit(digests, labels), seed)


@given(sizes, seeds)
def test_each_class_is_split_60_20_20(counts, seed):
    digests, labels = flat(counts)
    chosen = flat_split(digests, labels, seed)
    for label, count in enumerate(counts):
        got = Counter(name for name, owner in zip(chosen, labels, strict=True) if owner == label)
        if count >= 3:
            assert got["val"] == got["test"] == max(1, round(SHARE * count)) and got["train"] >= 1


@given(st.lists(st.integers(1, 2), min_size=2, max_size=60), seeds)
def test_strata_too_small_for_every_split_are_taken_together(counts, seed):
    digests, labels = flat(counts)
    got = Counter(flat_split(digests, labels, seed))
    share = max(1, round(SHARE * len(digests))) if len(digests) > 2 else 0
    assert got["val"] == got["test"] == share


@given(sizes, seeds, st.randoms(use_true_random=False))
def test_order_of_listing_does_not_matter(counts, seed, rng):
    digests, labels = flat(counts)
    before = dict(zip(digests, flat_split(digests, labels, seed), strict=True))
    pairs = list(zip(digests, labels, strict=True))
    rng.shuffle(pairs)
    again = flat_split([digest for digest, _ in pairs], [label for _, label in pairs], seed)
    assert {digest: name for (digest, _), name in zip(pairs, again, strict=True)} == before


@given(st.lists(st.integers(3, 40), min_size=1, max_size=5), seeds)
def test_a_new_image_moves_at_most_two_others_of_its_class(counts, seed):
    digests, labels = flat(counts)
    before = flat_split(digests, labels, seed)
    after = flat_split([*digests, "new"], [*labels, 0], seed)[:-1]
    moved = [owner for old, new, owner in zip(before, after, labels, strict=True) if old != new]
    assert len(moved) <= 2 and set(moved) <= {0}


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), max_size=60), seeds)
def test_copies_stay_on_one_side_and_contradictions_train(images, seed):
    digests, labels = [str(digest) for digest, _ in images], [label for _, label in images]
    side: dict[str, set[str]] = {}
    for digest, name in zip(digests, flat_split(digests, labels, seed), strict=True):
        side.setdefault(digest, set()).add(name)
    assert all(len(names) == 1 for names in side.values())
    for digest, names in side.items():
        if len({label for other, label in zip(digests, labels, strict=True) if other == digest}) > 1:
            assert names == {"train"}


@given(sizes, seeds, st.sampled_from([("val",), ("test",), ("val", "test"), ()]))
def test_given_splits_are_kept_and_missing_ones_carved_from_train(counts, seed, held_out):
    digests, labels = flat(counts)
    given_splits = ["train"] * len(digests)
    for name in held_out:
        digests += [f"{name}-{label}" for label in range(len(counts))]
        labels += list(range(len(counts)))
        given_splits += [name] * len(counts)
    images = unsplit(digests, labels, given_splits)
    chosen = split(images, seed)
    assert set(missing_splits(images)) == {"val", "test"} - set(held_out)
    for wish, name in zip(given_splits, chosen, strict=True):
        assert name == wish or (wish == "train" and name not in held_out)
    for label, count in enumerate(counts):
        mine = Counter(
            n for n, owner, w in zip(chosen, labels, given_splits, strict=True) if (owner, w) == (label, "train")
        )
        if count > 2 - len(held_out):
            for name in set(SPLITS[1:]) - set(held_out):
                assert mine[name] == max(1, round(SHARE * count))
            assert mine["train"] >= 1


def test_train_only_splits_like_flat_data():
    digests, labels = flat([10, 7])
    assert split(unsplit(digests, labels, ["train"] * 17), 3) == flat_split(digests, labels, 3)


def test_another_seed_gives_another_split():
    digests, labels = flat([50])
    assert flat_split(digests, labels, 0) != flat_split(digests, labels, 1)
    assert flat_split(digests, labels, 0) == flat_split(digests, labels, 0)


def test_classes_do_not_share_a_bias():
    digests, labels = flat([100] * 10)
    random.Random(0).shuffle(labels)
    assert Counter(flat_split(digests, labels, 0))["val"] == pytest.approx(200, abs=10)


def test_enough_images_counts_copies_once():
    task = SingleLabel()
    require_enough(task, unsplit("123", "aaa"), ["a"])
    with pytest.raises(DataError, match=r"'a' has 2.*at least 3"):
        require_enough(task, unsplit("122", "aaa"), ["a"])
    with pytest.raises(DataError, match=r"'b' has 0.*in train"):
        require_enough(task, unsplit("1", "a", ["train"]), ["a", "b"])
    with pytest.raises(DataError, match="and 2 more classes"):
        require_enough(task, [], list("abcdefg"))


def test_images_that_do_not_count_are_told_with_the_reason():
    """Ten of one image in each class are none: each has two labels. Copies within a class are one."""
    with pytest.raises(DataError, match=r"'b' has 0.* \(not counting 20 that have several labels\)"):
        require_enough(SingleLabel(), unsplit("1" * 20, "a" * 10 + "b" * 10), ["a", "b"])
    with pytest.raises(DataError, match=r"\(not counting 3 that are copies of others and 2 that have several labels\)"):
        require_enough(SingleLabel(), unsplit("1112332", "aaaabbb"), ["a", "b"])


def test_a_task_that_asks_for_nothing_still_needs_an_image_for_each_split():
    class Anything(SingleLabel):
        def too_few(self, sizes, needed):
            return None

    require_enough(Anything(), unsplit("123", "abc"), ["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"there are 2 different readable images \(not counting 1 that are copies of others\); at l"
    ):
        require_enough(Anything(), unsplit("122", "abb"), ["a", "b"])


def test_every_beginning_of_the_stratified_order_is_a_fair_sample():
    labels = np.repeat([0, 1, 2], [600, 300, 12])
    np.random.default_rng(0).shuffle(labels)
    order = stratified_order(labels, seed=3)
    assert sorted(order) == list(range(len(labels)))
    assert set(labels[order[:3]]) == {0, 1, 2}
    for count in (76, 304, 608):
        counts = np.bincount(labels[order[:count]], minlength=3)
        assert np.abs(counts - np.bincount(labels) * count / len(labels)).max() <= 1
    assert (order == stratified_order(labels, seed=3)).all() and (order != stratified_order(labels, seed=4)).any()
