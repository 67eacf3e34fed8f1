"""Image folders: what counts, what is reported, and one clear line for each folder that cannot be used."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.data.dataset import bound
from autoft.data.folder import ImageFolderReader
from autoft.data.walk import MAX_DEPTH
from autoft.errors import DataError
from autoft.media.image import decode
from autoft.system.natural import natural_key
from autoft.tasks.single_label import SingleLabel


def fill(folder: Path, count: int = 3, suffix: str = ".png") -> Path:
    """Files that look like images to a reader, which opens none."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}{suffix}").write_bytes(b"x")
    return folder


def read(root: Path):
    return ImageFolderReader().read(root)


def paths(listing, name: str) -> list[str]:
    return [entry.path for entry in listing.entries if entry.label == name]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reasons(listing) -> dict[str, str]:
    return {problem.path: problem.reason for problem in listing.problems}


def test_flat_folder_in_natural_order(tmp_path):
    for name in ("10", "2", "1"):
        fill(tmp_path / name, 3, ".JPG")
    listing = read(tmp_path)
    assert listing.classes == ("1", "2", "10") and listing.root == str(tmp_path.resolve())
    assert paths(listing, "10") == ["10/0.JPG", "10/1.JPG", "10/2.JPG"]
    assert {entry.split for entry in listing.entries} == {None} and not listing.problems


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "testing"), ("TRAIN", "dev", "Test")]
)
def test_split_folders_and_their_synonyms(tmp_path, names):
    for folder in names:
        for label in ("a", "b"):
            fill(tmp_path / folder / label)
    fill(tmp_path / "docs", 2, ".txt")
    listing = read(tmp_path)
    assert listing.classes == ("a", "b")
    found = {(PurePosixPath(entry.path).parts[0], entry.split) for entry in listing.entries}
    assert found == set(zip(names, ("train", "val", "test"), strict=True)) and len(listing.entries) == 18


def test_split_names_among_other_classes_are_classes(tmp_path):
    for name in ("train", "bus", "test"):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert listing.classes == ("bus", "test", "train")
    named = [f"{name!r} is taken for a class, though it is named as a split" for name in ("test", "train")]
    assert list(listing.remarks) == named


@pytest.mark.parametrize("split", ["test", "val", "Test set", "valid/x"])
@pytest.mark.parametrize("where", ["", "train/"])
def test_a_split_that_holds_the_classes_beside_it_is_no_class(tmp_path, split, where):
    for name in ("cat", "dog", f"{split}/cat", f"{split}/dog"):
        fill(tmp_path / where / name)
    message = refusal(tmp_path)
    assert "holds 'cat', which lies beside it too: it may be a split or a class" in message


def test_a_class_with_folders_as_the_others_and_files_named_alike_is_no_copy(tmp_path):
    for number, name in enumerate(("cat", "dog", "drawings/cat", "drawings/dog")):
        fill(tmp_path / name)
        (tmp_path / name / "0.png").write_bytes(bytes([number]))
    assert read(tmp_path).classes == ("cat", "dog", "drawings")


def test_split_folders_of_two_families_are_not_said_to_be_empty(tmp_path):
    for name in ("my_train/cat", "my_train/dog", "test/cat", "test/dog"):
        fill(tmp_path / name)
    assert "look like splits, not classes" in refusal(tmp_path)


def test_a_link_to_what_lies_above_is_nothing(tmp_path):
    for name in ("p/data/cat", "p/data/dog", "p/data/test/up"):
        fill(tmp_path / name)
    (tmp_path / "p" / "downloads").mkdir()
    (tmp_path / "p" / "downloads" / "half.png").touch()
    shutil.rmtree(tmp_path / "p" / "data" / "test")
    (tmp_path / "p" / "data" / "up").symlink_to(tmp_path / "p")
    listing = read(tmp_path / "p" / "data")
    assert listing.classes == ("cat", "dog") and not listing.problems


