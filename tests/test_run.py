"""Run folders of older versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoft import RunFolderError
from autoft.study.record import SCHEMA, Machine
from autoft.study.run import Run

FIRST = """{
"study": {"data": "/photos", "out": "/run", "time": 60.0, "trials": null, "seed": 0, "workers": 0, "runner": "auto",
 "backbones": [], "freeze": [], "searcher": "halving", "exporter": ["onnx"], "metric": "accuracy", "image_size": 0,
 "view": "auto", "offline": false, "licenses": ["permissive"], "fail_under": null, "fail_above": null, "keep": 5,
 "batched": false, "full_parity": false, "gpus_per_trial": 1.0, "plugins": ["/mine.py"]},
"data": {"root": "/photos", "classes": ["a", "b"], "counts": {"train": 6, "val": 2, "test": 2}, "fingerprint": "ff",
 "short_side": 28, "aspect": 1.0, "problems": [], "value_range": null, "contradictions": []},
"view": "crop",
"backbones": [{"name": "mine/net", "parameters": 400000, "input": {"size": 160, "mean": [0.485, 0.456, 0.406],
 "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "fixed_size": false}, "license": "mit", "weights": "local",
 "source": "", "prior": null}],
"candidates": [{"backbone": "mine/net", "freeze": "probe", "image_size": 64, "space": {"dimensions": {}, "starts": []},
 "fit": "closed_form", "cost": 0.0016384, "prior": null}],
"plugins": [{"name": "mine", "kind": "file", "location": "/mine.py", "distribution": null, "version": null,
 "importable": true}],
"versions": {"autoft": "0.1.0"},
"runner": "ray", "workers": 3, "threads": 2, "device": "cuda", "cpus": 2.0, "gpus": 0.5,
"validation": null, "schema": "autoft.study/1"
}"""
"""study.json as it was before what a machine gives had a place of its own in it."""


def opened(folder: Path, study: str) -> Run:
    (folder / "study.json").write_text(study)
    return Run.open(folder)


def test_a_study_of_the_first_version_is_read_and_kept_in_todays(tmp_path: Path) -> None:
    run = opened(tmp_path, FIRST)
    assert run.record.machine == Machine("ray", 3, 2, "cuda", 2.0, 0.5)
    assert (run.record.schema, run.record.study.data, run.record.plugins[0].sha256) == (SCHEMA, "/photos", None)
    run.save()
    assert (tmp_path / "study.json").read_text() == FIRST  # nothing has changed
    replace(run, record=replace(run.record, study=replace(run.record.study, time=90.0))).save()
    again = Run.open(tmp_path).record
    assert (again.study.time, again.machine) == (90.0, run.record.machine)
    assert json.loads((tmp_path / "study.json").read_text())["schema"] == SCHEMA


def test_one_that_did_not_know_shares_yet_is_read_too(tmp_path: Path) -> None:
    study = FIRST.replace('"cpus": 2.0, "gpus": 0.5,', "").replace('"validation": null, ', "")
    assert opened(tmp_path, study).record.machine == Machine("ray", 3, 2, "cuda")


def test_a_number_of_gpus_is_kept_and_auto_is_written_as_none(tmp_path: Path) -> None:
    run = opened(tmp_path, FIRST)
    assert (run.record.study.gpus_per_trial, run.record.machine.measured) == (1.0, 0)
    shared = replace(run.record.study, gpus_per_trial=None)
    replace(run, record=replace(run.record, study=shared)).save()
    assert Run.open(tmp_path).record.study == shared


@pytest.mark.parametrize(
    "study",
    [
        FIRST.replace('"workers": 3, "threads"', '"threads"'),
        FIRST.replace("autoft.study/1", "autoft.study/2"),
        FIRST.replace('"device": "cuda"', '"device": "tpu"'),
        FIRST[:-1],
        "[]",
        '{"schema": "autoft.study/1"}',
        '{"schema": "autoft.study/2"}',
        '{"schema": "autoft.study/2", "study": [], "data": {"classes": ["a"]}, "plugins": []}',
        FIRST.replace('"classes": ["a", "b"], ', ""),
        FIRST.replace('"classes": ["a", "b"]', '"classes": 3'),
        FIRST.replace('"metric": "accuracy"', '"metric": "mae"'),
        FIRST.replace('"metric": "accuracy"', '"metric": ["accuracy"]'),
    ],
)
def test_a_study_that_is_damaged_or_of_a_later_version_is_one_line(tmp_path: Path, study: str) -> None:
    with pytest.raises(RunFolderError, match=r"study\.json is damaged or of another version: ") as caught:
        opened(tmp_path, study)
    assert "\n" not in str(caught.value)


def test_what_another_command_has_changed_meanwhile_is_not_undone(tmp_path: Path) -> None:
    run = opened(tmp_path, FIRST)
    moved = Run.open(tmp_path).with_images(tmp_path)
    moved.save()
    with pytest.raises(RunFolderError, match=r"study\.json was changed by another command meanwhile; try again"):
        run.save()
    assert Run.open(tmp_path).record.data.root == str(tmp_path)


@pytest.mark.parametrize(
    ("written", "read"), [({"weighing": "map"}, "map"), ({"suggested_metric": "map"}, "map"), ({}, "")]
)
def test_a_summary_that_has_another_name_for_a_field_is_read(
    tmp_path: Path, written: dict[str, str], read: str
) -> None:
    scores: dict[str, object] = {"n": 1, "correct": 1, "metrics": {"accuracy": 1.0}, "ci95": [0.2, 1.0]}
    best = {"trial": 0, "backbone": "mine/net", "freeze": "probe", "image_size": 64, "params": {}}
    summary = {"run": "/run", "metric": "accuracy", "best": best, "validation": scores, "test": scores, "trials": {}}
    end = {"seconds": {}, "model": "export/model.onnx", "budget": 60.0}
    run = opened(tmp_path, FIRST)
    run.folder.summary.write_text(json.dumps(summary | end | written))
    found = run.summary()
    assert found is not None and (found.suggested_metric, found.validation.metric) == (read, "")
    run.folder.summary.write_text("no JSON")
    with pytest.raises(RunFolderError, match=r"summary\.json is damaged or of another version"):
        run.summary()
