"""The cache folder: one limit over all files in it, and locks that end with the process that holds them.

A file opened by `open_kept` carries a shared lock (`flock`) until it and every map of it is closed, since a map
duplicates the descriptor; what is locked is not evicted. Nothing has to be cleaned up after a `kill -9`: the system
takes the locks back, and what a dead builder left is removed by the next one that needs room.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Literal

from autoft.errors import UserError
from autoft.system.files import move_durably
from autoft.system.parallel import SECONDS_BETWEEN_CHECKS, Check, never_stop

DEFAULT_LIMIT_GIB: Final = 20.0
KINDS: Final = ("pixels", "features", "prefixes")
"""The folders in the cache folder that the limit is about."""

_RECENT_SECONDS: Final = 3600.0
_PART: Final = ".part"
_GIB: Final = 2**30


def cache_root() -> Path:
    """Where autoft keeps what it can compute again: $AUTOFT_CACHE_DIR, else the user's cache folder.

    Raises `UserError` for a user without a home folder.
    """
    try:
        if own := os.environ.get("AUTOFT_CACHE_DIR"):
            return Path(own).expanduser().absolute()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = shared if shared.is_absolute() else Path("~/.cache").expanduser()
    except RuntimeError as error:
        hint = "set AUTOFT_CACHE_DIR to a folder that can be written"
        raise UserError(f"there is no home folder for the cache; {hint}") from error
    return base / "autoft"


def cache_limit() -> int:
    """Bytes the cache may take: $AUTOFT_CACHE_LIMIT in GiB. Raises `UserError` if it is no number."""
    text = os.environ.get("AUTOFT_CACHE_LIMIT", str(DEFAULT_LIMIT_GIB))
    try:
        return int(float(text) * _GIB)
    except (ValueError, OverflowError) as error:
        raise UserError(f"AUTOFT_CACHE_LIMIT is {text!r}; give a number of GiB, such as 20") from error


def open_kept(path: Path, mode: Literal["rb", "r+b"] = "rb") -> BinaryIO:
    """The file, which is not evicted before it and every map of it is closed. Raises `FileNotFoundError`."""
    while True:
        file: BinaryIO = open(path.as_posix(), mode)  # noqa: PTH123, SIM115  as text, so that a map knows its file name
        with ExitStack() as stack:
            stack.callback(file.close)
            _lock(file, fcntl.LOCK_SH)
            if _is_at(file, path):
                with suppress(OSError):  # the time of last use decides what goes; another user's file keeps its own
                    os.utime(file.fileno())
                stack.pop_all()
                return file


@contextmanager
def alone(path: Path, check: Check = never_stop) -> Iterator[None]:
    """For one process or thread at a time: the others wait at the door of the block, calling `check`.

    `path` is a lock file, which is there while it is needed. When its holder dies, the next one enters.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, check):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def new_files(sizes: Mapping[Path, int], check: Check = never_stop) -> Iterator[list[BinaryIO]]:
    """Files to write, which take their places when the block ends without an error, and vanish otherwise.

    `sizes` are bytes; they count against the limit from the start, so that builders at the same time keep it together.
    Plain writes, not maps: on a full disk a write raises `OSError`, a map kills the process with SIGBUS. Raises
    `UserError` when there is no room, though all that nobody uses is evicted.
    """
    parts = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}") for path in sizes}
    with ExitStack() as stack:
        with alone(cache_root() / ".lock", check):
            _make_room(sum(sizes.values()))
            files = [stack.enter_context(_reserved(parts[path], size)) for path, size in sizes.items()]
        yield files
        for file, (path, part) in zip(files, parts.items(), strict=True):
            file.flush()
            move_durably(part, path)


@contextmanager
def _reserved(part: Path, size: int) -> Iterator[BinaryIO]:
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("xb") as file:
            _lock(file, fcntl.LOCK_SH)
            os.ftruncate(file.fileno(), size)
            yield file
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- locks


@contextmanager
def _locked(path: Path, check: Check) -> Iterator[None]:
    while True:
        with path.open("ab") as file:
            while not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                check()
                time.sleep(SECONDS_BETWEEN_CHECKS)
            if _is_at(file, path):  # else the one before has removed it on leaving
                yield
                return


def _lock(file: BinaryIO, operation: int) -> bool:
    """Whether the lock was to be had; on file systems without locks it always is."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file still has its name."""
    status = _status(path)
    return status is not None and os.path.samestat(os.fstat(file.fileno()), status)


def _nobody_uses(file: BinaryIO) -> bool:
    """Whether no other has the file open; where there are no locks, whether nobody had it open lately."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(file.fileno()).st_mtime > _RECENT_SECONDS
    return True


# ---------------------------------------------------------------- the limit


def _make_room(needed: int) -> None:
    """Evict what was not used for longest until `needed` bytes fit under the limit and on the disk."""
    root, limit = cache_root(), cache_limit()
    if needed > limit:
        raise UserError(
            f"the cache needs {_gib(needed)}, its limit is {_gib(limit)}; set AUTOFT_CACHE_LIMIT to more GiB, "
            "or choose a smaller --image-size"
        )
    for part in _files(root, f".*{_PART}"):
        _evict(part)
    present = _files(root, "[!.]*")
    used = sum(status.st_size for status in (*present.values(), *_files(root, f".*{_PART}").values()))
    free = shutil.disk_usage(root).free
    excess = max(used + needed - limit, needed - free)
    for path in sorted(present, key=lambda path: present[path].st_mtime_ns):
        if excess > 0 and _evict(path):
            used, free = used - present[path].st_size, shutil.disk_usage(root).free
            excess = max(used + needed - limit, needed - free)
    if needed > free:
        raise UserError(
            f"the cache needs {_gib(needed)}, {root} has {_gib(free)} free; "
            "set AUTOFT_CACHE_DIR to a folder on a larger disk"
        )
    if excess > 0:
        raise UserError(
            f"the cache needs {_gib(needed)} more, and {_gib(used)} of its limit of {_gib(limit)} are in use; "
            "set AUTOFT_CACHE_LIMIT to more GiB, or wait for the other runs to end"
        )


def _files(root: Path, pattern: str) -> Mapping[Path, os.stat_result]:
    found = {path: _status(path) for kind in KINDS for path in (root / kind).glob(pattern)}
    return {path: status for path, status in found.items() if status is not None}


def _evict(path: Path) -> bool:
    """Remove the file unless somebody uses it; whether it is gone."""
    with suppress(OSError), path.open("rb") as file:
        if _nobody_uses(file):
            path.unlink(missing_ok=True)
            return True
    return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process was faster
        return None


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
