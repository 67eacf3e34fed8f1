"""The command line: help, exit codes, what goes to stdout and what to stderr, and the same from Python."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch
from huggingface_hub import constants

import autoft
from autoft import api
from autoft.__main__ import _run
from autoft.bundle.standalone import verify as standalone
from autoft.data.readers import read_labelled
from autoft.engine import engine
from autoft.errors import (
    AutoftError,
    DataError,
    GateFailed,
    Interrupted,
    PluginError,
    RunFailed,
    RunFolderError,
    StudyError,
)
from autoft.shell.cli import COMMANDS, cli
from autoft.shell.commands import aligned
from autoft.store import Checkpoint, CheckpointStore, Journal, RunFolder
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Change, Study, budget_change
from autoft.system.clock import RunClock
from autoft.system.screen import Screen, Silent
from autoft.tasks.forms.one_of import OneOf
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.codec import encode
from autoft.values.dataset import DatasetInfo
from autoft.values.prediction import Prediction
from autoft.values.space import Space
from autoft.values.summary import Best, Scores, Summary
from autoft.values.target import MetricFacts, Targets
from autoft.values.trial import Candidate, Clock, Costs, Queued, Report, Slice, Started

TARGETS = Targets("single_label", "one_of", ("a", "b"))
SCORES = Scores(n=20, correct=17, metrics={"accuracy": 0.85}, ci95=(0.64, 0.95))


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def autoft_(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """`autoft ARGS` in this process."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["autoft", *arguments])
        code = _run()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with one finished, one failed and one open trial, as the journal tells it."""
    folder = tmp_path / "run"
    folder.mkdir()
    candidate = Candidate("zoo/net", "probe", 64, Space({}))
    record = StudyRecord(
        study=Study(data=str(tmp_path / "data"), out=str(folder), task="single_label", metric="accuracy"),
        data=DatasetInfo(str(tmp_path / "data"), TARGETS, {"train": 6, "val": 2, "test": 2}, "f" * 8, 64, 1.5),
        view="crop",
        backbones=(Backbone("zoo/net", 1_000_000, InputSpec(64)),),
        candidates=(candidate,),
        plugins=(),
        versions={},
        machine=Machine("inline", 1, 1, "cpu"),
        metric=MetricFacts("accuracy"),
    )
    (folder / "study.json").write_text(encode(record))
    journal = Journal(folder / "trials.jsonl")
    for number, report in enumerate(
        (Report(0, "finished", 1.0, 0.75, 2.0), Report(1, "failed", 0.0, None, 1.0, error="out of memory"), None)
    ):
        piece = Slice(candidate.trial(number, {}, 0), 0.0, 1.0, 60.0)
        journal.append(Queued(number, piece, Clock(float(number), 60.0)))
        journal.append(Started(number, float(number)))
        if report is not None:
            journal.append(report)
    journal.close()
    return folder


def summary(run: Path) -> Summary:
    return Summary(
        run=str(run),
        metric="accuracy",
        best=Best(3, "zoo/net", "full", 64, {"learning_rate": 0.001}),
        validation=SCORES,
        test=SCORES,
        trials={"finished": 2, "paused": 1, "failed": 0},
        seconds={"total": 61.5},
        model="export/model.onnx",
        budget=60.0,
        problems=2,
    )


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Study]:
    """`engine.search` that ends at once; the studies it was given."""
    studies: list[Study] = []

    def search(study: Study, screen: Screen, began: float, objects: object = ()) -> Summary:
        studies.append(study)
        sys.stdout.write("a library that prints")
        screen.note("a note")
        assert time.time() - began >= 0
        return summary(tmp_path / "run")

    monkeypatch.setattr(engine, "search", search)
    return studies


def failing_with(error: BaseException) -> Callable[..., Summary]:
    def search(*arguments: object) -> Summary:
        raise error

    return search


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_before_options(name: str, autoft_: Callable[..., Outcome]) -> None:
    outcome = autoft_(name, "--help")
    assert outcome.code == 0
    positions = [outcome.out.index(part) for part in (f"Usage: autoft {name}", "Examples:\n", "Options:\n")]
    assert positions == sorted(positions)
    first = outcome.out.split("Examples:\n")[1].splitlines()[0].strip()
    assert first.startswith(f"autoft {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_their_help_says(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help is not None
    assert command.help.splitlines()[0] == COMMANDS[name][1]


def test_the_help_of_all_has_examples_first_and_every_command(autoft_: Callable[..., Outcome]) -> None:
    outcome = autoft_("--help")
    assert outcome.out.index("Examples:") < outcome.out.index("Options:")
    assert all(f"\n  {name} " in outcome.out for name in COMMANDS)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serch"], "did you mean 'search'?"),
        (["search"], "Missing argument 'DATA'"),
        (["search", "x", "--no-such"], "No such option"),
        (["search", "x", "--trials", "many"], "'many' is not a valid integer"),
        (["search", "x", "--trials", "0"], "--trials must be at least 1"),
        (["search", "x", "--time", "banana"], "--time 'banana' is no duration"),
        (["search", "x", "--time", "0"], "--time must be positive"),
        (["search", "x", "--time", "-5m"], "--time '-5m' is no duration"),
        (["search", "x", "--image-size", "big"], "'big' is neither a number of pixels nor auto"),
        (["search", "x", "--image-size", "8"], "--image-size is auto or 16 to 1024"),
        (["search", "x", "--fail-under", "nan"], "fail_under"),
        (["search", "x", "--config", "missing.toml"], "cannot read the configuration missing.toml"),
        (["search", "no/such/folder"], "no/such/folder does not exist"),
        (["search", __file__], "is neither a folder nor a .csv, .jsonl, .parquet, .tsv file"),
        (["search", ".", "--searcher", "halvin"], "did you mean 'halving'?"),
        (["search", ".", "--exporter", "onnx,onxx"], "no exporter is called 'onxx'; did you mean 'onnx'?"),
        (["search", ".", "--freeze", "prob"], "did you mean 'probe'?"),
        (["search", ".", "--runner", "rai"], "did you mean 'ray'?"),
        (["search", ".", "--metric", "acuracy"], "did you mean 'accuracy'?"),
        (["search", ".", "-p", "no:such"], "no plugin is called 'such'"),
        (["search", ".", "-p", "such.py"], "there is no such file"),
        (["search", ".", "-p", "no:tasks"], "no plugin that is loaded has a task"),
        (["search", ".", "-p", "no:tasks", "--task", "regression"], "no plugin that is loaded has a task"),
        (["plugins", "-p", "no:tim"], "did you mean 'timm'?"),
        (["resume", "nowhere"], "nowhere is no folder"),
        (["resume", "nowhere", "--time", "+x"], "is no duration"),
        (["resume", "."], "holds no run"),
        (["leaderboard", "nowhere"], "nowhere is no folder"),
        (["export", "nowhere"], "nowhere is no folder"),
        (["predict", "nowhere.onnx", "a.jpg"], "there is no nowhere.onnx"),
        (["predict", "model.onnx"], "Missing argument 'INPUT...'"),
        (["predict", "model.onnx", "a.jpg", "--csv", "--json"], "--json and --csv are two forms of one output"),
        (["backbones", "no/such_thing"], "no backbone is called 'no/such_thing'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    says: str,
    autoft_: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = autoft_(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert says in outcome.err
    assert [line.startswith("error: ") for line in outcome.err.splitlines()] == [True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["inside", "inside/deeper", "."])
def test_a_run_folder_inside_the_data_is_refused(
    place: str, tiny_images: Path, autoft_: Callable[..., Outcome]
) -> None:
    before = sorted(tiny_images.rglob("*"))
    outcome = autoft_("search", str(tiny_images), "--out", str(tiny_images / place))
    assert outcome.code == 2
    assert "lies inside the data" in outcome.err
    assert sorted(tiny_images.rglob("*")) == before


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A manifest whose folder holds images, in folders beside other things."""
    project = tmp_path / "home" / "project"
    for folder in ("images/deep", "photos", "src", "images/notes"):
        (project / folder).mkdir(parents=True)
    for name in ("images/deep/a.png", "images/b.png", "photos/c.png"):
        (project / name).write_bytes(b"x")
    (project / "moved").symlink_to("photos")
    (project / "data.csv").write_text("image,label\nimages/deep/a.png,x\nimages/b.png,y\nmoved/c.png,x\n")
    return project / "data.csv"


