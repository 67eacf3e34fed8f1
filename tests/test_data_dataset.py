"""The data set as a whole: from a folder to rows, and back from a run folder."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts.data import dataset
from PIL import Image

from autoft.data import dataset as module
from autoft.data.dataset import bound, labelled, read_samples, scanned_again, write_split_csv
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.errors import DataError, RunFolderError
from autoft.media.image.decode import decode, preprocess, readable_extensions
from autoft.tasks.multi_label import MultiLabel
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import SingleLabel
from autoft.values.handoff import Preprocess


def opened(root: Path, seed: int = 0, sizes: tuple[int, ...] = (16,)):
    return dataset(root, [(size, "bicubic", "crop") for size in sizes], seed=seed)


def fingerprint(root: Path, threads: int) -> str:
    return scan(read_labelled(root), threads).fingerprint()


def reopened(path: Path, dataset):
    return labelled(read_samples(path, dataset.info), dataset.info, SingleLabel())


def reasons(found) -> dict[str, str]:
    return {problem.path: problem.reason for problem in found.info.problems}


def contents(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def test_from_a_folder_to_pixels(tiny_images):
    before = contents(tiny_images)
    found = opened(tiny_images, sizes=(16, 24))
    assert found.info.short_side == 32
    assert found.info.targets.names == ("blue", "green", "red") and not found.info.problems
    assert found.info.counts == {"train": 24, "val": 6, "test": 6}
    rows = np.concatenate([found.rows(name) for name in ("train", "val", "test")])
    assert sorted(rows) == list(range(36)) and rows.dtype == np.int64
    for name in ("train", "val", "test"):
        pixels = found.pixels(24)[found.rows(name)].astype(float)
        brightest = pixels.mean(axis=(1, 2)).argmax(axis=1)  # channel; the classes stand the other way round
        assert (2 - brightest == found.targets(name)).all()
        assert set(Counter(found.targets(name).tolist()).values()) == {8 if name == "train" else 2}
    assert contents(tiny_images) == before


def test_rows_and_samples_name_the_same_image(tiny_images):
    found = opened(tiny_images)
    for sample in found.samples[::7]:
        expected = preprocess(decode(tiny_images / sample.path), Preprocess(16, (0, 0, 0), (1, 1, 1)))
        np.testing.assert_array_equal(found.pixels(16)[sample.row], expected)


def test_unreadable_files_are_skipped_by_name(tiny_images):
    (tiny_images / "red" / "0.png").write_text("<!doctype html>")
    data = (tiny_images / "red" / "1.png").read_bytes()
    (tiny_images / "red" / "1.png").write_bytes(data[: len(data) // 2])
    (tiny_images / "red" / "2.png").write_bytes(b"")
    (tiny_images / "red" / "notes.txt").write_text("x")
    found = opened(tiny_images)
    assert reasons(found) == {
        "red/0.png": "not an image: HTML",
        "red/1.png": "truncated",
        "red/2.png": "empty file",
        "red/notes.txt": "1 .txt file, not an image type, e.g. red/notes.txt",
    }
    assert len(found.samples) == 33 == sum(found.info.counts.values())
    assert not {"red/0.png", "red/1.png", "red/2.png"} & {sample.path for sample in found.samples}


def test_every_file_corrupt(tiny_images):
    for path in tiny_images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"none of the images .* e\.g\. blue/0\.png: "):
        opened(tiny_images)
    for path in tiny_images.rglob("*.png"):
        path.write_text("hello")
    with pytest.raises(DataError, match="not an image: text"):
        opened(tiny_images)


def test_a_class_with_too_few_readable_or_different_images(tiny_images):
    for number in range(10):
        (tiny_images / "red" / f"{number}.png").write_text("x")
    with pytest.raises(DataError, match="'red' has 2"):
        opened(tiny_images)
    for number in range(10):
        shutil.copy(tiny_images / "red" / "11.png", tiny_images / "red" / f"{number}.png")
    with pytest.raises(DataError, match=r"'red' has 2.*different"):
        opened(tiny_images)


def test_an_image_leaked_from_a_given_test_split_does_not_train(tiny_images, tmp_path):
    root = tmp_path / "splits"
    for name in ("train", "val", "test"):
        shutil.copytree(tiny_images, root / name)
        for path in (root / name).rglob("*.png"):
            seed = int.from_bytes(f"{name}{path.parent.name}{path.stem}".encode(), "big")
            noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    shutil.copy(root / "test" / "red" / "3.png", root / "train" / "red" / "leak.png")
    shutil.copy(root / "val" / "red" / "3.png", root / "train" / "red" / "leak2.png")
    found = opened(root)
    assert reasons(found) == {
        "train/red/leak.png": "the same image is in test (test/red/3.png)",
        "train/red/leak2.png": "the same image is in val (val/red/3.png)",
    }
    assert found.info.counts == {"train": 36, "val": 36, "test": 36}
    assert all(sample.path.startswith(sample.split) for sample in found.samples)


def test_reopened_from_the_run_folder_without_touching_images(tiny_images, tmp_path, monkeypatch):
    (tiny_images / "red").rename(tiny_images / 'a "odd", näme\n')
    (tiny_images / "blue" / "3.png").rename(tiny_images / "blue" / os.fsdecode(b"latin-\xe9.png"))
    found = opened(tiny_images)
    write_split_csv(found, tmp_path / "split.csv")
    monkeypatch.setattr(module, "scan", None)
    again = reopened(tmp_path / "split.csv", found)
    assert (again.info, again.samples) == (found.info, found.samples)
    assert (again.targets("val") == found.targets("val")).all()
    np.testing.assert_array_equal(again.pixels(16), found.pixels(16))
    assert (tmp_path / "split.csv").read_text(errors="replace").startswith("path,label,split,row,digest\n")


@pytest.mark.parametrize("damage", [lambda text: text[:-30], lambda text: text.replace("red", "rad"), lambda text: ""])
def test_a_damaged_split_csv(tiny_images, tmp_path, damage):
    found = opened(tiny_images)
    path = tmp_path / "split.csv"
    write_split_csv(found, path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(RunFolderError, match="split"):
        reopened(path, found)
    path.unlink()
    with pytest.raises(RunFolderError, match="missing"):
        reopened(path, found)


@pytest.mark.parametrize(("old", "new"), [(",red,", ",blue,"), (",0,", ",999,"), (",1,", ",-1,")])
def test_a_split_csv_that_was_edited_is_refused(tiny_images, tmp_path, old, new):
    found, path = opened(tiny_images), tmp_path / "split.csv"
    write_split_csv(found, path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RunFolderError, match=r"split\.csv was changed since the run began; restore it"):
        reopened(path, found)
    before_digests = replace(found.info, split_digest="")
    assert len(read_samples(path, before_digests)) == 36


def test_a_deleted_cache_is_built_again_unless_the_images_changed(tiny_images, own_cache):
    found = opened(tiny_images)
    before = np.array(found.pixels(16))
    shutil.rmtree(own_cache)
    np.testing.assert_array_equal(found.pixels(16), before)
    assert found.pixels(8, "bilinear").shape == (36, 8, 8, 3)
    shutil.rmtree(own_cache)
    (tiny_images / "red" / "0.png").unlink()
    np.testing.assert_array_equal(found.pixels(16), before)  # what is open stays
    with pytest.raises(DataError, match="not those the run started with"):
        found.pixels(8)


def test_photos_that_have_become_readable_do_not_stop_a_run_that_began_without_them(tiny_images, monkeypatch):
    """A library was installed since; they were of no use then, and have no row."""
    (tiny_images / "red" / "0a.heic").write_bytes(b"what only a library reads")
    without = readable_extensions() - {".heic"}
    with monkeypatch.context() as before:
        before.setattr("autoft.data.walk.readable_extensions", lambda: without)
        found = opened(tiny_images)
    assert len(found.samples) == 36
    with monkeypatch.context() as since:
        since.setattr("autoft.data.walk.readable_extensions", lambda: without | {".heic"})
        assert len(read_labelled(tiny_images).entries) == 37
        again = scanned_again(found.info, 1)
    assert [file.entry.path for file in again.files] == [sample.path for sample in found.samples]
    (tiny_images / "red" / "1.png").unlink()
    with pytest.raises(DataError, match="not those the run started with"):
        scanned_again(found.info, 1)


def test_the_fingerprint_changes_with_names_labels_and_bytes_only(tiny_images, tmp_path):
    first = fingerprint(tiny_images, 2)
    assert opened(tiny_images).info.fingerprint == first
    copy = tmp_path / "copy"
    shutil.copytree(tiny_images, copy)
    assert fingerprint(copy, 1) == first
    (copy / "red" / "0.png").rename(copy / "red" / "zero.png")
    renamed = fingerprint(copy, 1)
    (copy / "red").rename(copy / "rot")
    relabelled = fingerprint(copy, 1)
    (copy / "rot" / "1.png").write_bytes(b"other")
    assert len({first, renamed, relabelled, fingerprint(copy, 1)}) == 4


def test_the_seed_decides_the_split(tiny_images):
    assert opened(tiny_images).samples == opened(tiny_images).samples != opened(tiny_images, seed=1).samples


def test_a_split_can_be_limited_evenly(tiny_images):
    found = opened(tiny_images)
    few = found.limited("train", 6)
    assert Counter(few.targets("train").tolist()) == {0: 2, 1: 2, 2: 2}
    assert set(few.rows("train")) <= set(found.rows("train"))
    assert few.limited("val", 1000).rows("val").tolist() == found.rows("val").tolist()


def test_float_images_have_one_scale(tmp_path):
    for name, top in (("dark", 0.4), ("light", 1.05)):
        (tmp_path / "floats" / name).mkdir(parents=True)
        for number in range(8):
            values = np.full((8, 8), top - number / 100, np.float32)
            Image.fromarray(values).save(tmp_path / "floats" / name / f"{number}.tif")
    found = opened(tmp_path / "floats")
    low, high = found.info.value_range
    assert (low, high) == (pytest.approx(0.33), pytest.approx(1.05))
    for sample in found.samples:
        value = (1.05 if sample.label == "light" else 0.4) - int(Path(sample.path).stem) / 100
        assert found.pixels(16)[sample.row].mean() == pytest.approx((value - low) / (high - low) * 255, abs=0.6)
        shown = decode(found.file(sample), found.info.value_range)
        expected = preprocess(shown, Preprocess(16, (0, 0, 0), (1, 1, 1)))
        np.testing.assert_array_equal(found.pixels(16)[sample.row], expected)


@pytest.mark.parametrize("mark", [np.nan, np.inf, -np.inf, -3.4e38])
def test_a_float_image_with_pixels_without_a_number_is_used_and_named(tmp_path, mark):
    for name in ("dark", "light"):
        (tmp_path / "floats" / name).mkdir(parents=True)
        for number in range(4):
            values = np.linspace(0, (10 if name == "dark" else 20) + number, 64, dtype=np.float32).reshape(8, 8)
            Image.fromarray(values).save(tmp_path / "floats" / name / f"{number}.tif")
    values[2, 3:5] = mark
    Image.fromarray(values).save(tmp_path / "floats" / "dark" / "gaps.tif")
    Image.fromarray(np.full((8, 8), mark, np.float32)).save(tmp_path / "floats" / "light" / "nothing.tif")
    found = opened(tmp_path / "floats")
    assert reasons(found) == {"light/nothing.tif": "no finite pixel values"}
    info = found.info
    assert [(one.path, one.reason) for one in info.unseen] == [("dark/gaps.tif", "2 of 64 pixels hold no number")]
    assert info.value_range == (0.0, 23.0) and sum(info.counts.values()) == 9


def test_a_float_image_that_the_one_scale_leaves_a_single_grey_of_is_named(tmp_path):
    for name in ("dark", "light"):
        (tmp_path / name).mkdir()
        for number in range(4):
            values = np.linspace(0, (1000 if name == "dark" else 4000) + number, 64, dtype=np.float32).reshape(8, 8)
            Image.fromarray(values).save(tmp_path / name / f"{number}.tif")
    Image.fromarray(values / 4003).save(tmp_path / "light" / "reflectance.tif")
    Image.fromarray(np.full((8, 8), 7, np.float32)).save(tmp_path / "light" / "constant.tif")
    (named,) = opened(tmp_path).info.unseen
    assert named.path == "light/reflectance.tif"
    assert named.reason == "values from 0 to 1 are one grey on 0 to 4003, the one scale of all images"


def test_ordinary_images_have_no_scale(tiny_images):
    assert opened(tiny_images).info.value_range is None


def test_an_image_in_two_classes_is_named_and_used(tiny_images):
    shutil.copy(tiny_images / "blue" / "3.png", tiny_images / "red" / "again.png")
    shutil.copy(tiny_images / "blue" / "4.png", tiny_images / "blue" / "copy.png")
    info = opened(tiny_images).info
    assert [(one.path, one.reason) for one in info.contradictions] == [
        ("red/again.png", "the same image is in 'blue' (blue/3.png); take one of the two away")
    ]
    assert not info.problems and sum(info.counts.values()) == 38


def test_a_split_csv_that_cannot_be_written_is_one_line(tiny_images, tmp_path):
    with pytest.raises(RunFolderError, match=r"split\.csv cannot be written: no such file.*--out"):
        write_split_csv(opened(tiny_images), tmp_path / "gone" / "split.csv")


# ---------------------------------------------------------------- what labels mean


def manifest(folder: Path, lines: Sequence[str], header: str = "image,label") -> Path:
    """A CSV file beside ten different images, 0.png to 9.png, of which 0 and 1 have copies."""
    folder.mkdir(exist_ok=True)
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for number in range(2):
        shutil.copy(folder / f"{number}.png", folder / f"copy{number}.png")
    (folder / "data.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "data.csv"


MEANT = {
    "any_of": (MultiLabel(), ["cat|dog", "dog|cat", "dog| cat |dog"], "cat"),
    "numbers": (Regression(), ["1", "1.0", "1e0"], "2"),
}


@pytest.mark.parametrize("kind", MEANT)
def test_labels_that_mean_the_same_do_not_contradict(tmp_path, kind):
    task, (usual, same, again), other = MEANT[kind]
    lines = [f"{number}.png,{other if number % 2 else usual}" for number in range(10)]
    lines += [f"copy0.png,{same}", f"2.png,{again}", f"copy1.png,{usual}", f"4.png,{other}", "5.png,new"]
    found = dataset(manifest(tmp_path, lines), [(16, "bicubic", "crop")], task)
    assert [(one.path, one.reason) for one in found.info.contradictions] == [
        ("copy1.png", f"the same image is in {other!r} (1.png); take one of the two away")
    ]
    assert reasons(found) == {
        "4.png": f"line 15 says {other!r}, line 6 {usual!r}, which counts; one line an image, "
        "its labels in one cell as in cat|dog",
        "5.png": f"line 16 says 'new', line 7 {other!r}, which counts; one line an image, "
        "its labels in one cell as in cat|dog",
    }
    sides = {sample.path: sample.split for sample in found.samples}
    assert len(sides) == 12 and sides["1.png"] == sides["copy1.png"] == "train"
    seeds = [dataset(tmp_path / "data.csv", [(16, "bicubic", "crop")], task, seed) for seed in range(12)]
    both = [{one.path: one.split for one in each.samples} for each in seeds]
    assert all(each["0.png"] == each["copy0.png"] for each in both)
    assert {each["0.png"] for each in both} == {"train", "val", "test"}  # it may be carved as any other


def test_no_split_is_the_training_split(tmp_path):
    lines = [f"{number}.png,{'ab'[number % 2]},{'val' if number > 7 else 'train'}" for number in range(10)]
    lines += ["copy0.png,a,", "copy1.png,a,", "2.png,a,"]
    found = dataset(manifest(tmp_path, lines, "image,label,split"), [(16, "bicubic", "crop")])
    assert not found.info.problems and len(found.samples) == 12
    assert [one.path for one in found.info.contradictions] == ["copy1.png"]


def test_only_folders_whose_images_can_be_used_are_classes(tiny_images):
    for old, new in (("red", "1"), ("green", "2"), ("blue", "x")):
        (tiny_images / old).rename(tiny_images / new)
    found = dataset(tiny_images, [(16, "bicubic", "crop")], Regression())
    assert len(found.samples) == 24 and set(reasons(found).values()) == {"'x' is no number"}


@pytest.mark.parametrize("task", [MultiLabel, Regression])
def test_a_task_is_asked_of_groups_that_there_are(tmp_path, task):
    class Careful(task):
        def too_few(self, sizes, needed):
            return f"of {sizes} each needs" if min(sizes.values()) < 1 else None

    labels = ["1|2", "1|3", "2|3", "1|2|3"] if task is MultiLabel else [str(number) for number in range(10)]
    listing = read_labelled(
        manifest(tmp_path, [f"{number}.png,{labels[number % len(labels)]}" for number in range(10)])
    )
    assert bound(Careful(), listing).targets.names == (("1", "2", "3") if task is MultiLabel else ("label",))
