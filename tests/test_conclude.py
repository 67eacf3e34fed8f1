"""The end of a run: which trial is exported, and what a full disk is called."""

from __future__ import annotations

import errno
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parts.notes import Notes

from autoft import (
    BackboneUnavailable,
    Candidate,
    DataError,
    GateFailed,
    Imbalance,
    MetricFacts,
    MultiLabel,
    PluginError,
    Report,
    RunFailed,
    SingleLabel,
    Space,
    Targets,
    Task,
)
from autoft.bundle import build
from autoft.engine.conclude import (
    BundleMaker,
    NotExportable,
    NoWeights,
    _if_there_is_a_way,
    better_than,
    conclude,
    export_best,
    is_same_score,
    suggested_metric,
)
from autoft.errors import AutoftError, RunFolderError
from autoft.store import RunFolder
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.stopwatch import Stopwatch
from autoft.values.ledger import Ledger, TrialRecord
from autoft.values.trial import Clock, Queued, Slice

ACCURACY, MAE = MetricFacts("accuracy"), MetricFacts("mae", is_loss=True, greatest=None)
LOG_LOSS = MetricFacts("log_loss", is_loss=True, greatest=None)


def records(n: int) -> list[TrialRecord]:
    candidate = Candidate("zoo/net", "probe", 32, Space({}))
    report = Report(0, "finished", 1.0, 0.75, 2.0)
    return [TrialRecord(candidate.trial(number, {}, 0), (), (report,)) for number in range(n)]


@pytest.mark.parametrize("problem", [GateFailed, RunFailed, BackboneUnavailable, PluginError, NoWeights])
def test_a_trial_that_cannot_be_exported_is_passed_over_with_a_line(problem: type[AutoftError]) -> None:
    notes = Notes()

    def export(record: TrialRecord) -> str:
        if record.trial.id < 2:
            raise problem(f"cause {record.trial.id}")
        return f"bundle of {record.trial.id}"

    record, bundle = export_best(records(4), export, notes)
    assert (record.trial.id, bundle) == (2, "bundle of 2")
    assert notes.lines == ["trial 0 is passed over: cause 0", "trial 1 is passed over: cause 1"]


def test_of_a_network_that_cannot_be_exported_one_trial_is_tried() -> None:
    """The others would fail as slowly in the same way."""
    notes, asked = Notes(), []
    net, other = records(3), [replace(one, trial=replace(one.trial, id=one.trial.id + 3)) for one in records(2)]
    other = [replace(one, trial=replace(one.trial, image_size=64)) for one in other]

    def export(record: TrialRecord) -> None:
        asked.append(record.trial.id)
        raise (GateFailed if record.trial.image_size == 64 else NotExportable)("no way")

    with pytest.raises(GateFailed, match=r"of 5 trials can be exported: trials 0, 1, 2, 3 and 4: no way$"):
        export_best([net[0], other[0], *net[1:], other[1]], export, notes)
    assert asked == [0, 3, 4]
    assert notes.lines == [
        "trial 0, and 2 more of its network, are passed over: no way",
        "trial 3 is passed over: no way",
        "trial 4 is passed over: no way",
    ]


@pytest.mark.parametrize(
    ("files", "raised", "found"),
    [
        (0, RunFailed, NotExportable),
        (1, RunFailed, RunFailed),
        (0, PluginError, PluginError),
        (0, GateFailed, GateFailed),
    ],
)
def test_a_network_cannot_be_exported_where_its_exporter_knows_no_way(
    files: int, raised: type[AutoftError], found: type[AutoftError]
) -> None:
    """What it says after a file that the gate has refused may be of that trial alone."""
    seen: list[object] = []

    def exports() -> Iterator[Any]:
        yield from range(files)
        raise raised("no way")

    with pytest.raises(found, match="no way") as caught:
        seen.extend(_if_there_is_a_way(exports()))
    assert type(caught.value) is found


