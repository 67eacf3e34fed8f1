"""Files that survive a crash: they are written whole, or not at all. And their names as text, whatever the locale."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")

DISK_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""A full or read-only disk, or a limit on what a file may take: the fault of no trial and of no plugin."""


def write_atomic_bytes(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that then takes the place of `path`, durably.

    After an exception, `path` is as it was and the temporary file is gone. Raises `OSError`, of a full disk too.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        move_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, newlines as they are, durably; see `write_atomic_bytes`."""
    write_atomic_bytes(path, lambda file: file.write(text.encode("utf-8")))


def move_durably(source: Path, path: Path) -> None:
    """Give a finished file its name, in place of what had it, once its content is on the disk; one file system only."""
    _fsync(source)
    source.replace(path)
    fsync_dir(path.parent)


def as_text(name: str | os.PathLike[str]) -> str:
    r"""A file name as text that JSON, CSV and every screen can hold, the same in every locale.

    Names are UTF-8; bytes that are not stand as `\xe9`. A backslash that would read like that stands as `\x5c`, so that
    no two names become one and `as_path` finds the way back.
    """
    raw = _ESCAPE.sub(rb"\\x5cx\1", os.fspath(name).encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "backslashreplace")


def as_path(text: str) -> Path:
    """The path that `as_text` wrote."""
    raw = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return Path(os.fsdecode(raw))


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable: a new or renamed file is found again after a power cut."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
