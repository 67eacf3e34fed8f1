from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from parts.data import dataset as make_dataset
from parts.exported import SIZE, Tiny, handoff, torch_logits
from torch import nn

import autoft
from autoft import Artifact, Backbone, Candidate, DataError, GateFailed, InputSpec, Report, Space
from autoft.builtin.onnx_exporter import OnnxExporter
from autoft.bundle.build import Bundle, write_bundle
from autoft.bundle.onnx_runtime import PixelModel
from autoft.bundle.order import Order
from autoft.bundle.parity import FULL, LEAST_IMAGES, QUICK
from autoft.bundle.standalone.verify import verify
from autoft.data.dataset import Dataset
from autoft.engine.conclude import handoff_of
from autoft.parts.host import Host
from autoft.study.record import Machine, StudyRecord, Taken, WarmStart
from autoft.study.study import Study
from autoft.system.stopwatch import Stopwatch
from autoft.values.bundle import Latency, Manifest, MetricsReport, ParityReport, Vectors
from autoft.values.codec import decode
from autoft.values.dataset import SplitName
from autoft.values.handoff import Begun, Handoff, Layout, Preprocess, View
from autoft.values.ledger import TrialRecord
from autoft.values.target import MetricFacts

FILES = {
    "model.onnx",
    "model.core.onnx",
    "labels.json",
    "images.json",
    "preprocess.json",
    "parity.json",
    "metrics.json",
    "latency.json",
    "MODEL_CARD.md",
    "manifest.json",
    "verify.py",
    "examples/infer.py",
    "examples/infer.mjs",
    "LICENSES/NOTICE.txt",
    "test_vectors/vectors.json",
}


@pytest.fixture
def dataset(tiny_images: Path) -> Dataset:
    return make_dataset(tiny_images, {(SIZE, "bicubic", "crop")})


@pytest.fixture
def order(dataset: Dataset) -> Order:
    model = Tiny(3).eval()
    labels = dataset.info.targets.names
    return Order(handoff(labels=labels), lambda x: torch_logits(model, x), dataset, "test", QUICK, "image", {})


def exports(order: Order, folder: Path) -> Iterator[Artifact]:
    return OnnxExporter().export(Tiny(3).eval(), order.handoff, folder)


def written(order: Order, folder: Path) -> Bundle:
    return write_bundle(order, exports(order, folder), folder, Stopwatch(0))


def spoilt(order: Order, folder: Path) -> Iterator[Artifact]:
    """The first file says something else than torch, the second what it should."""
    artifact = next(exports(order, folder))
    model = onnx.load(folder / "model.core.onnx")
    weights = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [3, 3])
    weights.CopyFrom(onnx.numpy_helper.from_array(np.eye(3, dtype=np.float32)[::-1].copy(), weights.name))
    onnx.save(model, folder / "model.core.onnx")
    yield dataclasses.replace(artifact, exporter="way 0")
    yield dataclasses.replace(next(exports(order, folder)), exporter="way 1")


