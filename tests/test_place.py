from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoft import StudyError
from autoft.bundle.place import _held, bundle_of, replacing, require_free, settle
from autoft.errors import RunFolderError
from autoft.store import Checkpoint, CheckpointStore
from autoft.values.bundle import FileRecord, Manifest
from autoft.values.codec import encode
from autoft.values.trial import Parent, Trial


def bundle(folder: Path, content: str = "model") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_text(content)
    manifest = Manifest(1, {"model.onnx": FileRecord("0", 5)}, {}, "f", "1.14", "now")
    (folder / "manifest.json").write_text(encode(manifest))
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_new_place_an_empty_one_and_that_of_a_bundle_are_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "new", tmp_path / "empty", bundle(tmp_path / "old")):
        assert require_free(folder, ()) == folder
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("manifest", ['{"name": "a web application"}', "{", None])
def test_other_files_are_not_replaced_whatever_manifest_lies_there(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "web" / "src").mkdir(parents=True)
    (tmp_path / "web" / "src" / "app.js").write_text("mine")
    if manifest is not None:
        (tmp_path / "web" / "manifest.json").write_text(manifest)
    with pytest.raises(StudyError, match="holds other files and is no bundle"):
        require_free(tmp_path / "web", ())


def test_a_bundle_with_somebodys_own_file_in_it_is_not_replaced(tmp_path: Path) -> None:
    (bundle(tmp_path / "old") / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="holds other files"):
        require_free(tmp_path / "old", ())


def test_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StudyError):
        require_free(tmp_path / "file", ())
    with pytest.raises(StudyError):
        require_free(tmp_path / "file" / "below", ())


def test_nothing_that_is_needed_is_replaced_by_any_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = bundle(tmp_path / "b") / "examples"
    here.mkdir()
    monkeypatch.chdir(here)
    for out in ("..", ".", "../../b", "../..", str(tmp_path)):
        with pytest.raises(StudyError, match="would be replaced"):
            require_free(Path(out), ())
    (tmp_path / "run").mkdir()
    with pytest.raises(StudyError, match="run, which would be replaced"):
        require_free(tmp_path / "run", (tmp_path / "run",))


def test_a_link_to_an_empty_folder_leads_there(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert require_free(tmp_path / "link", ()) == tmp_path / "target"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StudyError, match="cannot be written"):
        require_free(tmp_path / "locked" / "new", ())


def test_what_is_filled_takes_the_place_and_leaves_nothing_else(tmp_path: Path) -> None:
    old = bundle(tmp_path / "b")
    with replacing(old) as fresh:
        (fresh / "model.onnx").write_text("newer")
        assert (old / "model.onnx").read_text() == "model"
    assert files(tmp_path) == {"b", "b/model.onnx"}
    assert (old / "model.onnx").read_text() == "newer"
    with replacing(tmp_path / "deep" / "new") as fresh:
        (fresh / "x").touch()
    assert files(tmp_path / "deep") == {"new", "new/x"}


def test_after_a_failure_everything_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = bundle(tmp_path / "b")
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt), replacing(old) as fresh:
        (fresh / "model.onnx").write_text("half")
        raise KeyboardInterrupt
    assert files(tmp_path) == before
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: rename(self, to) if not self.name.endswith(".new") else _no_space()
    )
    with pytest.raises(OSError, match="No space left"), replacing(old) as fresh:
        (fresh / "model.onnx").write_text("newer")
    assert files(tmp_path) == before
    assert (old / "model.onnx").read_text() == "model"


def test_after_a_failure_no_folder_is_left_that_was_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "run" / "exports" / "3"):
        _no_space()
    assert files(tmp_path) == {"run"}


def _no_space() -> None:
    raise OSError(28, "No space left on device")


def _ends_at(ending: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch, how: BaseException) -> None:
    """Have the n-th rename, counted from 0, raise where `ending(n)` is so, before or after it was made."""
    rename, seen = Path.rename, [0.0]

    def interrupted(self: Path, to: Path) -> Path:
        moment, seen[0] = seen[0], seen[0] + 1
        if ending(moment):
            raise how
        moved = rename(self, to)
        if ending(moment + 0.5):
            raise how
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)


