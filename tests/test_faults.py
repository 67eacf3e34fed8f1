"""Faults: one line, and a file with the traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from autoft.errors import BackboneUnavailable
from autoft.system import faults


def raised(message: str, *notes: str) -> Exception:
    try:
        raise ValueError(message)
    except ValueError as error:
        for note in notes:
            error.add_note(note)
        return error


def file_of(line: str) -> Path:
    (path,) = re.findall(r"traceback in (\S+)", line)
    return Path(path)


def test_the_line_names_the_error_its_notes_and_its_file(tmp_path: Path) -> None:
    line = faults.record(raised("two\nlines", "in the network of 'mine/x'"), tmp_path / "errors")
    assert line.startswith("ValueError: two lines; in the network of 'mine/x'; traceback in ")
    text = file_of(line).read_text()
    assert "Traceback" in text and "test_faults.py" in text and "in the network of 'mine/x'" in text


def test_one_place_is_one_file_however_often_it_raises(tmp_path: Path) -> None:
    lines = [faults.record(raised(f"at step {step}"), tmp_path) for step in range(3)]
    assert len({file_of(line) for line in lines}) == 1
    assert "at step 2" in file_of(lines[0]).read_text()


def test_the_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MOST_FILES", 3)
    for age in range(5):
        (tmp_path / f"{age}.txt").write_text("old")
        os.utime(tmp_path / f"{age}.txt", (1000 - age, 1000 - age))
    path = file_of(faults.record(raised("new"), tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "0.txt", "1.txt"}


def test_what_was_raised_on_purpose_needs_no_traceback(tmp_path: Path) -> None:
    assert faults.record(BackboneUnavailable("z/x: no network"), tmp_path) == "z/x: no network"
    assert not list(tmp_path.iterdir())


def test_before_there_is_a_run_the_cache_keeps_it(own_cache: Path) -> None:
    assert file_of(faults.record(raised("early"))).parent == own_cache / "errors"


def test_a_folder_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "errors").write_text("a file")
    line = faults.record(raised("the cause"), tmp_path / "errors")
    assert line.startswith("ValueError: the cause; its traceback could not be kept: FileExistsError")


def test_names_that_are_no_unicode_can_be_kept(tmp_path: Path) -> None:
    assert "Traceback" in file_of(faults.record(raised("caf\udce9"), tmp_path)).read_text()