def test_a_class_that_is_a_broken_link_is_said(tmp_path):
    fill(tmp_path / "cat"), fill(tmp_path / "dog")
    (tmp_path / "bird").symlink_to("/no/such/disk")
    assert reasons(read(tmp_path)) == {"bird": "broken link"}


def left_alone(listing) -> dict[str, str]:
    return {problem.path: problem.reason for problem in listing.left_alone}


def images_by_split(listing) -> dict[tuple[str | None, str], int]:
    return dict(Counter((entry.split, entry.label) for entry in listing.entries))


@pytest.mark.parametrize("beside", [(), ("cat",)])
def test_validation_and_test_without_train_are_refused(tmp_path, beside):
    for name in ("val/a", "val/b", "test/a", "test/b", *beside):
        fill(tmp_path / name)
    message = refusal(tmp_path)
    assert "'val', 'test'" in message and "look like splits, not classes" in message
    assert "there is none to train on" in message
    assert ("'cat' lies beside" in message) is bool(beside)


def test_an_archive_unpacked_into_a_folder_of_its_own_is_looked_into(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / "photos-main" / "photos" / name)
    fill(tmp_path / "notes", 2, ".txt")
    listing = read(tmp_path)
    assert listing.classes == ("cat", "dog") and listing.root == str(tmp_path.resolve())
    assert paths(listing, "cat") == [f"photos-main/photos/cat/{n}.png" for n in range(3)]
    assert listing.remarks == ("the folders are those in 'photos-main/photos'",)


