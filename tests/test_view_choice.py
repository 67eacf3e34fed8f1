"""The view is decided by evidence before the search, as far as that can be had in time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts.data import source
from parts.notes import Notes
from PIL import Image

from autoft.data.dataset import open_dataset
from autoft.engine.engine import begin
from autoft.engine.sitting import Sitting
from autoft.parts.base import Task
from autoft.parts.host import Host
from autoft.runners.inline import InlineRunner
from autoft.study import views
from autoft.study.run import Run
from autoft.study.study import Study
from autoft.study.views import Comparison
from autoft.system.clock import RunClock
from autoft.system.parallel import never_stop
from autoft.system.stopwatch import Stopwatch
from autoft.tasks.regression import Regression
from autoft.tasks.single_label import SingleLabel
from autoft.train.job import TooLate
from autoft.train.row_table import RowTable
from autoft.train.views import Judged, built_for, compare_views, judge, out_of_fold
from autoft.train.workshop import Workshop
from autoft.values.target import Targets

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")
CLASSES = SingleLabel().on(Targets("single_label", "one_of", ("a", "b", "c", "d")))
ACCURACY = CLASSES.metric("accuracy")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no difference but where a test is about time."""
    monkeypatch.setattr(views, "MOST_SECONDS", 600.0)
    monkeypatch.setattr(views, "SHARE", 1.0)


