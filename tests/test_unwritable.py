"""A full or read-only disk, or a folder that is gone: one line with the place, the reason and the way on."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parts.notes import Notes

from autoft import __main__ as main
from autoft.bundle.place import replacing
from autoft.engine.conclude import BundleMaker, NoWeights, let_stand
from autoft.engine.execution import ExportWish, _leaderboard_at_the_end, export_trial
from autoft.errors import PluginError, RunFolderError
from autoft.parts.host import Host
from autoft.parts.plugins import builtin_ref
from autoft.store import Checkpoint, Journal, RunFolder
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system import faults
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.codec import encode
from autoft.values.dataset import DatasetInfo
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.space import Space
from autoft.values.summary import Best, Scores, Summary
from autoft.values.target import MetricFacts, Targets
from autoft.values.trial import Candidate, Clock, Queued, Report, Slice

CANDIDATE = Candidate("zoo/net", "probe", 64, Space({}))
TRIAL = CANDIDATE.trial(0, {}, 0)
TARGETS = Targets("single_label", "one_of", ("a", "b"))
SCORES = Scores(n=2, correct=1, metrics={"accuracy": 0.5}, ci95=(0.1, 0.9))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has just begun, in a folder whose name a shell would take apart."""
    folder = tmp_path / "a run"
    record = StudyRecord(
        study=Study(data=str(tmp_path), out=str(folder), time=60.0),
        data=DatasetInfo(str(tmp_path), TARGETS, {"train": 0, "val": 0, "test": 0}, "f" * 8, 64, 1.5),
        view="crop",
        backbones=(Backbone("zoo/net", 1_000_000, InputSpec(64)),),
        candidates=(CANDIDATE,),
        plugins=(builtin_ref("autoft.builtin.onnx_exporter"),),
        versions={},
        machine=Machine("inline", 1, 1, "cpu"),
        metric=MetricFacts("accuracy"),
    )
    RunFolder.create(folder, encode(record))
    return Run.open(folder)


def journal(run: Run) -> None:
    with Journal(run.folder.journal) as lines:
        lines.append(Queued(0, Slice(TRIAL, 0.0, 1.0, 60.0), Clock(1.0, 60.0)))


def checkpoint(run: Run) -> None:
    import torch

    run.checkpoints.save(Checkpoint(TRIAL, 1.0, "weights", {"head": torch.ones(2)}))


def study(run: Run) -> None:
    replace(run, record=replace(run.record, study=replace(run.record.study, time=90.0))).save()


def summary(run: Run) -> None:
    best = Best(0, "zoo/net", "probe", 64, {})
    search = SimpleNamespace(ledger=run.ledger(), clock=CLOCK, screen=Silent(), goes_on=lambda: True)
    let_stand(run, search, Summary("", "accuracy", best, SCORES, SCORES, {}, {}, "m", 60.0, 9.0))


def leaderboard(run: Run) -> None:
    with _leaderboard_at_the_end(run, run.ledger(), Silent()):
        pass


def bundle(run: Run) -> None:
    with run.writing(run.folder.export):
        (run.folder.export / "examples").mkdir(parents=True)


def lock(run: Run) -> None:
    with run.folder.lock():
        pass