@pytest.mark.parametrize(
    "names",
    [
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("Train", "Validation"),
        ("train2017", "val2017"),
        ("trainset", "testset"),
        ("my-train-images", "my-test-images"),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_split_folders_in_other_spellings(tmp_path, names, twice):
    """Alone, and with one more folder of the same name inside each; what lies beside them is left alone."""
    for folder in names:
        for label in ("a", "b"):
            fill(tmp_path / folder / folder / label if twice else tmp_path / folder / label)
    fill(tmp_path / "seg_pred" / "seg_pred", 4)
    listing = read(tmp_path)
    splits = ["train", "val" if "val" in names[1].casefold() else "test"]
    assert images_by_split(listing) == {(split, label): 3 for split in splits for label in ("a", "b")}
    assert left_alone(listing) == {"seg_pred": "4 images beside the split folders"}
    assert listing.remarks == (f"split folders: {names[0]!r} is train, {names[1]!r} is {splits[1]}",)


@pytest.mark.parametrize("beside", ["runs/exports/test_vectors", "copy/train/a", "test-more", "cat"])
def test_what_lies_beside_split_folders_is_left_alone(tmp_path, beside):
    """What another tool wrote, or autoft; a second copy; pictures nobody sorted."""
    for name in ("train/a", "train/b", "val/a", "test/a", "test/b", beside):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert listing.classes == ("a", "b") and len(listing.entries) == 15
    outer = beside.partition("/")[0]
    assert left_alone(listing) == {outer: "3 images beside the split folders"}


def test_images_without_labels_and_classes_that_train_lacks_are_left_alone(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/unknown", "test"):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert images_by_split(listing) == {("train", "a"): 3, ("train", "b"): 3, ("val", "a"): 3}
    assert left_alone(listing) == {
        "val/unknown": "3 images of a class that the training folder lacks",
        "test": "3 images without class folders",
    }


def test_a_test_folder_with_other_classes_only_is_left_alone(tmp_path):
    for name in ("train/a", "train/b", "test/x", "test/y"):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert {entry.split for entry in listing.entries} == {"train"}
    assert left_alone(listing) == {"test": "6 images in folders that no class of the training folder is named as"}


@pytest.mark.parametrize("names", [("train", "test"), ("train", "val", "test"), ("Training", "testing")])
def test_split_folders_without_class_folders_are_no_classes(tmp_path, names):
    for name in names:
        fill(tmp_path / name)
    assert "hold no class folders" in refusal(tmp_path)


def test_a_train_folder_without_class_folders_beside_one_with_them(tmp_path):
    for name in ("train", "test/a", "test/b"):
        fill(tmp_path / name)
    assert "the train folder 'train'" in refusal(tmp_path) and "no class folders" in refusal(tmp_path)


@pytest.mark.parametrize("train", ["train", "seg_train"])
def test_a_folder_that_may_be_a_class_or_all_that_is_to_be_trained_on_is_refused(tmp_path, train):
    for name in (f"{train}/a", f"{train}/b", "runs"):
        fill(tmp_path / name)
    message = refusal(tmp_path)
    assert (
        f"the folder {train!r} in" in message and "looks like a split, not a class, and 'runs' lies beside" in message
    )


@pytest.mark.parametrize("copy", ["photos", "photos/photos"])
def test_a_copy_of_the_class_folders_in_a_folder_beside_them_is_left_alone(tmp_path, copy):
    for name in ("cat", "dog", "eel", f"{copy}/cat", f"{copy}/dog", f"{copy}/eel"):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert listing.classes == ("cat", "dog", "eel") and len(listing.entries) == 9
    assert left_alone(listing) == {"photos": "9 images which lie beside it too"}


@pytest.mark.parametrize(
    "trees",
    [
        ["1/1", "1/2", "1/3", "1/4", "2/1", "2/2", "3/1", "3/2", "4/1", "4/2"],  # sessions, numbered as the classes
        ["1/1", "1/2", "1/3", "2/1", "2/2", "2/3", "3/1", "3/2", "3/3"],
        ["A", "C", "B/A", "B/C", "B/x"],
        ["A", "C", "B/A", "B/C/more"],  # not the same files
        ["cat/train", "cat/val", "cat/valid", "dog/train", "eel"],  # below a class names are anybody's own
        ["cat/test", "cat/testing", "dog", "eel"],
        ["cat/a_train/p", "cat/a_test/p", "cat/b_train/p", "cat/b_test/p", "dog", "eel"],
        ["train1", "train2", "bus"],
        ["train station", "test tube"],
        ["train station/platform", "train station/hall", "test tube", "beach"],
        ["bullet_train", "dev board", "cat"],
    ],
)
def test_what_only_looks_like_a_copy_or_a_split_stays_a_class(tmp_path, trees):
    for tree in trees:
        fill(tmp_path / tree)
    listing = read(tmp_path)
    assert set(listing.classes) == {tree.partition("/")[0] for tree in trees}
    assert len(listing.entries) == 3 * len(trees) and not listing.left_alone


@pytest.mark.parametrize("where", ["", "train/"])
@pytest.mark.parametrize("unusable", ["a.dng", "empty.png"])
def test_a_class_that_cannot_be_used_keeps_another_from_being_taken_for_the_whole(tmp_path, where, unusable):
    for name in ("cat/s1", "cat/s2"):
        fill(tmp_path / where / name)
    (tmp_path / where / "dog" / "s1").mkdir(parents=True)
    (tmp_path / where / "dog" / "s1" / unusable).write_bytes(b"x" * (unusable == "a.dng"))
    message = refusal(tmp_path)
    assert f"the class folder '{where}dog' in" in message and "has no images (" in message


def test_of_classes_with_files_alike_none_is_dropped(tmp_path):
    """What is said of files of a type names the first of them, which may lie in another class."""
    for name, suffix in (("cat", ".jpg"), ("cat", ".dng"), ("dog", ".dng"), ("eel", ".jpg")):
        fill(tmp_path / name, 2, suffix)
    assert "the class folder 'dog' in" in refusal(tmp_path) and "2 .dng files" in refusal(tmp_path)


def test_what_cannot_be_used_of_a_given_split_is_listed(tmp_path):
    for name in ("train/a", "train/b", "val/a"):
        fill(tmp_path / name)
    fill(tmp_path / "val" / "b", 2, ".dng"), fill(tmp_path / "test" / "a", 2, ".dng")
    listing = read(tmp_path)
    assert "2 .dng files" in reasons(listing)["val/b/0.dng"]
    assert left_alone(listing)["test"].startswith("no image in it that can be used: 2 .dng files")


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test1"),
        ("trainA", "trainB", "testA", "testB"),
        ("train2017", "val2017"),
        ("my_train_images", "my_test_images"),
    ],
)
def test_flat_folders_that_are_all_named_as_splits_are_refused(tmp_path, names):
    for name in names:
        fill(tmp_path / name)
    assert "hold no class folders" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("train", "test1"), ("trainval", "test"), ("TrainVal", "testset")])
