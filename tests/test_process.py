"""What a process sees to before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from autoft.__main__ import _run
from autoft.errors import UserError
from autoft.system import process


@pytest.fixture
def undecided(monkeypatch):
    for name in process.WAITING:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def test_threads_wait_asleep(undecided):
    process.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize("name", process.WAITING)
def test_a_persons_own_decision_stands(undecided, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    process.prepare()
    assert {other: os.environ[other] for other in process.WAITING if other in os.environ} == {name: "1"}


def test_windows_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(process.sys, "platform", "win32")
    with pytest.raises(UserError, match="WSL 2"):
        process.prepare()
    assert _run() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_AS, ({0}, {0})); from autoft.__main__ import main; main()"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep no such limit")
@pytest.mark.parametrize("plugin", [False, True])
def test_a_limit_under_which_torch_cannot_be_loaded_is_one_line(plugin, tiny_images, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n")
    command = [sys.executable, "-c", LIMITED.format(400 << 20), "search", tiny_images, "--runner", "inline"]
    command += ["--out", tmp_path / "run", *(["-p", tmp_path / "mine.py"] if plugin else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert line.startswith("error: this process may map 0.4 GiB of memory (ulimit -v), which is too little: ")
    assert "lib" in line and line.endswith("counts only what is in use") and "Traceback" not in done.stderr


def test_an_error_that_has_nothing_to_do_with_memory_is_no_matter_of_the_limit(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**30, 2**30))
    assert process.too_little_memory(ImportError("no module is called so")) is None
    numpy = ImportError("Read this for advice\nOriginal error was: libx.so: failed to map segment from shared object\n")
    assert "little: Original error was: libx.so: failed" in str(process.too_little_memory(numpy))
    assert "1.0 GiB" in str(process.too_little_memory(MemoryError()))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert process.too_little_memory(MemoryError()) is None
