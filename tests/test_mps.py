"""A daemon of our own that lets processes share a GPU, with a stand-in for NVIDIA's control program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoft.system import mps
from autoft.system.mps import Mps, visible_gpus, why_not

# Keeps a file `running` in the folder of its pipes while its daemon runs, and notes what it is asked for. Its daemon is
# a process of its own, as NVIDIA's is.
CONTROL = """#!/bin/sh
folder=${CUDA_MPS_PIPE_DIRECTORY:-$NOBODYS}
echo "$* visible=${CUDA_VISIBLE_DEVICES-all}" >> "$CALLS"
if [ "$1" = -d ]; then
    [ -n "$BROKEN" ] && { echo "An instance of this daemon is already running"; exit 1; }
    sleep 60 </dev/null >/dev/null 2>&1 &
    echo $! > "$folder/running"
    exit 0
fi
read command
echo "$command" >> "$CALLS"
[ -f "$folder/running" ] || exit 1
if [ "$command" = quit ]; then kill "$(cat "$folder/running")"; rm "$folder/running"; fi
exit 0
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The file in which the stand-in notes its calls; a client finds its daemon."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / mps.CONTROL
    program.write_text(CONTROL)
    program.chmod(0o755)
    (tmp_path / "nobodys").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("NOBODYS", str(tmp_path / "nobodys"))
    for name in (mps.PIPES, mps.LOGS, mps.SWITCH, mps.VISIBLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mps, "CLIENT", ("/bin/sh", "-c", f'[ -f "${mps.PIPES}/running" ]'))
    return tmp_path / "calls"


def started():
    said: list[str] = []
    ours = Mps(said.append)
    ours.start()
    return ours, said


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(process: int, folder: Path) -> bool:
    """Whether a daemon and its folder are, soon."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not alive(process) and not folder.exists():
            return True
        time.sleep(0.05)
    return False


def test_a_daemon_is_there_for_as_long_as_it_is_wanted(calls):
    ours, said = started()
    folder = Path(os.environ[mps.PIPES])
    daemon = int((folder / "running").read_text())
    assert os.environ[mps.LOGS] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # nobody else's
    assert said == [] and alive(daemon)
    ours.close()
    assert mps.PIPES not in os.environ and mps.LOGS not in os.environ
    assert gone(daemon, folder)
    ours.close()  # twice is once


def test_the_daemon_sees_every_gpu_whatever_this_process_sees(calls, monkeypatch):
    """With some hidden from it, it would count those that are left anew, and workers name them as they are."""
    monkeypatch.setenv(mps.VISIBLE, "2,3")
    ours, _ = started()
    assert "-d visible=all" in calls.read_text()
    ours.close()


def test_it_ends_with_its_process_whatever_ends_that(calls):
    code = """
import os, sys, time
from autoft.system import mps
mps.CLIENT = ("true",)
mps.Mps(print).start()
print(os.environ[mps.PIPES], flush=True)
time.sleep(60)
"""
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
            folder = Path(owner.stdout.readline().decode().strip())
            daemon = int((folder / "running").read_text())
            assert alive(daemon)
            os.kill(owner.pid, number)
        assert gone(daemon, folder)


def test_one_that_does_not_start_is_one_line(calls, monkeypatch):
    monkeypatch.setenv("BROKEN", "1")
    _, (line,) = started()
    assert "take turns: MPS does not start (An instance of this daemon is already running)" in line
    assert "AUTOFT_MPS=0" in line
    assert mps.PIPES not in os.environ


def test_a_disk_without_room_for_its_folder_is_one_line_too(calls, monkeypatch):
    def full(*args: object, **options: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mps.tempfile, "mkdtemp", full)
    _, (line,) = started()
    assert "No space left on device" in line
    assert mps.PIPES not in os.environ


def test_where_somebody_wants_its_logs_they_go_there_and_stay_wanted(calls, monkeypatch, tmp_path):
    monkeypatch.setenv(mps.LOGS, str(tmp_path))
    ours, said = started()
    assert said == []
    assert os.environ[mps.LOGS] == str(tmp_path)
    ours.close()
    assert os.environ[mps.LOGS] == str(tmp_path) and mps.PIPES not in os.environ


def test_one_that_no_client_reaches_is_ended_again(calls, monkeypatch):
    monkeypatch.setattr(mps, "CLIENT", ("/bin/sh", "-c", "echo CUDA error 805 >&2; exit 1"))
    _, (line,) = started()
    assert "CUDA error 805" in line
    assert mps.PIPES not in os.environ
    assert calls.read_text().splitlines()[-1] == "quit"


def test_what_hangs_costs_a_few_seconds_and_is_one_line(calls, monkeypatch):
    monkeypatch.setattr(mps, "CLIENT_SECONDS", 0.2)
    monkeypatch.setattr(mps, "CLIENT", ("/bin/sh", "-c", "exec sleep 30"))
    began = time.monotonic()
    _, (line,) = started()
    assert time.monotonic() - began < 5
    assert "take turns: MPS does not start (sh did not end within 0.2 seconds)" in line and "\n" not in line
    assert mps.PIPES not in os.environ


def test_the_client_says_what_is_wrong_with_cuda(calls, monkeypatch):
    """The real one, where there is no driver: none at all, or one without a device."""
    monkeypatch.undo()
    done = subprocess.run(mps.CLIENT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert done.returncode != 0
    assert "libcuda" in done.stderr or "CUDA error" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (mps.SWITCH, "0", "switched off by AUTOFT_MPS=0"),
        (mps.VISIBLE, "", "no GPU is visible by CUDA_VISIBLE_DEVICES"),
        (mps.PIPES, "/somebody/elses", "CUDA_MPS_PIPE_DIRECTORY names one"),
        ("PATH", "/nowhere", "there is no nvidia-cuda-mps-control"),
    ],
)
def test_none_is_started_where_something_speaks_against_it(calls, monkeypatch, name, value, why):
    monkeypatch.setenv(name, value)
    assert why_not() == why
    _, said = started()
    assert said == []
    assert os.environ[name] == value
    assert not calls.exists()


def test_one_that_runs_already_is_left_alone(calls, tmp_path):
    (tmp_path / "nobodys" / "running").touch()
    assert why_not() == "one is running already"
    _, said = started()
    assert said == [] and mps.PIPES not in os.environ
    assert "-d" not in calls.read_text() and "quit" not in calls.read_text()


def test_gpus_are_named_as_this_process_sees_them(monkeypatch):
    monkeypatch.delenv(mps.VISIBLE, raising=False)
    assert visible_gpus(3) == ("0", "1", "2")
    monkeypatch.setenv(mps.VISIBLE, "GPU-8d,3,1")
    assert visible_gpus(2) == ("GPU-8d", "3")
