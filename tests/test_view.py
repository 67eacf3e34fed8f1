"""The view: what it is by default, what is said of it, and that it reaches the scored and the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts.notes import Notes
from PIL import Image

import autoft
from autoft.bundle.onnx_runtime import PixelModel
from autoft.data.readers import read_labelled
from autoft.data.scan import scan
from autoft.errors import StudyError
from autoft.media.image.view import choose_view, side_seen, views_to_compare, what_a_crop_hides
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.values.handoff import View

FASHION = Path(__file__).parents[1] / "examples" / "fashion"
CLASSES = ("bag", "sandal", "trouser")
VIEWS = st.sampled_from(get_args(View))


@pytest.mark.parametrize(("aspect", "view"), [(1.0, "crop"), (4 / 3, "crop"), (1.5, "squash"), (4.0, "squash")])
def test_elongated_images_are_shown_whole_unless_asked_otherwise(aspect: float, view: View) -> None:
    assert choose_view("auto", aspect) == view
    assert [choose_view(asked, aspect) for asked in get_args(View)] == list(get_args(View))


@given(VIEWS, st.integers(1, 5000), st.floats(1, 50))
def test_the_side_seen_lies_between_the_short_and_the_long_one(view: View, short_side: int, aspect: float) -> None:
    assert short_side <= side_seen(view, short_side, aspect) <= round(short_side * aspect)


def test_the_side_seen_counts_the_pixels_that_a_view_shows() -> None:
    assert [side_seen(view, 100, 4.0) for view in ("crop", "squash", "pad")] == [100, 200, 400]
    assert {side_seen(view, 100, 1.0) for view in ("crop", "squash", "pad")} == {100}


def test_what_a_crop_hides_is_said_unless_the_whole_image_was_asked_for_or_it_is_next_to_nothing() -> None:
    said = "the centre square shows 50 % of a median image"
    assert what_a_crop_hides("crop", "crop", 2.0) == f"{said}; --view squash shows all"
    assert (what_a_crop_hides("auto", "squash", 2.0) or "").startswith(f"{said}, so images are squashed")
    assert "75 %" in (what_a_crop_hides("auto", "crop", 4 / 3) or "")
    assert what_a_crop_hides("squash", "squash", 2.0) is None
    assert what_a_crop_hides("pad", "pad", 2.0) is None
    assert what_a_crop_hides("auto", "crop", 1.02) is None


def test_views_are_compared_where_images_are_not_nearly_square_and_none_was_asked_for() -> None:
    assert views_to_compare("auto", 1.03) == ()
    assert views_to_compare("auto", 4 / 3) == ("crop", "squash", "pad")
    assert views_to_compare("auto", 2.0) == ("squash", "crop", "pad")
    assert [views_to_compare(asked, 2.0) for asked in get_args(View)] == [()] * 3


def test_another_view_is_refused() -> None:
    with pytest.raises(StudyError, match="no view is called 'squish'; did you mean 'squash'"):
        Study("data", view="squish")


def test_a_scan_knows_the_median_shape(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 10), (10, 20), (30, 30), (90, 30), (2, 50), (20, 20), (90, 30)]):
        (tmp_path / f"class{number % 2}").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / f"class{number % 2}" / f"{number}.png")
    (tmp_path / "class0" / "broken.png").write_bytes(b"no image")
    found = scan(read_labelled(tmp_path), 1)
    assert (found.short_side, found.aspect) == (20, 3.0)


def strip(file: Path, seed: int, width: int = 128) -> Image.Image:
    """A picture 32 pixels high whose first quarter shows the file, and the rest is noise."""
    noise = np.random.default_rng(seed).integers(90, 110, (32, width)).astype(np.uint8)
    image = Image.fromarray(noise)
    image.paste(Image.open(file).convert("L").resize((width // 4, 32)), (0, 0))
    return image


def strips_of(width: int, folder: Path) -> Path:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(sorted((FASHION / name).iterdir())[:20]):
            strip(file, number, width).save(folder / name / file.name)
    return folder


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    return strips_of(128, tmp_path / "strips")


def accuracy_on_further_strips(model: PixelModel, width: int = 128) -> float:
    answers = []
    for name in CLASSES:
        for number, file in enumerate(sorted((FASHION / name).iterdir())[20:50]):
            pixels = np.asarray(strip(file, 100 + number, width).convert("RGB"))
            answers.append(model.labels[model.answers(pixels).argmax()] == name)
    return float(np.mean(answers))


def test_strips_twice_as_wide_as_high_are_learnt_by_default(tmp_path: Path) -> None:
    """The centre square shows none of what tells their classes apart."""
    data = strips_of(64, tmp_path / "strips")
    chosen = {"freeze": "probe", "backbones": "lite/efficientnet_lite0", "image_size": 64, "runner": "inline"}
    summary = autoft.search(data, time="5m", trials=1, out=tmp_path / "run", screen=Notes(), **chosen)
    model = PixelModel(tmp_path / "run" / summary.model)
    assert model.preprocess.view != "crop"
    assert accuracy_on_further_strips(model, 64) > 0.8


def test_strips_are_learnt_by_default_and_a_crop_that_cannot_is_told(
    strips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoft.study.views.MOST_SECONDS", 600.0)  # whatever else runs here
    monkeypatch.setattr("autoft.study.views.SHARE", 1.0)
    accuracy, lines, runs = {}, {}, {}
    for asked in ("auto", "crop"):
        notes = Notes()
        summary = autoft.search(
            strips,
            time="5m",
            trials=1,
            runner="inline",
            freeze="probe",
            backbones="lite/efficientnet_lite0",
            image_size=64,
            view=asked,
            out=tmp_path / asked,
            screen=notes,
        )
        model = PixelModel(tmp_path / asked / summary.model)
        accuracy[asked], lines[asked], runs[asked] = accuracy_on_further_strips(model), notes.lines, model.preprocess
    assert accuracy["auto"] > 0.8
    assert accuracy["crop"] < 0.5  # one in three by chance
    assert [line for line in lines["crop"] if "the centre square shows 25 % of a median image" in line]
    assert [line for line in lines["auto"] if line.startswith("view squash: out-of-fold accuracy")]
    record = Run.open(tmp_path / "auto").record
    assert (record.study.view, record.view, runs["auto"].view) == ("auto", "squash", "squash")
    assert (tmp_path / "auto" / "export" / "preprocess.json").read_text().count('"squash"') == 1
    assert Run.open(tmp_path / "crop").record.view == runs["crop"].view == "crop"
