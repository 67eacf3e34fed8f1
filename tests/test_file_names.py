"""File names that are not UTF-8, and locales that are not: names are text everywhere, and lead back to the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from parts.data import dataset

from autoft.bundle.predict import _read
from autoft.data.dataset import read_samples, write_split_csv
from autoft.shell.commands import handoff
from autoft.study.study import Study
from autoft.system.files import as_path, as_text
from autoft.values.codec import decode, encode
from autoft.values.dataset import DatasetInfo
from autoft.values.prediction import Prediction

NAMES = st.binary(min_size=1).filter(lambda name: not {0, ord("/")} & set(name) and name not in (b".", b".."))


@given(NAMES, NAMES)
@example(b"caf\xe9.png", rb"caf\xe9.png")
@example(rb"\x5cxe9", b"\\xe9")
@example(b"\\\xe9", b"\xed\xb2\x80")
def test_every_name_has_a_text_of_its_own_that_leads_back(one, other):
    texts = [as_text(os.fsdecode(name)) for name in (one, other)]
    assert [os.fsencode(as_path(text)) for text in texts] == [one, other]
    assert (texts[0] == texts[1]) == (one == other)
    assert texts[0].encode().decode() == texts[0]


@pytest.mark.parametrize("name", ["cat.png", "näme.png", "a\\b.png", "\\xyz", "日本"])
def test_names_in_utf_8_stay_as_they_are(name):
    assert as_text(name) == name


@pytest.fixture
def odd_images(tiny_images, tmp_path) -> Path:
    """Latin-1 in the names of the data folder, a class and a file; and a file whose name reads like its text."""
    (tiny_images / "blue" / "3.png").rename(tiny_images / "blue" / os.fsdecode(b"caf\xe9.png"))
    (tiny_images / "blue" / "4.png").rename(tiny_images / "blue" / r"caf\xe9.png")
    (tiny_images / "blue" / os.fsdecode(b"empty\xe9.png")).touch()
    (tiny_images / "red").rename(tiny_images / os.fsdecode(b"rouge\xe9"))
    return tiny_images.rename(tmp_path / os.fsdecode(b"donn\xe9es"))


def test_a_data_set_survives_json_and_csv_and_its_files_are_found(odd_images, tmp_path):
    data = dataset(odd_images, [(8, "bicubic", "crop")])
    assert data.info.root.endswith(r"donn\xe9es") and data.info.targets.names[-1] == r"rouge\xe9"
    assert [problem.path for problem in data.info.problems] == [r"blue/empty\xe9.png"]
    assert {r"blue/caf\xe9.png", r"blue/caf\x5cxe9.png"} < {sample.path for sample in data.samples}
    assert all(data.file(sample).is_file() for sample in data.samples)
    assert decode(DatasetInfo, encode(data.info)) == data.info
    write_split_csv(data, tmp_path / "split.csv")
    (tmp_path / "split.csv").read_text(encoding="utf-8")
    assert read_samples(tmp_path / "split.csv", data.info) == data.samples


def test_a_study_and_a_prediction_of_such_a_folder_survive_json(odd_images):
    study = Study.parse({"data": str(odd_images), "out": odd_images.parent / os.fsdecode(b"\xe9")})
    assert decode(Study, encode(study)) == study and as_path(study.data) == odd_images
    read = _read(None, odd_images / "blue" / os.fsdecode(b"caf\xe9.png"))
    assert read.error is None and read.image.endswith(r"caf\xe9.png")


def test_the_locale_makes_no_difference(odd_images):
    (odd_images / "green" / "0.png").rename(odd_images / "green" / "näme.png")
    code = (
        "import pathlib, sys; from autoft.data.readers import read_labelled; "
        "found = read_labelled(pathlib.Path(sys.argv[1]))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = [
        subprocess.run(
            [sys.executable, "-c", f"{code}; print(ascii(found))", odd_images],
            env={**os.environ, **locale},
            capture_output=True,
            check=True,
        ).stdout
        for locale in ({"PYTHONUTF8": "1"}, plain)
    ]
    assert shown[0] == shown[1] and ascii("näme.png").strip("'").encode() in shown[0]


def test_a_table_has_one_line_an_image_whatever_it_is_called(capsys):
    model = SimpleNamespace(form=SimpleNamespace(line=lambda found: found.label))
    odd = "two\nlines\x1b[2J.png"
    assert handoff._table(model, [Prediction(odd, "cat"), Prediction(odd, error="not an image")]) == 1
    assert capsys.readouterr() == ("cat  two lines [2J.png\n", "two lines [2J.png: not an image\n")
