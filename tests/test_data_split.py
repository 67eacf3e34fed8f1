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


# ---------------------------------------------------------------- groups

# of each image its group, of some dozens, and its class
grouped = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=3, max_size=120)


def images_of(pairs, given=None, copies=()):
    """An image for each pair of group and class; those in `copies` are the first one's file again."""
    return [
        Unsplit(f"{0 if number in copies else number}", str(label), label, (given or {}).get(group), f"patient {group}")
        for number, (group, label) in enumerate(pairs)
    ]


def splits_of_groups(images, chosen):
    places = {}
    for image, name in zip(images, chosen, strict=True):
        places.setdefault(image.group, set()).add(name)
    return places


@given(grouped, seeds, st.randoms(use_true_random=False))
def test_groups_stay_whole_in_whatever_order_they_are_listed(pairs, seed, rng):
    images = images_of(pairs)
    try:
        chosen = split(images, seed)
    except DataError as refused:
        assert "cannot be parted" in str(refused)
        return
    assert all(len(places) == 1 for places in splits_of_groups(images, chosen).values())
    assert set(chosen) == set(SPLITS)
    shuffled = rng.sample(list(zip(images, chosen, strict=True)), len(images))
    assert split([image for image, _ in shuffled], seed) == [name for _, name in shuffled]


@given(seeds)
def test_of_many_groups_each_split_has_about_its_share_of_each_class(seed):
    rng = random.Random(seed)
    pairs = [(group, rng.randrange(3)) for group in range(100) for _ in range(rng.randint(1, 5))]
    chosen = split(images_of(pairs), seed)
    for label in range(3):
        names = [name for name, (_, its) in zip(chosen, pairs, strict=True) if its == label]
        assert abs(names.count("test") / len(names) - SHARE) < 0.1
        assert abs(names.count("val") / len(names) - SHARE) < 0.1


@given(seeds)
def test_a_group_that_has_all_of_a_class_trains(seed):
    pairs = [(0, 9), (0, 1), (0, 2), *((group, label) for group in range(1, 12) for label in (1, 2))]
    images = images_of(pairs)
    assert splits_of_groups(images, split(images, seed))["patient 0"] == {"train"}


def test_groups_that_have_a_class_each_cannot_be_parted():
    with pytest.raises(DataError, match=r"3 groups cannot be parted, as no class is in two.*; add groups, or say in a"):
        split(images_of([(0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 2)]), 0)
    with pytest.raises(DataError, match=r"2 groups cannot be parted into 3 splits; add groups"):
        split(images_of([(0, 0), (0, 1), (1, 0), (1, 1)]), 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "groups",
    [
        [{0: 20, 1: 20}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1}],  # a large one
        [{0: 1000}, {0: 10}, {0: 10}],
        [{0: 100}, *[{0: 1}] * 20],
        [{0: 2}, {1: 2}, {0: 1, 1: 1}],
        [{1: 4}, {1: 7, 2: 2}, {0: 3, 2: 1}, {2: 1}],
        [*[{0: 3, 1: 1}] * 9, {2: 5, 0: 1}, {2: 4, 1: 1}],
        [{label: 1} for label in (0, 2, 0, 1, 2, 0, 1, 1)],
    ],
)
def test_every_split_has_a_group_and_train_some_of_each_class_where_that_can_be(groups, seed):
    pairs = [(n, label) for n, group in enumerate(groups) for label, count in group.items() for _ in range(count)]
    chosen = split(images_of(pairs), seed)
    assert set(chosen) == set(SPLITS)
    assert {label for name, (_, label) in zip(chosen, pairs, strict=True) if name == "train"} == {
        label for _, label in pairs
    }


@given(seeds)
def test_of_many_groups_three_fifths_train(seed):
    rng = random.Random(seed)
    pairs = [(group, rng.randrange(20)) for group in range(300) for _ in range(rng.randint(1, 6))]
    got = Counter(split(images_of(pairs), seed))
    assert abs(got["train"] / len(pairs) - 0.6) < 0.02


@given(seeds)
def test_groups_with_an_image_in_common_are_one(seed):
    pairs = [(group, label) for group in range(10) for label in (0, 1)]
    images = images_of(pairs, copies=(4, 12))  # of the groups 2 and 6, which class 0 is said of too
    places = splits_of_groups(images, split(images, seed))
    assert places["patient 0"] == places["patient 2"] == places["patient 6"]


@given(seeds)
def test_an_image_without_a_split_has_that_of_its_group(seed):
    pairs = [(group, label) for group in range(8) for label in (0, 1)]
    images = [
        Unsplit(image.digest, image.meaning, image.stratum, "test" if number == 3 else None, image.group)
        for number, image in enumerate(images_of(pairs))
    ]
    places = splits_of_groups(images, split(images, seed))
    assert places["patient 1"] == {"test"}
    assert sum(name == {"test"} for name in places.values()) == 1  # what is given is not added to


def test_a_group_that_was_parted_by_hand_stays_so():
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    names = ("train", "test", "val", "val", "train", "train")
    images = [
        Unsplit(image.digest, image.meaning, image.stratum, name, image.group)
        for image, name in zip(images_of(pairs), names, strict=True)
    ]
    assert split(images, 0) == list(names)
