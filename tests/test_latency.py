"""`--max-latency`: what is too slow is told from measurements, passed over, and not trained on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parts.data import dataset
from parts.notes import Notes

import autoft
from autoft import GateFailed
from autoft.bundle import gate
from autoft.bundle.predict import find_bundle
from autoft.bundle.standalone import verify
from autoft.data.dataset import write_split_csv
from autoft.engine.execution import ExportWish, _follow, export_trial
from autoft.errors import AutoftError
from autoft.store import RunFolder
from autoft.study import latency
from autoft.study.latency import MOST_QUICKER, remember, too_slow
from autoft.study.record import Machine, StudyRecord
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.system.screen import Silent
from autoft.values.codec import encode
from autoft.values.ledger import Ledger
from autoft.values.space import Space
from autoft.values.target import MetricFacts
from autoft.values.trial import Candidate, Clock, Costs, Queued, Report, Slice

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
A, B = ("small/test_resnet", 64), ("small/test_efficientnet", 64)
CANDIDATES = tuple(Candidate(name, "probe", size, Space({}), "closed_form") for name, size in (A, B))


@pytest.fixture
def limited(tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run of two networks with so many milliseconds allowed, on a machine of four cores."""
    monkeypatch.setattr(latency, "cores", lambda: 4)
    data = dataset(tiny_images, {(64, "bicubic", "crop")})

    def begin(most: float | None, threads: int = 1, device: str = "cpu") -> Run:
        study = Study(data=str(tiny_images), task="single_label", metric="accuracy", max_latency=most)
        machine = Machine("inline", 1, threads, device, cpus=min(threads, 4.0))
        facts = MetricFacts("accuracy")
        record = StudyRecord(study, data.info, "crop", (), CANDIDATES, (), {}, machine, facts)
        folder = RunFolder.create(tmp_path / "run", encode(record), lambda made: write_split_csv(data, made.split_csv))
        return Run(folder, record)

    return begin


def probed(*image_seconds: float) -> Ledger:
    """The first probe is the best."""
    ledger = Ledger()
    for number, (candidate, seconds) in enumerate(zip(CANDIDATES, image_seconds, strict=False)):
        ledger.record(Queued(number, Slice(candidate.trial(number, {}, 0), 0.0, 1.0, 60.0), Clock(0.0, 60.0)))
        costs = Costs(image=seconds)
        ledger.record(Report(number, "finished", 1.0, 0.9 - 0.1 * number, 2.0, bound=0.8 - 0.1 * number, costs=costs))
    return ledger


def test_what_even_at_its_quickest_would_be_too_slow_is_known_from_its_probe(limited: Callable[..., Run]) -> None:
    """80 ms an image on one core are 20 on four, and 5 if all goes well that can."""
    assert MOST_QUICKER == 4.0
    slow = too_slow(limited(4.9), probed(0.08, 0.07))
    assert slow == {A: "small/test_resnet at 64 px would take 5 ms or more an image here, above --max-latency 4.9ms"}


@pytest.mark.parametrize(
    ("most", "threads", "device", "slow"),
    [
        (5.1, 1, "cpu", set()),
        (9.0, 2, "cpu", {A}),
        (4.5, 1, "cpu", {A}),
        (19.0, 16, "cpu", {A}),  # no more than all four cores
        (1.0, 1, "cpu", {A, B}),
        (1.0, 1, "cuda", set()),
        (None, 1, "cpu", set()),
    ],
)
def test_it_goes_by_the_threads_of_a_worker_and_says_nothing_of_a_gpu(
    most: float | None, threads: int, device: str, slow: set[object], limited: Callable[..., Run]
) -> None:
    assert too_slow(limited(most, threads, device), probed(0.08, 0.07)).keys() == slow


