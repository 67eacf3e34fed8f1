"""What keeps Ray from starting on this machine, seen before it is tried: Ray says it in a traceback, or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

MIB = 2**20
LEAST_FREE = 64 * MIB  # Ray's logs, and room to breathe
OBJECT_STORE_BYTES = 100 * MIB  # slices and reports are small; pixels and features are files that workers map
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # what a Unix socket's address holds
REMEDY = "set RAY_TMPDIR to a short local folder such as /tmp, or use --runner inline"


def ray_folder() -> Path:
    """The folder below which Ray keeps its sockets and logs: RAY_TMPDIR, else TMPDIR (on Linux), else /tmp."""
    named = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None)
    return Path(named or "/tmp")


def ray_obstacle() -> str | None:
    """Why Ray cannot start here, in one line that says what to do; None when nothing is known."""
    folder = ray_folder()
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    socket = folder / f"ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (length := len(os.fsencode(socket))) > SOCKET_PATH_BYTES:
        excess = length - SOCKET_PATH_BYTES
        return f"{name} ({folder}) is {excess} bytes too long for the paths of Ray's sockets; {REMEDY}"
    try:
        nearest = next(path for path in (folder / "ray", folder) if path.is_dir())
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except StopIteration:
        return f"{name} ({folder}) is no folder; {REMEDY}"
    except OSError as error:
        return f"{name} ({folder}) cannot be written, where Ray keeps sockets and logs: {error.strerror}; {REMEDY}"
    needed = LEAST_FREE + (0 if _shared_memory() > OBJECT_STORE_BYTES else OBJECT_STORE_BYTES)
    if free < needed:
        return f"{name} ({folder}) has {free // MIB} MiB free and Ray needs {needed // MIB}; make room, {REMEDY}"
    return None


def home_for_token() -> bool:
    """Whether Ray can keep the token that guards a local cluster where it wants to, in ~/.ray."""
    try:
        home = Path.home()
        if (home / ".ray/auth_token").is_file():
            return True
        with tempfile.TemporaryFile(dir=home / ".ray" if (home / ".ray").is_dir() else home):
            return True
    except (RuntimeError, OSError):  # no HOME and no entry in the table of users
        return False


def _shared_memory() -> int:
    """Bytes free in /dev/shm; where it is too small Ray puts its objects into its folder."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0