def test_more_spellings_of_split_folders(tmp_path, names):
    for folder in names:
        for label in ("a", "b"):
            fill(tmp_path / folder / label)
    assert set(images_by_split(read(tmp_path))) == {(split, one) for split in ("train", "test") for one in ("a", "b")}


def test_a_train_folder_alone_in_a_folder_of_its_own(tmp_path):
    fill(tmp_path / "x" / "train" / "a"), fill(tmp_path / "x" / "train" / "b")
    listing = read(tmp_path)
    assert images_by_split(listing) == {("train", "a"): 3, ("train", "b"): 3}


def test_a_link_to_the_data_beside_a_train_folder_is_nothing(tmp_path):
    fill(tmp_path / "data" / "train" / "a"), fill(tmp_path / "data" / "train" / "b")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert len(read(tmp_path / "data").entries) == 6


def test_a_class_called_train_that_has_folders_is_to_be_called_otherwise(tmp_path):
    for name in ("train/steam", "train/diesel", "bus", "car"):
        fill(tmp_path / name)
    assert refusal(tmp_path).endswith(", or if it is a class, call it otherwise")


def test_folders_of_systems_and_tools_are_no_classes(tmp_path):
    for name in ("a", "b", "$RECYCLE.BIN", "__MACOSX", "a/@eaDir", "lost+found", "System Volume Information"):
        fill(tmp_path / name)
    listing = read(tmp_path)
    assert listing.classes == ("a", "b") and len(listing.entries) == 6
    assert reasons(listing) == {"$RECYCLE.BIN": "5 folders of systems and tools, e.g. $RECYCLE.BIN"}


NAMES = ["train", "Test", "val", "seg_train", "seg_test", "test1", "cat", "dog", "1", "2", "runs", "photos", "__MACOSX"]
TREES = st.lists(
    st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), st.sampled_from([".png", ".dng", ".txt", ""])),
    min_size=1,
    max_size=7,
)
REFUSALS = (
    "hold no class folders|holds no class folders|looks? like (a )?splits?|are both .* folders|has no images \\(|"
    "no images in class folders|only one class|several sets of split folders|differ only in case|lies beside it too"
)


@given(TREES)
@settings(max_examples=400)
def test_of_any_tree_each_image_is_listed_once_or_accounted_for(trees):
    """Or the whole is refused with one line. Never are all classes named as splits."""
    with TemporaryDirectory() as place:
        for tree, suffix in trees:
            fill(Path(place, *tree), 2 if suffix else 0, suffix)
        every = {str(path.relative_to(place)) for path in Path(place).rglob("*.png")}
        try:
            listing = read(Path(place))
        except DataError as refused:
            assert re.search(REFUSALS, str(refused)) and "\n" not in str(refused)
            return
    listed = [entry.path for entry in listing.entries]
    assert len(set(listed)) == len(listed) and set(listed) <= every
    assert len(listing.classes) > 1
    untold = {
        path
        for path in every - set(listed)
        if "__MACOSX" not in path and not any(f"{path}/".startswith(f"{one}/") for one in left_alone(listing))
    }
    strays = [int(reason.split()[0]) for reason in reasons(listing).values() if "outside any class folder" in reason]
    assert len(untold) == sum(strays)
    assert not {"seg_train", "seg_test"} <= set(listing.classes)
    assert not set(listing.classes) <= {"train", "Test", "val", "test1"}  # among others they may be classes