def test_a_bundle_of_a_network_for_which_there_is_no_way_is_not_exportable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_way(*given: object) -> Iterator[Any]:
        raise RunFailed("no way")
        yield

    exporter = SimpleNamespace(export_prepared=lambda *given: iter(()), export=no_way)
    shop = SimpleNamespace(host=SimpleNamespace(part=lambda *given: exporter, refs=()))
    monkeypatch.setattr(BundleMaker, "_restored", lambda *given: (None, None))
    monkeypatch.setattr(BundleMaker, "_order", lambda *given: SimpleNamespace(handoff=None))
    monkeypatch.setattr("autoft.engine.conclude.prepared_folder", lambda *given: tmp_path)
    run: Any = Run(RunFolder(tmp_path), None)
    with pytest.raises(NotExportable, match="no way"):
        BundleMaker(run, Ledger(), shop, Stopwatch(0)).make(records(1)[0], tmp_path / "b", wanted=None)
    assert not (tmp_path / "b").exists()


def test_a_trial_that_is_not_the_best_is_told_which_one_is() -> None:
    first, second = records(2)
    ledger = Ledger()
    for record, score in ((first, 0.5), (second, 0.75)):
        ledger.record(Queued(record.trial.id, Slice(record.trial, 0.0, 1.0, 60.0), Clock(0.0, 60.0)))
        ledger.record(Report(record.trial.id, "finished", 1.0, score, 2.0))
    refits = (replace(record, trial=record.refit(number + 2)) for number, record in enumerate((first, second)))
    assert [better_than(ledger, one) for one in (first, second, *refits)] == [1, None, 1, None]


def test_when_none_passes_the_causes_are_one_line_and_exit_code_3() -> None:
    def export(record: TrialRecord) -> None:
        raise (RunFailed, GateFailed)[record.trial.id]("it is so")

    with pytest.raises(GateFailed, match=r"^none of 2 trials can be exported: trials 0 and 1: it is so$") as e:
        export_best(records(2), export, Notes())
    assert e.value.exit_code == 3


@pytest.mark.parametrize("problem", [DataError("gone"), RunFolderError("disk full"), KeyError("a bug")])
def test_what_would_end_every_export_ends_at_once(problem: Exception) -> None:
    asked: list[int] = []

    def export(record: TrialRecord) -> None:
        asked.append(record.trial.id)
        raise problem

    with pytest.raises(type(problem)):
        export_best(records(3), export, Notes())
    assert asked == [0]


def test_a_full_disk_is_one_line_that_names_the_place_and_the_way_on(tmp_path: Path) -> None:
    run = SimpleNamespace(folder=SimpleNamespace(path=tmp_path))
    with pytest.raises(RunFolderError) as caught, Run.writing(run, tmp_path / "export"):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "export" / "model.onnx"))
    assert str(caught.value).startswith(
        f"{tmp_path / 'export' / 'model.onnx'} cannot be written: No space left on device; make room"
    )
    assert str(caught.value).endswith(f"autoft resume {tmp_path}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("metric", "deviation", "one", "other", "same"),
    [
        (ACCURACY, (), 0.75, 0.75 + 1e-9, True),
        (ACCURACY, (), 0.75, 0.751, False),
        (MetricFacts("r2"), (1e-8,), 1e-17, -1e-16, True),
        (LOG_LOSS, (), -1e-14, -2e-14, True),
        (LOG_LOSS, (), -0.1, -0.101, False),
        (MAE, (1e10,), -2e9, -2e9 - 3, True),
        (MAE, (1e10,), -2e9, -2.1e9, False),
        (MAE, (1e-8,), -2e-9, -2.1e-9, False),
        (MAE, (1e-8,), -2e-9, -2e-9 * (1 + 1e-12), True),
        (MAE, (1e-8,), 0.0, -1e-23, True),
        (ACCURACY, (), 0.75, math.nan, False),
    ],
)
def test_scores_are_the_same_by_their_size_and_their_unit(
    metric: MetricFacts, deviation: tuple[float, ...], one: float, other: float, same: bool
) -> None:
    assert is_same_score(one, other, metric, Targets("any", "numbers", ("x",), deviation, deviation)) == same


UNEVEN, EVEN = ["cat"] * 12 + ["dog"] * 4, ["cat"] * 11 + ["dog"] * 4


