"""`Run`: an opened run folder, with everything in it made ready to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoft.codec import decode
from autoft.data.dataset import Dataset, read_dataset
from autoft.errors import RunFolderError
from autoft.host import Host
from autoft.ledger import Ledger
from autoft.store import CheckpointStore, Journal, RunFolder
from autoft.study import StudyRecord
from autoft.summary import Summary


@dataclass(frozen=True)
class Run:
    """A run folder and its study."""

    folder: RunFolder
    record: StudyRecord

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in `path`. Raises `RunFolderError` when there is none."""
        folder = RunFolder.open(path)
        try:
            return cls(folder, decode(StudyRecord, folder.study.read_text(encoding="utf-8")))
        except ValueError as problem:
            raise RunFolderError(f"{folder.study} is damaged or of another version: {problem}") from None

    @property
    def checkpoints(self) -> CheckpointStore:
        """The trials' checkpoints."""
        return CheckpointStore(self.folder.checkpoints)

    def host(self) -> Host:
        """The plugins the study recorded."""
        return Host.from_refs(self.record.plugins)

    def dataset(self) -> Dataset:
        """The images, as split when the run began, less validation images that nobody has time to score."""
        every, scored = read_dataset(self.folder.split_csv, self.record.data), self.record.validation
        return every if scored is None else every.limited("val", scored)

    def ledger(self) -> Ledger:
        """Everything that happened so far."""
        return Ledger(Journal.read(self.folder.journal), self.record.study.keep)

    def summary(self) -> Summary | None:
        """What the run came to; None before its end."""
        try:
            return decode(Summary, self.folder.summary.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