def test_what_was_measured_on_the_exported_file_counts_and_is_remembered(limited: Callable[..., Run]) -> None:
    run = limited(9.0)
    remember(run, A, 8.5)  # its probe was crowded
    remember(run, A, 20.0)  # and so was this
    remember(run, B, 12.345)
    slow = {B: "small/test_efficientnet at 64 px takes 12.35 ms an image here, above --max-latency 9ms"}
    assert too_slow(run, probed(0.2, 0.01)) == slow
    assert too_slow(Run.open(run.folder.path), probed()) == slow


def test_what_another_share_of_a_machine_measured_bars_nothing(limited: Callable[..., Run]) -> None:
    """Begun with a thread a worker, resumed with all cores for one: seconds an image are those of one thread."""
    run = limited(9.0)
    moved = replace(run.record, machine=Machine("inline", 1, 4, "cpu", cpus=4.0))
    assert too_slow(replace(run, record=moved, opened=run.record), probed(0.08, 0.07)) == {}


def test_a_limit_is_shown_with_the_digits_that_tell(limited: Callable[..., Run]) -> None:
    run = limited(20.0)
    remember(run, A, 20.04)
    assert "takes 20.04 ms an image here, above --max-latency 20ms" in too_slow(run, probed())[A]


@pytest.mark.parametrize("kept", ["{", '{"machine": "another, 96 cores", "measured": {"small/test_resnet@64": 99.0}}'])
def test_what_another_machine_measured_or_nobody_can_read_is_measured_again(
    kept: str, limited: Callable[..., Run]
) -> None:
    run = limited(9.0)
    run.folder.latencies.write_text(kept)
    assert too_slow(run, probed(0.01, 0.01)) == {}
    remember(run, A, 10.0)
    assert too_slow(run, probed(0.01, 0.01)).keys() == {A}


def test_nothing_of_a_network_that_is_barred_wins_is_refitted_or_reaches_a_target() -> None:
    ledger = probed(0.01, 0.01)
    assert (ledger.winner or 0) and ledger.winner is ledger.trials[0] is ledger.reaching(0.75)
    ledger.barred = {A: "too slow"}
    assert ledger.winner is ledger.trials[1]
    assert ledger.reaching(0.75) is None
    assert ledger.exportable() == (ledger.trials[1],)
    assert ledger.damage(ledger.trials[0]) == "too slow"