@pytest.mark.parametrize(
    ("here", "runs"),
    [
        ("home/project", "home/project/runs"),
        ("home/project/src", "home/project/src/runs"),
        ("home", "home/runs"),
        ("home/project/images", "home/project/runs"),
        ("home/project/images/deep", "home/project/runs"),
        ("home/project/moved", "home/project/runs"),
        (".", "runs"),
    ],
)
def test_the_runs_of_a_manifest_lie_here_unless_here_are_its_images(
    here: str, runs: str, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / here)
    path = engine._run_path(Study(data=str(listed)), read_labelled(listed))
    assert path.parent == tmp_path / runs and path.name.startswith("project-")  # many files are called data.csv


@pytest.mark.parametrize("place", ["images", "images/notes/run", "images/deep/run", "photos/run", "moved/run"])
def test_a_run_folder_among_the_images_of_a_manifest_is_refused(
    place: str, listed: Path, autoft_: Callable[..., Outcome]
) -> None:
    before = sorted(listed.parent.rglob("*"))
    outcome = autoft_("search", str(listed), "--out", str(listed.parent / place))
    assert outcome.code == 2
    assert f"lies inside the data, in {listed.parent / place.replace('moved', 'photos').split('/')[0]};" in outcome.err
    assert sorted(listed.parent.rglob("*")) == before


def test_images_right_beside_their_manifest_are_written_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    (folder / "data.csv").write_text("image,label\na.png,x\n")
    listing = read_labelled(folder / "data.csv")
    monkeypatch.chdir(folder)
    assert engine._run_path(Study(data="data.csv"), listing).parent == tmp_path / "runs"
    with pytest.raises(StudyError, match="lies inside the data"):
        engine._run_path(Study(data="data.csv", out="runs/first"), listing)


def test_a_folder_with_a_run_of_another_study_is_refused(
    tiny_images: Path, run_folder: Path, autoft_: Callable[..., Outcome]
) -> None:
    outcome = autoft_("search", str(tiny_images), "--out", str(run_folder))
    assert outcome.code == 2
    assert f"autoft resume {run_folder}" in outcome.err