def test_nested_folders_belong_to_the_first_level(tmp_path):
    fill(tmp_path / "cat" / "kittens" / "grey")
    fill(tmp_path / "dog")
    listing = read(tmp_path)
    assert listing.classes == ("cat", "dog") and len(paths(listing, "cat")) == 3


def test_hidden_and_machine_made_names_do_not_exist(tmp_path):
    for name in ("a", "b"):
        fill(tmp_path / name)
        for ignored in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (tmp_path / name / ignored).write_bytes(b"x")
        fill(tmp_path / name / ".ipynb_checkpoints")
    for ignored in (".git", ".ipynb_checkpoints"):
        fill(tmp_path / ignored)
    listing = read(tmp_path)
    assert listing.classes == ("a", "b") and len(listing.entries) == 6 and not listing.problems


def test_what_is_not_used_is_listed(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    fill(tmp_path / "b", 12, ".TXT")
    (tmp_path / "a" / "README").write_text("x")
    (tmp_path / "a" / "empty.jpg").touch()
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "a" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "loose.png").write_bytes(b"x")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    (tmp_path / "b" / "folder.png").mkdir()
    listing = read(tmp_path)
    assert len(listing.entries) == 6
    assert reasons(listing) == {
        "a/empty.jpg": "empty file",
        "a/gone.jpg": "broken link",
        "a/self.jpg": "too many levels of symbolic links",
        "b/pipe.png": "not a regular file",
        "a/README": "1 extensionless file, not an image type, e.g. a/README",
        "b/0.TXT": "12 .txt files, not an image type, e.g. b/0.TXT",
        "loose.png": "1 image outside any class folder, e.g. loose.png",
    }


def test_link_loops_do_no_harm(tmp_path):
    root = tmp_path / "data"
    fill(root / "a")
    fill(root / "b" / "deep")
    (root / "a" / "loop").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "all").symlink_to(tmp_path)
    (root / "a" / "other").symlink_to(root / "b" / "deep")
    (root / "top").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    listing = read(root)
    assert listing.classes == ("a", "b")
    assert paths(listing, "a") == ["a/0.png", "a/1.png", "a/2.png"] and len(paths(listing, "b")) == 3


def test_links_to_folders_elsewhere_count_once(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere")
    root = tmp_path / "data"
    fill(root / "b")
    (root / "a").symlink_to(elsewhere)
    (root / "b" / "again").symlink_to(elsewhere)
    listing = read(root)
    assert len(paths(listing, "a")) == 3 and len(paths(listing, "b")) == 3
    (root / "c").symlink_to(elsewhere)
    assert "'c'" in refusal(root) and "link" in refusal(root)


def test_permission_denied_is_reported(tmp_path, monkeypatch):
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    fill(tmp_path / "b" / "closed")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = read(tmp_path)
    assert reasons(listing) == {"b/closed": "permission denied"} and len(listing.entries) == 6


def test_folders_deeper_than_the_bound_are_reported(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    fill(tmp_path / "b" / Path(*["d"] * MAX_DEPTH))
    listing = read(tmp_path)
    assert len(listing.entries) == 6 and "deep" in listing.problems[0].reason


def test_odd_names_survive(tmp_path):
    odd = 'новый "класс", 🐈\n' + "x" * 100
    fill(tmp_path / odd)
    fill(tmp_path / os.fsdecode(b"latin-\xe9"))
    listing = read(tmp_path)
    assert set(listing.classes) == {odd, r"latin-\xe9"} and len(listing.entries) == 6


def test_path_that_does_not_exist_or_is_a_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none")
    (tmp_path / "file.png").write_bytes(b"x")
    assert "is a file" in refusal(tmp_path / "file.png")


def test_no_images(tmp_path):
    assert "no images" in refusal(tmp_path)
    fill(tmp_path)
    assert "3 lie beside the class folders" in refusal(tmp_path)


def test_one_class(tmp_path):
    fill(tmp_path / "cat")
    message = refusal(tmp_path)
    assert "only one class" in message and "'cat'" in message


def test_class_with_fewer_than_three_images(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog", 2)
    with pytest.raises(DataError, match=r"'dog' has 2.*at least 3"):
        bound(SingleLabel(), read(tmp_path))


def test_empty_class_folder(tmp_path):
    fill(tmp_path / "cat")
    fill(tmp_path / "dog")
    (tmp_path / "eel").mkdir()
    listing = read(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert left_alone(listing) == {"eel": "no image in it: it is no class"}
    fill(tmp_path / "eel", 2, ".txt")
    but = "no image in it, but 2 other files: it is no class"
    assert left_alone(read(tmp_path)) == {"eel": but}


def test_a_class_whose_images_cannot_be_used_is_not_dropped(tmp_path):
    for name in ("cat", "dog"):
        fill(tmp_path / name)
    fill(tmp_path / "eel", 2, ".dng")
    assert "'eel'" in refusal(tmp_path) and "2 .dng files" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "eel")
    fill(tmp_path / "eel", 0)
    (tmp_path / "eel" / "0.png").touch()
    assert "'eel'" in refusal(tmp_path) and "empty file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")), ("cat", "cat ")],
)
def test_class_folders_that_look_alike(tmp_path, one, other):
    fill(tmp_path / one)
    fill(tmp_path / other)
    assert "differ only in case, spaces" in refusal(tmp_path)