def test_what_cannot_be_kept_costs_no_export(limited: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a disk that is read-only, or full, is exported elsewhere."""
    run = limited(9.0)

    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(latency, "write_atomic", refuse)
    remember(run, A, 3.0)
    assert not run.folder.latencies.exists()


@pytest.mark.parametrize(("of_each", "kept"), [(0, {0}), (1, {0, 2})])
def test_of_each_network_one_is_kept_to_fall_back_on(of_each: int, kept: set[int]) -> None:
    """Should all that leads turn out to be too slow in the end."""
    ledger = Ledger(keep=1, of_each=of_each)
    for number, (candidate, score) in enumerate(((CANDIDATES[0], 0.9), (CANDIDATES[1], 0.5), (CANDIDATES[1], 0.6))):
        ledger.record(Queued(number, Slice(candidate.trial(number, {}, 0), 0.0, 1.0, 60.0), Clock(0.0, 60.0)))
        ledger.record(Report(number, "finished", 1.0, score, 2.0))
    assert ledger.with_checkpoint() == kept


def test_what_is_barred_during_a_search_is_said_once(
    limited: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, notes, followed = limited(4.5), Notes(), []
    ending: Any = SimpleNamespace(prepare=followed.append)
    first, both = probed(0.08), probed(0.08, 0.07)
    _follow(run, notes, ending, first)
    assert first.barred.keys() == {A}
    both.barred = first.barred
    _follow(run, notes, ending, both)
    (line,) = notes.lines
    assert line.startswith("no more of it: small/test_resnet at 64 px would take 5 ms or more")
    assert followed == [first, both]


def test_one_slow_measurement_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = iter([30.0, 19.0, 31.0])
    monkeypatch.setattr(gate, "core_milliseconds", lambda core: next(taken))
    order: Any = SimpleNamespace()
    assert gate._milliseconds(order, tmp_path / "model.core.onnx", 20.0) == 19.0


def test_a_core_is_timed_by_whole_calls_on_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    class Session:
        def get_inputs(self) -> list[object]:
            return [type("Input", (), {"shape": ["batch", 3, 48, 48], "name": "images"})]

        def run(self, _: None, inputs: dict[str, object]) -> None:
            calls.append(inputs["images"].shape)

    monkeypatch.setattr(verify, "_open", lambda path, threads: Session())
    assert 0 <= verify.core_milliseconds(tmp_path / "model.core.onnx", 0.01) < 1000
    assert set(calls) == {(1, 3, 48, 48)} and len(calls) >= 4


@pytest.fixture
def search(tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., autoft.Summary]:
    """A search of both networks, of which the one that is exported first is said to take 30 ms, the other 10."""

    def searched(notes: Notes, **options: object) -> autoft.Summary:
        sizes: list[int] = []

        def milliseconds(core: Path) -> float:
            sizes.append(core.stat().st_size)
            return 30.0 if sizes[-1] == pytest.approx(sizes[0], rel=0.05) else 10.0

        monkeypatch.setattr(gate, "core_milliseconds", milliseconds)
        return autoft.search(
            tiny_images,
            plugins=[ZOO],
            screen=notes,
            backbones="small/test_resnet,small/test_efficientnet",
            freeze="probe",
            runner="inline",
            image_size=64,
            offline=True,
            trials=2,
            time="5m",
            out=tmp_path / "run",
            **options,
        )

    return searched


def test_the_best_that_is_quick_enough_is_handed_over_now_and_later(
    search: Callable[..., autoft.Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_least_milliseconds", lambda *_: 0.0)  # what else runs here may make the other slow
    notes, run = Notes(), tmp_path / "run"
    second = search(notes, max_latency=20.0)
    slow_one = A[0] if second.best.backbone == B[0] else B[0]
    assert second.test_openings == 1
    passed = [line for line in notes.lines if "is passed over: " in line]
    why = f"{slow_one} at 64 px takes 30 ms an image here, above --max-latency 20ms"
    assert passed and all(line.endswith(why) for line in passed)
    assert any(line.startswith("no refit of trial") for line in notes.lines) is (second.best.twin is None)
    kept = json.loads((run / "latencies.json").read_text())["measured"]
    assert kept == {f"{slow_one}@64": 30.0, f"{second.best.backbone}@64": 10.0}
    ledger = Run.open(run).ledger()
    assert ledger.winner is not None and ledger.winner.trial.backbone == second.best.backbone
    slow = next(one.trial.id for one in ledger.ranking() if one.trial.backbone == slow_one)
    best, named = (
        export_trial(Run.open(run), (), ExportWish(number, tmp_path / f"out{number}", "image"), Silent())
        for number in (None, slow)
    )
    assert best.trial.backbone == second.best.backbone
    assert named.trial.id == slow  # who names one knows what they want


def test_where_all_are_too_slow_there_is_no_model_and_the_test_images_stay_shut(
    search: Callable[..., autoft.Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_least_milliseconds", lambda *_: 0.0)  # nobody knows before the export
    none = r"none of \d trials can be exported: .*above --max-latency 0\.001ms.*a larger --max-latency finds others"
    with pytest.raises(GateFailed, match=none):
        search(Notes(), max_latency="0.001ms")
    run = tmp_path / "run"
    assert Run.open(run).test_openings() == 0
    assert not (run / "export").exists()
    ways = rf"`autoft export {run}` times them again, `autoft export {run} --trial N` hands one over"
    for going_on in (lambda: autoft.resume(run), lambda: autoft.resume(run, time="+10m"), lambda: find_bundle(run)):
        with pytest.raises(AutoftError, match=ways):
            going_on()  # which no time helps
    monkeypatch.setattr(gate, "core_milliseconds", lambda core: 0.0005)
    again = export_trial(Run.open(run), (), ExportWish(None, tmp_path / "out", "image"), Silent())
    assert again.trial.backbone in (A[0], B[0])