@pytest.mark.parametrize("command", [("search", "nowhere"), ("backbones",), ("plugins",)])
def test_a_broken_file_that_was_named_is_an_error_with_its_traceback_in_a_file(
    tmp_path: Path, autoft_: Callable[..., Outcome], command: tuple[str, ...]
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    outcome = autoft_(*command, "-p", str(tmp_path / "broken.py"))
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: plugin 'broken'") and "no_such_module" in line and "-p no:broken" in line
    (traceback,) = re.findall(r"traceback in (\S+);", line)
    assert "broken.py" in Path(traceback).read_text()


REFUSED = """
from autoft import *
from autoft import hookimpl

class Mine(FreezeStrategy):
    name = "mine"
    def space(self): return Space({{"lr": {range}}})
    def plan(self, stages, params): return Plan((), GradientHead(1e-3))

class Own(Zoo):
    name = "own"
    def backbones(self): return [Backbone("{backbone}", 1, InputSpec(32))]
    def build(self, backbone): raise BackboneUnavailable(backbone.name)

@hookimpl
def {hook}(): return [Mine()]

@hookimpl
def autoft_zoos(): return [Own()]
"""
SOUND = {"range": "Float(0, 1)", "backbone": "own/x", "hook": "autoft_freeze_strategies"}


@pytest.mark.parametrize(
    "fault",
    [{"range": "Float(1, 0)"}, {"range": "(0, 1)"}, {"backbone": "other/x"}, {"hook": "autoft_freeze_strategy"}],
)
def test_every_command_refuses_a_plugin_in_the_same_words(
    fault: dict[str, str], tmp_path: Path, autoft_: Callable[..., Outcome]
) -> None:
    (tmp_path / "many.py").write_text(REFUSED.format(**SOUND | fault))
    commands = (("search", "nowhere"), ("backbones",), ("plugins",))
    outcomes = [autoft_(*command, "-p", str(tmp_path / "many.py")) for command in commands]
    assert [outcome.code for outcome in outcomes] == [2, 2, 2]
    (line,) = {outcome.err for outcome in outcomes}
    assert line.startswith("error: plugin 'many'")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no images"), 2),
        (StudyError("wrong flag"), 2),
        (PluginError("bad plugin"), 2),
        (RunFolderError("locked"), 2),
        (RunFailed("no trial"), 1),
        (GateFailed("too low"), 3),
        (AutoftError("two\nlines"), 1),
    ],
)
def test_an_error_of_ours_is_one_line_with_its_exit_code(
    error: AutoftError, code: int, autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "search", failing_with(error))
    outcome = autoft_("search", "x")
    assert outcome == Outcome(code, "", f"error: {' '.join(str(error).splitlines())}\n")


def test_an_interruption_is_no_error_and_keeps_its_signal(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "search", failing_with(Interrupted("go on with: autoft resume r", signal.SIGTERM)))
    assert autoft_("search", "x") == Outcome(143, "", "go on with: autoft resume r\n")


