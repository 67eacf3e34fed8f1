"""Curves: one line a step, ever fewer as a trial grows longer; nothing twice, nothing torn, nothing that ends a run."""

from __future__ import annotations

import csv
import errno
import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.store.curves import FINE, CurveFile, CurvePoint, has_point
from autoft.train.curve import Curve
from autoft.train.readings import StepTaken


def point(step: int) -> CurvePoint:
    return CurvePoint(step, step / 4, 1 / step, 1e-3, 2.0, 30.0)


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader(path.read_text().splitlines())]


def test_lines_are_csv_with_a_head(tmp_path: Path) -> None:
    path = tmp_path / "curves" / "00003.csv"
    CurveFile(path).append([point(1), point(2)])
    assert path.read_text() == (
        "step,passes,loss,learning_rate,gradient_norm,images_per_second\n1,0.25,1,0.001,2,30\n2,0.5,0.5,0.001,2,30\n"
    )


def test_a_long_trial_has_few_lines_evenly_in_every_octave() -> None:
    assert all(map(has_point, range(1, 2 * FINE)))
    assert sum(map(has_point, range(1, 64 * FINE))) <= 7 * FINE
    for octave in range(6):
        within = range(FINE << octave, FINE << (octave + 1))
        assert sum(map(has_point, within)) == FINE


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30)), max_size=6))
def test_whatever_is_trained_again_after_a_kill_has_one_line(tmp_path_factory: Any, attempts: Any) -> None:
    """Each attempt trains from one step to another, writes, and leaves so many bytes of a torn line."""
    path = tmp_path_factory.mktemp("curve") / "0.csv"
    reached = 0
    for start, end, torn in attempts:
        start = min(start, reached)
        CurveFile(path).append([point(step) for step in range(start + 1, end + 1)])
        reached = max(reached, end)
        with path.open("ab") as file:
            file.write(b"999,12.5,0.001,0.3,0.4,0.5"[:torn])
    CurveFile(path).append([point(reached + 1)])
    assert steps(path) == list(range(1, reached + 2))


class Run:
    """Stands for a trial under training, of batches of 8 and 4 steps a pass."""

    class stream:
        batch_size = 8
        steps_per_pass = 4

    step = 0

    @property
    def passes(self) -> float:
        return self.step / 4


def train(path: Path, until: int, first: int = 1, loss: float = 1.0) -> None:
    run: Any = Run()
    with Curve(path, run) as curve:
        for run.step in range(first, until + 1):
            curve.known([StepTaken(run.step, loss, 1e-3, 3.0, 0.5)])


def test_what_a_slice_has_noted_is_there_when_it_ends_however_it_does(tmp_path: Path) -> None:
    run: Any = Run()
    with pytest.raises(FloatingPointError), Curve(tmp_path / "0.csv", run) as curve:
        run.step = 1
        curve.known([StepTaken(1, 0.7, 1e-3, 3.0, 0.5)])
        raise FloatingPointError("the loss became nan")
    (row,) = csv.DictReader((tmp_path / "0.csv").read_text().splitlines())
    assert row == {
        "step": "1",
        "passes": "0.25",
        "loss": "0.7",
        "learning_rate": "0.001",
        "gradient_norm": "3",
        "images_per_second": "16",
    }


def test_a_line_is_the_mean_of_the_steps_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.train.curve.has_point", lambda step: step % 4 == 0)
    run: Any = Run()
    with Curve(tmp_path / "0.csv", run) as curve:
        for run.step in range(1, 10):
            curve.known([StepTaken(run.step, float(run.step), 1e-3, run.step * 10.0, run.step / 10)])
    rows = list(csv.DictReader((tmp_path / "0.csv").read_text().splitlines()))
    assert [(row["step"], row["loss"], row["gradient_norm"]) for row in rows] == [
        ("4", "2.5", "25"),
        ("8", "6.5", "65"),
    ]
    assert [float(row["images_per_second"]) for row in rows] == pytest.approx([32, 32 / 2.6], rel=1e-6)


def test_it_is_written_about_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    append = CurveFile.append
    monkeypatch.setattr(CurveFile, "append", lambda file, points: (written.append(len(points)), append(file, points)))
    clock = itertools.count(step=0.25)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    train(tmp_path / "0.csv", 20)
    assert sum(written) == 20
    assert len(written) <= 6


def test_a_full_disk_costs_lines_and_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "0.csv"
    train(path, 3)
    with monkeypatch.context() as full:

        def refuse(*arguments: Any, **named: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        full.setattr(Path, "open", refuse)
        train(path, 6, first=4)
    train(path, 9, first=7)
    assert steps(path) == [1, 2, 3, 7, 8, 9]


def test_a_curve_that_is_something_else_or_nowhere_to_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("head\nnotes of mine\n")
    train(tmp_path / "0.csv", 3)
    assert (tmp_path / "0.csv").read_text() == "head\nnotes of mine\n"
    (tmp_path / "curves").write_text("a file")
    train(tmp_path / "curves" / "0.csv", 3)


def test_a_diverging_loss_is_shown_as_it_is(tmp_path: Path) -> None:
    train(tmp_path / "0.csv", 1, loss=math.inf)
    assert ",inf," in (tmp_path / "0.csv").read_text()
