"""What a process sees to before anything heavy is imported, and what is said where that does not fit."""

from __future__ import annotations

import os
import sys
from typing import Final

from autoft.errors import UserError

# Each of them is a person's own decision: the standard's variable, and those of GNU's and LLVM's libraries.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare() -> None:
    """Let torch's threads, in workers too, sleep while they wait; spinning takes cores from whoever has work.

    To be called before torch is imported. Raises `UserError` on Windows.
    """
    if sys.platform == "win32":
        raise UserError("autoft runs on Linux and macOS; on Windows use WSL 2 (exported bundles need onnxruntime only)")
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


_NO_ROOM: Final = ("failed to map segment", "allocate memory", "can't start new thread")
"""What loaders, allocators and Python say where the system gives no more addresses."""


def too_little_memory(error: BaseException) -> UserError | None:
    """What to say of an error that this process' own limit of memory (`ulimit -v`) has caused; None for another."""
    import resource  # not there on Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    said = _said_of_no_room(error)
    if said is None or limit == resource.RLIM_INFINITY:
        return None
    return UserError(
        f"this process may map {limit / 2**30:.1f} GiB of memory (ulimit -v), which is too little: {said}; torch maps "
        "several GiB of libraries, most of which is never read in. Lift it with ulimit -v unlimited; a limit of a "
        "container, to which autoft keeps, counts only what is in use"
    )


def _said_of_no_room(error: BaseException) -> str | None:
    """The line that says so, in the error or in what it came of: a long text may be around it."""
    if error.__cause__ is not None and (deeper := _said_of_no_room(error.__cause__)):
        return deeper
    lines = (line.strip() for line in str(error).splitlines())
    found = next((line for line in lines if any(words in line for words in _NO_ROOM)), None)
    return found or ("no memory" if isinstance(error, MemoryError) else None)
