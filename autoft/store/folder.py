"""`RunFolder`: where a run lies, who may work in it, and what its files are called."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoft.errors import RunFolderError
from autoft.store.leaderboard import write_leaderboard
from autoft.store.whereabouts import STUDY, meant
from autoft.system.files import write_atomic
from autoft.values.ledger import Ledger
from autoft.values.target import MetricFacts

LOOKING_SECONDS = 0.1
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def unwritable(run: Path, path: Path, error: OSError) -> RunFolderError:
    """What is to be said when something of `run` cannot be written at `path`: where, why, and how to go on."""
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
    remedy = "it was moved or removed: bring it back" if gone else "make room there or mend its permissions"
    lost = "" if gone and not run.exists() else " nothing is lost, and"
    return RunFolderError(
        f"{error.filename or path} cannot be written: {error.strerror or error}; {remedy}, then try again;{lost} a "
        f"search goes on with: autoft resume {shlex.quote(str(run))}"
    )


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists and holds a study.json; get one by `create` or `open`."""

    path: Path

    @classmethod
    def create(
        cls, path: Path, study_json: str, prepare: Callable[[RunFolder], None] = lambda folder: None
    ) -> RunFolder:
        """The folder of a new run: what `prepare` writes, then durably its study.json, which makes it a run.

        One that a kill left with the same study and no journal will do. Raises `RunFolderError` when the folder is
        another study's, was searched in before, holds other files, is in use or cannot be written.
        """
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder._refuse_taken()
            with folder.lock():
                folder._claim(study_json, prepare)
        except OSError as error:
            raise RunFolderError(
                f"{path} cannot be written: {error.strerror}; make room there or choose another --out"
            ) from error
        return folder

    @classmethod
    def check_writable(cls, path: Path) -> None:
        """Find out, before any slow work and without writing, what `create` would refuse. Raises `RunFolderError`."""
        try:
            nearest = next(folder for folder in (path, *path.parents) if folder.exists())
            if not nearest.is_dir():
                raise RunFolderError(f"{nearest} is a file; choose another --out")
            if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise RunFolderError(f"{nearest} cannot be written: no permission; choose another --out")
            if nearest == path:
                cls(path)._refuse_taken()
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written: {error.strerror}; choose another --out") from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was begun. Raises `RunFolderError` when there is none."""
        folder = cls(path)
        try:
            folder.study.stat()
        except (FileNotFoundError, NotADirectoryError):
            missing = "holds no run: there is no study.json in it" if path.is_dir() else "is no folder"
            raise RunFolderError(f"{path} {missing}; {meant(path) or folder._beginning()}") from None
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}; look at its permissions") from error
        return folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other drivers out while the block runs; the system frees the lock of a process that died.

        Raises `RunFolderError` that names the process when another one has the lock. Workers do not take it. A folder
        that cannot be written is locked too, as long as its lock file is there: it can be read, and exported elsewhere.
        """
        try:
            descriptor = self._open_lock_file()
        except OSError as error:
            raise unwritable(self.path, self._lock_file, error) from error
        try:
            self._take(descriptor)
            yield
        finally:
            # The file stays: removing it would let two processes lock two files of one name.
            os.close(descriptor)

    def in_use(self) -> bool:
        """Whether somebody works in it now. Nothing is written."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    def write_leaderboard(self, ledger: Ledger, metric: MetricFacts) -> None:
        """Write leaderboard.csv anew, when the search has ended, however. Raises `OSError`."""
        write_leaderboard(self.leaderboard, ledger, metric)

    def require(self) -> None:
        """Raise `RunFolderError` when it is there no more, moved or removed while somebody works in it."""
        if not self.study.exists():
            again = f"autoft resume {shlex.quote(str(self.path))}"
            raise RunFolderError(
                f"{self.path} is no run any more: it was moved or removed; bring it back and go on with: {again}"
            )

    def require_journal(self) -> None:
        """Raise `RunFolderError` when the journal is gone or empty, although there is what comes after its lines.

        A run that has just begun has none yet, and one whose time was too short may have an empty one.
        """
        there = self.journal.exists()
        if there and self.journal.stat().st_size:
            return
        later = (self.checkpoints, self.summary) if there else (self.checkpoints, self.summary, self.leaderboard)
        if any(path.exists() for path in later):
            raise RunFolderError(
                f"{self.journal} is {'empty' if there else 'missing'}, and every trial stood in it; restore it from a "
                "backup, or begin a new run"
            )

    def seconds_after_journal(self) -> float:
        """By how many seconds a curve or a checkpoint is younger than the last line of the journal, which is there.

        What goes meanwhile, of a run that is in use, is passed over.
        """
        folders = (self.checkpoints, self._curves)
        written = (_written(path) for folder in folders if folder.is_dir() for path in folder.iterdir())
        return max(0.0, max(written, default=0.0) - self.journal.stat().st_mtime)

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.path / STUDY

    @property
    def split_csv(self) -> Path:
        """Which image is in which split."""
        return self.path / "split.csv"

    @property
    def journal(self) -> Path:
        """The append-only journal of trials."""
        return self.path / "trials.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def curve(self, trial: int) -> Path:
        """How the training of a trial went, step by step; there is none of a trial that trained nothing by gradient."""
        return self._curves / f"{trial:05d}.csv"

    @property
    def errors(self) -> Path:
        """The folder of tracebacks, one file a fault; there is none in a run without."""
        return self.path / "errors"

    @property
    def leaderboard(self) -> Path:
        """Every trial, best first."""
        return self.path / "leaderboard.csv"

    @property
    def latencies(self) -> Path:
        """How quick exported networks were, where `--max-latency` asks for it."""
        return self.path / "latencies.json"

    @property
    def summary(self) -> Path:
        """What the run came to."""
        return self.path / "summary.json"

    @property
    def export(self) -> Path:
        """The folder that is handed over."""
        return self.path / "export"

    @property
    def test_openings(self) -> Path:
        """How often the test images were scored; written before they are. There is none in a run that has not ended."""
        return self.path / ".test_openings"

    @property
    def _curves(self) -> Path:
        return self.path / "curves"

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _beginning(self) -> str:
        """How a run begins here, if one can."""
        try:
            self.check_writable(self.path)
        except RunFolderError:
            return "give the folder of a run, as `autoft search` prints it at the end"
        return f"`autoft search DATA --out {shlex.quote(str(self.path))}` begins one"

    def _refuse_taken(self) -> None:
        """Leave alone a folder with a run or other files; what a killed `create` left behind does not count."""
        if self.study.exists():
            if any(path.exists() for path in (self.journal, self.checkpoints, self.leaderboard, self.summary)):
                raise self._taken()
            return
        ours = (self._lock_file.name, f".{self.study.name}.", self.split_csv.name, f".{self.split_csv.name}.")
        if not all(entry.name.startswith(ours) for entry in self.path.iterdir()):
            raise RunFolderError(f"{self.path} holds other files and is no run folder; choose another --out")

    def _claim(self, study_json: str, prepare: Callable[[RunFolder], None]) -> None:
        if not self.study.exists():
            prepare(self)
            write_atomic(self.study, study_json)
        elif self.study.read_bytes() != study_json.encode():
            raise self._taken()

    def _taken(self) -> RunFolderError:
        advice = f"choose another --out, or go on with it: `autoft resume {self.path}`"
        return RunFolderError(f"{self.path} already holds a run, perhaps of another study; {advice}")

    def _open_lock_file(self) -> int:
        try:
            return os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            with contextlib.suppress(OSError):
                return os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
            raise

    def _take(self, descriptor: int) -> None:
        try:
            _lock(descriptor)
        except BlockingIOError:
            owner = os.pread(descriptor, 400, 0).decode(errors="replace").strip() or "another process"
            raise RunFolderError(f"{self.path} is in use by {owner}; wait for it or stop it") from None
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be locked: {error.strerror}; choose a local disk") from error
        with contextlib.suppress(OSError):  # on a full or read-only disk it is locked all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _written(path: Path) -> float:
    """When a file was last written, in wall-clock time; at the beginning of time for one that is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _lock(descriptor: int) -> None:
    """Raises `BlockingIOError` when somebody has the lock, and not only looks whether somebody has (`in_use`)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(LOOKING_SECONDS)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
