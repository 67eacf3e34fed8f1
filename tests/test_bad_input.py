"""Bad data and bad plugins, tried through the command line: one line, exit code 2, nothing written into the data."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from autoft.__main__ import _run
from autoft.store.whereabouts import meant
from autoft.system.faults import unusable_path

SMALL = (Path(__file__).parent / "parts" / "small_zoo.py").read_text()


@pytest.fixture
def search(capsys, monkeypatch, tmp_path, tiny_images):
    """`autoft search` on the tiny images, inline; gives the exit code and the error's line."""

    def call(*arguments, data=tiny_images):
        def state():
            return {path: path.lstat().st_mtime_ns for path in sorted(tiny_images.rglob("*"))}

        before = state()
        command = ["autoft", "search", str(data), "--runner", "inline", "--out", str(tmp_path / "run"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        code = _run()
        captured = capsys.readouterr()
        assert state() == before
        assert captured.out == ""
        assert not (tmp_path / "run").exists()
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return code, line

    return call


def no_images(data):
    for file in data.rglob("*.png"):
        file.unlink()


def one_class(data):
    shutil.rmtree(data / "red")
    shutil.rmtree(data / "blue")


def two_images_in_a_class(data):
    for file in sorted((data / "red").iterdir())[2:]:
        file.unlink()


def every_file_corrupt(data):
    for file in data.rglob("*.png"):
        file.write_bytes(b"<html>not found</html>")


def names_that_differ_in_case(data):
    shutil.copytree(data / "red", data / "Red")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_images, "no image"),
        (one_class, "class"),
        (two_images_in_a_class, "red"),
        (every_file_corrupt, "none of"),
        (names_that_differ_in_case, "case"),
    ],
)
def test_bad_data(search, tiny_images, spoil, says):
    spoil(tiny_images)
    code, line = search("--offline", "--time", "10h")  # from the start of this process, which runs all tests
    assert code == 2, line
    assert says in line


def test_unknown_backbone_suggests_the_near_one(search, tmp_path):
    zoo = tmp_path / "zoo.py"
    zoo.write_text(SMALL)
    code, line = search("-p", str(zoo), "--backbones", "small/test_resmet")
    assert code == 2
    assert "did you mean 'small/test_resnet'?" in line


def test_backbones_that_leave_nothing_offline(search):
    code, line = search("--offline", "--backbones", "timm/resnet18.a1_in1k")
    assert code == 2
    assert "leaves nothing" in line


def test_a_licence_that_leaves_nothing(search):
    code, line = search("--offline", "--backbones", "timm/convnextv2_atto.fcmae_ft_in1k")
    assert code == 2
    assert "leaves nothing" in line


def test_a_plugin_that_fails_to_import_and_is_needed_is_named(search, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('libmissing')")
    code, line = search("-p", str(broken), "--backbones", "broken/*")
    assert code == 2
    assert "broken" in line
    assert "libmissing" in line


def test_two_plugins_with_one_part_name_are_both_named(search, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(SMALL)
    code, line = search("-p", str(tmp_path / "one.py"), "-p", str(tmp_path / "two.py"), "--backbones", "small/*")
    assert code == 2
    assert "one.py" in line
    assert "two.py" in line


def table(folder, label):
    """A manifest of the images in a folder, each with the label that a function gives to its class and number."""
    rows = [(path, label(path.parent.name, number)) for number, path in enumerate(sorted(folder.rglob("*.png")))]
    lines = [f"{path.relative_to(folder)};{said}" for path, said in rows]
    (folder / "data.csv").write_text("\n".join(["image;label", *lines]))
    return folder / "data.csv"


@pytest.mark.parametrize(
    ("label", "arguments", "says"),
    [
        (
            lambda name, number: f"{name}|x" if number % 2 else name,
            ("--metric", "mae"),
            "'mae' is a metric of regression and ordinal; this is multi_label, which has map, macro_f1, micro_f1, ",
        ),
        (lambda name, number: name, ("--metric", "maq"), "no metric is called 'maq'"),
        (lambda name, number: name, ("--task", "ordinal"), "of the class 'blue' nothing says where"),
        (lambda name, number: f"{number % 3}|4", ("--task", "ordinal"), "'0|4' stands for several labels"),
        (
            lambda name, number: f"{name}|{number}",
            ("--task", "single_label"),
            "(if | parts several labels, say --task multi_label): each class needs",
        ),
        (lambda name, number: f"0,0{number + 10}", (), "'0,010' in label has a decimal comma; write a point, 0.010"),
    ],
)
def test_labels_that_are_of_another_task(search, tiny_images, label, arguments, says):
    code, line = search("--offline", "--time", "10h", *arguments, data=table(tiny_images, label))
    assert code == 2, line
    assert says in line


PATHS = {"loop": "loop", "below a loop": "loop/x", "csv": "self.csv", "long": "n" * 300}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(
    "command",
    [
        ("search", "{}"),
        ("search", "{data}", "--out", "{}"),
        ("search", "{data}", "--config", "{}"),
        ("search", "{data}", "--plugin", "{}.py"),
        ("resume", "{}"),
        ("leaderboard", "{}"),
        ("export", "{}"),
        ("verify", "{}"),
        ("predict", "{}", "x.jpg"),
    ],
    ids=" ".join,
)
def test_a_path_that_leads_nowhere_is_one_line(capsys, monkeypatch, tmp_path, tiny_images, command, path):
    """Links in a circle, and a name that no file system takes."""
    for link in ("loop", "self.csv"):
        (tmp_path / link).symlink_to(link)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["autoft", *(word.format(path, data=tiny_images) for word in command)])
    assert _run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert path.split("/")[0] in line


def test_a_folder_without_permission_is_one_line(capsys, monkeypatch):
    def forbidden(path, *given, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for looked in ("resolve", "stat", "is_file", "is_dir", "exists", "lstat"):
        monkeypatch.setattr(Path, looked, forbidden)
    assert meant(Path("locked/run")) == ""
    for command in (("search", "locked"), ("verify", "locked"), ("predict", "locked", "x.jpg"), ("resume", "locked")):
        monkeypatch.setattr(sys, "argv", ["autoft", *command])
        assert _run() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "Permission denied" in line


def test_a_fault_that_is_no_paths_stays_a_bug():
    for error in (RuntimeError("no way"), OSError(errno.EPERM, "no"), ValueError("loop")):
        assert unusable_path(error) is None
