"""A run that goes on where the machine is another, and a runner that does not start."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from parts.data import source

from autoft import StudyError
from autoft.engine import engine
from autoft.engine.sitting import Sitting
from autoft.parts.host import Host
from autoft.runners.inline import InlineRunner
from autoft.study import machine
from autoft.study.machine import GIB, Resources
from autoft.study.record import Machine
from autoft.study.run import Run
from autoft.study.study import Change, Study, budget_change
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")


class Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


class EightCores(InlineRunner):
    """Stands for Ray on another machine."""

    name = "ray"

    def nodes(self):
        return (Resources(8, 0, 100 * GIB),)


@pytest.fixture
def run(tiny_images, tmp_path):
    """A run that has begun on eight cores, by Ray, and got no further."""
    study = Study(str(tiny_images), plugins=(ZOO,), backbones=("small/test_resnet",), time=60.0)
    host, now = Host.discover(study.plugins, ()), time.time()
    sitting = Sitting(host, EightCores(), Silent(), Stopwatch(now), RunClock(now, study.time))
    return engine.begin(study, source(tiny_images), tmp_path / "run", sitting)


def resumed(run, monkeypatch, **changes):
    """What a resume of it, on this machine without Ray, would execute, and what was said."""
    record = replace(run.record, machine=replace(run.record.machine, **changes))
    run.folder.study.write_text(engine.encode(record), encoding="utf-8")
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(engine, "_execute", lambda run, sitting: run)
    notes = Notes()
    return engine.resume(run.folder.path, Change(), notes, time.time()).record, notes.lines


def test_a_run_goes_on_with_what_this_machine_has(run, monkeypatch):
    assert (run.record.machine.runner, run.record.machine.workers) == ("ray", 8)
    found, said = resumed(run, monkeypatch, device="cuda", gpus=0.5)
    assert found.machine == Machine("inline", 1, machine.cores(), "cpu", machine.cores(), 0.0)
    assert "going on with 1 worker " in said[-1]
    assert "this run began with 8 workers of 1 thread on cuda by ray" in said[-1]
    kept = Run.open(run.folder.path).record.machine
    assert (kept.device, kept.workers) == ("cuda", 8)


def test_nothing_is_said_where_nothing_changed(run, monkeypatch):
    _, said = resumed(run, monkeypatch, runner="inline", workers=1, threads=machine.cores())
    assert not [line for line in said if "going on" in line]


def test_ray_that_was_asked_for_there_is_done_without_here(run, monkeypatch):
    """Where it is not installed; what the run was asked for stays in its record."""
    asked = replace(run, record=replace(run.record, study=replace(run.record.study, runner="ray")))
    found, said = resumed(asked, monkeypatch)
    assert found.machine.runner == "inline"
    assert "one trial at a time in this process: ray is not installed; pip install 'ray[tune]'" in said
    assert found.study.runner == "ray"


@pytest.mark.parametrize("gpus", [0, 1])
def test_gpus_that_were_asked_for_there_are_done_without_here(run, monkeypatch, gpus):
    asked = replace(run, record=replace(run.record, study=replace(run.record.study, gpus_per_trial=2.0)))
    monkeypatch.setattr(InlineRunner, "nodes", lambda self: (Resources(4, gpus, 100 * GIB),))
    found, said = resumed(asked, monkeypatch)
    assert (found.machine.device, found.study.gpus_per_trial) == ("cuda" if gpus else "cpu", 2.0)
    without = "going on with one GPU a trial: --gpus-per-trial 2 asks for more than there is here, 1 GPU"
    assert [line for line in said if "--gpus-per-trial" in line] == [without] * gpus


def test_a_budget_is_changed_only_when_all_else_is_there(run, monkeypatch):
    record = replace(run.record, study=replace(run.record.study, searcher="of_a_plugin"))
    run.folder.study.write_text(engine.encode(record), encoding="utf-8")
    before = run.folder.study.read_bytes()
    with pytest.raises(StudyError, match="of_a_plugin"):
        engine.resume(run.folder.path, Change(time=lambda budget: budget + 60), Silent(), time.time())
    assert run.folder.study.read_bytes() == before
    assert json.loads(before)["study"]["time"] == 60.0


def test_auto_falls_back_to_inline_with_the_reason(tiny_images, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/no/such")
    notes, host = Notes(), Host.discover((), ())
    with engine._runner(Study("data"), host, Stopwatch(time.time()), notes) as runner:
        assert isinstance(runner, InlineRunner)
    (line,) = notes.lines
    assert line.startswith("one trial at a time in this process: Ray cannot start: RAY_TMPDIR")
    with pytest.raises(StudyError, match="Ray cannot start"):
        engine._runner(Study("data", runner="ray"), host, Stopwatch(time.time()), notes)


@pytest.mark.parametrize("over", [-10.0, 26.2])
def test_time_added_comes_on_top_of_what_was_used(run, over):
    had = run.record.study.time
    longer = engine._changed(run, Change(time=budget_change("+60s")), None, had + over)
    assert longer.record.study.time == math.ceil(had + max(0.0, over)) + 60.0
    anew = engine._changed(run, Change(time=budget_change("5m")), None, had + over)
    assert anew.record.study.time == 300.0
