"""Plugins in a run: what is said of one that fails in a trial, that moved, or that is gone."""

from __future__ import annotations

import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from parts.data import source
from parts.notes import Notes

import autoft
from autoft import api, hookimpl
from autoft.__main__ import _run
from autoft.engine import engine, prepare
from autoft.engine.engine import begin
from autoft.engine.execution import ExportWish, export_trial
from autoft.engine.sitting import Sitting
from autoft.errors import PluginError, RunFolderError, StudyError
from autoft.parts.host import Host
from autoft.parts.plugins import plugin_versions
from autoft.runners.inline import InlineRunner
from autoft.runners.refit import Refits
from autoft.store import Journal
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.clock import RunClock
from autoft.system.screen import Silent
from autoft.system.stopwatch import Stopwatch
from autoft.train.worker import Job, Worker
from autoft.train.workshop import Workshop
from autoft.values.codec import encode
from autoft.values.ledger import Ledger
from autoft.values.summary import Best, Scores, Summary
from autoft.values.trial import Clock, Queued, Report, Slice

MINE = """
import autoft, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    def forward(self, x):
        {forward}
        return self.body(x)

class Mine(autoft.Zoo):
    name = "mine"
    def backbones(self):
        return [autoft.Backbone("mine/net", 112, autoft.InputSpec(64), license="mit")]
    def build(self, backbone):
        torch.manual_seed(0)
        net = autoft.Network.of(Net(), backbone.input)
        {build}
        return net

class Wild(autoft.FreezeStrategy):
    name = "wild"
    def space(self):
        return autoft.Space({{}}, ({{}},))
    def plan(self, stages, params):
        {plan}

@autoft.hookimpl
def autoft_zoos():
    return [Mine()]

@autoft.hookimpl
def autoft_freeze_strategies():
    return [Wild()]
"""
GOOD = "return autoft.Plan((), autoft.ClosedFormHead())"


def write(folder: Path, forward: str = "", build: str = "", plan: str = GOOD) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(MINE.format(forward=forward, build=build, plan=plan))
    return str(folder / "mine.py")


@pytest.fixture
def run(tiny_images, tmp_path):
    """Begins a run with the plugin at a path."""

    def begun(*plugins: str, **options):
        study = Study(
            str(tiny_images),
            plugins=plugins,
            backbones=("mine/*",),
            freeze=("wild",),
            runner="inline",
            time=1e5,
            **options,
        )
        host, now = Host.discover(study.plugins), time.time()
        sitting = Sitting(host, InlineRunner(), Silent(), Stopwatch(now), RunClock(now, study.time))
        return begin(study, source(tiny_images), tmp_path / "run", sitting)

    return begun


def report(run, host, worker=None):
    """How the first trial of the run ends."""
    worker = worker or Worker(Workshop(run, host))
    trial = run.record.candidates[0].trial(0, {}, 0)
    return worker.run(Job(Slice(trial, 0.0, 1.0, 1e12), time.time()))


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ({"forward": "raise KeyError('lost')"}, "in the network of 'mine/net', plugin 'mine'"),
        ({"build": "raise KeyError('lost')"}, "plugin 'mine' .* failed in build.. of 'mine/net' of zoo 'mine'"),
        ({"plan": "raise KeyError('lost')"}, "plugin 'mine' .* failed in plan.. of freeze strategy 'wild'"),
    ],
)
def test_a_failed_trial_names_the_plugin_and_keeps_the_traceback(run, tmp_path, broken, where):
    begun = run(write(tmp_path / "plugins"))
    write(tmp_path / "plugins", **broken)
    if "forward" in broken:  # Network.of runs forward already; let only training meet it
        write(tmp_path / "plugins", forward="if x.any(): raise KeyError('lost')")
    ended = report(begun, begun.host())
    assert ended.event == "failed"
    assert "KeyError: 'lost'" in ended.error
    assert re.search(where, ended.error)
    assert "switch it off with -p no:mine" in ended.error
    (traceback,) = re.findall(r"traceback in ([^;]+)", ended.error)
    assert Path(traceback).parent == begun.folder.errors
    assert "mine.py" in Path(traceback).read_text()


