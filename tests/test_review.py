"""What is said of labels before anything trains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from parts.data import dataset
from parts.notes import Notes

from autoft.data.dataset import read_samples, write_split_csv
from autoft.data.readers import read_labelled
from autoft.engine.engine import _report_data, _report_layout
from autoft.engine.review import bound_as_chosen, review
from autoft.errors import DataError, StudyError
from autoft.parts.base import Task
from autoft.study.study import Study
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.ordinal import Ordinal
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import SingleLabel
from autoft.values.dataset import Entry, Listing

KNOWN = SingleLabel(), MultiLabel(), Regression(), Ordinal()


# ---------------------------------------------------------------- numbers that are taken for classes


def chosen(labels: Sequence[str], columns: tuple[str, ...] = ("y",), task: Task = KNOWN[0]) -> list[str]:
    """What is said when nobody named a task and `task` gets a manifest with these labels."""
    notes = Notes()
    entries = tuple(Entry(f"{number}.png", label) for number, label in enumerate(labels))
    bound_as_chosen(task, KNOWN, Listing("/data", (), entries, (), columns, "/data/y.csv"), notes)
    return notes.lines


def test_numbers_that_become_classes_get_a_line() -> None:
    (line,) = chosen(["1", "2", "n/a"] * 4)
    assert line.startswith("3 classes: 8 of 12 labels are numbers (not that of 2.png: 'n/a' is no number); to predict")
    assert line.endswith("add --task regression")
    (line,) = chosen(["1", "2", "3"] * 4)
    assert line.startswith("3 classes: the labels are numbers; to predict them as such add --task regression")


@pytest.mark.parametrize(
    "labels",
    [["cat", "dog"] * 4, ["cat", "dog", "3"] * 4, ["1a", "2b", "3c"] * 4],
    ids=["names", "few numbers", "begin with digits"],
)
def test_classes_get_none(labels: list[str]) -> None:
    assert chosen(labels) == []


@pytest.mark.parametrize(
    ("labels", "columns", "says"),
    [
        ([str(number) for number in range(30)], ("y",), "class '0' has 1.*; the labels are numbers; .*--task regress"),
        ([f"{n},{n}" for n in range(8)] + [",1"] * 2, ("y", "z"), r"2 columns.*8 of 10 .*\(not that of 8\.png: ''"),
        (["1e300,1", "2e300,2"] * 4, ("y", "z"), r"none that can be predicted as such, e\.g\. 0\.png: '1e300' is too"),
    ],
)
def test_what_classes_cannot_be_of_numbers_says_what_to_do(
    labels: list[str], columns: tuple[str, ...], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        chosen(labels, columns)


def test_a_refusal_of_names_stays_as_it_is() -> None:
    with pytest.raises(DataError, match=r"add images or take what has too few out of the data$"):
        chosen(["cat", "dog"])


# ---------------------------------------------------------------- labels that no image of a split has


def reviewed(data: Path, rows: Sequence[tuple[str, str]], task: Task) -> list[str]:
    """What is said of `tiny_images` with these labels and splits, a colour each in turn."""
    paths = sorted(path.relative_to(data) for path in data.rglob("*.png"))
    lines = (f"{path},{label},{split}" for path, (label, split) in zip(paths, rows, strict=False))
    (data / "y.csv").write_text("\n".join(["image,label,split", *lines]) + "\n")
    notes = Notes()
    review(dataset(data / "y.csv", (), task), notes)
    return notes.lines


def test_classes_that_a_split_lacks_are_named(tiny_images: Path) -> None:
    rows = [("a", "train"), ("b", "train"), ("c", "train"), ("a", "val"), ("a", "test"), ("b", "test")]
    assert reviewed(tiny_images, rows, SingleLabel()) == [
        "no validation image of 'b', 'c': the search does not see how well it is told",
        "no test image of 'c': the test score does not see how well it is told",
    ]


def test_labels_that_are_never_learned_are_named(tiny_images: Path) -> None:
    rows = [("a|b", "train"), ("", "train"), ("a|b|x", "val"), ("b|a|x", "test")]
    assert reviewed(tiny_images, rows, MultiLabel()) == ["no training image of 'x': the model will not know it"]


@pytest.mark.parametrize(("bare", "images"), [("val", "validation"), ("train", "training")])
def test_a_split_without_a_single_label_tells_no_trial_from_another(bare: str, images: str, tiny_images: Path) -> None:
    rows = [
        ("" if split == bare else label, split) for split in ("train", "val", "test") for label in ("a", "b", "a|b")
    ]
    with pytest.raises(DataError, match=f"not one {images} image has a label"):
        reviewed(tiny_images, rows, MultiLabel())


def test_a_test_split_without_a_single_label_gets_a_line(tiny_images: Path) -> None:
    rows = [("a", "train"), ("b", "train"), ("a|b", "val"), ("", "test")]
    assert reviewed(tiny_images, rows, MultiLabel()) == ["not one test image has a label: the test score tells nothing"]


def test_numbers_lack_nothing(tiny_images: Path) -> None:
    assert reviewed(tiny_images, [("1", "train"), ("2", "train"), ("3", "val"), ("4", "test")], Regression()) == []


# ---------------------------------------------------------------- names that look alike


def test_classes_that_differ_in_case_or_spaces_get_a_line(tiny_images: Path) -> None:
    every = [(label, split) for split in ("train", "val", "test") for label in ("a", "A", "red fox", "red  fox")]
    lines = reviewed(tiny_images, every, SingleLabel())
    assert [re.findall(r"'([^']*)'", line) for line in lines] == [["A", "a"], ["red  fox", "red fox"]] or [
        re.findall(r"'([^']*)'", line) for line in lines
    ] == [["a", "A"], ["red fox", "red  fox"]]


@pytest.mark.parametrize("task", [SingleLabel(), Ordinal(), MultiLabel()], ids=lambda task: task.name)
@pytest.mark.parametrize("other", ["cafe\u0301", "caf\u00e9\u200b", "\ufeffcaf\u00e9"])
def test_names_that_are_printed_alike_are_refused(task: Task, other: str) -> None:
    with pytest.raises(DataError, match="look alike; give them one name"):
        task.names(["caf\u00e9", "dog", other], ("label",))


# ---------------------------------------------------------------- what is not used


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_left_alone_is_said_or_refused(tiny_images: Path, strict: bool) -> None:
    for split, numbers in (("my_train", range(8)), ("my_test", range(8, 12))):
        for color in ("red", "blue"):
            (tiny_images / split / color).mkdir(parents=True)
            for number in numbers:
                (tiny_images / color / f"{number}.png").rename(tiny_images / split / color / f"{number}.png")
    (tiny_images / "my_test" / "green").mkdir()
    (tiny_images / "green" / "0.png").rename(tiny_images / "my_test" / "green" / "0.png")
    notes, listing = Notes(), read_labelled(tiny_images)
    if strict:
        refused = "^--strict: 2 places would be left alone, such as green: 11 images beside the split folders$"
        with pytest.raises(StudyError, match=refused):
            _report_layout(listing, Study(str(tiny_images), strict=True), notes)
        return
    _report_layout(listing, Study(str(tiny_images)), notes)
    assert notes.lines == [
        "split folders: 'my_train' is train, 'my_test' is test",
        "2 places are left alone:",
        "  green: 11 images beside the split folders",
        "  my_test/green: 1 image of a class that the training folder lacks",
    ]
    kept = dataset(tiny_images, ()).info.left_alone
    assert [problem.path for problem in kept] == ["green", "my_test/green"]


@pytest.mark.parametrize("given", [{}, {0: "train"}, {0: "train", 1: "test"}])
def test_groups_are_kept_together_and_those_that_were_parted_are_named(
    tiny_images: Path, given: dict[int, str]
) -> None:
    """Also in a run that goes on: split.csv has them. Two images of a colour are a group."""
    lines = [
        f"{color}/{number}.png,{color},{number // 2},{given.get(number, '')}"
        for color in ("red", "blue")
        for number in range(12)
    ]
    (tiny_images / "y.csv").write_text("\n".join(["image,label,group,split", *lines]))
    notes, found = Notes(), dataset(tiny_images / "y.csv", ())
    review(found, notes)
    kept = "6 groups of images, by the column group: each is in one split"
    if len(given) < 2:
        assert notes.lines == [kept] and not found.parted
    else:
        parted = "  group '0' has images in train and test, as the column split says"
        assert notes.lines[:2] == [f"{kept} but for 1", parted]
        assert found.parted == {"0": ("train", "test")}
    write_split_csv(found, tiny_images.parent / "split.csv")
    assert read_samples(tiny_images.parent / "split.csv", found.info) == found.samples


def test_one_line_that_is_not_used_is_one(tiny_images: Path) -> None:
    lines = [f"{color}/{number}.png,{color}" for color in ("red", "blue") for number in range(6)]
    (tiny_images / "y.csv").write_text("\n".join(["image,label", *lines, "red/0.png,blue"]))
    notes = Notes()
    _report_data(dataset(tiny_images / "y.csv", ()), notes)
    assert notes.lines[1] == "1 line is not used:"
    assert notes.lines[2].startswith("  red/0.png: line 14 says 'blue', line 2 'red', which counts")
