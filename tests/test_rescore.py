"""Scoring a bundle on labelled images: which of them are a fair test, and the score on those."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts.exported import LABELS, Tiny, handoff, how
from PIL import Image

from autoft.__main__ import _run
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.known import DIGITS, KnownImages, known_images
from autoft.bundle.onnx_runtime import PixelModel
from autoft.bundle.rescore import Rescored, labelled_images, read_known, read_source, rescore, task_of
from autoft.errors import DataError, UserError
from autoft.media.image.raw_pixels import write_raw_pixel_model
from autoft.shell.commands.handoff import Verified, _copies, _doubt, _provenance
from autoft.tasks.scores import interval
from autoft.tasks.single_label import SingleLabel
from autoft.values.codec import decode, encode
from autoft.values.dataset import Sample, SplitName, TrainOn
from autoft.values.summary import Scores

HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
SPLITS = st.sampled_from(["train", "val", "test"])


def exported(folder: Path, metric: str) -> PixelModel:
    next(OnnxExporter().export(Tiny().eval(), replace(handoff(), metric=metric), folder))
    path = folder / "model.onnx"
    write_raw_pixel_model(folder / "model.core.onnx", path, handoff().preprocess, how().ending(), "image")
    return PixelModel(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PixelModel:
    """A model that tells red, green and blue images apart."""
    return exported(tmp_path_factory.mktemp("model"), "accuracy")


def colour(path: Path, rgb: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), rgb).save(path)
    return path


def sample(path: Path, split: SplitName) -> Sample:
    return Sample(0, path.name, LABELS[0], split, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest())


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Four red images of different content, all of the first class; the model is wrong on one that is green."""
    folder = tmp_path / "photos" / LABELS[0]
    colours = {"a": (255, 0, 0), "b": (254, 0, 0), "c": (253, 0, 0), "wrong": (0, 255, 0)}
    return {name: colour(folder / f"{name}.png", rgb) for name, rgb in colours.items()}


def scored(model: PixelModel, folder: Path, known: KnownImages, everything: bool = False) -> Rescored:
    labelled = labelled_images(read_source(model, folder).images, known, task_of(model))
    return rescore(model, labelled, labelled.everything if everything else labelled.fair)


