"""Where a bundle may be put, and putting it there: whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from autoft.errors import RunFolderError, StudyError
from autoft.store import CheckpointStore, RunFolder
from autoft.values.bundle import MANIFEST, Manifest
from autoft.values.codec import decode
from autoft.values.summary import Summary

_MARK_BYTES: Final = 4
_BORN_SECONDS: Final = 60.0  # after it was made somebody has hold of a folder, or nobody will


def require_free(folder: Path, kept: tuple[Path, ...]) -> Path:
    """The folder, resolved, if a bundle may be put there: it is not there, empty, or holds a bundle and nothing else.

    Raises `StudyError` otherwise, and when one of the folders `kept` lies in it or it cannot be written.
    """
    place = folder.resolve()
    for other in (*kept, Path.cwd()):
        if other.resolve().is_relative_to(place):
            raise StudyError(f"{folder} holds {other}, which would be replaced; choose another --out")
    with _writing(folder):
        if place.exists() and not _only_a_bundle(place):
            raise StudyError(f"{folder} holds other files and is no bundle; choose another --out")
        nearest = next(parent for parent in place.parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise StudyError(f"{folder} cannot be written; choose another --out")
    return place


def holds_bundle(folder: Path) -> bool:
    """Whether there is a bundle, whole or damaged: a folder with a manifest."""
    return (folder / MANIFEST).is_file()


def bundle_of(run: Path, summary: Summary) -> Path:
    """The bundle that the summary of `run` speaks of. Raises `RunFolderError`, with the way back, when it is gone.

    One that a kill has left half replaced is put back first, unless somebody works in the run.
    """
    bundle = (run / summary.model).parent
    if not holds_bundle(bundle):
        with suppress(RunFolderError), RunFolder(run).lock():
            settle(bundle)
    if not holds_bundle(bundle):
        gone = f"the model of the run is gone: {bundle} holds no {MANIFEST}"
        raise RunFolderError(f"{gone}; {_way_back(run, summary)}")
    return bundle


def _way_back(run: Path, summary: Summary) -> str:
    """How to come to a model again, as far as there are weights for it; summaries of before do not say which."""
    path, checkpoints = shlex.quote(str(run)), CheckpointStore(RunFolder(run).checkpoints)
    if problem := next(filter(None, map(checkpoints.problem, summary.finalists[-1:])), None):
        others = f"`autoft leaderboard {path}` says which others can be exported"
        return f"trial {summary.best.trial} cannot write it anew: {problem}; {others}"
    return f"`autoft export {path} --trial {summary.best.trial}` writes it anew"


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to fill; it takes the place of `folder` at the end of the block.

    After an exception `folder` is as it was, and so is what it lies in. Raises `OSError` when it cannot take that
    place, and in place of whatever the block raises because somebody has removed the new folder.
    """
    settle(folder)
    mark = secrets.token_hex(_MARK_BYTES)
    born, fresh, old = (folder.with_name(f".{folder.name}.{mark}{what}") for what in ("", ".new", ".old"))
    without = [parent for parent in folder.parents if not parent.exists()]
    born.mkdir(parents=True)
    try:
        with _held(born):
            born.rename(fresh)  # held before `settle` of another command may come across it
            yield fresh
            _swap(fresh, folder, old)
    except Exception as error:
        if not fresh.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from error
        raise
    finally:
        for path in (born, fresh):
            shutil.rmtree(path, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        for parent in without:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


def settle(folder: Path) -> None:
    """Undo what a kill left of `replacing`: the old folder back in its place, if that is empty, and the rest away.

    What another command is at work on stays, as does what cannot be undone.
    """
    born = rf"\.{re.escape(folder.name)}\.[0-9a-f]{{{2 * _MARK_BYTES}}}"
    with suppress(OSError):
        beside = list(folder.parent.iterdir())
        found = [path for path in beside if re.fullmatch(rf"{born}\.(new|old)", path.name)]
        held = {path.stem for path in found if path.suffix == ".new" and _is_held(path)}
        left = [path for path in found if path.stem not in held]
        old = [path for path in left if path.suffix == ".old"]
        if old and not folder.exists():
            max(old, key=lambda path: path.stat().st_mtime).rename(folder)
        left += [path for path in beside if re.fullmatch(born, path.name) and _is_stillborn(path)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Others can tell by the folder that somebody is at work on it; the system forgets that of a process that died."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks, on which every folder may be somebody's
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_held(folder: Path) -> bool:
    """Whether somebody is at work on it, or may be, as far as can be told."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_stillborn(folder: Path) -> bool:
    """Whether a kill came between its making and its next name: it is empty, and nobody has taken hold of it since."""
    age = time.time() - folder.stat().st_mtime
    return age > _BORN_SECONDS and not any(folder.iterdir()) and not _is_held(folder)


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    try:
        folder.rename(old)
        fresh.rename(folder)
    except BaseException:  # a signal too
        if not folder.exists():
            old.rename(folder)
        raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StudyError(f"{folder} cannot be written: {error.strerror}; choose another --out") from error


def _only_a_bundle(folder: Path) -> bool:
    """Whether every file in the folder is one that a bundle's manifest lists; so is it when there is none."""
    if not folder.is_dir():
        return False
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    try:
        listed = set(decode(Manifest, (folder / MANIFEST).read_text(encoding="utf-8")).files) | {MANIFEST}
    except (FileNotFoundError, ValueError):
        listed = set()
    return files <= listed
