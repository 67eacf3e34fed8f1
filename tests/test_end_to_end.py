"""The main job, for real: pretrained weights, real images, the command line, an ONNX file a stranger can run."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from parts.pace import SLOWNESS, seconds
from PIL import Image

ROOT = Path(__file__).parents[1]
FASHION = ROOT / "examples" / "fashion"
ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
SMALL = ("-p", ZOO, "--backbones", "small/test_resnet", "--runner", "inline")


def autoft(*arguments, **options):
    command = [sys.executable, "-m", "autoft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, **options)


def journal(run: Path):
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def state_of(folder: Path):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


def hits_by_hand(run: Path) -> tuple[int, int]:
    """Correct test images and their number, by what any stranger would write: onnxruntime, numpy, Pillow."""
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    labels = json.loads((run / "export" / "labels.json").read_text())
    rows = [row for row in csv.DictReader((run / "split.csv").read_text().splitlines()) if row["split"] == "test"]
    hits = 0
    for row in rows:
        image = Image.open(FASHION / row["path"]).convert("RGB")
        _, _, top_k = session.run(None, {"image": np.asarray(image)})
        hits += labels[top_k[0]] == row["label"]
    return hits, len(rows)


@pytest.fixture(scope="module")
def fashion_run(tmp_path_factory):
    """One search with real ImageNet weights on real images, used by the tests below."""
    run = tmp_path_factory.mktemp("fashion") / "run"
    before = state_of(FASHION)
    lite = ("--backbones", "lite/efficientnet_lite0", "--runner", "inline", "--offline")
    done = autoft("search", FASHION, *lite, "--time", seconds(35), "--out", run, "--json")
    assert done.returncode == 0, done.stderr
    assert state_of(FASHION) == before
    return run, json.loads(done.stdout)


@pytest.mark.slow
def test_summary_is_what_the_onnx_file_scores(fashion_run):
    run, summary = fashion_run
    hits, n = hits_by_hand(run)
    assert (summary["test"]["correct"], summary["test"]["n"]) == (hits, n)
    assert n == 200
    assert summary["test"]["metrics"]["accuracy"] == pytest.approx(hits / n)
    low, high = summary["test"]["ci95"]
    assert low < hits / n < high
    assert summary["test"]["metrics"]["accuracy"] > 0.7  # random weights stay below that, chance is 0.1
    assert summary == json.loads((run / "summary.json").read_text())


@pytest.mark.slow
def test_run_folder_keeps_its_contract(fashion_run):
    run, summary = fashion_run
    events = journal(run)
    probes = {
        line["trial"] for line in events if line["event"] == "queued" and line["slice"]["trial"]["freeze"] == "probe"
    }
    fine_tuned = any(line.get("step", 0.0) > 0 for line in events if line["trial"] not in probes)
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        "study.json",
        "split.csv",
        "trials.jsonl",
        "checkpoints",
        *(["curves"] if fine_tuned else []),  # a busy machine may have had no time for a step
        "leaderboard.csv",
        "summary.json",
        "export",
    }
    board = list(csv.DictReader((run / "leaderboard.csv").read_text().splitlines()))
    assert int(board[0]["trial"]) == summary["best"]["trial"]
    assert board[0]["exportable"] == "yes"
    kinds = [line["event"] for line in events]
    assert kinds.count("queued") == kinds.count("started") == len(events) / 3
    assert summary["model"] == "export/model.onnx"
    assert str(run).encode() not in (run / summary["model"]).read_bytes()


@pytest.mark.slow
def test_predict_export_and_resume_of_a_finished_run(fashion_run, tmp_path):
    run, summary = fashion_run
    predicted = autoft("predict", run, FASHION / "trouser", "--json")
    assert predicted.returncode == 0, predicted.stderr
    lines = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert len(lines) == 100
    assert sum(line["label"] == "trouser" for line in lines) > 80
    probe = next(line["trial"] for line in journal(run) if line["event"] == "finished")
    exported = autoft("export", run, "--trial", probe, "--out", tmp_path / "other", "--json")
    assert exported.returncode == 0, exported.stderr
    report = json.loads(exported.stdout)
    assert "test" not in report
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert (metrics["split"], metrics["n"]) == ("val", report["validation"]["n"])
    assert {(one["batch"], one["optimised"]) for one in report["parity"]["core"]} == {
        (1, True),
        (8, True),
        (1, False),
        (8, False),
    }
    assert report["parity"]["pixels"]["n"] == 200
    again = autoft("resume", run, "--json")
    assert json.loads(again.stdout) == summary


@pytest.mark.slow
def test_the_bundle_proves_itself_and_a_flipped_byte_shows(fashion_run, tmp_path):
    run, summary = fashion_run
    alone = subprocess.run([sys.executable, "-I", run / "export" / "verify.py"], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    rescored = autoft("verify", run / "export", FASHION, "--json")
    assert rescored.returncode == 0, rescored.stderr
    found = json.loads(rescored.stdout)["rescored"]
    assert found["known"] == {"train": 600, "val": 200, "test": 200}
    assert found["left_out"] == 800
    assert (found["scores"]["n"], found["scores"]["correct"]) == (200, summary["test"]["correct"])
    everything = autoft("verify", run / "export", FASHION, "--all")
    splits = r"training split \(600\) or its validation split(, which trained it too)? \(200\)"
    assert re.search(f"80% of these images are of the run's {splits}", everything.stdout)
    metrics = json.loads((run / "export" / "metrics.json").read_text())
    assert (metrics["split"], metrics["correct"]) == ("test", summary["test"]["correct"])
    copy = shutil.copytree(run / "export", tmp_path / "copy")
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    changed = autoft("verify", copy)
    assert changed.returncode == 3
    assert "model.onnx has changed" in changed.stderr
    refused = autoft("predict", copy, FASHION / "bag")
    assert refused.returncode == 2
    assert "model.onnx has changed" in refused.stderr
    (copy / "labels.json").unlink()
    assert "labels.json is missing" in autoft("verify", copy).stderr


def test_killed_runs_go_on_and_never_repeat_a_finished_trial(tiny_images, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "autoft", "search", str(tiny_images), *SMALL, "--time", "10m", "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "trials.jsonl").exists() and (run / "trials.jsonl").read_text().count('"paused"') >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (run / "trials.jsonl").open("a") as file:
        file.write('{"event": "pau')  # a line torn by the kill
    before = (run / "trials.jsonl").read_text().splitlines()[:-1]
    used = max(line.get("elapsed", 0.0) for line in map(json.loads, before))
    done = autoft("resume", run, "--time", f"{used + 25 * SLOWNESS:.0f}s", "--json")
    assert done.returncode == 0, done.stderr
    assert (run / "trials.jsonl").read_text().splitlines()[: len(before)] == before
    ended = [line["trial"] for line in journal(run) if line["event"] in ("finished", "failed")]
    assert ended
    assert len(ended) == len(set(ended))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_the_best_and_say_how_to_go_on(tiny_images, tmp_path, number, code):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "autoft", "search", str(tiny_images), *SMALL, "--time", "10m", "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "paused" in line:
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"autoft resume {run}" in err and f"autoft export {run}" in err
    board = autoft("leaderboard", run).stdout
    assert "running" not in board
    assert not out
    assert (run / "leaderboard.csv").exists()
    exported = autoft("export", run, "--json")
    assert exported.returncode == 0, exported.stderr


def test_a_bound_is_a_gate(tiny_images, tmp_path):
    gate = ("--metric", "log_loss", "--fail-above", "0")
    arguments = ("--trials", 1, "--freeze", "probe", "--time", "5m", *gate, "--out", tmp_path / "run")
    done = autoft("search", tiny_images, *SMALL, *arguments, "--json")
    assert done.returncode == 3
    assert "--fail-above 0" in done.stderr
    assert json.loads(done.stdout)["best"]["freeze"] == "probe"


def digest(file: Path, more: str = "") -> str:
    """SHA-256 of a file to which a line is added."""
    file.write_text(file.read_text() + more)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_data_and_plugins_that_moved_are_found_again_and_changed_data_is_not_taken(tiny_images, tmp_path):
    run, moved, zoo = tmp_path / "run", tmp_path / "elsewhere", tmp_path / "small_zoo.py"
    shutil.copy(ZOO, zoo)
    only = ("--backbones", "small/test_resnet", "--freeze", "probe", "--runner", "inline", "--no-refit")
    done = autoft("search", tiny_images, "-p", zoo, *only, "--trials", 1, "--out", run, "--time", "5m")
    assert done.returncode == 0, done.stderr
    (tmp_path / "newer").mkdir()
    first, newer = digest(zoo), zoo.rename(tmp_path / "newer" / zoo.name)
    second = digest(newer, "# of no consequence")
    tiny_images.rename(moved)
    lost = autoft("export", run)
    assert lost.returncode == 2
    assert str(tiny_images) in lost.stderr and "--data DIR" in lost.stderr
    found = autoft("export", run, "--data", moved, "-p", newer)
    assert found.returncode == 0, found.stderr
    assert f"the run used small_zoo.py, SHA-256 {first}" in found.stderr
    manifest = json.loads((run / "exports" / "0" / "manifest.json").read_text())
    said = f"small_zoo.py, SHA-256 {second}; earlier in this run: small_zoo.py, SHA-256 {first}"
    assert manifest["versions"]["plugin small_zoo"] == said
    assert said in (run / "exports" / "0" / "MODEL_CARD.md").read_text().replace("\\_", "_")
    assert json.loads((run / "study.json").read_text())["data"]["root"] == str(moved)
    assert autoft("export", run).returncode == 0  # it remembers
    before = (run / "study.json").read_bytes()
    (moved / "red" / "0.png").unlink()
    refused = autoft("resume", run, "--time", "+10s")
    assert refused.returncode == 2
    assert "not those the run started with" in refused.stderr
    assert (run / "study.json").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_folder_without_permission(tiny_images, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = autoft("search", tiny_images, *SMALL, "--out", locked / "run")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
