"""Preparing the end of a run in the background."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from parts.data import dataset
from parts.small_zoo import SmallZoo

from autoft.data.dataset import write_split_csv
from autoft.engine import prepare as prepare_module
from autoft.engine.prepare import LITTLE_TIME_SECONDS, MARGIN, Preparation, prepare, prepared_folder
from autoft.errors import PluginError
from autoft.parts.host import Host
from autoft.store import RunFolder
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.values.codec import encode
from autoft.values.ledger import Ledger
from autoft.values.space import Space
from autoft.values.target import MetricFacts
from autoft.values.trial import Candidate, Clock, Queued, Report, Slice

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
BACKBONE = SmallZoo().backbones()[0]
VIEW = (BACKBONE.name, 64)
PRIORS = {"a": 0.6, "b": 0.7}


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
    preparation = Preparation(run, run.host())
    preparation.begin(*VIEW)
    first = preparation._process
    preparation.begin(*VIEW)
    assert preparation._process is first
    assert first is not None
    assert os.getpgid(first.pid) != os.getpgid(0)  # Ctrl-C is for the search
    assert ended(preparation) == 0
    assert [file.name for file in folder.iterdir()] == ["template.onnx"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert preparation.ready_in(*VIEW, 1.0) == 0.0
    preparation.begin(*VIEW)
    assert preparation._process in (None, first)
    preparation.close()


def test_the_one_under_way_is_waited_for(run: Run) -> None:
    preparation = Preparation(run, run.host())
    assert preparation.ready_in(*VIEW, 1.0) == math.inf  # nobody is at it
    preparation.begin(*VIEW)
    assert preparation.ready_in("small/other", 64, 1.0) == math.inf
    assert preparation.ready_in(*VIEW, 1.0) == pytest.approx(10.0, abs=1.0)
    assert preparation.ready_in(*VIEW, 2.0) == pytest.approx(20.0, abs=1.0)  # on a machine as slow as that
    preparation._began[VIEW] = time.time() - 15.0
    assert preparation.ready_in(*VIEW, 1.0) == pytest.approx(5.0, abs=1.0)  # it takes longer than it should
    preparation._took = 20.0 / MARGIN
    assert preparation.ready_in(*VIEW, 1.0) == pytest.approx(5.0, abs=1.0)
    preparation._took = 16.0 / MARGIN
    preparation.finish(*VIEW, 120.0, 1.0)
    assert prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.close()


def test_where_the_graph_is_there_nothing_else_is_waited_for(run: Run) -> None:
    """Who leads may change, and change again."""
    preparation = Preparation(run, run.host())
    prepare(run, run.host(), BACKBONE, 64)
    preparation.begin(*VIEW)  # it is there
    assert preparation.begun is None
    preparation.begin("small/test_vit", 64)
    began = time.monotonic()
    preparation.finish(*VIEW, 60.0, 1.0)
    assert time.monotonic() - began < 5.0
    assert preparation.ready_in("small/test_vit", 64, 1.0) == math.inf  # it is ended
    preparation.close()


@pytest.mark.parametrize(("other", "took"), [(True, 0.1), (False, 600.0)], ids=["another", "much later"])
def test_one_that_is_no_use_or_comes_too_late_is_ended_for_the_export(other: bool, took: float, run: Run) -> None:
    """It would have a core that the export needs."""
    preparation = Preparation(run, run.host())
    preparation.begin(*VIEW)
    process, preparation._took = preparation._process, took
    began = time.monotonic()
    preparation.finish("small/other" if other else VIEW[0], 64, 60.0, 1.0)
    assert process is not None and process.returncode is not None
    assert time.monotonic() - began < 30.0
    assert not prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.close()


@pytest.fixture
def begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """What is begun with in so much time when these of two backbones have these scores; b has the better prior."""
    of = {
        name: Candidate(f"small/{name}", "probe", 64, Space({}), "closed_form", prior=prior)
        for name, prior in PRIORS.items()
    }
    backbones = tuple(replace(BACKBONE, name=candidate.backbone) for candidate in of.values())

    def asked(
        seconds: float, took: float | None = None, plugins: Sequence[str] = (), **scores: float
    ) -> list[tuple[str, int]]:
        study = replace(run.record.study, time=seconds)
        record = replace(run.record, study=study, candidates=tuple(of.values()), backbones=backbones)
        begun: list[tuple[str, int]] = []
        preparation = Preparation(replace(run, record=record), run.host(plugins))
        monkeypatch.setattr(preparation, "begin", lambda name, size: begun.append((name.removeprefix("small/"), size)))
        monkeypatch.setattr(preparation, "_took", took)
        ledger = Ledger()
        for number, (name, score) in enumerate(scores.items()):
            ledger.record(Queued(number, Slice(of[name].trial(number, {}, 0), 0.0, 1.0, 90.0), Clock(1.0, 90.0)))
            ledger.record(Report(number, "finished", 1.0, score, 2.0, elapsed=8.0))
        preparation.follow(ledger, seconds - ledger.elapsed, prepare_module.start_slowness())
        return begun

    return asked


def test_in_a_short_time_a_graph_is_begun_before_it_is_known_who_leads(begun: Callable[..., object]) -> None:
    """Begun later, it would not be there at the end, and the search would have to end for it."""
    assert begun(40.0) == [("b", 64)]
    assert begun(40.0, a=0.5) == [("a", 64)]
    assert begun(40.0, a=0.5, b=0.4) == [("a", 64)]


def test_no_graph_is_begun_for_a_backbone_whose_zoo_is_switched_off(begun: Callable[..., object]) -> None:
    """Before anything is tried; it could only end with an error that nobody sees."""
    assert begun(40.0, plugins=["no:small_zoo"]) == []


def test_in_little_time_no_graph_is_begun_whoever_leads(begun: Callable[..., object]) -> None:
    """The run would wait for it longer than it takes to export without."""
    assert begun(LITTLE_TIME_SECONDS - 1) == begun(20.0, a=0.5) == begun(20.0, a=0.5, b=0.4) == []


def test_what_is_short_or_little_goes_by_how_slowly_processes_start(
    begun: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begun(100.0) == []  # who leads is waited for
    monkeypatch.setattr(prepare_module, "start_slowness", lambda: 3.0)
    assert begun(100.0) == [("b", 64)]
    assert begun(80.0, a=0.5, b=0.4) == []


def test_no_graph_is_begun_for_which_the_end_would_have_to_wait(begun: Callable[..., object]) -> None:
    """Eight seconds are over."""
    assert begun(60.0, took=53.0 / MARGIN, a=0.5) == []
    assert begun(60.0, took=51.0 / MARGIN, a=0.5) == [("a", 64)]


def test_where_there_is_time_the_leader_of_all_backbones_is_begun_with(begun: Callable[..., object]) -> None:
    assert begun(600.0) == begun(600.0, a=0.5) == []
    assert begun(600.0, a=0.4, b=0.5) == [("b", 64)]


def test_closing_ends_it_and_leaves_nothing_half_done(run: Run) -> None:
    preparation = Preparation(run, run.host())
    preparation.begin(*VIEW)
    process = preparation._process
    preparation.close()
    assert process is not None
    assert process.returncode is not None
    assert not prepared_folder(run, run.record.plugins, *VIEW).exists()
    preparation.close()


def test_what_cannot_be_prepared_ends_nothing(run: Run) -> None:
    preparation = Preparation(run, run.host())
    preparation.begin("small/none", 64)
    assert ended(preparation) not in (None, 0)
    assert preparation.ready_in("small/none", 64, 1.0) == math.inf
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


def test_the_imports_of_the_end_are_begun_once_and_over_when_the_search_is(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []

    def slowly(name: str) -> None:
        time.sleep(0.1)
        imported.append(name)

    monkeypatch.setattr(prepare_module.importlib, "import_module", slowly)
    preparation = Preparation(run, run.host())
    preparation.import_ahead()
    preparation.import_ahead()
    preparation.close()
    assert imported == list(prepare_module._IMPORTED_AT_THE_END)
