"""Faults: what was raised, in one line, with its traceback in a file."""

from __future__ import annotations

import errno
import traceback
import zlib
from pathlib import Path
from typing import Final

from autoft.errors import AutoftError, UserError
from autoft.system.files import DISK_ERRORS, write_atomic

MOST_FILES = 100
LONGEST_SHOWN = 80
_OF_A_PATH: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ENOTDIR})


def cause(error: BaseException) -> str:
    """The error in one line, with what was noted on its way; one that autoft raised on purpose speaks for itself."""
    text = str(error) if isinstance(error, AutoftError) else f"{type(error).__name__}: {error}"
    return " ".join("; ".join([text, *getattr(error, "__notes__", ())]).split())


def shown(value: object) -> str:
    """The value as a line shows it: itself where that is short, else its type, as of a module or an array."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN and "\n" not in text else f"a value of type {type(value).__name__}"


def unwritable_disk(error: BaseException) -> UserError | None:
    """What to say of a full or read-only disk, which is no bug and nobody's fault; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in DISK_ERRORS:
        return None
    doing = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return UserError(
        f"{error.filename or 'a file'} cannot be written{doing}: {error.strerror}; make room there, in the cache "
        "(AUTOFT_CACHE_DIR, HF_HOME) or in TMPDIR, and try again; a run that has begun goes on with autoft resume RUN"
    )


def unusable_path(error: BaseException) -> UserError | None:
    """What to say of a path that leads nowhere or must not be read, which is no bug; None for any other error.

    Links in a circle are a `RuntimeError` in Python before 3.13 when the path is resolved.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return UserError(f"{error}: a link that leads to itself; give what it was meant to lead to")
    if not isinstance(error, OSError) or error.errno not in _OF_A_PATH or error.filename is None:
        return None
    return UserError(f"{error.filename} cannot be used: {error.strerror}; look at the path and its permissions")


def record(error: BaseException, folder: Path | None = None) -> str:
    """The error in one line that says in which file its traceback is; an `AutoftError` needs none.

    The file is in `folder`, or in autoft's cache when there is none yet: one a place where errors come from, and the
    latest `MOST_FILES`. A folder that cannot be written is said in the line. Any process may call it at any time.
    """
    if isinstance(error, AutoftError):
        return cause(error)
    return f"{cause(error)}; {kept(error, folder)}"


def kept(error: BaseException, folder: Path | None = None) -> str:
    """In which file the traceback is, as `record` says it, or why there is none."""
    try:
        return f"traceback in {_keep(error, folder or _before_a_run())}"
    except (OSError, RuntimeError, AutoftError) as problem:  # no disk, no home, no cache: the error itself goes first
        return f"its traceback could not be kept: {cause(problem)}"


def _keep(error: BaseException, folder: Path) -> Path:
    path = folder / f"{type(error).__name__}-{zlib.crc32(_origin(error).encode(errors='replace')):08x}.txt"
    folder.mkdir(exist_ok=True)  # and not its parents: a run folder that is gone stays gone
    text = "".join(traceback.format_exception(error))
    write_atomic(path, text.encode(errors="backslashreplace").decode())
    for old in sorted(folder.glob("*.txt"), key=lambda file: -file.stat().st_mtime)[MOST_FILES:]:
        old.unlink(missing_ok=True)
    return path


def _origin(error: BaseException) -> str:
    """Where it came from, without the message, which often holds a number that is never the same."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error)} {[(frame.filename, frame.lineno) for frame in frames]}"


def _before_a_run() -> Path:
    from autoft.system.disk_cache import cache_root

    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return root / "errors"
