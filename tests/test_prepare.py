"""Preparing the end of a run in the background."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from parts.data import dataset
from parts.small_zoo import SmallZoo

from autoft.data.dataset import write_split_csv
from autoft.engine.prepare import Preparation, prepare, prepared_folder
from autoft.errors import PluginError
from autoft.parts.host import Host
from autoft.store import RunFolder
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.values.codec import encode
from autoft.values.target import MetricFacts

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
BACKBONE = SmallZoo().backbones()[0]
VIEW = (BACKBONE.name, 64)


@pytest.fixture
def run(tiny_images: Path, tmp_path: Path) -> Run:
    data = dataset(tiny_images, {(64, "bicubic", "crop")})
    record = StudyRecord(
        study=Study(data=str(tiny_images), task="single_label", metric="accuracy"),
        data=data.info,
        view="crop",
        backbones=(BACKBONE,),
        candidates=(),
        plugins=Host.discover([ZOO]).refs,
        versions={},
        machine=Machine("inline", 1, 1, "cpu"),
        metric=MetricFacts("accuracy"),
    )
    folder = RunFolder.create(tmp_path / "run", encode(record), lambda made: write_split_csv(data, made.split_csv))
    return Run(folder, record)


def ended(preparation: Preparation) -> int | None:
    deadline = time.monotonic() + 120
    while preparation._process is not None and preparation._process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return preparation._process.returncode if preparation._process else None


def test_a_process_of_its_own_prepares_the_graph_once(run: Run) -> None:
    folder = prepared_folder(run, run.record.plugins, *VIEW)
    preparation = Preparation(run, run.record.plugins)
    preparation.begin(*VIEW)
    first = preparation._process
    preparation.begin(*VIEW)
    assert preparation._process is first
    assert first is not None
    assert os.getpgid(first.pid) != os.getpgid(0)  # Ctrl-C is for the search
    assert ended(preparation) == 0
    assert [file.name for file in folder.iterdir()] == ["template.onnx"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert preparation.seconds_missing(*VIEW, 1.0) == 0.0
    preparation.begin(*VIEW)
    assert preparation._process in (None, first)
    preparation.close()


def test_the_one_under_way_is_waited_for(run: Run) -> None:
    preparation = Preparation(run, run.record.plugins)
    assert preparation.seconds_missing(*VIEW, 1.0) > 0
    preparation.begin(*VIEW)
    assert preparation.seconds_missing(*VIEW, 1.0) == 0.0  # as it goes on beside the search
    preparation._began[VIEW] = time.time() - 15.0
    assert preparation.seconds_missing(*VIEW, 2.0) == 0.0  # on a machine as crowded as that it takes 20 s
    assert preparation.seconds_missing(*VIEW, 1.0) == pytest.approx(5.0, abs=1.0)
    preparation._took = 0.0
    assert preparation.seconds_missing(*VIEW, 1.0) > 0.0  # takes longer than it should
    preparation.finish("small/other", 64)  # not that one
    assert not prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.finish(*VIEW)
    assert prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.close()


def test_closing_ends_it_and_leaves_nothing_half_done(run: Run) -> None:
    preparation = Preparation(run, run.record.plugins)
    preparation.begin(*VIEW)
    process = preparation._process
    preparation.close()
    assert process is not None
    assert process.returncode is not None
    assert not prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.close()


def test_what_cannot_be_prepared_ends_nothing(run: Run) -> None:
    preparation = Preparation(run, run.record.plugins)
    preparation.begin("small/none", 64)
    assert ended(preparation) not in (None, 0)
    assert preparation.seconds_missing("small/none", 64, 1.0) > 0
    preparation.close()


def test_another_size_is_another_graph(run: Run) -> None:
    assert (
        len(
            {
                prepared_folder(run, run.record.plugins, name, size)
                for name in ("small/a", "small/b")
                for size in (64, 96)
            }
        )
        == 4
    )


def test_a_failing_exporter_leaves_no_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: object, classifier: object, image_size: int, folder: Path) -> None:
        (folder / "half").write_text("done")
        raise RuntimeError("no way")

    monkeypatch.setattr("autoft.builtin.onnx_exporter.OnnxExporter.prepare", failing)
    with pytest.raises(PluginError, match="no way"):
        prepare(run, run.host(), BACKBONE, 64)
    assert list((run.folder.path / ".prepared").iterdir()) == []