@pytest.mark.parametrize("moment", [0, 0.5, 1, 1.5, 2, 2.5])
def test_a_signal_between_the_renames_loses_no_bundle(
    tmp_path: Path, moment: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bundle(tmp_path / "b")
    _ends_at(lambda n: n == moment, monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), replacing(old) as fresh:
        (fresh / "model.onnx").write_text("newer")
    assert (old / "model.onnx").read_text() == ("newer" if moment == 2.5 else "model")
    assert {path.name for path in tmp_path.iterdir()} == {"b"}


def killed(folder: Path, *, between: bool) -> None:
    """As a SIGKILL leaves it, while the new bundle is written or between the renames."""
    bundle(folder.with_name(f".{folder.name}.0123abcd.new"), "newer")
    if between:
        folder.rename(folder.with_name(f".{folder.name}.0123abcd.old"))


@pytest.mark.parametrize("between", [False, True])
def test_what_a_kill_has_left_is_put_back_and_swept(tmp_path: Path, between: bool) -> None:
    old, other = bundle(tmp_path / "b"), bundle(tmp_path / ".b.mine.new", "mine")
    killed(old, between=between)
    settle(old)
    assert (old / "model.onnx").read_text() == "model"
    assert {path.name for path in tmp_path.iterdir()} == {"b", other.name}
    killed(old, between=between)
    with pytest.raises(ValueError), replacing(old):
        assert {path.name for path in tmp_path.iterdir() if path.suffix == ".old"} == set()
        raise ValueError
    assert (old / "model.onnx").read_text() == "model"
    settle(tmp_path / "nowhere" / "b")  # there is nothing to do


def test_what_another_command_is_filling_is_not_swept(tmp_path: Path) -> None:
    """Two exports to one folder, which the lock of neither run covers; the second ends while the first is at work."""
    place = bundle(tmp_path / "b")
    with replacing(place) as first:
        (first / "model.onnx").write_text("first")
        with replacing(place) as second:
            (second / "model.onnx").write_text("second")
        assert (place / "model.onnx").read_text() == "second"
    assert files(tmp_path) == {"b", "b/model.onnx"}
    assert (place / "model.onnx").read_text() == "first"


def test_a_bundle_that_another_command_is_replacing_is_not_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = bundle(tmp_path / "b"), Path.rename

    def looked_at(self: Path, to: Path) -> Path:
        settle(place)
        return rename(self, to)

    with replacing(place) as fresh:
        (fresh / "model.onnx").write_text("newer")
        monkeypatch.setattr(Path, "rename", looked_at)
    assert files(tmp_path) == {"b", "b/model.onnx"}
    assert (place / "model.onnx").read_text() == "newer"


@pytest.mark.parametrize("moment", ["filled", "between"])
def test_what_a_killed_command_was_filling_is_swept(tmp_path: Path, moment: str) -> None:
    place = bundle(tmp_path / "b")
    between = "place.Path.rename = lambda self, to: os.rename(self, to) or (self.name == 'b' and die())"
    script = f"""
import os, signal
from pathlib import Path
from autoft.bundle import place
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
with place.replacing(Path({str(place)!r})) as fresh:
    {"die()" if moment == "filled" else between}
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    settle(place)
    assert files(tmp_path) == {"b", "b/model.onnx", "b/manifest.json"}


def test_a_folder_that_a_kill_left_empty_is_swept_once_nobody_can_be_about_to_fill_it(tmp_path: Path) -> None:
    place, before = bundle(tmp_path / "b"), time.time() - 100.0
    born, mine, other = (tmp_path / name for name in (".b.0123abcd", ".b.89abcdef", ".c.0123abcd"))
    for path in (born, mine, other):
        path.mkdir()
    settle(place)  # another command may just have made it
    assert born.exists()
    (mine / "notes").write_text("mine")
    for path in (born, mine, other):
        os.utime(path, (before, before))
    with _held(born):
        settle(place)
        assert born.exists()
    settle(place)
    assert (born.exists(), mine.exists(), other.exists()) == (False, True, True)


def test_a_bundle_that_a_kill_took_from_its_place_is_found_again(tmp_path: Path) -> None:
    killed(bundle(tmp_path / "export"), between=True)
    summary = SimpleNamespace(model="export/model.onnx", best=SimpleNamespace(trial=3))
    assert bundle_of(tmp_path, summary) == tmp_path / "export"
    assert (tmp_path / "export" / "model.onnx").read_text() == "model"


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_that_is_gone_is_written_anew_only_from_whole_weights(tmp_path: Path, whole: bool) -> None:
    one = Parent(3, 1.0)
    saved = Checkpoint(Trial(3, "zoo/net", "full", 64, {}, 0), 1.0, "weights", {"head.bias": torch.zeros(8)})
    CheckpointStore(tmp_path / "checkpoints").save(saved)
    if not whole:
        (weights,) = (tmp_path / "checkpoints").glob("*.model.safetensors")
        os.truncate(weights, 10)
    anew, others = (
        r"`autoft export .* --trial 3` writes",
        r"trial 3 cannot .* damaged: .*; `autoft leaderboard .*` says",
    )
    summary = SimpleNamespace(model="export/model.onnx", best=SimpleNamespace(trial=3), finalists=(Parent(1, 1.0), one))
    with pytest.raises(RunFolderError, match=anew if whole else others):
        bundle_of(tmp_path, summary)