def test_a_run_folder_that_goes_during_a_trial_is_not_the_plugins_fault(run, tmp_path):
    begun = run(write(tmp_path / "plugins"))
    write(tmp_path / "plugins", forward="if x.any(): raise KeyError('lost')")
    host = begun.host()
    worker = Worker(Workshop(begun, host))
    shutil.rmtree(begun.folder.path)
    with pytest.raises(RunFolderError, match=r"/run is no run any more: it was moved or removed; bring it back"):
        report(begun, host, worker)
    assert not begun.folder.path.exists()


def test_a_plugin_that_moved_is_taken_from_its_new_place_in_workers_too(run, tmp_path):
    old = write(tmp_path / "old")
    begun = run(old)
    Path(old).unlink()
    with pytest.raises(PluginError, match=r"old/mine\.py.*not there any more.*-p FOLDER/mine\.py.*-p no:mine"):
        begun.host()
    host = begun.host([write(tmp_path / "new")])
    worker = Worker.open(begun.folder.path, 1, "cpu", host.refs)
    assert report(begun, host, worker).event == "finished"


def test_a_plugin_that_changes_during_the_search_opens_no_worker_and_prepares_nothing(run, tmp_path):
    begun = run(write(tmp_path / "plugins"))
    host = begun.host()
    write(tmp_path / "plugins", plan="0\n        " + GOOD)
    with pytest.raises(PluginError, match=r"plugin 'mine' .* changed during the search"):
        Worker.open(begun.folder.path, 1, "cpu", host.refs)
    with pytest.raises(PluginError, match="changed during the search"):
        prepare.main(encode(prepare._Errand(str(begun.folder.path), host.refs, "mine/net", 64)))
    assert not (begun.folder.path / ".prepared").exists()
    assert report(begun, host, Worker.open(begun.folder.path, 1, "cpu", begun.host().refs)).event == "finished"


def test_an_object_in_the_place_of_a_file_for_one_sitting_is_remembered(run, tmp_path):
    path = write(tmp_path / "plugins")
    begun = run(path)
    plugin = type("mine", (), {"autoft_zoos": hookimpl(lambda self: [])})()
    begun.with_plugins(begun.host(objects=[plugin])).save()
    (recorded,) = [ref for ref in Run.open(begun.folder.path).record.plugins if ref.name == "mine"]
    assert (recorded.kind, recorded.location) == ("file", path)
    said = plugin_versions(Run.open(begun.folder.path).host().refs)["plugin mine"]
    assert re.fullmatch(r"mine\.py, SHA-256 \w{64}; earlier in this run: an object of the program that searched", said)


def test_a_plugin_that_is_gone_can_be_left_out(run, tmp_path, monkeypatch):
    old = write(tmp_path / "old")
    begun = run(old)
    Path(old).unlink()
    host = begun.host(["no:mine"])
    assert "mine" not in host.parts(autoft.Zoo)
    assert "switched off" in host.warnings()[0]
    assert "plugin 'mine'" in report(begun, host).error
    with pytest.raises(StudyError, match="did you mean 'mine'"):
        begun.host(["no:nine"])
    monkeypatch.setenv("AUTOFT_DISABLE_PLUGINS", "mine, unheard_of")
    assert [line for line in begun.host().warnings() if "unheard_of" in line] == []


def test_what_a_plugin_had_that_is_left_out_is_not_tried_any_more(run, tmp_path):
    """Each slice of it would fail; so would the refit, and a command that goes on with the plugin."""
    begun = run(write(tmp_path / "plugins"))
    host, ledger = begun.host(["no:mine"]), begun.ledger()
    assert begun.problem(ledger, begun.host()).candidates == begun.record.candidates
    assert begun.problem(ledger, host).candidates == ()
    trial = begun.record.candidates[0].trial(0, {}, 0)
    events = [Queued(0, Slice(trial, 0.0, 1.0, 9.0), Clock(1.0, 9.0)), Report(0, "finished", 1.0, 0.5, 1.0)]
    done = Ledger(events)
    refits = Refits(begun.record, lambda *_: 10.0, RunClock(time.time(), 1e5), host.has)
    assert refits.due(done).endswith("the plugin with its backbone or freeze strategy is switched off")
    assert refits.reserve(done, None) == 10.0
    assert begun.best_so_far(done, begun.host(["no:freeze"])).endswith("run -p no:freeze` hands it over")
    done.damaged = begun.unusable(done, host)
    assert begun.best_so_far(done, host) == ""  # without its zoo no network can be built
    assert "no plugin that is loaded has mine/net" in done.damage(done.trials[0])
    assert Host.discover(["no:freeze"]).without == ""  # of the run, nothing is left out