@pytest.mark.parametrize(("layout", "view"), [("image", "crop"), ("batch", "squash"), ("image", "pad")])
def test_a_bundle_is_whole_and_verifies_itself(order: Order, tmp_path: Path, layout: Layout, view: View) -> None:
    folder = tmp_path / "bundle"
    recipe = dataclasses.replace(order.handoff.preprocess, view=view)
    of_view = dataclasses.replace(order, layout=layout, handoff=dataclasses.replace(order.handoff, preprocess=recipe))
    bundle = written(of_view, folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= FILES
    manifest = decode(Manifest, (folder / "manifest.json").read_text())
    assert set(manifest.files) == names - {"manifest.json"}
    outcome = verify(folder)
    assert (outcome.problems, outcome.files) == ([], len(manifest.files))
    vectors = decode(Vectors, (folder / "test_vectors" / "vectors.json").read_text())
    assert outcome.vectors == len(vectors.vectors) <= 20
    sizes = {(vector.height, vector.width) for vector in vectors.vectors}
    assert {(1, 1), (397, 41), (1225, 1633)} <= sizes
    assert bundle.model_bytes == (folder / "model.onnx").stat().st_size


def test_its_files_say_what_was_measured(order: Order, tmp_path: Path) -> None:
    bundle = written(order, tmp_path / "b")
    read = {path.name: path.read_text() for path in (tmp_path / "b").glob("*.json")}
    assert tuple(json.loads(read["labels.json"])) == order.handoff.labels
    assert decode(Preprocess, read["preprocess.json"]) == order.handoff.preprocess
    assert decode(ParityReport, read["parity.json"]) == bundle.parity
    metrics = decode(MetricsReport, read["metrics.json"])
    assert (metrics.split, metrics.n, metrics.correct) == ("test", bundle.scores.n, bundle.scores.correct)
    assert metrics.metrics["accuracy"].value == bundle.scores.metrics["accuracy"]
    assert metrics.calibration == bundle.calibration
    assert PixelModel(tmp_path / "b" / "model.onnx").calibration.temperature == bundle.calibration.temperature
    latency = decode(Latency, read["latency.json"])
    assert {(timing.file, timing.batch) for timing in latency.timings} >= {("model.core.onnx", n) for n in (1, 8, 32)}
    assert f"{metrics.correct}" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_figures_say_whether_shares_of_classes_help_where_training_weighed_these_alike(
    tiny_images: Path, tmp_path: Path
) -> None:
    for one in sorted((tiny_images / "red").iterdir())[6:]:
        one.unlink()
    dataset, model = make_dataset(tiny_images, {(SIZE, "bicubic", "crop")}), Tiny(3).eval()
    made = dataclasses.replace(handoff(labels=dataset.info.targets.names), balance="weights")
    order = Order(made, lambda x: torch_logits(model, x), dataset, "test", QUICK, "image", {})
    written(order, tmp_path / "b")
    found = decode(MetricsReport, (tmp_path / "b" / "metrics.json").read_text()).prior_correction
    assert found is not None
    assert found.n == dataset.info.counts["val"]
    sizes = np.bincount(dataset.targets("train"))
    assert found.shares == pytest.approx(sizes / sizes.sum())
    assert f"{found.log_loss_before:.3f} as they come" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_nothing_of_this_machine_is_in_it(order: Order, tiny_images: Path, tmp_path: Path) -> None:
    written(order, tmp_path / "b")
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (tiny_images, tmp_path, Path.home(), Path.cwd()):
                assert str(place).encode() + b"/" not in content, path


def test_validation_figures_leave_the_test_split_shut(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[SplitName] = set()
    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, split: seen.add(split) or rows(self, split))
    bundle = written(dataclasses.replace(order, reported="val"), tmp_path / "b")
    assert seen == {"val"}
    assert bundle.scores == bundle.validation
    assert "optimistic" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_the_next_way_is_taken_when_one_is_refused_and_it_is_recorded(order: Order, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    bundle = write_bundle(order, spoilt(order, folder), folder, Stopwatch(0))
    assert bundle.parity.exporter == "way 1"
    (refused,) = bundle.parity.refused
    assert refused.startswith("way 0: model.core.onnx is refused: on ")
    assert verify(folder).problems == []


def test_no_bundle_when_no_way_agrees(order: Order, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    one = (artifact for artifact, _ in zip(spoilt(order, folder), range(1), strict=False))
    with pytest.raises(GateFailed, match=r"way 0: .*worst: .*\.png") as caught:
        write_bundle(order, one, folder, Stopwatch(0))
    assert caught.value.exit_code == 3
    assert not (folder / "manifest.json").exists()


def test_ways_that_fail_are_recorded_with_those_that_are_refused(order: Order, tmp_path: Path) -> None:
    good = exports(order, tmp_path / "b")
    failed = (dataclasses.replace(artifact, failed=("dynamo: no such operator",)) for artifact in good)
    assert write_bundle(order, failed, tmp_path / "b", Stopwatch(0)).parity.refused == ("dynamo: no such operator",)


def test_a_way_that_failed_is_recorded_once_however_many_come_after_it(order: Order, tmp_path: Path) -> None:
    ways = spoilt(order, tmp_path / "b")
    failed = (dataclasses.replace(artifact, failed=("dynamo: no such operator",)) for artifact in ways)
    first, second = write_bundle(order, failed, tmp_path / "b", Stopwatch(0)).parity.refused
    assert first == "dynamo: no such operator"
    assert second.startswith("way 0: ")


def test_what_is_no_core_is_refused_and_named_without_its_place(order: Order, tmp_path: Path) -> None:
    def nonsense() -> Iterator[Artifact]:
        artifact = next(exports(order, tmp_path / "b"))
        model = onnx.load(tmp_path / "b" / "model.core.onnx")
        model.ir_version = 9
        onnx.save(model, tmp_path / "b" / "model.core.onnx")
        yield dataclasses.replace(artifact, exporter="newer")
        (tmp_path / "b" / "model.core.onnx").write_bytes(b"no model")
        yield dataclasses.replace(artifact, exporter="none")

    with pytest.raises(GateFailed, match=r"newer: .*IR.*none: model\.core\.onnx is no ONNX file") as caught:
        write_bundle(order, nonsense(), tmp_path / "b", Stopwatch(0))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("split", ["val", "test"])
def test_logits_that_are_not_finite_are_refused(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: SplitName
) -> None:
    order.compared  # noqa: B018  the images of the gate are fine
    rows = order.dataset.rows(split)
    inputs = Order.inputs
    monkeypatch.setattr(
        Order, "inputs", lambda self, asked: inputs(self, asked) * (np.nan if set(asked) == set(rows) else 1)
    )
    with pytest.raises(GateFailed, match=f"no finite logits for {len(rows)} of {len(rows)} {split} images"):
        written(order, tmp_path / "b")


def test_a_bundle_is_written_even_where_its_speed_cannot_be_measured(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoft.bundle.build._LATENCY_TIMEOUT", 0.01)
    written(order, tmp_path / "b")
    assert verify(tmp_path / "b").problems == []
    latency = decode(Latency, (tmp_path / "b" / "latency.json").read_text())
    assert (latency.machine, latency.timings) == ("not measured: there was no time for it", ())
    assert "not measured" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("late", [False, True])
def test_a_further_exporter_takes_no_more_than_the_time_that_is_left(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """One that waits for ever and takes every exception for its own is ended; where a run is late, none begins."""
    monkeypatch.setattr("autoft.bundle.build._LEAST_LATENCY_TIMEOUT", 0.01)
    began: list[str] = []

    def endless(folder: Path) -> Iterator[Artifact]:
        began.append("waiting")
        while True:
            with contextlib.suppress(Exception):
                time.sleep(3600.0)
        yield

    left = iter([-9.0] * 3 if late else [0.5, 600.0, 600.0])
    further = {"endless": endless, "after": lambda folder: exports(order, folder)}
    bundle = written(dataclasses.replace(order, beside=further, seconds_left=lambda: next(left)), tmp_path / "b")
    first, after = bundle.parity.beside
    assert (first.path, first.note) == ("", "there was no time for it; autoft export writes it")
    assert (after.path == "", began) == (late, [] if late else ["waiting"])
    assert verify(tmp_path / "b").problems == []
    assert "there was no time for it" in (tmp_path / "b" / "MODEL_CARD.md").read_text()


def test_the_full_gate_compares_with_optimisations_on_and_off(order: Order, tmp_path: Path) -> None:
    bundle = written(dataclasses.replace(order, gate=FULL), tmp_path / "b")
    assert {(one.batch, one.optimised) for one in bundle.parity.core} == {
        (1, True),
        (8, True),
        (1, False),
        (8, False),
    }


def test_images_that_are_gone_are_named(order: Order, tiny_images: Path, tmp_path: Path) -> None:
    assert order.compared.names  # torch has seen them in the cache
    shutil.rmtree(tiny_images / "blue")
    with pytest.raises(DataError, match=r"blue/\d+\.png: no such file"):
        written(order, tmp_path / "b")


def test_what_goes_with_a_model_names_no_place_on_this_machine(dataset: Dataset) -> None:
    candidate = Candidate("zoo/net", "probe", SIZE, Space({}))
    taken = Taken(0, "zoo/net", "probe", SIZE, {}, 0.5)
    study = StudyRecord(
        study=Study(data=dataset.info.root, seed=6),
        data=dataset.info,
        view="pad",
        backbones=(Backbone("zoo/net", 15, InputSpec(64), "mit", source="/home/me/weights/net.pth"),),
        candidates=(candidate,),
        plugins=(),
        versions={},
        machine=Machine("inline", 1, 1, "cpu"),
        metric=MetricFacts("accuracy"),
        warm_start=WarmStart("/home/me/runs/first", "accuracy", 0.5, (taken,), {}),
    )
    report = Report(0, "finished", 1.0, 0.75, 2.0)
    record = TrialRecord(candidate.trial(0, {}, 0), (), (report,))
    made = handoff_of(study, record, record)
    assert made.backbone.source == "net.pth"
    assert (made.begun, made.search_seed) == (Begun("first", 1), 6)
    assert (made.preprocess.size, made.preprocess.view) == (SIZE, "pad")
    assert (made.validation_score, made.targets) == (0.75, dataset.info.targets)


# ---------------------------------------------------------------- what was scored


def scored_by(model: Tiny, order: Order) -> np.ndarray:
    return torch_logits(model, order.inputs(order.dataset.rows("val")))


def test_what_was_scored_is_not_computed_again(order: Order, tmp_path: Path) -> None:
    asked: list[int] = []

    def reference(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return torch_logits(Tiny(3).eval(), images)

    known = dataclasses.replace(order, scored=scored_by(Tiny(3).eval(), order), reference=reference)
    bundle = written(known, tmp_path / "known")
    assert sum(asked) < 5 + 14 + 1  # one to warm up, four to see that it is the same, and the test vectors
    assert bundle.validation.metrics == pytest.approx(written(order, tmp_path / "unknown").validation.metrics)


def test_a_frozen_tensor_that_changed_after_scoring_is_refused(order: Order, tmp_path: Path) -> None:
    then = Tiny(3).eval()
    with torch.no_grad():
        then.head.weight.mul_(0.9)  # the exported one has the weights that came instead
    with pytest.raises(GateFailed, match=r"not those that were scored: on 4 validation .* differ by up to [\d.]+, "):
        written(dataclasses.replace(order, scored=scored_by(then, order)), tmp_path / "b")


def test_a_file_that_is_not_what_was_scored_is_refused(order: Order, tmp_path: Path) -> None:
    """torch agrees with what was scored, the file does not."""
    folder = tmp_path / "b"
    known = dataclasses.replace(order, scored=scored_by(Tiny(3).eval(), order))
    one = (artifact for artifact, _ in zip(spoilt(order, folder), range(1), strict=False))
    with pytest.raises(GateFailed, match=r"way 0: model\.core\.onnx is refused"):
        write_bundle(known, one, folder, Stopwatch(0))


def test_after_a_search_on_a_gpu_torch_is_asked_again(order: Order, tmp_path: Path) -> None:
    exact = scored_by(Tiny(3).eval(), order)
    rough = (exact * (1 + 3e-3 * np.random.default_rng(0).normal(size=exact.shape))).astype(np.float32)
    kept = dataclasses.replace(order, scored=rough)
    np.testing.assert_array_equal(kept.compared.logits, order.compared.logits)
    assert written(kept, tmp_path / "b").parity.core[0].max_delta < 1e-4


def test_a_slow_network_is_compared_on_fewer_images(order: Order) -> None:
    gate = dataclasses.replace(QUICK, seconds=1e-9)
    few = dataclasses.replace(order, gate=gate).compared
    assert len(few.names) == min(LEAST_IMAGES, len(order.dataset.rows("val")))
    assert {sample.label for sample in few.samples} == {"red", "green", "blue"}


def test_seconds_go_to_phases(order: Order, tmp_path: Path) -> None:
    watch = Stopwatch(0)
    write_bundle(order, exports(order, tmp_path / "b"), tmp_path / "b", watch)
    seconds = watch.seconds()
    assert {"export", "gate", "test", "bundle"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())


# ---------------------------------------------------------------- further exporters


class Silent(autoft.Exporter):
    name = "silent"

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        return None  # type: ignore[return-value]


class Lost(autoft.Exporter):
    """Gives the path of a file that is somewhere else, or none."""

    def __init__(self, name: str, path: str) -> None:
        self.name, self.path = name, path

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        yield Artifact(self.path, "text", 0, 7, "0" * 64, "as text")


class Raises(autoft.Exporter):
    name = "raises"

    def export(self, classifier: nn.Module, handoff: Handoff, folder: Path) -> Iterator[Artifact]:
        raise ValueError(f"cannot write {folder}/model.bin")


class Exporters:
    """A plugin with them."""

    @autoft.hookimpl
    def autoft_exporters(self) -> list[autoft.Exporter]:
        return [Silent(), Lost("lost", "elsewhere/model.txt"), Lost("nameless", ""), Raises()]


def test_why_an_exporter_has_nothing_in_the_bundle_is_said_without_paths_of_this_machine(
    order: Order, tmp_path: Path
) -> None:
    host = Host.discover(objects=[Exporters()])
    names = ("silent", "lost", "nameless", "raises")
    further = {name: partial(host.part(autoft.Exporter, name).export, None, order.handoff) for name in names}
    folder = tmp_path / "b"
    bundle = written(dataclasses.replace(order, beside=further), folder)
    wanted = "Artifact.path names a file in the folder that export() is given"
    assert {one.exporter: one.note for one in bundle.parity.beside} == {
        "silent": "TypeError: it gave None; it yields each autoft.Artifact that is written",
        "lost": f"model.txt is not there; {wanted}",
        "nameless": f"a file without a name is not there; {wanted}",
        "raises": "ValueError: cannot write model.bin",
    }
    assert not (folder / "beside").exists()
    assert str(tmp_path) not in (folder / "parity.json").read_text()


def test_what_further_exporters_write_stands_beside_the_model(order: Order, tmp_path: Path) -> None:
    def as_text(folder: Path) -> Iterator[Artifact]:
        (folder / "model.txt").write_text("a model")
        yield Artifact("bundle/model.txt", "text", 0, 7, "0" * 64, "as text")

    def failing(folder: Path) -> Iterator[Artifact]:
        (folder / "half.bin").write_text("half")
        raise RuntimeError("no such operator")
        yield

    further = {
        "good": lambda folder: exports(order, folder),
        "spoilt": lambda folder: (artifact for artifact, _ in zip(spoilt(order, folder), range(1), strict=False)),
        "text": as_text,
        "failing": failing,
    }
    folder = tmp_path / "b"
    bundle = written(dataclasses.replace(order, beside=further), folder)
    good, refused, text, failed = bundle.parity.beside
    assert (good.path, good.note) == ("beside/good/model.core.onnx", "")
    assert good.parity is not None
    assert good.parity.max_delta <= good.parity.limit
    assert refused.path == ""
    assert "is refused" in refused.note
    assert (text.path, text.note) == ("beside/text/model.txt", "not compared: text is not run here")
    assert (failed.path, failed.note) == ("", "RuntimeError: no such operator")
    listed = decode(Manifest, (folder / "manifest.json").read_text()).files
    assert {name for name in listed if name.startswith("beside/")} == {good.path, text.path}
    assert not (folder / "beside" / "failing").exists()
    assert verify(folder).problems == []
    card = (folder / "MODEL_CARD.md").read_text()
    assert "exporter text: beside/text/model.txt; not compared" in card
    assert "exporter spoilt: nothing" in card
