"""`CheckpointStore`: the weights of trials on disk, safetensors with a JSON sidecar; nothing is ever pickled.

00007-3.000000-9f2c51d0.model.safetensors     trial 7 after three passes: what export needs
00007-3.000000-9f2c51d0.training.safetensors  what only going on needs; it goes when the trial has ended or gone on
00007-3.000000.json                           the sidecar, written last: it makes the checkpoint exist

The middle of a name is random, so that saving a step again never touches a file that a sidecar vouches for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from autoft.store.folder import unwritable
from autoft.system.files import move_durably, sha256, write_atomic
from autoft.system.parallel import Check, never_stop
from autoft.values.codec import decode, encode, encode_python
from autoft.values.ledger import Kept, Ledger
from autoft.values.trial import Parent, Trial

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_log = logging.getLogger(__name__)
_NAME = re.compile(r"\.?(?P<trial>\d{5,})-(?P<step>\d+\.\d{6})[-.].+")
_MODEL, _TRAINING, _LOGITS = "model.", "training.", "logits"
_MODEL_FILE, _TRAINING_FILE = ".model.safetensors", ".training.safetensors"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a trial stood at `step` passes; tensors by name, on the CPU.

    `model` is everything in which the classifier differs from the pretrained backbone, whose fingerprint is `weights`.
    `training` is what only going on needs (raw weights, optimiser state); it is empty when the trial has ended.
    `logits` `(n, classes)` are those of the validation images, None while they were not scored.
    """

    trial: Trial
    step: float
    weights: str
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor] = field(default_factory=dict)
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class _File:
    """A file of tensors: its name and SHA-256, and what tells without reading it that nobody has touched it since."""

    name: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Sidecar:
    """What a checkpoint consists of; `check` is the hash of the text of all other fields."""

    trial: Trial
    step: float
    weights: str
    model: _File
    training: _File | None
    format: Literal[2] = 2
    check: str = ""

    def checked(self) -> _Sidecar:
        """The same with `check` filled in."""
        return replace(self, check=_check(encode_python(replace(self, check=""))))

    @classmethod
    def of(cls, path: Path, trial_id: int) -> _Sidecar:
        """The sidecar in a file of the trial.

        Raises `OSError`, and `ValueError` when it is not as it was written, by this version or an older, or another's.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        sidecar = decode(cls, data)
        if _check(data | {"check": ""}) != sidecar.check:
            raise ValueError("the sidecar is damaged")
        if path.stem != _stem(trial_id, sidecar.step) or sidecar.trial.id != trial_id:
            raise ValueError("the sidecar is of another checkpoint")
        return sidecar


class CheckpointStore:
    """The checkpoints of a run; every process may have its own store over the same folder.

    A trial is saved by one process at a time: it has one slice in flight at most.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def run(self) -> Path:
        """The run folder."""
        return self._folder.parent

    def save(self, checkpoint: Checkpoint, replacing: float | None = None) -> None:
        """Make this a checkpoint of its trial, durably; only then is the one of the step `replacing` removed.

        Raises `RunFolderError` when it cannot be written (disk full, ...); what was there before is then still there.
        """
        trial, stem = checkpoint.trial.id, _stem(checkpoint.trial.id, checkpoint.step)
        begins = self._folder / f"{stem}-{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(exist_ok=True)
            self._write(checkpoint, begins, self._folder / f"{stem}.json")
        except BaseException as error:
            _remove(self._folder.glob(f"{begins.name}*"))  # on a full disk it would stand in the way of everything else
            if isinstance(error, OSError):
                raise unwritable(self.run, self._folder, error) from error
            raise
        gone = (stem, stem if replacing is None else _stem(trial, replacing))
        new = (f"{stem}.json", begins.name)
        _remove(p for p in self._files({trial}) if p.name.startswith(gone) and not p.name.startswith(new))

    def load(self, wanted: Parent) -> Checkpoint | None:
        """The checkpoint without its training tensors, every byte checked; None unless it is there and whole."""
        sidecars = self._sidecars(wanted.trial)
        return self._first_whole(
            wanted.trial, [path for path in sidecars if path.stem == _stem(wanted.trial, wanted.step)]
        )

    def load_latest(self, trial_id: int) -> Checkpoint | None:
        """The trial's latest checkpoint that it can go on from; None when there is none that is whole.

        A damaged one is passed over with a warning for the one before, if that is still there.
        """
        return self._first_whole(trial_id, self._sidecars(trial_id), going_on=True)

    def problem(self, wanted: Parent) -> str | None:
        """What is wrong with the weights of a checkpoint; None when they are whole.

        Here and in `training_problem` files that nobody has touched since they were written are not read, and others
        once in this process, however often somebody asks.
        """
        return self._problem(wanted, lambda sidecar: sidecar.model)

    def training_problem(self, wanted: Parent) -> str | None:
        """What is wrong with all that going on from a checkpoint needs besides its weights; None when it is whole."""
        return self._problem(wanted, lambda sidecar: sidecar.training)

    def damaged(self, ledger: Ledger, check: Check = never_stop) -> dict[Parent, str]:
        """What is wrong with the weights of the ledger's finalists, by checkpoint; what is whole is not in it.

        In a run that was copied, files of any size are read: `check`, called before each, may raise to stop that.
        """
        found: dict[Parent, str] = {}
        for record in ledger.finalists():
            check()
            if problem := self.problem(record.best_checkpoint):
                found[record.best_checkpoint] = problem
        return found

    def is_empty(self) -> bool:
        """Whether no trial has a checkpoint."""
        return not any(path.suffix == ".json" for _, path in self._named())

    def prune(self, kept: Mapping[int, Kept], in_flight: Set[int]) -> None:
        """Remove all but what `kept` names, and what killed saves left behind; trials `in_flight` are left alone."""
        _remove(
            path
            for trial, path in self._named()
            if trial not in in_flight and not (trial in kept and _is_kept(path.name, trial, kept[trial]))
        )

    def _write(self, checkpoint: Checkpoint, begins: Path, sidecar: Path) -> None:
        model = _prefixed(_MODEL, checkpoint.model)
        if checkpoint.logits is not None:
            model[_LOGITS] = checkpoint.logits
        training = _prefixed(_TRAINING, checkpoint.training)
        files = _Sidecar(
            trial=checkpoint.trial,
            step=float(checkpoint.step),
            weights=checkpoint.weights,
            model=_write_tensors(begins.with_name(begins.name + _MODEL_FILE), _prepared(model)),
            training=_write_tensors(begins.with_name(begins.name + _TRAINING_FILE), _prepared(training))
            if training
            else None,
        )
        write_atomic(sidecar, encode(files.checked()))

    def _first_whole(self, trial_id: int, sidecars: Iterable[Path], going_on: bool = False) -> Checkpoint | None:
        for path in sidecars:
            try:
                sidecar = _Sidecar.of(path, trial_id)
                if not going_on:
                    return _checkpoint(sidecar, self._tensors(sidecar.model), {})
                if sidecar.training is not None:
                    return _checkpoint(sidecar, self._untouched(sidecar.model), self._untouched(sidecar.training))
            except (OSError, ValueError) as problem:
                _log.warning("checkpoint %s is not used: %s", path, problem)
        return None

    def _tensors(self, file: _File) -> dict[str, Tensor]:
        """The tensors in a file, once its SHA-256 is the one it was written with. Raises `ValueError`."""
        from safetensors.torch import load_file

        self._require_whole(file)
        return load_file(self._path(file))

    def _untouched(self, file: _File) -> dict[str, Tensor]:
        """As `_tensors`, but a file that nobody has touched since is not read twice: a slice hashes what it writes."""
        from safetensors.torch import load_file

        self._require_untouched(file)
        return load_file(self._path(file))

    def _path(self, file: _File) -> Path:
        return self._folder / Path(file.name).name

    def _problem(self, wanted: Parent, part: Callable[[_Sidecar], _File | None]) -> str | None:
        sidecar = self._folder / f"{_stem(wanted.trial, wanted.step)}.json"
        try:
            file = part(_Sidecar.of(sidecar, wanted.trial))
            if file is None:
                return f"{sidecar.name} has nothing to go on from"
            self._require_untouched(file)
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is gone"
        except (OSError, ValueError) as error:
            return f"{sidecar.name}: {error}"
        return None

    def _require_whole(self, file: _File) -> None:
        """Raise `ValueError` unless the SHA-256 of a file is the one it was written with."""
        if sha256(self._path(file)) != file.sha256:
            raise _damaged(file)

    def _require_untouched(self, file: _File) -> None:
        """As `_require_whole`, but by what it was when this process has read it last, if nobody has touched it since.

        Nor is it read where nobody has since it was written.
        """
        path = self._path(file)
        status = path.stat()
        touched = (status.st_size, status.st_mtime_ns)
        if touched != (file.size, file.mtime_ns) and _digest(path, *touched) != file.sha256:
            raise _damaged(file)

    def _sidecars(self, trial_id: int) -> list[Path]:
        """The trial's sidecars, highest step first."""
        sidecars = [path for path in self._files({trial_id}) if path.suffix == ".json"]
        return sorted(sidecars, key=lambda path: float(path.stem.partition("-")[2]), reverse=True)

    def _files(self, trials: Set[int]) -> list[Path]:
        """Everything in the folder, temporary or not, that belongs to one of `trials`."""
        return [path for trial, path in self._named() if trial in trials]

    def _named(self) -> list[tuple[int, Path]]:
        """Every file of ours with the trial its name says; other people's files are left alone."""
        paths = list(self._folder.iterdir()) if self._folder.is_dir() else []
        return [(int(name["trial"]), path) for path in paths if (name := _NAME.fullmatch(path.name))]


@cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """The SHA-256 of a file of that size and time of its last change, read once."""
    return sha256(path)


def _damaged(file: _File) -> ValueError:
    return ValueError(f"{file.name} is damaged: its SHA-256 is not the one in the sidecar")


def _check(sidecar: dict[str, Any]) -> str:
    """The hash of a sidecar's content as JSON, which keeps to what stands there: an older one has fewer fields."""
    return hashlib.sha256(json.dumps(sidecar, ensure_ascii=False, allow_nan=False).encode()).hexdigest()


def _stem(trial_id: int, step: float) -> str:
    return f"{trial_id:05d}-{step:.6f}"


def _is_kept(name: str, trial: int, kept: Kept) -> bool:
    going_on = kept.going_on is not None and name.startswith(_stem(trial, kept.going_on))
    return going_on or (
        name.startswith(tuple(_stem(trial, step) for step in kept.steps)) and not name.endswith(_TRAINING_FILE)
    )


def _checkpoint(sidecar: _Sidecar, model: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(
        trial=sidecar.trial,
        step=sidecar.step,
        weights=sidecar.weights,
        model=_only(_MODEL, model),
        training=_only(_TRAINING, training),
        logits=model[_LOGITS].numpy() if _LOGITS in model else None,
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> _File:
    """Write the file durably. Raises `OSError`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # `save_file` needs no second copy of the tensors in memory, but leaves a nameless temporary file when it is killed:
    # it gets a folder of its own, whose name says which trial it belongs to.
    with TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent, ignore_cleanup_errors=True) as scratch:
        written = Path(scratch) / path.name
        try:
            save_file(dict(tensors), written)
        except SafetensorError as error:
            raise _as_os_error(error, path) from error
        written.chmod(path.parent.stat().st_mode & 0o666)
        digest = sha256(written)
        move_durably(written, path)
    status = path.stat()
    return _File(path.name, digest, status.st_size, status.st_mtime_ns)


def _as_os_error(error: Exception, path: Path) -> OSError:
    """safetensors has the system's error only in its text: "... (os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number) if found else str(error), str(path))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor | np.ndarray]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _prepared(tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """The tensors as safetensors wants them: on the CPU, contiguous, no two on one storage (tied weights, views)."""
    import torch

    prepared: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        prepared[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return prepared


def _only(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _remove(paths: Iterable[Path]) -> None:
    """Remove files and temporary folders, sidecars first: what a sidecar vouches for is there.

    What cannot be removed, of a read-only disk, stays: whoever writes to it says so.
    """
    for path in sorted(paths, key=lambda path: path.suffix != ".json"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            _log.warning("%s cannot be removed: %s", path, problem)
            return
