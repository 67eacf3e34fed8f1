"""Why a worker process died, as far as anybody on this machine knows: Ray's own text names every possible cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FEWER = "use fewer --workers or a smaller --image-size"
_EXIT_CODE = re.compile(r"exit(?:s|ed)? with an exit code (-?\d+)")
_CRASH = re.compile(rb"\*\*\* (SIG[A-Z]+) received")  # Ray's handler writes it to the worker's stderr
_PID = re.compile(r"\bpid: (\d+)")
_LOW_MEMORY = re.compile(r"low on memory|OutOfMemory|memory pressure")
_TAIL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Death:
    """Why a worker process died, in one line, and whether memory ran out."""

    cause: str
    of_memory: bool = False


def oom_kills() -> int:
    """Processes that the kernel of this machine has killed for memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class OomKills:
    """What the kernel has killed for memory since this was made; each accounts for one death.

    Programs of others are among them: whose slice has begun was alive then, so of its process only what came later.
    """

    def __init__(self) -> None:
        self._before = oom_kills()
        self._before_slice: dict[str, int] = {}
        self._accounted: set[int] = set()

    def began(self, slice_: str) -> None:
        """Take in that a process, which is alive, has the slice of that name."""
        self._before_slice[slice_] = oom_kills()

    def account_for(self, slice_: str) -> bool:
        """Whether its process may have been one that no death was put down to yet; from now on one is."""
        kills = range(self._before_slice.get(slice_, self._before), oom_kills())
        first = next((kill for kill in kills if kill not in self._accounted), None)
        if first is None:
            return False
        self._accounted.add(first)
        return True


def cause_of_death(said: str, logs: Path | None, was_killed: Callable[[], bool]) -> Death:
    """`said` is Ray's text, `logs` its log folder where that is on this machine.

    `was_killed` is asked where these do not say it, whether the kernel may have done it for want of memory.
    """
    if _LOW_MEMORY.search(said):
        return Death(f"Ray ended the worker process because memory ran low; {FEWER}", of_memory=True)
    if code := _EXIT_CODE.search(said):
        return Death(f"the worker process ended itself with exit code {code[1]}")
    if (pid := _PID.search(said)) and logs and (signal := _crash(logs, pid[1])):
        return Death(f"the worker process crashed inside a library ({signal})")
    if was_killed():
        return Death(f"the system killed the worker process because memory ran out; {FEWER}", of_memory=True)
    if "worker process has died" in said:
        return Death("the worker process was killed from outside, or a library ended it without a word")
    return Death("the worker was lost: " + " ".join(said.split())[-300:])


def _crash(logs: Path, pid: str) -> str | None:
    """The signal that a worker's standard error speaks of."""
    for log in logs.glob(f"worker-*-{pid}.err"):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            if found := _CRASH.search(file.read()):
                return found[1].decode()
    return None
