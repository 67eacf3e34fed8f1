"""How slowly this machine starts processes, and what is made of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autoft.engine import ending, prepare
from autoft.engine.ending import MEASURING_SECONDS, bare_seconds, require_any_time
from autoft.errors import StudyError
from autoft.study import machine
from autoft.study.machine import Slowness
from autoft.study.study import Study
from autoft.system import starting

anew = starting.start_slowness.__wrapped__


def test_what_a_process_takes_here_is_measured() -> None:
    assert 0.001 < starting._cpu_seconds() != starting.REFERENCE_SECONDS
    assert anew() >= 1.0


@pytest.mark.parametrize(("seconds", "slowness"), [(0.01, 1.0), (0.02, 1.0), (0.06, 3.0), (0.5, starting.MOST)])
def test_no_machine_promises_more_than_the_one_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, seconds: float, slowness: float
) -> None:
    monkeypatch.setattr(starting, "_cpu_seconds", lambda: seconds)
    assert anew() == pytest.approx(slowness)


@pytest.mark.parametrize("source", ["import no_such_package", "print('?')"])
def test_where_it_cannot_be_measured_it_counts_for_nothing(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(starting, "_OPTIONS", ("-c", source))
    assert anew() == 1.0
    for executable in ("/nowhere/python", None, "/usr/bin/my-app"):
        monkeypatch.setattr(sys, "executable", executable)
        assert anew() == 1.0


def test_nothing_of_the_folder_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert starting._cpu_seconds() > 0
    assert not (tmp_path / "imported").exists()


def test_a_slow_machine_promises_less(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ending, prepare, machine):
        monkeypatch.setattr(module, "start_slowness", lambda: 3.0)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "_felt", lambda: 1.0)
    alone, crowded = (Slowness(own=1e9, others=lambda others=others: others) for others in (0.0, 3.0))
    assert (alone(), crowded()) == (3.0, 6.0)
    assert prepare.is_little(3 * prepare.LITTLE_TIME_SECONDS - 1)
    assert bare_seconds(1800.0, "inline", 3.0) == 3.0 * bare_seconds(1800.0, "inline", 1.0) - 2 * MEASURING_SECONDS
    with pytest.raises(StudyError, match=r"--time 20s is too short: starting and the export alone take 26 s or more"):
        require_any_time(Study("data", time=20.0))