def bars(folder: Path, shape: tuple[int, int], each: int = 14) -> Path:
    """Images of noise whose left and right edges alone have the colour of their class."""
    rng, (width, height) = np.random.default_rng(0), shape
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 128, (height, width, 3), np.uint8)
            edge = (width - height) // 2
            pixels[:, :edge, channel] += 120
            pixels[:, width - edge :, channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def study_of(data: Path, **options) -> Study:
    asked = {"backbones": ("small/test_resnet",), "image_size": 64, "runner": "inline", **options}
    return Study(data=str(data), plugins=(ZOO,), **asked)


def begun(study: Study, out: Path, began: float = 0.0) -> tuple[Run, list[str]]:
    notes, now = Notes(), time.time()
    sitting = Sitting(
        Host.discover(study.plugins), InlineRunner(), notes, Stopwatch(now), RunClock(now - began, study.time)
    )
    return begin(study, source(Path(study.data)), out, sitting), notes.lines


def said(lines: list[str]) -> str:
    found = [line for line in lines if line.startswith(("view ", "the centre square"))]
    assert len(found) <= 1
    return "".join(found)


# ---------------------------------------------------------------- the choice


def outputs_right(share: float, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Outputs `(n, 4)` of which that share, from the front, is right, and the classes `(n,)`."""
    targets = np.arange(n) % 4
    answers = np.where(np.arange(n) < share * n, targets, (targets + 1) % 4)
    return np.eye(4, dtype=np.float32)[answers], targets


def test_the_best_view_is_taken_only_if_it_is_clearly_better_than_the_usual_one() -> None:
    (usual, targets), (better, _), (best, _) = (outputs_right(share) for share in (0.8, 0.9, 0.95))
    same = outputs_right(0.83)[0]  # right about 12 more images
    same[:10] = same[:10][:, [1, 2, 3, 0]]  # and wrong about 10 others
    assert judge({"crop": usual, "squash": same}, targets, CLASSES, ACCURACY).best == "crop"
    assert judge({"crop": usual, "squash": usual}, targets, CLASSES, ACCURACY).best == "crop"
    assert judge({"crop": usual, "squash": better, "pad": best}, targets, CLASSES, ACCURACY).best == "pad"
    assert judge({"squash": best, "crop": usual, "pad": better}, targets, CLASSES, ACCURACY).best == "squash"


def test_what_two_views_are_both_wrong_about_is_no_noise_between_them() -> None:
    (usual, targets), (better, _) = outputs_right(0.5), outputs_right(0.52)
    gain, error = judge({"crop": usual, "squash": better}, targets, CLASSES, ACCURACY).gains["squash"]
    assert gain == pytest.approx(0.02)
    assert error < 0.01  # of two draws by themselves it would be .035


def test_of_a_loss_less_is_better() -> None:
    task = Regression().on(Targets("regression", "numbers", ("x",), (0.0,), (1.0,)))
    targets = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32)
    outputs = {"crop": targets + 1.0, "squash": targets + 0.1}
    found = judge(outputs, targets, task, task.metric("mae"))
    assert found.best == "squash" and found.scores["squash"] == pytest.approx(-0.1, abs=1e-4)


def test_a_view_whose_metric_has_no_figure_is_not_taken() -> None:
    assert Judged({"crop": 0.5, "squash": float("nan")}, {"squash": (float("nan"), 0.0)}, 9).best == "crop"


def test_no_head_judges_images_that_it_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    features, targets = torch.from_numpy(rng.standard_normal((200, 400)).astype(np.float32)), rng.integers(4, size=200)
    fitted = CLASSES.closed_form(features, torch.from_numpy(targets), never_stop)
    assert fitted is not None
    inside = (features @ fitted.weight.T + fitted.bias).argmax(dim=1).numpy()
    outside = out_of_fold(CLASSES, features, targets, never_stop).argmax(axis=1)
    assert (inside == targets).mean() > 0.6 and (outside == targets).mean() < 0.4  # one in four by chance


# ---------------------------------------------------------------- in a run


def test_a_run_takes_the_view_that_shows_what_tells_classes_apart(tmp_path: Path) -> None:
    run, lines = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    record = Run.open(run.folder.path).record
    assert record.study.view == "auto" and record.view in ("squash", "pad")
    assert record.compared is not None and record.compared.view == record.view
    assert list(record.compared.figures) == ["crop", "squash", "pad"]
    assert record.compared.images == record.data.counts["train"] + record.data.counts["val"]
    assert record.compared.figures[record.view] > record.compared.figures["crop"] + 0.3
    figure = f"{record.compared.figures[record.view]:.4f}"
    assert said(lines).startswith(f"view {record.view}: out-of-fold accuracy {figure}")
    assert {view for _, _, view in record.squares} == {record.view}


def test_the_candidates_have_the_size_of_the_view_that_was_chosen(tmp_path: Path) -> None:
    data = bars(tmp_path / "data", (64, 48))
    run, _ = begun(study_of(data, image_size=0), tmp_path / "run")
    asked, _ = begun(study_of(data, image_size=0, view=run.record.view), tmp_path / "asked")
    assert run.record.view != "crop"
    assert run.record.candidates == asked.record.candidates and run.record.backbones == asked.record.backbones


def test_square_images_and_a_view_that_was_asked_for_are_not_compared(tiny_images: Path, tmp_path: Path) -> None:
    square, lines = begun(study_of(tiny_images), tmp_path / "square")
    assert (square.record.view, square.record.compared, said(lines)) == ("crop", None, "")
    data = bars(tmp_path / "data", (42, 32))
    asked, lines = begun(study_of(data, view="crop"), tmp_path / "asked")
    assert (asked.record.view, asked.record.compared) == ("crop", None)
    assert said(lines) == "the centre square shows 76 % of a median image; --view squash shows all"


def test_of_many_images_a_sample_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(views, "WHOLE", 10)
    monkeypatch.setattr(views, "MOST", 30)
    run, _ = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    assert run.record.view != "crop" and run.record.compared is not None and run.record.compared.images == 30
    # The images as a whole have been decoded in the usual view and in the one that was chosen, and in no other.
    whole = {path.name.split("-")[3] for path in (own_cache / "pixels").glob(f"{run.record.data.fingerprint}-*.npy")}
    assert whole == {"crop", run.record.view}


def test_images_apart_are_those_of_the_whole(tmp_path: Path) -> None:
    found = source(bars(tmp_path / "data", (42, 32)))
    square = (32, "bicubic", "squash")
    dataset = open_dataset(found, 0, [square], 1)
    few = dataset.apart("train+val", 12, [square], 1, never_stop)
    rows = [next(s.row for s in dataset.samples if s.path == one.path) for one in few.samples]
    assert np.array_equal(few.pixels(*square)[few.rows("train+val")], dataset.pixels(*square)[rows])
    assert sorted(few.targets("train+val").tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert not {s.path for s in few.samples} & {s.path for s in dataset.samples if s.split == "test"}


# ---------------------------------------------------------------- what it costs


def test_the_first_probe_finds_the_features_that_the_view_was_chosen_by(tmp_path: Path) -> None:
    run, _ = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    shop, candidate = Workshop(run, run.host()), run.record.candidates[0]
    images, network = shop.images(candidate.trial(0, {}, 0)), shop.network(candidate.backbone)
    rows = np.concatenate([shop.dataset.rows(split) for split in ("train", "val")])
    assert run.record.view != "crop"
    with RowTable.open(shop.features.path(network, images), len(images.pixels), network.dim, False) as table:
        assert len(list(table.read(rows))) == len(rows)


def test_with_too_little_time_the_usual_view_is_taken_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOST_SECONDS", 1e-9)
    run, lines = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    assert (run.record.view, run.record.compared) == ("crop", None)
    assert said(lines).endswith("(views were not compared: there is too little time)")


def test_a_task_without_a_closed_form_takes_the_usual_view(tmp_path: Path) -> None:
    class Own(SingleLabel):
        name = "own"
        closed_form = Task.closed_form

    found = source(bars(tmp_path / "data", (42, 32)))
    host = Host.discover((ZOO,))
    backbones = [one for one in host.backbones() if one.name == "small/test_resnet"]
    other = type(found)(found.found, Own().on(found.task.targets))
    comparison = Comparison.of(study_of(tmp_path / "data"), backbones, other, 2)
    assert comparison is not None and comparison.obstacle == "task 'own' has no closed form"
    assert not comparison.squares_of_all


def test_a_comparison_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.engine.views.PATIENCE", 0.0)
    threads = torch.get_num_threads()
    run, lines = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    assert (run.record.view, run.record.compared) == ("crop", None)
    assert said(lines).endswith("(views were not compared: it took too much of the time)")
    assert torch.get_num_threads() == threads


def test_too_few_features_in_time_are_no_evidence(tmp_path: Path) -> None:
    data = bars(tmp_path / "data", (42, 32))
    study, found, host = study_of(data), source(data), Host.discover((ZOO,))
    backbones = [one for one in host.backbones() if one.name == "small/test_resnet"]
    comparison = Comparison.of(study, backbones, found, 2)
    assert comparison is not None and comparison.whole
    dataset, networks = open_dataset(found, 0, comparison.squares, 1), built_for(comparison.looks, host, "last stage")
    with pytest.raises(TooLate, match="there was time for"):
        compare_views(dataset, replace(comparison, seconds=0.0), networks, "accuracy", never_stop)


def test_a_backbone_that_fails_costs_the_comparison_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, backbone):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(Host, "build", broken)
    run, lines = begun(study_of(bars(tmp_path / "data", (42, 32))), tmp_path / "run")
    assert (run.record.view, run.record.compared) == ("crop", None)
    assert "views were not compared: " in said(lines) and "no such luck" in said(lines)


def test_the_most_promising_backbone_that_is_not_too_dear_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MOST_SECONDS", 15.0)
    found, host = source(bars(tmp_path / "data", (42, 32), each=60)), Host.discover((ZOO,))
    cheap = next(one for one in host.backbones() if one.name == "small/test_resnet")
    dear = type(cheap)(**{**vars(cheap), "name": "small/dear", "parameters": 10**10})
    also = type(cheap)(**{**vars(cheap), "name": "small/also"})
    chosen = [
        Comparison.of(study_of(tmp_path / "data"), some, found, 2) for some in ((cheap, also), (dear, cheap), (dear,))
    ]
    assert [one.looks[0].backbone.name for one in chosen if one] == ["small/test_resnet"] * 2 + ["small/dear"]
    assert [one.obstacle for one in chosen if one] == ["", "", "there is too little time"]