def test_ctrl_c_before_the_search_names_the_run_there_is(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    monkeypatch.setattr(engine, "resume", failing_with(KeyboardInterrupt()))
    outcome = autoft_("resume", str(run_folder))
    assert outcome.code == 130
    assert f"go on with: autoft resume {run_folder}" in outcome.err


@pytest.mark.parametrize("given", [["no:mine"], ["no:mine", "no:a b"], ["mine.py"]])
def test_what_a_resume_was_told_to_go_without_is_in_its_hints(
    given: list[str], autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    """The plugins of the search come back with every resume that does not leave them out."""
    without = "".join(f" -p {shlex.quote(name)}" for name in given if name != "mine.py")
    options = [word for name in given for word in ("-p", name)]
    monkeypatch.setattr(engine, "resume", lambda *arguments: summary(run_folder))
    assert f"autoft resume {run_folder} --time +10m{without}\n" in autoft_("resume", str(run_folder), *options).out
    monkeypatch.setattr(engine, "resume", failing_with(KeyboardInterrupt()))
    assert f"autoft resume {run_folder}{without}\n" in autoft_("resume", str(run_folder), *options).err


def test_a_bug_shows_its_traceback_and_how_to_switch_a_plugin_off(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "search", failing_with(ZeroDivisionError("oops")))
    outcome = autoft_("search", "x")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "-p no:NAME" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_the_search_ends_the_process_with_its_code(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('waiting', flush=True)\ntime.sleep(30)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "autoft", "plugins", "-p", str(tmp_path / "slow.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell may start its background jobs deaf
    )
    assert process.stderr is not None  # what a plugin prints is no result
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"], ["--help"], ["search", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_as_it_ends_any_other_tool(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "autoft", *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("serch", 2)])
def test_closed_streams_change_no_exit_code(closed: tuple[int, ...], argument: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoft", argument], preexec_fn=lambda: [*map(os.close, closed)], check=False
    )
    assert done.returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_exit_handlers_run_changes_nothing(number: signal.Signals) -> None:
    code = f"""
import atexit, os, runpy, sys
def handler():
    os.kill(os.getpid(), {int(number)})
    print("handled")
atexit.register(handler)
sys.argv = ["autoft", "--version"]
runpy.run_module("autoft", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("handled\n")


def test_a_reader_of_the_talk_that_goes_away_is_no_bug_either() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "autoft", "serch"], stdout=subprocess.PIPE, stderr=writing, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stdout) == (128 + signal.SIGPIPE, b"")


def test_a_pipe_that_breaks_elsewhere_is_a_bug_with_its_traceback(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "search", failing_with(BrokenPipeError(errno.EPIPE, "a worker is gone")))
    outcome = autoft_("search", "x")
    assert outcome.code == 1
    assert "a worker is gone" in outcome.err and "this is a bug" in outcome.err


# ---------------------------------------------------------------- search and resume


def test_search_prints_its_result_and_what_to_do_next(
    autoft_: Callable[..., Outcome], searched: list[Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = autoft_("search", "photos")
    assert outcome.code == 0
    assert "0.8500" in outcome.out and "0.6400 to 0.9500" in outcome.out and "17 of 20" in outcome.out
    assert "3: zoo/net, full, 64 px" in outcome.out
    assert "autoft resume run --time +10m" in outcome.out
    assert "a library that prints" in outcome.err and "a note" in outcome.err


@pytest.mark.parametrize(
    ("metric", "hint"), [("accuracy", "balanced_accuracy"), ("micro_f1", "map"), ("balanced_accuracy", "")]
)
def test_the_end_says_what_was_not_tried_and_which_classes_are_never_found(
    metric: str, hint: str, autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scores = replace(SCORES, metrics={metric: 0.5})
    missed = {"rare": 3, **{f"class {number}": 1 for number in range(20)}}
    known = replace(summary(tmp_path), metric=metric, validation=scores, test=scores, suggested_metric=hint)
    found = replace(known, candidates=12, tried=2, missed=missed)
    monkeypatch.setattr(engine, "search", lambda *arguments: found)
    out = autoft_("search", "photos").out
    assert "2 of 12 pairs of backbone and freeze strategy; the others have no score" in out
    assert "not one test image was recognised of 'rare' (3), 'class 0' (1)" in out
    assert "and 13 more classes" in out
    assert (f"; --metric {hint} weighs all alike" in out) == bool(hint) == ("--metric" in out)
    monkeypatch.setattr(engine, "search", lambda *arguments: replace(found, tried=12, missed={}))
    out = autoft_("search", "photos").out
    assert "12 of 12 pairs of backbone and freeze strategy\n" in out
    assert "recognised" not in out


def test_figures_in_units_keep_their_digits_and_others_four_decimals(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures = {"mae": 2.34567e-7, "rmse": 123456.7, "r2": 0.05}
    scores = Scores(n=20, correct=None, metrics=figures, ci95=(1.5e-7, 3e-7), unbounded=("mae", "rmse"))
    nothing = replace(scores, metrics={"r2": 0.05}, ci95=None)
    found = replace(summary(tmp_path), metric="mae", validation=nothing, test=scores)
    monkeypatch.setattr(engine, "search", lambda *arguments: found)
    out = autoft_("search", "photos").out.splitlines()
    assert out[0].split(None, 2)[2] == "2.3457e-07  (95 % interval 1.5e-07 to 3e-07, 20 images)"
    assert out[1].split(None, 1)[1] == "undefined  (20 images); optimistic, as it chose the trial"
    assert [scores.text(name) for name in figures] == ["2.3457e-07", "1.2346e+05", "0.0500"]
    for facts in (MetricFacts("mae", is_loss=True, greatest=None), MetricFacts("r2")):
        assert facts.text(figures[facts.name]) == scores.text(facts.name)


def test_search_json_is_one_document_that_reads_back(autoft_: Callable[..., Outcome], searched: list[Study]) -> None:
    outcome = autoft_("search", "photos", "--json")
    document = json.loads(outcome.out)
    assert document["best"] == {
        "trial": 3,
        "share": 1.0,
        "backbone": "zoo/net",
        "freeze": "full",
        "image_size": 64,
        "params": {"learning_rate": 0.001},
        "train_on": "train",
        "twin": None,
        "precision": "",
    }
    assert document["test"]["n"] == 20
    assert document["test"]["ci95"] == [0.64, 0.95]


def test_a_missed_gate_still_prints_the_result(
    autoft_: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "search", failing_with(GateFailed("test accuracy is too low", summary(tmp_path))))
    outcome = autoft_("search", "x", "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out)["metric"] == "accuracy"
    assert outcome.err == "error: test accuracy is too low\n"


def test_flags_lists_and_the_file_come_to_one_study_and_flags_win(
    autoft_: Callable[..., Outcome], searched: list[Study], tmp_path: Path
) -> None:
    config = tmp_path / "search.toml"
    config.write_text('time = "5m"\nseed = 3\nimage-size = 96\nfreeze = ["probe", "full"]\nplugins = []\n')
    arguments = ["--config", str(config), "--seed", "4", "--backbones", "a/*,b/c", "--backbones", "d/e"]
    assert autoft_("search", "photos", *arguments).code == 0
    expected = Study(
        data="photos", time=300.0, seed=4, image_size=96, freeze=("probe", "full"), backbones=("a/*", "b/c", "d/e")
    )
    assert searched == [expected]


def test_an_unknown_key_in_the_file_is_named(autoft_: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text("tiem = '5m'\n")
    outcome = autoft_("search", "photos", "--config", str(tmp_path / "search.toml"))
    assert outcome.code == 2
    assert "'tiem'; did you mean 'time'?" in outcome.err


@pytest.mark.parametrize(
    ("environment", "arguments", "offline"),
    [("0", [], False), ("0", ["--offline"], True), ("1", [], True), ("yes", [], True)],
)
def test_offline_by_flag_or_environment_is_known_to_study_and_hub_while_it_lasts(
    environment: str,
    arguments: list[str],
    offline: bool,
    autoft_: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    told: list[tuple[bool, str, bool]] = []

    def search(study: Study, *others: object) -> Summary:
        told.append((study.offline, os.environ["HF_HUB_OFFLINE"], constants.is_offline_mode()))
        return summary(tmp_path)

    monkeypatch.setattr(engine, "search", search)
    monkeypatch.setenv("HF_HUB_OFFLINE", environment)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", environment != "0")
    autoft_("search", "photos", *arguments)
    assert told == [(offline, "1" if offline else environment, offline)]
    assert (os.environ["HF_HUB_OFFLINE"], constants.is_offline_mode()) == (environment, environment != "0")


def test_an_online_search_after_an_offline_one_is_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[tuple[str | None, bool]] = []

    def search(study: Study, *others: object) -> Summary:
        told.append((os.environ.get("HF_HUB_OFFLINE"), constants.is_offline_mode()))
        if len(told) == 1:
            raise DataError("no images")
        return summary(tmp_path)

    monkeypatch.setattr(engine, "search", search)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(DataError):
        api.search("photos", offline=True)
    api.search("photos")
    assert told == [("1", True), (None, False)]


@pytest.mark.parametrize(("text", "budget"), [("+5m", 900.0), ("10m", 600.0), (60, 60.0), ("+0.5h", 2400.0)])
def test_more_time_extends_or_replaces(text: str | float, budget: float) -> None:
    assert budget_change(text)(600.0) == budget


@pytest.mark.parametrize("text", ["+0", "0", "-5m", "", "+", "soon", -3])
def test_no_time_is_no_change(text: str | float) -> None:
    with pytest.raises(StudyError, match="--time"):
        budget_change(text)


def test_resume_hands_on_the_change_of_budget_and_target(
    autoft_: Callable[..., Outcome], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[float, float | None]] = []

    def resume(path: Path, change: Change, screen: Screen, began: float) -> Summary:
        assert change.time is not None
        given.append((change.time(100.0), change.target))
        return summary(path)

    monkeypatch.setattr(engine, "resume", resume)
    assert autoft_("resume", str(run_folder), "--time", "+1m", "--target", "0.9", "--json").code == 0
    assert given == [(160.0, 0.9)]


@pytest.mark.parametrize(
    ("options", "failed"),
    [
        ({"metric": "accuracy", "fail_under": 0.9}, "test accuracy 0.8500 is below --fail-under 0.9"),
        ({"metric": "accuracy", "fail_under": 0.8}, ""),
        ({"metric": "log_loss", "fail_above": 0.1}, "test log_loss 0.15 is above --fail-above 0.1"),
        ({"metric": "log_loss", "fail_above": 0.5}, ""),
        ({"metric": "mae", "fail_above": 1e-5}, "test mae 2.3457e-05 is above --fail-above 1e-05"),
        ({"metric": "mae", "fail_above": 1e-4}, ""),
        ({"metric": "r2", "fail_under": 0.1}, "test r2 undefined is below --fail-under 0.1"),
    ],
)
def test_the_gate_of_a_loss_is_an_upper_one(options: dict[str, Any], failed: str, tmp_path: Path) -> None:
    study, ended = Study("photos", **options), summary(tmp_path)
    figures = {"accuracy": 0.85, "log_loss": 0.15, "mae": 2.34567e-5}
    found = replace(ended, test=replace(SCORES, metrics=figures, unbounded=("log_loss", "mae")))
    if not failed:
        assert engine._through_the_gate(study, found) == found
        return
    with pytest.raises(GateFailed, match=failed) as caught:
        engine._through_the_gate(study, found)
    assert caught.value.summary == found


# ---------------------------------------------------------------- results


def test_leaderboard_lists_every_trial_best_first(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    outcome = autoft_("leaderboard", str(run_folder))
    first, header, *rows = outcome.out.splitlines()
    assert first == "score: accuracy on validation images"
    assert header.split()[:4] == ["rank", "trial", "state", "score"]
    assert [row.split()[1] for row in rows[:1]] == ["0"]
    assert len(rows) == 3
    assert outcome.err == "trial 1 failed: out of memory\n"
    assert "stopped" in outcome.out and "running" not in outcome.out
    with RunFolder(run_folder).lock():
        assert "running" in autoft_("leaderboard", str(run_folder)).out


def test_leaderboard_says_why_a_trial_is_in_its_state(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Report(2, "paused", 0.0, None, 0.1, error="no worker was free in time"))
    assert autoft_("leaderboard", str(run_folder)).err.splitlines()[0] == "trial 2 paused: no worker was free in time"
    open_slice = next(event for event in Journal.read(run_folder / "trials.jsonl") if event.trial == 2)
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(open_slice)
    assert autoft_("leaderboard", str(run_folder)).err == "trial 1 failed: out of memory\n"


def test_resume_tells_the_screen_what_happened_before(
    autoft_: Callable[..., Outcome], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resume(path: Path, change: Change, screen: Screen, began: float) -> Summary:
        ledger = Run.open(path).ledger()
        ledger.record(Report(2, "finished", 1.0, 0.5, 1.0))
        screen.show(ledger, RunClock(began, 60.0))
        return summary(path)

    monkeypatch.setattr(engine, "resume", resume)
    err = autoft_("resume", str(run_folder)).err
    assert "going on after 3 trials: 1 finished, 1 failed, 1 cut short" in err
    assert "trial 2 finished, 0.5000 at 1 pass" in err


def test_a_score_of_few_images_is_shown_with_its_standard_error(
    autoft_: Callable[..., Outcome], run_folder: Path
) -> None:
    assert "±" not in autoft_("leaderboard", str(run_folder)).out
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Report(2, "finished", 1.0, 0.5, 1.0, standard_error=0.03125))
    assert "0.5000 ± 0.0312" in autoft_("leaderboard", str(run_folder)).out
    rows = json.loads(autoft_("leaderboard", str(run_folder), "--json").out)["trials"]
    assert {row["trial"]: row["standard_error"] for row in rows} == {0: None, 1: None, 2: 0.03125}


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        (0.5, "target: 0.6, not reached beyond noise"),
        (0.625, "target: 0.6, reached: trial 2 has accuracy 0.7500, at least 0.6250 by its 95 % interval"),
    ],
)
def test_leaderboard_and_result_know_the_target(
    bound: float, says: str, autoft_: Callable[..., Outcome], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "target" not in autoft_("leaderboard", str(run_folder)).out
    record = Run.open(run_folder).record
    (run_folder / "study.json").write_text(encode(replace(record, study=replace(record.study, target=0.6))))
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Report(2, "finished", 1.0, 0.75, 1.0, bound=bound))
    assert autoft_("leaderboard", str(run_folder)).out.splitlines()[1] == says
    ended = replace(summary(run_folder), target=0.6, reached=bound > 0.6)
    monkeypatch.setattr(engine, "search", lambda *arguments: ended)
    (line,) = (line for line in autoft_("search", "x").out.splitlines() if line.startswith("target"))
    assert line.split(maxsplit=1)[1] == f"0.6, {'reached' if bound > 0.6 else 'not reached'} beyond noise"


def test_the_part_of_the_images_a_head_was_fitted_on_is_shown_where_it_is_not_all(
    autoft_: Callable[..., Outcome], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "of the images" not in autoft_("leaderboard", str(run_folder)).out
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Report(2, "finished", 1.0, 0.5, 1.0, share=0.02))
    outcome = autoft_("leaderboard", str(run_folder))
    assert [line.endswith("2 % of the images") for line in outcome.out.splitlines()] == [
        False,
        False,
        False,
        True,
        False,
    ]
    rows = json.loads(autoft_("leaderboard", str(run_folder), "--json").out)["trials"]
    assert [row["share"] for row in rows] == [1.0, 0.02, None]
    found = summary(run_folder)
    for share, end in ((1.0, "64 px"), (0.02, "64 px, on 2 % of the images")):
        ended = replace(found, best=replace(found.best, share=share))
        monkeypatch.setattr(engine, "search", lambda *arguments, ended=ended: ended)
        (line,) = (line for line in autoft_("search", "x").out.splitlines() if line.startswith("best trial"))
        assert line.endswith(end)


def test_leaderboard_json(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    """Exportable only with the weights."""
    trial = Run.open(run_folder).record.candidates[0].trial(0, {}, 0)
    for exportable in (False, True):
        (row,) = json.loads(autoft_("leaderboard", str(run_folder), "--top", "1", "--json").out)["trials"]
        assert (row["trial"], row["rank"], row["score"], row["state"]) == (0, 1, 0.75, "finished")
        assert row["exportable"] is exportable
        CheckpointStore(run_folder / "checkpoints").save(
            Checkpoint(trial, 1.0, "weights", {"head.bias": torch.zeros(8)})
        )


def test_leaderboard_of_the_front_in_each_form(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    """Another network is worse, and cheaper by its size, but not by the clock."""
    record = Run.open(run_folder).record
    small = replace(record.candidates[0], backbone="zoo/small", cost=0.5)
    (run_folder / "study.json").write_text(encode(replace(record, candidates=(*record.candidates, small))))
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Report(2, "finished", 1.0, 0.5, 1.0, costs=Costs(image=0.01)))
        journal.append(Queued(3, Slice(small.trial(3, {}, 0), 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        journal.append(Report(3, "finished", 1.0, 0.5, 1.0))
    rows = autoft_("leaderboard", str(run_folder), "--pareto").out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == ["0", "3"]
    table = autoft_("leaderboard", str(run_folder), "--pareto", "--csv")
    assert table.err == "cost of inference by parameters and input size: not all networks were timed in this run\n"
    assert [row["trial"] for row in csv.DictReader(table.out.splitlines())] == ["0", "3"]
    with Journal(run_folder / "trials.jsonl") as journal:
        journal.append(Queued(4, Slice(small.trial(4, {}, 0), 0.0, 1.0, 60.0), Clock(1.0, 60.0)))
        journal.append(Report(4, "finished", 1.0, 0.25, 1.0, costs=Costs(image=0.02)))
    found = json.loads(autoft_("leaderboard", str(run_folder), "--pareto", "--json").out)["trials"]
    assert [(row["trial"], row["image_seconds"]) for row in found] == [(0, 0.01)]
    assert " 10 " in autoft_("leaderboard", str(run_folder), "--top", "1").out.splitlines()[-1]
    both = autoft_("leaderboard", str(run_folder), "--json", "--csv")
    assert (both.code, both.out) == (2, "")


def test_leaderboard_csv_is_the_file_of_the_run(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    run = Run.open(run_folder)
    ledger = run.ledger()
    ledger.damaged = run.checkpoints.damaged(ledger)
    run.folder.write_leaderboard(ledger, run.record.metric)
    assert autoft_("leaderboard", str(run_folder), "--csv").out == run.folder.leaderboard.read_text()


@pytest.mark.parametrize("out", ["{data}/here", "{run}/export"])
def test_export_writes_neither_into_the_data_nor_over_the_best_model(
    out: str, autoft_: Callable[..., Outcome], run_folder: Path
) -> None:
    data = run_folder.parent / "data"
    place = out.format(data=data, run=run_folder)
    outcome = autoft_("export", str(run_folder), "--trial", "0", "--out", place)
    assert outcome.code == 2
    assert "choose another --out" in outcome.err
    assert not Path(place).exists()


def test_export_of_a_trial_without_checkpoint_names_those_that_have_one(
    autoft_: Callable[..., Outcome], run_folder: Path
) -> None:
    for weights, known in (False, "[]"), (True, "[0]"):  # those that are gone, though they should be there, too
        if weights:
            trial = Run.open(run_folder).record.candidates[0].trial(0, {}, 0)
            CheckpointStore(run_folder / "checkpoints").save(Checkpoint(trial, 1.0, "any", {"head": torch.ones(2)}))
        outcome = autoft_("export", str(run_folder), "--trial", "1")
        assert outcome.code == 2
        assert f"trial 1 has no checkpoint; exportable are {known}" in outcome.err


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    say_of_images(
        monkeypatch,
        [
            Prediction("a.jpg", "cat", 0.75, {"cat": 0.75, "elephant": 0.25}),
            Prediction("b.jpg", error="truncated"),
        ],
    )


def say_of_images(monkeypatch: pytest.MonkeyPatch, predictions: list[Prediction]) -> None:
    """A model that has one class an image, and says this whatever it is asked."""
    model = SimpleNamespace(form=OneOf(), targets=Targets("single_label", "one_of", ("cat", "elephant")))
    monkeypatch.setattr("autoft.bundle.predict.open_model", lambda path: model)
    monkeypatch.setattr("autoft.bundle.predict.predictions", lambda model, inputs: iter(predictions))


@pytest.mark.usefixtures("predicted")
def test_predict_json_is_one_object_an_image(autoft_: Callable[..., Outcome]) -> None:
    first, second = map(json.loads, autoft_("predict", "m.onnx", "a.jpg", "b.jpg", "--json").out.splitlines())
    assert (first["image"], first["label"], first["probability"]) == ("a.jpg", "cat", 0.75)
    assert first["probabilities"] == {"cat": 0.75, "elephant": 0.25}
    assert (second["image"], second["label"], second["error"]) == ("b.jpg", None, "truncated")


@pytest.mark.usefixtures("predicted")
def test_predict_prints_results_to_stdout_and_trouble_to_stderr(autoft_: Callable[..., Outcome]) -> None:
    outcome = autoft_("predict", "m.onnx", "a.jpg", "b.jpg")
    assert outcome.out == "0.7500  cat       a.jpg\n"
    assert outcome.err == "b.jpg: truncated\nerror: 1 image could not be read; the others are above\n"
    assert outcome.code == 2


@pytest.mark.usefixtures("predicted")
def test_predict_csv_has_a_header_and_a_line_an_image(autoft_: Callable[..., Outcome]) -> None:
    outcome = autoft_("predict", "m.onnx", "a.jpg", "b.jpg", "--csv")
    assert outcome.out.splitlines() == ["image,label,probability,error", "a.jpg,cat,0.75,", "b.jpg,,,truncated"]


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_predict_writes_every_name_in_any_encoding(
    form: list[str],
    encoding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["caf\xe9 \u2605.jpg", "not\udcfftext.jpg", "\U0001f600.jpg"]
    predictions = [Prediction(name, "r\xf8d", 1.0, {"r\xf8d": 1.0}) for name in names]
    say_of_images(monkeypatch, predictions)
    monkeypatch.setattr(sys, "argv", ["autoft", "predict", "m.onnx", "x", *form])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert _run() == 0
    text = written.getvalue().decode(encoding)
    assert "caf" in text and "not\\udcfftext.jpg" in text
    if form == ["--json"]:
        assert [json.loads(line)["image"] for line in text.splitlines()] == names


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_no_environment_makes_a_name_an_error(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "caf\xe9.py").write_text("import autoft\n\n@autoft.hookimpl\ndef autoft_zoos():\n    return []\n")
    done = subprocess.run(
        [sys.executable, "-m", "autoft", "plugins", "--json", "-p", str(tmp_path / "caf\xe9.py")],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [plugin["name"][:3] for plugin in json.loads(done.stdout)["plugins"]].count("caf") == 1


def test_export_does_not_write_over_other_files(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    mine = run_folder.parent / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    outcome = autoft_("export", str(run_folder), "--trial", "0", "--out", str(mine))
    assert outcome.code == 2
    assert "holds other files and is no bundle" in outcome.err
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_verify_says_what_is_missing(autoft_: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = autoft_("verify", str(tmp_path / "nowhere"))
    assert outcome.code == 2
    assert "there is no" in outcome.err
    empty = autoft_("verify", str(tmp_path))
    assert empty.code == 2
    assert "no manifest.json in it" in empty.err
    (tmp_path / "manifest.json").write_text("{}")
    document = autoft_("verify", str(tmp_path), "--json")
    assert document.code == 3
    assert json.loads(document.out)["passed"] is False
    assert "manifest.json is damaged" in document.err


def test_verify_that_cannot_run_is_one_line(
    autoft_: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(standalone, "verify", failing_with(standalone.CannotRun("no onnxruntime; pip install")))
    outcome = autoft_("verify", str(tmp_path))
    assert (outcome.code, outcome.err) == (2, "error: no onnxruntime; pip install\n")


def test_verify_of_a_run_whose_model_is_gone_says_how_to_get_it_back(
    autoft_: Callable[..., Outcome], run_folder: Path
) -> None:
    (run_folder / "summary.json").write_text(encode(summary(run_folder)))
    for command in (["verify"], ["predict", "image.png"]):
        outcome = autoft_(command[0], str(run_folder), *command[1:])
        assert outcome.code == 2 and "autoft export" in outcome.err and "--trial 3" in outcome.err


def test_a_leaderboard_without_its_journal_is_no_empty_one(autoft_: Callable[..., Outcome], run_folder: Path) -> None:
    (run_folder / "trials.jsonl").unlink()
    assert autoft_("leaderboard", str(run_folder)).code == 0  # a run that has just begun
    (run_folder / "leaderboard.csv").touch()
    outcome = autoft_("leaderboard", str(run_folder))
    assert outcome.code == 2 and "trials.jsonl is missing" in outcome.err


# ---------------------------------------------------------------- inventory


def test_plugins_json_lists_the_builtins_by_the_same_door(autoft_: Callable[..., Outcome]) -> None:
    plugins = {line["name"]: line for line in json.loads(autoft_("plugins", "--json").out)["plugins"]}
    assert {"timm", "freeze", "searchers", "onnx"} <= set(plugins)
    assert plugins["timm"]["adds"] == ["zoo timm"]
    assert plugins["timm"]["status"] == "ok"


def test_plugins_shows_what_is_off_and_what_is_broken(tmp_path: Path, autoft_: Callable[..., Outcome]) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    outcome = autoft_("plugins", "-p", str(tmp_path / "broken.py"), "-p", "no:onnx")
    lines = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert "failed" in lines["broken"] and "ZeroDivisionError" in lines["broken"]
    assert "disabled" in lines["onnx"]
    assert outcome.code == 2


ZOO = """
import autoft

class Zoo(autoft.Zoo):
    name = "mine"

    def backbones(self):
        here = autoft.Backbone("mine/small", 1000, autoft.InputSpec(32), "mit", prior=0.5)
        return [
            here,
            autoft.Backbone("mine/large", 5000000, autoft.InputSpec(224), "cc-by-nc-4.0", "download", prior=0.9),
        ]

    def build(self, backbone):
        raise NotImplementedError

@autoft.hookimpl
def autoft_zoos():
    return [Zoo()]
"""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["mine/large", "mine/small"]),
        (["--local"], ["mine/small"]),
        (["--offline"], ["mine/small"]),
        (["--licenses", "permissive"], ["mine/small"]),
        (["--licenses", "mit,cc-by-nc-4.0"], ["mine/large", "mine/small"]),
    ],
)
def test_backbones_are_filtered(
    arguments: list[str], names: list[str], tmp_path: Path, autoft_: Callable[..., Outcome]
) -> None:
    (tmp_path / "zoo.py").write_text(ZOO)
    only = ["-p", str(tmp_path / "zoo.py"), "-p", "no:timm"]
    listed = json.loads(autoft_("backbones", "mine/*", *only, *arguments, "--json").out)["backbones"]
    assert [backbone["name"] for backbone in listed] == names


def test_backbones_show_what_is_known_of_them(tmp_path: Path, autoft_: Callable[..., Outcome]) -> None:
    known = ZOO.replace("prior=0.5)", "prior=0.5, gmacs=0.0016)").replace("prior=0.9)", "prior=0.9, by_default=False)")
    (tmp_path / "zoo.py").write_text(known)
    header, *rows = autoft_("backbones", "mine/*", "-p", str(tmp_path / "zoo.py"), "-p", "no:timm").out.splitlines()
    columns = ["name", "top-1", "GMACs", "parameters", "px", "licence", "weights", "searched"]
    assert header.split() == columns
    large, small = (re.split(r" {2,}", row.strip()) for row in rows)
    assert large == ["mine/large", "0.900", "5.0 M", "224", "cc-by-nc-4.0", "download", "when named"]
    assert small == ["mine/small", "0.500", "0.0016", "0.001 M", "32", "mit", "local", "by default"]


def test_doctor_quick_says_what_it_found(autoft_: Callable[..., Outcome]) -> None:
    outcome = autoft_("doctor", "--quick", "--json")
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    assert {"python", "packages", "memory", "cache folder", "plugins"} <= set(checks)
    assert all(check["status"] in ("ok", "warn", "fail") for check in checks.values())
    assert outcome.code == int(any(check["status"] == "fail" for check in checks.values()))


def test_doctor_knows_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoft.shell import doctor

    def refuse(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", refuse)
    check = doctor.check_torch()
    assert check.status == "fail"
    assert "different builds" in check.detail
    assert "same index" in check.fix


def test_doctor_fails_when_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autoft_: Callable[..., Outcome]
) -> None:
    def full(**settings: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    outcome = autoft_("doctor", "--quick")
    assert outcome.code == 1
    assert "No space left on device" in outcome.out
    assert "AUTOFT_CACHE_DIR" in outcome.err


def test_a_table_is_aligned_and_has_no_blanks_at_the_end() -> None:
    assert aligned(("a", "long"), [("xyz", ""), ("", "b")]) == "a    long\nxyz\n     b"


# ---------------------------------------------------------------- Python


def test_python_gives_the_same_study_as_the_command_line(
    searched: list[Study], autoft_: Callable[..., Outcome], tmp_path: Path
) -> None:
    found = api.search(tmp_path, time="10m", trials=4, seed=2, backbones="a/*,b/*", image_size=64)
    autoft_(
        *("search", str(tmp_path), "--time", "10m", "--trials", "4", "--seed", "2"),
        *("--backbones", "a/*,b/*", "--image-size", "64"),
    )
    assert searched[0] == searched[1]
    assert found == summary(tmp_path / "run")


def test_the_defaults_of_python_are_those_of_a_study(searched: list[Study]) -> None:
    api.search("photos")
    assert searched == [Study("photos")]


def test_plugins_from_python_are_selections_or_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def search(study: Study, screen: Screen, began: float, objects: list[object]) -> Summary:
        given.extend([study.plugins, objects])
        return summary(tmp_path)

    monkeypatch.setattr(engine, "search", search)
    mine = object()
    api.search("photos", plugins=["no:timm", Path("a,b.py"), mine])
    assert given == [("no:timm", "a,b.py"), [mine]]


def test_python_errors_are_ours(run_folder: Path) -> None:
    with pytest.raises(StudyError, match="banana"):
        api.search("photos", time="banana")
    with pytest.raises(StudyError, match="is no duration"):
        api.resume(run_folder, time="+x")
    with pytest.raises(RunFolderError):
        api.resume(run_folder.parent / "nowhere")


def test_the_screen_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Watched(Silent):
        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(engine, "search", failing_with(DataError("no images")))
    with pytest.raises(DataError):
        api.search("photos", screen=Watched())
    assert closed == [True]


def test_search_and_resume_stay_functions_after_the_engine_is_imported() -> None:
    code = (
        "import autoft, autoft.engine.engine; from autoft import search; "
        "assert callable(search) and callable(autoft.search)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert callable(autoft.resume)


@pytest.mark.parametrize(("file", "name"), [("Labels.csv", "photos-"), ("cats.csv", "cats-"), ("train.tsv", "photos-")])
def test_a_run_is_called_after_a_manifest_with_a_name_of_its_own_else_after_its_folder(
    file: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image, but a file")
    (folder / file).write_text("image\tlabel\na.png\tx\n")
    monkeypatch.chdir(tmp_path)
    study = Study(data=str(folder / file))
    assert engine._run_path(study, read_labelled(folder / file)).name.startswith(name)


@pytest.mark.parametrize(
    ("metric", "figure", "said"),
    [("accuracy", 0.83, "166 of 200 right"), ("top2", 0.945, "200 images, 166 of them right")],
)
def test_nobody_takes_the_count_of_what_is_right_for_another_metrics(metric: str, figure: float, said: str) -> None:
    scores = Scores(n=200, correct=166, metrics={metric: figure}, ci95=None)
    assert scores.counted(metric) == said
    assert scores.counted() == "166 of 200 right"
