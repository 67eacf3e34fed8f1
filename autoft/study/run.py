"""`Run`: an opened run folder, with everything in it made ready to use."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from autoft.data.dataset import Dataset, labelled, read_samples, scanned_again
from autoft.errors import DataError, RunFolderError, StudyError
from autoft.parts.base import Exporter, Problem, Task
from autoft.parts.host import Host
from autoft.parts.plugins import builtin_ref, in_place_of
from autoft.store import CheckpointStore, Journal, RunFolder, unwritable
from autoft.study.latency import too_slow
from autoft.study.record import SCHEMA, Machine, StudyRecord
from autoft.study.study import CORE_EXPORTER
from autoft.system.files import as_path, as_text, write_atomic
from autoft.system.parallel import Check, never_stop
from autoft.tasks.single_label import SingleLabel
from autoft.values.codec import decode, encode
from autoft.values.dataset import Sample
from autoft.values.ledger import Ledger
from autoft.values.space import Device
from autoft.values.summary import Summary
from autoft.values.target import Targets
from autoft.values.trial import Candidate, Parent


@dataclass(frozen=True)
class Run:
    """A run folder and its study; `opened` is what study.json said then, None in the command that made it."""

    folder: RunFolder
    record: StudyRecord
    opened: StudyRecord | None = None

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in `path`. Raises `RunFolderError` when there is none."""
        folder = RunFolder.open(path)
        try:
            record = decode(StudyRecord, _upgraded(json.loads(folder.study.read_text(encoding="utf-8"))))
        except OSError as error:
            raise _unreadable(folder.study, error) from error
        except ValueError as problem:
            raise RunFolderError(f"{folder.study} is damaged or of another version: {problem}") from None
        return cls(folder, record, record)

    def save(self) -> None:
        """Have study.json say of study, data and plugins what `record` says.

        To be called under the run's lock, and once nothing can fail. Raises `RunFolderError` when it cannot be written,
        or when another command has changed it since this run was opened.
        """
        before = Run.open(self.folder.path).record
        if self.opened is not None and encode(before) != encode(self.opened):
            raise RunFolderError(f"{self.folder.study} was changed by another command meanwhile; try again")
        after = replace(before, study=self.record.study, data=self.record.data, plugins=self.record.plugins)
        text = encode(after)
        if text != encode(before):  # records are equal whatever was in a plugin's place before
            with self.writing(self.folder.study):
                write_atomic(self.folder.study, text)

    def with_images(self, data: Path) -> Run:
        """The run with its images in `data` instead, a folder or a manifest; nothing is read or written yet.

        Of a run of a manifest the folder will do: the manifest is the file of its name in it.
        """
        record, source = self.record, data.resolve()
        if record.data.manifest and source.is_dir():
            source /= as_path(record.data.manifest).name
        listed = bool(record.data.manifest) or source.is_file()
        root, manifest = (as_text(source.parent), as_text(source)) if listed else (as_text(source), "")
        moved = replace(record.data, root=root, manifest=manifest)
        return replace(self, record=replace(record, data=moved, study=replace(record.study, data=moved.source)))

    def images(self) -> Path:
        """The folder with the run's images. Raises `DataError` when it is not there, or the manifest is not."""
        root, source = as_path(self.record.data.root), as_path(self.record.data.source)
        if self.record.data.manifest and not source.is_file():
            raise DataError(
                f"there is no file {source}, which lists the run's images; if they have moved, --data says where to, "
                "with the CSV file or its folder"
            )
        if not root.is_dir():
            moved = "if they have moved, --data DIR says where to"
            raise DataError(f"there is no folder {root} with the run's images; {moved}")
        return root

    def verify_images(self, threads: int) -> None:
        """Read every image; raise `DataError` unless they are those the run began with."""
        self.images()
        scanned_again(self.record.data, threads)

    def on(self, device: Device) -> Run:
        """The run for a process that computes on that device."""
        return replace(self, record=self.record.on(device))

    @property
    def checkpoints(self) -> CheckpointStore:
        """The trials' checkpoints."""
        return CheckpointStore(self.folder.checkpoints)

    def host(self, selections: Sequence[str] = (), objects: Sequence[object] = ()) -> Host:
        """The plugins the study recorded, but for `selections` and `objects`; see `Host.recorded`."""
        host = Host.recorded(self.record.plugins, selections, objects)
        host.errors = self.folder.errors
        return host

    def with_plugins(self, host: Host) -> Run:
        """The run with each recorded plugin as `host`, a later one, has it: from where, and which version or content.

        One that is switched off stays as it was recorded. So does one in whose place is an object that no other process
        could load, for this once; that it was there is remembered. Nothing is written yet.
        """
        here = {ref.name: ref for ref in host.refs}
        used = tuple((ref, here.get(ref.name, ref)) for ref in self.record.plugins)
        plugins = tuple(now if now.importable else in_place_of(now, before) for before, now in used)
        return replace(self, record=replace(self.record, plugins=plugins))

    def task(self, host: Host) -> Task:
        """What is predicted of the images. Raises `StudyError` when no plugin has the task, or the run's metric."""
        task = host.task(self.record.study.task).on(self.record.data.targets)
        try:
            task = task.towards(self.record.metric.name)
        except StudyError as unknown:
            keeps = (
                "a run keeps to the metric that it began with: have its plugin back, or begin a new run with another"
            )
            raise StudyError(f"{unknown}{host.suspects()}; {keeps}") from None
        task.weighs_classes = self.record.weighs_classes  # a copy of its own
        return task

    def exporters_left_out(self, host: Host) -> list[str]:
        """A line for each recorded exporter that no plugin has any more: bundles are made without it.

        Raises `StudyError`, with what can be done, where that leaves none of them, or not that of the core.
        """
        recorded, there = self.record.study.exporter, host.parts(Exporter)
        gone = [name for name in recorded if name not in there]
        needed = gone[0] if gone and len(gone) == len(recorded) else CORE_EXPORTER
        try:
            host.part(Exporter, needed)
        except StudyError as unknown:
            ways = "a run's models have what its exporter makes: have its plugin back, or begin a new run with another"
            raise StudyError(f"{unknown}; {ways}") from None
        return [f"exporter {name!r} is left out: no plugin that is loaded has it" for name in gone]

    def dataset(self, host: Host) -> Dataset:
        """The images, as split when the run began, less validation images that nobody has time to score."""
        every, scored = self.every_image(host), self.record.validation
        return every if scored is None else every.limited("val", scored)

    def every_image(self, host: Host) -> Dataset:
        """The images, as split when the run began, whether there is time to score them or not."""
        return labelled(self.samples(), self.record.data, self.task(host))

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """A full disk or a folder that cannot be written is the user's to mend; nothing of the run is lost by it."""
        try:
            yield
        except OSError as error:
            raise unwritable(self.folder.path, path, error) from error

    def samples(self) -> tuple[Sample, ...]:
        """Every image of the run, scored or not."""
        return read_samples(self.folder.split_csv, self.record.data)

    def ledger(self) -> Ledger:
        """Everything that happened so far. Raises `RunFolderError` when the journal is damaged or lost."""
        self.folder.require_journal()
        # Where the best may turn out to be too slow, there has to be something of each network to fall back on.
        of_each = 0 if self.record.study.max_latency is None else 1
        ledger = Ledger(keep=self.record.study.keep, of_each=of_each)
        Journal.read(self.folder.journal, ledger)
        ledger.barred = too_slow(self, ledger)
        return ledger

    def unusable(self, ledger: Ledger, host: Host, check: Check = never_stop) -> dict[Parent, str]:
        """What is wrong with the ledger's finalists, by checkpoint: damaged weights, or nobody has their zoo any more.

        `check` is as in `CheckpointStore.damaged`.
        """
        without_zoo = (record for record in ledger.finalists() if not host.has_zoo(record.trial.backbone))
        gone = {
            record.best_checkpoint: f"no plugin that is loaded has {record.trial.backbone}" for record in without_zoo
        }
        return self.checkpoints.damaged(ledger, check) | gone

    def best_so_far(self, ledger: Ledger, host: Host) -> str:
        """How to come to the best model that there is, for a search that ends before its time; nothing without one."""
        if not ledger.exportable():
            return ""
        export = f"autoft export {shlex.quote(str(self.folder.path))}{host.without}"
        return f"the best so far is kept, and `{export}` hands it over"

    def elapsed(self, ledger: Ledger) -> float:
        """Run time in seconds that is used.

        Of a run that was killed that is until its workers last wrote something, as far as that is within their slices:
        who copies a run may make all of its files new.
        """
        ends = [record.slices[-1].deadline for record in ledger.trials.values() if record.is_cut_short]
        if not ends:
            return ledger.elapsed
        return max(ledger.elapsed, min(ledger.elapsed + self.folder.seconds_after_journal(), max(ends)))

    def used(self, ledger: Ledger) -> float:
        """Run time in seconds that is used, with that of the last end, of which the journal does not tell."""
        summary = self.summary()
        return max(self.elapsed(ledger), summary.elapsed if summary else 0.0)

    def trainable(self, host: Host) -> tuple[Candidate, ...]:
        """The candidates whose zoo and freeze strategy no one has switched off."""
        return tuple(one for one in self.record.candidates if host.has(one.backbone, one.freeze))

    def problem(self, ledger: Ledger, host: Host) -> Problem:
        """What its searcher is told. Refits, which it has not asked for, use up none of its trials."""
        study, refits = self.record.study, sum(record.is_refit for record in ledger.trials.values())
        trials = None if study.trials is None else study.trials + refits
        return Problem(self.trainable(host), study.seed, self.record.machine.sure, trials)

    def concluded(self, ledger: Ledger) -> Summary | None:
        """What the run came to, if the same model would come of it again. Raises as `summary` does."""
        summary = self.summary()
        if summary is None or ledger.in_flight:
            return None
        if not summary.finalists:  # of an older version
            return summary if ledger.elapsed <= summary.elapsed else None
        finalists = tuple(record.best_checkpoint for record in ledger.finalists()[: len(summary.finalists)])
        return summary if finalists == summary.finalists else None

    def open_test(self) -> int:
        """How often the test images have been scored, with the time that is to follow: remembered before it does.

        Whatever becomes of that bundle. Raises `OSError`, and as `test_openings` does.
        """
        now = self.test_openings() + 1
        write_atomic(self.folder.test_openings, f"{now}\n")
        return now

    def test_openings(self) -> int:
        """How often the test images have been scored. Runs of older versions have the count in their summary only.

        Raises `RunFolderError` when the count is damaged, and as `summary` does.
        """
        summary, path = self.summary(), self.folder.test_openings
        try:
            kept = int(path.read_text(encoding="ascii"))
        except FileNotFoundError:
            kept = 0
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError:
            raise RunFolderError(
                f"{path} is damaged, which counts how often the test images were scored; write their number into it"
            ) from None
        return max(kept, summary.test_openings if summary else 0)

    def summary(self) -> Summary | None:
        """What the run came to; None before its end. Raises `RunFolderError` when summary.json is damaged."""
        try:
            return decode(Summary, _renamed(json.loads(self.folder.summary.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.folder.summary, error) from error
        except ValueError as problem:
            raise RunFolderError(
                f"{self.folder.summary} is damaged or of another version: {problem}; take it away, and autoft resume "
                "writes it anew"
            ) from None


def _unreadable(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path} cannot be read: {error.strerror or error}; look at its permissions and its disk")


def _renamed(summary: Any) -> Any:
    """The content of a summary.json with the names of today; what is no summary at all is left to the decoder."""
    if isinstance(summary, dict) and "weighing" in summary:
        return {"suggested_metric" if name == "weighing" else name: value for name, value in summary.items()}
    return summary


def _upgraded(study: Any) -> Any:
    """The content of a study.json as it is written today; what is no study at all is left to the decoder.

    Raises `ValueError` for an older one that is damaged.
    """
    if not isinstance(study, dict):
        return study
    try:
        if study.get("schema") == "autoft.study/1":
            study = _with_machine(study)
        if study.get("schema") == "autoft.study/2":
            study = _with_targets(study)
    except KeyError as missing:
        raise ValueError(f"it has no {missing}") from None
    except (TypeError, StudyError) as wrong:
        raise ValueError(str(wrong)) from None
    return study


def _with_machine(study: dict[str, Any]) -> dict[str, Any]:
    """Of the first version, in which the parts of `machine` stood alone."""
    parts = {field.name for field in fields(Machine)} & study.keys()
    rest = {name: value for name, value in study.items() if name not in parts}
    return rest | {"machine": {name: study[name] for name in parts}, "schema": "autoft.study/2"}


def _with_targets(study: dict[str, Any]) -> dict[str, Any]:
    """Of the second, in which everything that is predicted was one class."""
    task, data = SingleLabel(), dict(study["data"])
    data["targets"] = asdict(Targets(task.name, task.form, tuple(data.pop("classes"))))
    metric = asdict(task.metric(study["study"]["metric"]).facts)
    asked = study["study"] | {"task": task.name}
    plugins = [*study["plugins"], asdict(builtin_ref("autoft.builtin.tasks"))]
    return study | {"study": asked, "data": data, "metric": metric, "plugins": plugins, "schema": SCHEMA}
