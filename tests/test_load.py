"""What else runs on this machine: counted now, and without ourselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoft.system.load import LONGEST_AGE_SECONDS, OtherTasks, other_tasks, waiting

OWN = str(os.getpid())


def system(root: Path, running: int, tasks: dict[str, str], children: dict[str, str]) -> Path:
    """A `/proc` with `running` tasks in all; `tasks` are states by "process/task", `children` by the same."""
    (root / "stat").write_text(f"cpu  1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
    for place, state in tasks.items():
        process, task = place.split("/")
        folder = root / process / "task" / task
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{task} (a name) with brackets) {state} 1 1")
        (folder / "children").write_text(children.get(place, ""))
    return root


def test_the_tasks_of_others_are_those_that_do_not_descend_from_this_process(tmp_path: Path) -> None:
    tasks = {f"{OWN}/{OWN}": "R", f"{OWN}/7": "S", "20/20": "S", "20/21": "R", "30/30": "R", "40/40": "R"}
    proc = system(tmp_path, 6, tasks, {f"{OWN}/7": "20 50 ", "20/20": "30"})  # 50 has ended since
    assert other_tasks(proc) == 3


@pytest.mark.parametrize("missing", ["stat", f"{OWN}/task/{OWN}/children"], ids=["stat", "children"])
def test_a_system_that_does_not_say_is_none(missing: str, tmp_path: Path) -> None:
    proc = system(tmp_path, 6, {f"{OWN}/{OWN}": "R"}, {})
    (proc / missing).unlink()
    assert other_tasks(proc) is None
    assert OtherTasks(lambda: None)() is None


@pytest.mark.skipif(other_tasks() is None, reason="the system does not say")
def test_a_process_of_ours_is_not_another() -> None:
    """Nor is what that one starts."""
    spinning = "sh -c 'while :; do :; done' & wait"
    process = subprocess.Popen(["sh", "-c", spinning], start_new_session=True)
    try:
        time.sleep(0.3)
        all_of_them = [int(re.findall(r"procs_running (\d+)", Path("/proc/stat").read_text())[0]) for _ in range(20)]
        others = [other_tasks() or 0 for _ in range(20)]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert min(all_of_them) >= 2  # this process and the one that spins
    assert sum(all_of_them) - sum(others) > 20


def readings(counts: list[int]) -> tuple[OtherTasks, Callable[[float], None]]:
    """What tells the mean of `counts`, one after the other, and what lets time pass."""
    now, left = [100.0], iter(counts)

    def wait(seconds: float) -> None:
        now.append(now[-1] + seconds)

    return OtherTasks(lambda: next(left), lambda: now[-1], lambda seconds: None), wait


def test_other_tasks_are_a_mean_over_seconds_so_that_what_is_over_at_once_counts_little() -> None:
    others, wait = readings([2, 0, 2, 0, 6])
    assert [others(), others()] == [1.0, 1.0]  # nobody waits for a reading within a second
    wait(2.0)
    assert others() == 2.0


def test_what_was_long_ago_is_forgotten() -> None:
    others, wait = readings([9, 9, 9, 9, 1, 1, 1, 1])
    assert others() == 9.0
    wait(LONGEST_AGE_SECONDS + 1)
    assert others() == 1.0


def test_waiting_is_what_a_thread_takes_beyond_its_computing() -> None:
    now, computed = iter((10.0, 10.2, 10.6, 10.9)), iter((1.0, 1.2, 1.4, 1.6))
    assert waiting(0.6, now.__next__, computed.__next__) == pytest.approx(0.5)


def test_waiting_is_given_up_where_there_is_hardly_anything_to_compute_with() -> None:
    now, computed = iter((10.0, 11.0, 12.0)), iter((1.0, 1.05, 1.1))
    assert waiting(0.5, now.__next__, computed.__next__) == pytest.approx(19.0)