def test_classes_one_level_too_deep_and_hidden_ones_are_pointed_at(tmp_path):
    for folder in ("deep/photos/cat", "deep/photos/dog", "deep/photos", "hidden/.cat", "hidden/.dog"):
        fill(tmp_path / folder)
    assert refusal(tmp_path / "deep").endswith(f"if the folders in it are the classes, give {tmp_path}/deep/photos")
    assert "hidden folders such as '.cat' are left out" in refusal(tmp_path / "hidden")


def test_class_spelt_differently_in_another_split(tmp_path):
    for folder in ("train/cat", "train/dog", "val/Cat", "val/dog"):
        fill(tmp_path / folder)
    assert "'train/cat' and 'val/Cat' differ only in case" in refusal(tmp_path)


def test_split_folders_stand_once_and_an_empty_one_is_said(tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        fill(tmp_path / name)
    (tmp_path / "val").mkdir()
    assert left_alone(read(tmp_path)) == {"val": "no image in it"}
    fill(tmp_path / "dev" / "a")
    assert {entry.split for entry in read(tmp_path).entries} == {"train", "val", "test"}
    fill(tmp_path / "val" / "a")
    assert "both val folders" in refusal(tmp_path)


def test_explicit_splits_need_fewer_images_a_class(tmp_path):
    for folder in ("train/a", "train/b", "val/a", "test/a"):
        fill(tmp_path / folder, 1)
    assert bound(SingleLabel(), read(tmp_path)).targets.names == ("a", "b")
    (tmp_path / "test" / "a" / "0.png").unlink()
    with pytest.raises(DataError, match="at least 2 readable different images in train"):
        bound(SingleLabel(), read(tmp_path))


@given(st.lists(st.text(max_size=8), unique=True))
def test_natural_order_is_total(names):
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_sort_by_value(numbers):
    ordered = sorted((f"img{number}b" for number in numbers), key=natural_key)
    assert ordered == [f"img{number}b" for number in sorted(numbers)]


def test_numbers_of_more_digits_than_python_reads_sort_too():
    mixed = ["2" * 5000, "10", "1" * 5001, "7", "1" * 5000, "007"]
    assert sorted(mixed, key=natural_key) == ["007", "7", "10", "1" * 5000, "2" * 5000, "1" * 5001]


@pytest.mark.parametrize(
    ("suffix", "says"),
    [
        ("", r": 2 extensionless files, not an image type, e\.g\. a/x; convert them to JPEG"),
        (".bin", r": 2 \.bin files, not an image type, e\.g\. a/x\.bin; convert them to JPEG"),
        (".NEF", r": 2 \.nef files, which a camera wrote: develop them to JPEG or PNG, e\.g\. a/x\.NEF$"),
        (".HEIC", r": 2 \.heic files, which `pip install 'autoft\[heif\]'` makes readable, e\.g\. a/x\.HEIC$"),
    ],
)
def test_only_files_that_are_not_decoded_by_their_extension(tmp_path, monkeypatch, suffix, says):
    without = decode.readable_extensions() - {".heic", ".heif", ".hif"}
    monkeypatch.setattr("autoft.media.image.decode.readable_extensions", lambda: without)
    monkeypatch.setattr("autoft.data.walk.readable_extensions", lambda: without)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"x{suffix}").write_bytes(b"x")
    with pytest.raises(DataError, match=rf"no images in class folders in .*{says}"):
        read(tmp_path)


