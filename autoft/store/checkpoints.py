"""`CheckpointStore`: the weights of trials on disk, safetensors with a JSON sidecar; nothing is ever pickled.

00007-3.000000-9f2c51d0.safetensors   trial 7 after three passes: the tensors; the ending is random, so that saving
                                      the same step again never touches a file that a sidecar vouches for
00007-3.000000.json                   the sidecar, written last: it makes the checkpoint exist
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from autoft.codec import decode, encode
from autoft.files import move_durably, sha256, write_atomic
from autoft.space import Scalar
from autoft.types import Trial

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_log = logging.getLogger(__name__)
_NAME = re.compile(r"\.?(?P<trial>\d{5,})-(?P<step>\d+\.\d{6})[-.].+")
_MODEL, _TRAINING = "model.", "training."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a trial stood at `step` passes.

    `model` tensors are what export needs, `training` tensors what only going on needs (optimiser state, ...); by name,
    on the CPU. `facts` are resolved values worth keeping with the weights.
    """

    trial: Trial
    step: float
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    facts: Mapping[str, Scalar]


@dataclass(frozen=True)
class _Sidecar:
    """`tensors` is the name of the safetensors file, `sha256` its hash; `check` the hash of all other fields."""

    tensors: str
    sha256: str
    trial: Trial
    step: float
    facts: Mapping[str, Scalar]
    format: Literal[1] = 1
    check: str = ""

    def checked(self) -> _Sidecar:
        """The same with `check` filled in."""
        text = encode(replace(self, check=""))
        return replace(self, check=hashlib.sha256(text.encode()).hexdigest())


class CheckpointStore:
    """The checkpoints of a run, one a trial; every process may have its own store over the same folder.

    A trial is saved by one process at a time: it has one slice in flight at most.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(
        self,
        trial: Trial,
        step: float,
        model: Mapping[str, Tensor | np.ndarray],
        training: Mapping[str, Tensor | np.ndarray],
        facts: Mapping[str, Scalar] | None = None,
        beside: float | None = None,
    ) -> None:
        """Make this the checkpoint of `trial`, durably; only then are those before removed, all but that of `beside`.

        Raises `OSError` when it cannot be written (disk full, ...); the checkpoint before is then still there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = _stem(trial.id, step)
        tensors = self._folder / f"{stem}-{secrets.token_hex(4)}.safetensors"
        digest = _write_tensors(tensors, _prepared(_prefixed(_MODEL, model) | _prefixed(_TRAINING, training)))
        sidecar = self._folder / f"{stem}.json"
        try:
            text = encode(_Sidecar(tensors.name, digest, trial, float(step), dict(facts or {})).checked())
            write_atomic(sidecar, text)
        except BaseException:
            tensors.unlink()  # on a full disk it would stand in the way of everything else
            raise
        stems = (stem, stem if beside is None else _stem(trial.id, beside))
        stale = (path for path in self._files({trial.id}) if not path.name.startswith(stems))
        repeated = (path for path in self._files({trial.id}) if path.name.startswith(stem))
        _remove([*stale, *(path for path in repeated if path not in (tensors, sidecar))])

    def load(self, trial_id: int, step: float | None = None) -> Checkpoint | None:
        """The trial's latest checkpoint, or that of `step`, tensors on the CPU; None when there is none that is whole.

        A damaged one is passed over with a warning for the one before, if that is still there.
        """
        for sidecar in self._sidecars(trial_id):
            if step is not None and sidecar.stem != _stem(trial_id, step):
                continue
            try:
                return self._read(sidecar, trial_id)
            except (OSError, ValueError) as problem:
                _log.warning("checkpoint %s is not used: %s", sidecar, problem)
        return None

    def settle(self, trial_id: int, step: float) -> None:
        """Keep only the checkpoint of `step` of a trial with no slice in flight."""
        _remove(path for path in self._files({trial_id}) if not path.name.startswith(_stem(trial_id, step)))

    def prune(self, keep: frozenset[int]) -> None:
        """Remove the checkpoints of all trials not in `keep`, and what killed saves of theirs left behind.

        What is half written for a trial in `keep` may be a save going on; the trial's next save clears up behind it.
        """
        _remove(self._files(self._trials() - keep))

    def _read(self, path: Path, trial_id: int) -> Checkpoint:
        from safetensors.torch import load_file

        sidecar = decode(_Sidecar, path.read_text(encoding="utf-8"))
        if sidecar != sidecar.checked() or path.stem != _stem(trial_id, sidecar.step) or sidecar.trial.id != trial_id:
            raise ValueError("the sidecar is damaged")
        tensors = self._folder / Path(sidecar.tensors).name
        if sha256(tensors) != sidecar.sha256:
            raise ValueError(f"{tensors.name} is damaged: its SHA-256 is not the one in the sidecar")
        loaded = load_file(tensors)
        return Checkpoint(
            sidecar.trial, sidecar.step, _only(_MODEL, loaded), _only(_TRAINING, loaded), dict(sidecar.facts)
        )

    def _sidecars(self, trial_id: int) -> list[Path]:
        """The trial's sidecars, highest step first."""
        sidecars = [path for path in self._files({trial_id}) if path.suffix == ".json"]
        return sorted(sidecars, key=lambda path: float(path.stem.partition("-")[2]), reverse=True)

    def _trials(self) -> set[int]:
        return {trial for trial, _ in self._named()}

    def _files(self, trials: Set[int]) -> list[Path]:
        """Everything in the folder, temporary or not, that belongs to one of `trials`."""
        return [path for trial, path in self._named() if trial in trials]

    def _named(self) -> list[tuple[int, Path]]:
        """Every file of ours with the trial its name says; other people's files are left alone."""
        paths = list(self._folder.iterdir()) if self._folder.is_dir() else []
        return [(int(name["trial"]), path) for path in paths if (name := _NAME.fullmatch(path.name))]


def _stem(trial_id: int, step: float) -> str:
    return f"{trial_id:05d}-{step:.6f}"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the file durably and give its SHA-256. Raises `OSError`."""
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
    return digest


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
    """Remove files and temporary folders, sidecars first: what a sidecar vouches for is there."""
    for path in sorted(paths, key=lambda path: path.suffix != ".json"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