@pytest.mark.parametrize(
    ("chosen_by", "named"),
    [
        ("accuracy", "accuracy"),
        ("balanced_accuracy", "balanced_accuracy"),
        ("log_loss", "log_loss"),
        ("one of a plugin", "accuracy"),
    ],
)
def test_the_interval_is_of_the_metric_that_the_model_was_chosen_by(
    chosen_by: str, named: str, photos: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    model, folder = exported(tmp_path / "model", chosen_by), photos["a"].parents[1]
    found = scored(model, folder, known_images([])).scores
    task = SingleLabel()
    answers = np.stack([model.answers(np.asarray(Image.open(path))) for path in photos.values()])
    judged = model.form.judged(answers, model.facts)
    assert found.metric == named
    ends = sorted(map(task.metric(named).facts.shown, interval(task.metric(named), judged, np.zeros(4, np.int64))))
    assert found.ci95 == pytest.approx(tuple(ends))
    assert (found.n, found.correct) == (4, 3)


def test_images_of_training_and_validation_are_left_out(model: PixelModel, photos: dict[str, Path]) -> None:
    known = known_images([sample(photos["a"], "train"), sample(photos["b"], "val"), sample(photos["wrong"], "test")])
    renamed = photos["a"].rename(photos["a"].with_name("other name.png"))
    folder = renamed.parents[1]
    fair = scored(model, folder, known)
    assert (fair.scores.n, fair.scores.correct, fair.left_out) == (2, 1, 2)
    assert fair.known == {"train": 1, "val": 1, "test": 1}
    assert list(_provenance(fair)) == [
        "scored      1 of the run's test split, 1 new to the model",
        "left out    1 of the run's training split, 1 of its validation split; --all scores them too",
    ]
    everything = scored(model, folder, known, everything=True)
    assert (everything.scores.n, everything.left_out) == (4, 0)
    splits = "training split (1) or its validation split (1)"
    assert list(_provenance(everything)) == [f"optimistic  50% of these images are of the run's {splits}"]
    refit = "training split (1) or its validation split, which trained it too (1)"
    assert list(_provenance(replace(everything, train_on="train+val"))) == [
        f"optimistic  50% of these images are of the run's {refit}"
    ]


def test_copies_of_an_image_count_once(model: PixelModel, photos: dict[str, Path]) -> None:
    for name in ("wrong", "a"):
        shutil.copy(photos[name], photos[name].with_name(f"{name} again.png"))
    shutil.copy(photos["wrong"], photos["wrong"].with_name("and again.png"))
    for name in ("x.png", "y.png"):
        photos["a"].with_name(name).touch()
    folder = photos["a"].parents[1]
    found = scored(model, folder, known_images([sample(photos["a"], "train")]))
    assert (found.scores.n, found.scores.correct, found.left_out, found.copies) == (3, 2, 1, 4)
    assert list(_copies(found)) == ["copies      4 files are copies of others; each image counts once"]
    assert found.known == {"train": 1, "val": 0, "test": 0}
    everything = scored(model, folder, known_images([sample(photos["a"], "train")]), everything=True)
    assert (everything.scores.n, everything.copies) == (4, 4)
    (line,) = _copies(replace(found, copies=1))
    assert line == "copies      1 file is a copy of another; each image counts once"
    assert list(_copies(replace(found, copies=0))) == []


def test_an_image_with_several_labels_is_not_scored_but_named(model: PixelModel, photos: dict[str, Path]) -> None:
    """By the first of them it was right, by the other wrong, as the folders' names had it."""
    folder = photos["a"].parents[1]
    other = folder / LABELS[1] / "copy.png"
    other.parent.mkdir()
    shutil.copy(photos["a"], other)
    shutil.copy(photos["b"], photos["b"].with_name("b again.png"))
    found = scored(model, folder, known_images([sample(photos["a"], "test")]))
    assert (found.scores.n, found.scores.correct, found.copies, found.known["test"]) == (3, 2, 1, 0)
    files = [f"{photos['a']} ({LABELS[0]})", f"{other} ({LABELS[1]})"]
    (named,) = found.contradictory
    assert sorted(named.split(", ")) == sorted(files)
    assert json.loads(encode(found))["contradictory"] == [named]
    assert list(_copies(found))[1:] == [f"left out    1 image has several labels: {named}"]
    for one in [*photos.values(), photos["b"].with_name("b again.png")]:
        if one != photos["a"]:
            one.unlink()
    with pytest.raises(DataError, match=r"every image there has several labels, such as .*copy\.png"):
        scored(model, folder, known_images([]))


def test_of_copies_that_of_the_test_split_counts(model: PixelModel, tmp_path: Path) -> None:
    """As in a search, which leaves the other out: without a list of images what the folder says is all there is."""
    trained = colour(tmp_path / "data" / "train" / LABELS[0] / "a.png", (255, 0, 0))
    colour(tmp_path / "data" / "train" / LABELS[0] / "b.png", (254, 0, 0))
    tested = tmp_path / "data" / "test" / LABELS[0] / "c.png"
    tested.parent.mkdir(parents=True)
    shutil.copy(trained, tested)
    found = scored(model, tmp_path / "data", read_known(tmp_path))
    assert (found.scores.n, found.left_out, found.copies) == (1, 1, 1)


def test_with_nothing_but_training_images_all_are_scored_and_it_is_said(
    model: PixelModel, photos: dict[str, Path]
) -> None:
    found = scored(model, photos["a"].parents[1], known_images(sample(path, "train") for path in photos.values()))
    assert (found.scores.n, found.left_out) == (4, 0)
    assert list(_provenance(found)) == [
        "optimistic  100% of these images are of the run's training split (4) or its validation split (0)"
    ]


def test_of_images_it_never_met_there_is_nothing_to_say(model: PixelModel, photos: dict[str, Path]) -> None:
    found = scored(model, photos["a"].parents[1], known_images([]))
    assert (found.scores.n, list(_provenance(found))) == (4, [])


def test_where_only_a_sample_is_listed_images_that_cannot_be_told_are_left_out(
    model: PixelModel, photos: dict[str, Path]
) -> None:
    first, *others = sorted((sample(path, "train") for path in photos.values()), key=lambda one: one.digest)
    found = scored(model, photos["a"].parents[1], known_images([replace(first, split="test"), *others], most=2))
    assert found.known == {"train": 1, "val": 0, "test": 1}
    assert (found.scores.n, found.left_out) == (1, 3)
    assert list(_provenance(found))[-1].startswith("left out    2 of which the bundle cannot tell")


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_an_image_that_cannot_be_read_is_of_no_kind_that_was_scored(
    split: SplitName | None, model: PixelModel, photos: dict[str, Path]
) -> None:
    broken = photos["a"].with_name("broken.png")
    broken.write_text("no image")
    known = [sample(photos["a"], "train"), sample(photos["b"], "test")]
    known += [sample(broken, split)] if split else []
    fair = scored(model, photos["a"].parents[1], known_images(known))
    assert fair.scores.n == sum(fair.scored.values()) + fair.fresh == 3
    assert next(_provenance(fair)) == "scored      1 of the run's test split, 2 new to the model"
    everything = scored(model, photos["a"].parents[1], known_images(known), everything=True)
    assert len(everything.unreadable) == 1
    assert list(_provenance(everything)) == [
        "optimistic  25% of these images are of the run's training split (1) or its validation split (0)"
    ]


def test_with_all_images_those_that_cannot_be_told_are_not_called_new(
    model: PixelModel, photos: dict[str, Path]
) -> None:
    first, *others = sorted((sample(path, "test") for path in photos.values()), key=lambda one: one.digest)
    found = scored(model, photos["a"].parents[1], known_images([first, *others], most=2), everything=True)
    (line,) = _provenance(found)
    assert line.startswith("scored      2 of the run's test split, 2 of which the bundle cannot tell")


@pytest.mark.parametrize(
    ("train_on", "doubt"),
    [
        ("train", "; may include images that the model was trained on, or chosen by"),
        ("train+val", "; may include images that the model was trained on, validation images among them"),
    ],
)
def test_without_a_list_of_images_the_score_line_says_what_it_may_include(
    train_on: TrainOn, doubt: str, model: PixelModel, photos: dict[str, Path], tmp_path: Path
) -> None:
    found = scored(model, photos["a"].parents[1], read_known(tmp_path, train_on))
    assert (found.scores.n, found.unsure, _doubt(found)) == (4, 4, doubt)
    told = scored(model, photos["a"].parents[1], known_images([], train_on=train_on))
    assert (told.unsure, _doubt(told)) == (0, "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_verify_names_images_that_cannot_be_read_and_ends_as_predict_does(
    form: tuple[str, ...], photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Rescored(
        scores=Scores(2, 2, {"accuracy": 1.0}, (0.3, 1.0)),
        unreadable=("cat/broken.png: not an image: text",),
        known={"train": 0, "val": 0, "test": 2},
        scored={"train": 0, "val": 0, "test": 2},
        fresh=0,
        left_out=0,
    )
    result = Verified(True, (), (), (), files=1, vectors=1, worst_difference=0.0, seconds=0.1, rescored=found)
    monkeypatch.setattr("autoft.shell.commands.handoff._verified", lambda *arguments: result)
    monkeypatch.setattr("sys.argv", ["autoft", "verify", "bundle", "photos", *form])
    assert _run() == 2
    out, err = capsys.readouterr()
    assert "cat/broken.png: not an image: text" in (out if form else err)
    assert err.endswith("error: 1 image could not be read; the score is of the others\n")


@given(st.dictionaries(HEX, SPLITS), st.integers(0, 5))
def test_every_listed_image_is_known_and_the_list_is_bounded(splits: dict[str, SplitName], most: int) -> None:
    samples = [Sample(row, "x", LABELS[0], split, digest) for row, (digest, split) in enumerate(splits.items())]
    known = decode(KnownImages, encode(known_images(samples, most)))
    assert sum(map(len, known.splits.values())) <= most * DIGITS
    for one in samples:
        assert known.split_of(one.digest) == (one.split if known.may_list(one.digest) else None)


def test_folders_are_named_as_labels(model: PixelModel, photos: dict[str, Path]) -> None:
    folder = photos["a"].parents[1]
    (folder / LABELS[1]).mkdir()
    (folder / LABELS[1] / "d.png").write_text("no image")
    (folder / LABELS[3]).mkdir()  # a class without images
    found = scored(model, folder, known_images([]))
    assert (found.scores.n, found.scores.correct) == (4, 3)
    assert found.unreadable == (f"{folder / LABELS[1] / 'd.png'}: not an image: text",)
    (folder / "zebra").mkdir()  # no class: a search leaves it alone
    assert scored(model, folder, known_images([])).scores.n == 4
    with pytest.raises(DataError, match="holds no class folders"):
        scored(model, folder / "zebra", known_images([]))
    colour(folder / "zebra" / "a.png", (255, 0, 0))
    with pytest.raises(DataError, match=r"/zebra: 'zebra' is no label of the model.* and \d+ more"):
        scored(model, folder, known_images([]))
    shutil.rmtree(folder)
    (folder / LABELS[0]).mkdir(parents=True)
    with pytest.raises(DataError, match="no images in"):
        scored(model, folder, known_images([]))


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "TESTING")])
def test_split_folders_are_taken_as_a_search_takes_them(
    train: str, test: str, model: PixelModel, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    trained = colour(data / train / LABELS[0] / "a.png", (0, 255, 0))
    tested = colour(data / test / LABELS[0] / "b.png", (254, 0, 0))
    (data / "notes").mkdir()
    (data / test / "__MACOSX").mkdir()
    found = scored(model, data, known_images([sample(trained, "train"), sample(tested, "test")]))
    assert (found.scores.n, found.scores.correct, found.left_out) == (1, 1, 1)
    assert scored(model, data, known_images([sample(trained, "train")])).fresh == 1
    assert scored(model, data, known_images([]), everything=True).scores.n == 2
    untold = scored(model, data, read_known(tmp_path))  # no images.json: what the folder says is all there is
    assert (untold.scores.n, untold.scores.correct, untold.left_out) == (1, 1, 1)
    (line,) = _provenance(untold)
    assert line.startswith("left out    1 of the train and val splits there") and "--all" in line


def test_splits_of_a_manifest_are_all_there_is_without_a_list_of_images(model: PixelModel, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        colour(tmp_path / f"{name}.png", (255 - number, 0, 0))
    rows = [f"{name}.png,{LABELS[0]},{split}" for name, split in (("a", "train"), ("b", "val"), ("c", "test"))]
    (tmp_path / "data.csv").write_text("\n".join(["image,label,split", *rows]))
    found = scored(model, tmp_path / "data.csv", read_known(tmp_path))
    assert (found.scores.n, found.left_out) == (1, 2)


def test_a_split_folder_that_no_search_takes_is_to_be_given_itself(model: PixelModel, tmp_path: Path) -> None:
    image = colour(tmp_path / "data" / "test" / LABELS[0] / "a.png", (255, 0, 0))
    with pytest.raises(DataError, match=r"'test' is no label of the model.*; give .*/data/test itself"):
        read_source(model, tmp_path / "data")
    assert [one.path for one in read_source(model, tmp_path / "data" / "test").images] == [image]


def test_what_a_search_leaves_alone_is_not_scored(model: PixelModel, tmp_path: Path) -> None:
    """In split folders of other names, beside which another tool has written."""
    for place in (
        f"seg_train/seg_train/{LABELS[0]}",
        f"seg_test/seg_test/{LABELS[0]}",
        "seg_test/seg_test/eel",
        "runs",
    ):
        colour(tmp_path / place / "a.png", (255, 0, 0))
    source = read_source(model, tmp_path)
    assert {(one.split, one.label) for one in source.images} == {("train", LABELS[0]), ("test", LABELS[0])}
    assert sorted(note.partition(":")[0] for note in source.notes) == ["runs", "seg_test/seg_test/eel"]


def test_metadata_counts_for_verify_as_for_a_search(model: PixelModel, tmp_path: Path) -> None:
    """More than the names of the folders that the images lie in."""
    for name in LABELS[:2]:
        colour(tmp_path / name / "a.png", (255, 0, 0))
    rows = [f"{place}/a.png,{label}" for place, label in zip(LABELS[:2], LABELS[1::-1], strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    found = {one.path.parent.name: one.label for one in read_source(model, tmp_path).images}
    assert found == {LABELS[0]: LABELS[1], LABELS[1]: LABELS[0]}


def test_a_damaged_list_of_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text(json.dumps({"splits": {"train": 3}}))
    with pytest.raises(UserError, match=r"images\.json cannot be read"):
        read_known(tmp_path)


def test_without_a_list_of_images_nothing_can_be_told(tmp_path: Path) -> None:
    known = read_known(tmp_path)
    assert known.split_of("0" * 32) is known.split_of("f" * 32) is None
    assert not known.may_list("0" * 32) and not known.may_list("f" * 32)