CLOCK = RunClock(0.0, 60.0)
WRITES: dict[str, tuple[Callable[[Run], None], str]] = {
    "trials.jsonl": (journal, "os.fsync"),
    "checkpoints": (checkpoint, "autoft.store.checkpoints.write_atomic"),
    "study.json": (study, "autoft.study.run.write_atomic"),
    "leaderboard.csv": (leaderboard, "autoft.store.leaderboard.write_atomic"),
    "summary.json": (summary, "autoft.engine.conclude.write_atomic"),
    "export": (bundle, "pathlib.Path.mkdir"),
    ".lock": (lock, "os.open"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_is_one_line_with_the_way_on(
    name: str, number: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fails = WRITES[name]

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(RunFolderError) as caught:
        patch.setattr(fails, fail)
        write(run)
    line = str(caught.value)
    assert line.startswith(f"{run.folder.path / name} cannot be written: {os.strerror(number)}; make room there")
    assert line.endswith(f"autoft resume '{run.folder.path}'")
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("name", ["checkpoints", "summary.json", ".lock"])
def test_a_run_folder_that_is_gone_is_named_and_not_made_again(name: str, run: Run) -> None:
    shutil.rmtree(run.folder.path)
    with pytest.raises(RunFolderError, match=r"No such file .* it was moved or removed: bring it back") as caught:
        WRITES[name][0](run)
    assert str(run.folder.path / name.removesuffix(".json")) in str(caught.value).replace("/.summary", "/summary")
    assert not run.folder.path.exists()


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
def test_a_journal_that_is_gone_takes_no_more_lines(run: Run, gone: Callable[[Path], object]) -> None:
    """The system would go on writing into the file that has no name, or another one."""
    event = Queued(0, Slice(TRIAL, 0.0, 1.0, 60.0), Clock(1.0, 60.0))
    with Journal(run.folder.journal) as lines:
        gone(run.folder.path)
        with pytest.raises(RunFolderError, match=r"trials\.jsonl cannot be written: No such file .* bring it back"):
            lines.append(event)


def test_a_folder_that_goes_during_the_export_is_nobody_elses_fault(run: Run) -> None:
    export = run.folder.export
    with pytest.raises(RunFolderError) as caught, run.writing(export), replacing(export):
        shutil.rmtree(run.folder.path)
        raise PluginError("plugin 'mine' failed in export()")
    line = str(caught.value)
    assert line.startswith(f"{export} cannot be written: No such file or directory; it was moved or removed: bring it")
    assert "nothing is lost" not in line and caught.value.exit_code == 2
    assert not run.folder.path.exists()


def test_weights_that_are_gone_with_their_run_are_no_fault_of_the_trial(run: Run) -> None:
    def lost(wanted: object) -> Checkpoint:
        raise LookupError("there is no checkpoint")

    maker = BundleMaker(run, Ledger(), SimpleNamespace(saved=lost), Stopwatch(0.0))  # type: ignore[arg-type]
    record = TrialRecord(TRIAL, (), ())
    with pytest.raises(NoWeights, match="there is no checkpoint"):
        maker.make(record, run.folder.export, None)  # type: ignore[arg-type]
    shutil.rmtree(run.folder.path)
    with pytest.raises(RunFolderError, match=r"/a run is no run any more: it was moved or removed; bring"):
        maker.make(record, run.folder.export, None)  # type: ignore[arg-type]


def test_a_traceback_brings_no_run_folder_back(run: Run) -> None:
    shutil.rmtree(run.folder.path)
    assert "its traceback could not be kept" in faults.record(ValueError("the fault"), run.folder.errors)
    assert not run.folder.path.exists()


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/hub/model"), "error: /hub/model cannot be written"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "error: a file cannot be written in build() of 'zoo/net', plugin",
        ),
    ],
)
def test_a_full_disk_outside_of_the_run_is_one_line_too(
    error: OSError, begins: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A zoo's download, say: whoever meets it does not know where it was written to."""

    def fail(*arguments: Any, **options: Any) -> None:
        with Host.from_refs([])._blaming(builtin_ref("autoft.builtin.timm_zoo"), "build() of 'zoo/net'"):
            raise error

    monkeypatch.setattr("autoft.shell.cli.cli.main", fail)
    assert main._run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(begins)
    assert f": {error.strerror}; make room there" in line and line.endswith("goes on with autoft resume RUN")


@pytest.mark.parametrize("name", ["study.json", "summary.json", "trials.jsonl"])
def test_what_cannot_be_read_is_one_line_too(name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    read: dict[str, Callable[[], object]] = {
        "study.json": lambda: Run.open(run.folder.path),
        "summary.json": run.summary,
        "trials.jsonl": run.ledger,
    }
    monkeypatch.setattr("pathlib.Path.read_text", broken)
    monkeypatch.setattr("pathlib.Path.read_bytes", broken)
    with pytest.raises(RunFolderError) as caught:
        read[name]()
    assert str(caught.value).startswith(f"{run.folder.path / name} cannot be read: Input/output error; look at its")


def test_a_lock_on_a_full_disk_is_a_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is made elsewhere by what takes it, such as an export to another disk."""

    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.pwrite", full)
    with run.folder.lock():
        assert run.folder.in_use()


def test_a_run_on_a_read_only_disk_is_locked_and_exported_elsewhere(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(run.folder.journal) as lines:
        lines.append(Queued(0, Slice(TRIAL, 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        lines.append(Report(0, "finished", 1.0, 0.5, 2.0))
    moved, out = tmp_path / "moved", tmp_path / "out" / "bundle"
    moved.mkdir()
    opened, before = os.open, run.folder.study.read_bytes()

    def read_only(path: Any, flags: int, *mode: int) -> int:
        if str(path).startswith(str(run.folder.path)) and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *mode)

    def write(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def make(record: TrialRecord, folder: Path, wanted: object) -> SimpleNamespace:
        with pytest.raises(RunFolderError, match=r"is in use by"), run.folder.lock():
            pytest.fail("it was not locked")
        folder.mkdir(parents=True)
        return SimpleNamespace(model_bytes=1, parity=None, calibration=None, validation=SCORES)

    monkeypatch.setattr("autoft.engine.execution._shop", lambda *_: None)
    monkeypatch.setattr("autoft.engine.execution.BundleMaker", lambda *_: SimpleNamespace(make=make))
    lock(run)  # leaves its file there, as the search did
    monkeypatch.setattr("os.open", read_only)
    monkeypatch.setattr("autoft.study.run.write_atomic", write)
    notes = Notes()
    exported = export_trial(run.with_images(moved), (), ExportWish(None, out, "image"), notes)
    assert (exported.folder, out.is_dir(), run.folder.study.read_bytes()) == (str(out), True, before)
    assert any("does not remember what was changed" in line and "Read-only" in line for line in notes.lines)
    with pytest.raises(RunFolderError, match=r"trials\.jsonl cannot be written: Read-only"):
        journal(run)


def test_checkpoints_that_cannot_be_removed_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(run)

    def read_only(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.unlink", read_only)
    run.checkpoints.prune({}, set())
    assert not run.checkpoints.is_empty()


def test_a_traceback_that_cannot_be_kept_does_not_hide_what_went_wrong(run: Run) -> None:
    run.folder.errors.write_text("in the way")
    said = faults.record(ValueError("the fault"), run.folder.errors)
    assert "ValueError: the fault; its traceback could not be kept" in said
    assert str(run.folder.errors) in said
