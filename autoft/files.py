"""Files that survive a crash: they are written whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