def test_a_run_of_which_nothing_can_be_trained_is_refused(run, tmp_path, resume):
    begun = run(write(tmp_path / "plugins"))
    code, said, hosts = resume(begun.folder.path, "-p", "no:mine")
    assert (code, hosts) == (2, [])
    assert "nothing of this run can be trained; plugin 'mine'" in said
    assert said.rstrip().endswith("is switched off; it has no model yet")


TEXT = """
import autoft

class Text(autoft.Exporter):
    name = "text"
    def export(self, classifier, handoff, folder):
        (folder / "model.txt").write_text("x")
        yield autoft.Artifact(f"{folder.name}/model.txt", "txt", 0, 1, "0" * 64, "text")

@autoft.hookimpl
def autoft_exporters():
    return [Text()]
"""


@pytest.fixture
def exporting(run, tmp_path):
    """Begins a run that has the exporter of the plugin `extra` among others."""

    def begun(*exporters: str):
        (tmp_path / "extra.py").write_text(TEXT)
        return run(write(tmp_path / "plugins"), str(tmp_path / "extra.py"), exporter=exporters)

    return begun


LEFT_OUT = "exporter 'text' is left out: no plugin that is loaded has it"


@pytest.mark.parametrize("switched_off", ["-p", "AUTOFT_DISABLE_PLUGINS"])
def test_a_run_goes_on_without_a_further_exporter_that_is_switched_off(exporting, resume, monkeypatch, switched_off):
    begun = exporting("onnx", "text")
    if switched_off == "-p":
        code, said, hosts = resume(begun.folder.path, "-p", "no:extra")
    else:
        monkeypatch.setenv(switched_off, "extra")
        code, said, hosts = resume(begun.folder.path)
    assert (code, len(hosts)) == (0, 1), said
    assert LEFT_OUT in said
    monkeypatch.delenv("AUTOFT_DISABLE_PLUGINS", raising=False)
    assert LEFT_OUT not in resume(begun.folder.path)[1]


@pytest.mark.parametrize(
    ("exporters", "off", "said"),
    [
        (
            ["text"],
            "extra",
            r"no exporter is called 'text'.*plugin 'extra' \(.*\) is switched off; a run's models have",
        ),
        (["onnx", "text"], "onnx", r"no exporter is called 'onnx'.*there are: text; a run's models have"),
    ],
)
def test_a_run_with_nothing_to_export_by_is_refused_before_it_goes_on(exporting, resume, exporters, off, said):
    code, error, hosts = resume(exporting(*exporters).folder.path, "-p", f"no:{off}")
    assert (code, hosts) == (2, [])
    assert re.search(said, error), error


def test_an_export_leaves_an_exporter_out_that_is_switched_off(exporting, tmp_path):
    begun, notes = exporting("onnx", "text"), Notes()
    trial = begun.record.candidates[0].trial(0, {}, 0)
    with Journal(begun.folder.journal) as journal:
        journal.append(Queued(0, Slice(trial, 0.0, 1.0, 1e12), Clock(1.0, 1e12)))
        journal.append(replace(report(begun, begun.host()), elapsed=2.0))
    wish = ExportWish(0, tmp_path / "out", "image")
    export_trial(Run.open(begun.folder.path), ["no:extra"], wish, notes)
    assert LEFT_OUT in notes.lines
    assert (tmp_path / "out" / "model.onnx").exists()
    assert not (tmp_path / "out" / "beside").exists()