class Particular(SingleLabel):
    """Takes classes for uneven whenever one is larger than another."""

    def imbalance(self, labels: Sequence[str]) -> Imbalance | None:
        (common, most), *_, (rare, fewest) = Counter(labels).most_common()
        return None if most == fewest else Imbalance(common, most, rare, fewest)


def training_on(task: Task, labels: list[str]) -> Any:
    """A data set of images to train on with these labels."""
    return SimpleNamespace(task=task, labels={"train": labels}.__getitem__)


@pytest.mark.parametrize(
    ("task", "metric", "labels", "named"),
    [
        (SingleLabel(), "accuracy", UNEVEN, "balanced_accuracy"),
        (SingleLabel(), "accuracy", EVEN, ""),
        (SingleLabel(), "macro_f1", UNEVEN, ""),
        (Particular(), "accuracy", EVEN, "balanced_accuracy"),
        (Particular(), "accuracy", ["cat", "dog"], ""),
        (MultiLabel(), "micro_f1", UNEVEN, ""),  # labels of which images have several are not held against each other
    ],
)
def test_a_metric_is_suggested_where_the_task_takes_classes_for_uneven_and_one_that_it_has(
    task: Task, metric: str, labels: list[str], named: str
) -> None:
    assert suggested_metric(task.metric(metric).facts, training_on(task, labels)) == named


def ended(tmp_path: Path, openings: int | None) -> Run:
    """A run whose summary, if it has come to one, says that so often the test images were scored."""

    class Ended(Run):
        def summary(self) -> object:
            return None if openings is None else SimpleNamespace(test_openings=openings)

    return Ended(RunFolder(tmp_path), None)


@pytest.mark.parametrize(("said", "first"), [(None, 1), (1, 2), (3, 4)])
def test_each_scoring_of_the_test_images_counts_whatever_becomes_of_its_bundle(
    tmp_path: Path, said: int | None, first: int
) -> None:
    """Those of an older run, which only its summary tells, among them."""
    run = ended(tmp_path, said)
    assert [run.open_test(), run.open_test()] == [first, first + 1]
    assert ended(tmp_path, first + 1).open_test() == first + 2


def test_a_damaged_count_of_scorings_is_one_line(tmp_path: Path) -> None:
    run = ended(tmp_path, None)
    run.folder.test_openings.write_text("?")
    with pytest.raises(RunFolderError, match="test_openings is damaged"):
        run.open_test()


@pytest.mark.parametrize(("reported", "counted"), [("test", 1), ("val", 0)])
def test_the_test_images_are_counted_as_scored_before_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: str, counted: int
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        build, "first_that_passes", lambda *given: SimpleNamespace(answering=None, validation_logits=None)
    )

    def killed(*given: object) -> None:
        assert len(opened) == counted
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_logits" if reported == "test" else "_report", killed)
    order = SimpleNamespace(reported=reported, open_test=lambda: opened.append("test"))
    with pytest.raises(KeyboardInterrupt):
        build.write_bundle(order, iter(()), tmp_path / "b", Stopwatch(0))
    assert len(opened) == counted


def test_whether_more_would_be_tried_is_asked_before_the_bundle_takes_its_place() -> None:
    """That may take seconds, in which a kill would leave the new bundle beside the old summary."""
    asked: list[str] = []

    def make(*given: object) -> None:
        asked.append("bundle")
        raise KeyboardInterrupt

    run = SimpleNamespace(record=SimpleNamespace(study=Study("data")), folder=SimpleNamespace(export=Path("export")))
    search = SimpleNamespace(
        ledger=SimpleNamespace(finalists=lambda: records(1)),
        clock=SimpleNamespace(budget=60.0, now=lambda: 30.0),
        goes_on=lambda: asked.append("goes on"),
        screen=Notes(),
    )
    with pytest.raises(KeyboardInterrupt):
        conclude(
            SimpleNamespace(run=run, make=make), search, SimpleNamespace(testable=lambda *given: 1, spare=lambda: 9.0)
        )
    assert asked == ["goes on", "bundle"]
