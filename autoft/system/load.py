"""What else runs on this machine: how many tasks that are not ours have a core, or wait for one."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
# A reading costs some milliseconds, and one alone may meet something that is over at once.
READINGS_AT_FIRST, PAUSE_SECONDS, LEAST_AGE_SECONDS, LONGEST_AGE_SECONDS = 4, 0.01, 1.0, 15.0
LONGEST_WAIT = 4.0  # times what is to be computed


class OtherTasks:
    """Calling it gives the mean of the readings of the last `LONGEST_AGE_SECONDS`, a new one among them each second.

    The load average says the same a minute late, which is too late for a search of twenty seconds.
    """

    def __init__(
        self,
        read: Callable[[], int | None] | None = None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._read, self._now, self._pause = read or other_tasks, now, pause
        self._readings: deque[tuple[float, int]] = deque()

    def __call__(self) -> float | None:
        """Tasks of others; None where the system does not say."""
        now = self._now()
        while self._readings and self._readings[0][0] < now - LONGEST_AGE_SECONDS:
            self._readings.popleft()
        if not self._readings:
            self._take(READINGS_AT_FIRST)
        elif self._readings[-1][0] <= now - LEAST_AGE_SECONDS:
            self._take(1)
        return sum(count for _, count in self._readings) / len(self._readings) if self._readings else None

    def _take(self, times: int) -> None:
        for number in range(times):
            if number:
                self._pause(PAUSE_SECONDS)
            if (count := self._read()) is not None:
                self._readings.append((self._now(), count))


def waiting(
    seconds: float, now: Callable[[], float] = time.perf_counter, computed: Callable[[], float] = time.thread_time
) -> float:
    """How many seconds this thread waits for a core for each one that it computes; measured by so many of computing.

    Least where others are of another session: outside of containers Linux gives each session as much as any other,
    however many tasks it has (`autogroup` in sched(7)). Takes four times those seconds at most.
    """
    began, before = now(), computed()
    taken = used = 0.0
    while used < seconds and taken < LONGEST_WAIT * seconds:
        used, taken = computed() - before, now() - began
    return max(0.0, taken / max(used, 1e-6) - 1.0)


def other_tasks(proc: Path = PROC) -> int | None:
    """Tasks that run or wait for a core now and do not descend from this process; None where the system does not say.

    Of the whole machine, outside of this process's container too, as the load average counts them.
    """
    try:
        ours = sum(_running(process, proc) for process in _descendants(proc))
        found = re.search(r"^procs_running (\d+)$", _text(proc / "stat"), re.MULTILINE)
    except OSError:
        return None
    return max(0, int(found[1]) - ours) if found else None


def _descendants(proc: Path) -> list[str]:
    """This process and all below it. Raises `OSError` where the kernel keeps no list of children."""
    own = str(os.getpid())
    _text(proc / own / "task" / own / "children")
    found = [own]
    for process in found:  # which grows meanwhile
        found += [child for task in _tasks(process, proc) for child in _text_or_nothing(task / "children").split()]
    return found


def _running(process: str, proc: Path) -> int:
    states = (_text_or_nothing(task / "stat").rpartition(")")[2].split() for task in _tasks(process, proc))
    return sum(state[:1] == ["R"] for state in states)


def _tasks(process: str, proc: Path) -> list[Path]:
    try:
        return list((proc / process / "task").iterdir())
    except OSError:  # it has ended
        return []


def _text_or_nothing(path: Path) -> str:
    try:
        return _text(path)
    except OSError:  # the task has ended
        return ""


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")