def test_a_machine_fault_ends_the_listing_with_one_line(tmp_path, monkeypatch):
    for name in ("a", "b"):
        fill(tmp_path / name)
    scandir = os.scandir

    def failing(path):
        if str(path).endswith("b"):
            raise OSError(24, "Too many open files", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(DataError, match="b cannot be read: too many open files; mend that"):
        read(tmp_path)


def test_the_listing_can_be_stopped(tmp_path):
    fill(tmp_path / "a")

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageFolderReader(stop).read(tmp_path)


@pytest.mark.parametrize("gone", ["cat/1.png", "cat/more", "bird", "train", "notes"])
def test_what_vanishes_while_it_is_listed_is_left_out_and_counted(tmp_path, gone):
    """At whichever moment: `check` is called before each entry, and takes the file or folder away at the n-th."""
    for moment in range(1000):
        root = tmp_path / str(moment)
        for name in ("cat", "dog", "bird", "cat/more", "train", "notes/deep"):
            fill(root / name, 2)
        calls = iter(range(moment, -1, -1))

        def take(root=root, calls=calls):
            if next(calls, None) == 0:
                path = root / gone
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        listing = ImageFolderReader(take).read(root)
        kept = [entry.path for entry in listing.entries if not f"{entry.path}/".startswith(f"{gone}/")]
        assert len(kept) == 12 - {"cat/1.png": 1}.get(gone, 2)
        assert all("vanished while being listed, e.g. " + gone in reason for reason in reasons(listing).values())
        if next(calls, None) is not None:  # it was not taken in the whole of the listing
            return
    pytest.fail("the listing did not end")


def test_where_nothing_is_left_what_vanished_is_named(tmp_path):
    fill(tmp_path / "cat", 1), fill(tmp_path / "dog", 1)

    def take():
        for name in ("cat", "dog"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)

    with pytest.raises(
        DataError, match=r"no images in class folders in .*; 2 vanished while being listed, such as 'cat'"
    ):
        ImageFolderReader(take).read(tmp_path)


@pytest.mark.parametrize(("path", "why"), [("/", "it is the root"), ("/proc/self", "it lies in the system's /proc")])
def test_the_systems_own_folders_are_no_data(path, why):
    if not Path(path).is_dir():
        pytest.skip(f"there is no {path}")
    assert refusal(Path(path)).startswith(f"{path} is no data folder: {why}")


def test_a_folder_with_a_system_mount_below_is_no_data(tmp_path, monkeypatch):
    fill(tmp_path / "cat"), fill(tmp_path / "dog")
    monkeypatch.setattr("autoft.data.walk._system_mounts", lambda: [tmp_path.resolve() / "image" / "proc"])
    assert f"the system's {tmp_path.resolve()}/image/proc lies in it" in refusal(tmp_path)
    monkeypatch.setattr("autoft.data.walk._system_mounts", lambda: [tmp_path.resolve().with_name("proc")])
    assert len(read(tmp_path).entries) == 6
