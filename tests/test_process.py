"""What a process sees to before torch is there."""

from __future__ import annotations

import os

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