def test_a_clash_that_came_later_names_both_and_can_be_switched_off(run, tmp_path):
    begun = run(write(tmp_path / "old"))
    other = tmp_path / "other.py"
    other.write_text((tmp_path / "old" / "mine.py").read_text())
    with pytest.raises(PluginError, match=r"mine\.py.*other\.py.*-p no:mine or -p no:other"):
        begun.host([str(other)])
    assert [ref.name for ref in begun.host([str(other), "no:mine"]).refs][-1] == "other"


@pytest.fixture
def resume(monkeypatch, capsys):
    """`autoft resume` up to where the search would go on: its exit code, its errors, the host it would use."""
    hosts = []
    monkeypatch.setattr(engine, "_execute", lambda run, sitting: hosts.append(sitting.host) or summary(run))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["autoft", "resume", *map(str, arguments)])
        return _run(), capsys.readouterr().err, hosts

    return call


def summary(run):
    scores = Scores(2, 1, {"accuracy": 0.5}, (0.1, 0.9))
    return Summary(str(run.folder.path), "accuracy", Best(0, "z/n", "f", 64, {}), scores, scores, {}, {}, "m", 1.0)


def test_resume_takes_plugins_from_where_they_are_now(run, tmp_path, resume):
    old = write(tmp_path / "old")
    begun = run(old)
    Path(old).unlink()
    study = begun.folder.study.read_bytes()
    code, said, _ = resume(begun.folder.path, "--time", "+10s")
    assert code == 2
    assert "not there any more" in said
    assert begun.folder.study.read_bytes() == study
    code, said, (host,) = resume(begun.folder.path, "-p", write(tmp_path / "new"))
    assert code == 0, said
    assert [ref.location for ref in host.refs if ref.name == "mine"] == [str(tmp_path / "new" / "mine.py")]
    assert host.errors == begun.folder.errors


def test_a_plugin_that_moved_is_remembered_once_a_resume_has_begun(run, tmp_path, monkeypatch):
    begun, resumed = run(write(tmp_path / "old")), []
    monkeypatch.setattr(engine, "_execute", lambda run, sitting: resumed.append(run) or summary(run))
    (tmp_path / "old" / "mine.py").unlink()
    before = begun.folder.study.read_bytes()
    api.resume(begun.folder.path, plugins=[write(tmp_path / "new", plan="0\n        " + GOOD), "no:freeze"])
    assert begun.folder.study.read_bytes() == before  # only the search itself writes it
    resumed[0].save()
    with pytest.raises(PluginError, match="old"):
        begun.host()
    host = Run.open(begun.folder.path).host()
    assert [ref.location for ref in host.refs if ref.kind == "file"] == [str(tmp_path / "new" / "mine.py")]
    assert "full" in host.parts(autoft.FreezeStrategy)  # what was switched off is back
    assert re.fullmatch(
        r"mine\.py, SHA-256 \w{64}; earlier in this run: mine\.py, SHA-256 \w{64}",
        plugin_versions(host.refs)["plugin mine"],
    )


def test_a_finished_run_remembers_where_its_plugin_went_if_it_works(run, tmp_path):
    begun = run(write(tmp_path / "old"))
    with Journal(begun.folder.journal) as journal:
        trial = begun.record.candidates[0].trial(0, {}, 0)
        journal.append(Queued(0, Slice(trial, 0.0, 1.0, 9.0), Clock(1.0, 9.0)))
        journal.append(Report(0, "finished", 1.0, 0.5, 1.0, elapsed=2.0))
    begun.folder.summary.write_text(encode(replace(summary(begun), budget=begun.record.study.time, elapsed=3.0)))
    (begun.folder.path / "manifest.json").write_text("{}")  # that of the model beside it
    (tmp_path / "old" / "mine.py").rename(tmp_path / "mine.py")
    before = begun.folder.study.read_bytes()
    broken = tmp_path / "broken" / "mine.py"
    broken.parent.mkdir()
    broken.write_text("1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        api.resume(begun.folder.path, plugins=[broken])
    assert begun.folder.study.read_bytes() == before
    api.resume(begun.folder.path, plugins=[tmp_path / "mine.py"])
    assert "mine" in Run.open(begun.folder.path).host().parts(autoft.Zoo)
