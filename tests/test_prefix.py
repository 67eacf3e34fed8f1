"""A frozen prefix is never computed twice, and what is trained from it is what is trained without it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parts.small_run import ZOO, small_run

from autoft.store import Checkpoint
from autoft.system.disk_cache import cache_root
from autoft.system.signals import Cancelled
from autoft.train import prefix as module
from autoft.train.classifier import Classifier
from autoft.train.job import Job
from autoft.train.prefix import Beginning, Prefix, entrance
from autoft.train.worker import Worker
from autoft.train.workshop import Workshop
from autoft.values.codec import encode
from autoft.values.plan import Recipe
from autoft.values.trial import Parent, Report, Slice, Trial

FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")
FOREVER = 1e12


@pytest.fixture
def run(tiny_images, tmp_path):
    return small_run(tiny_images, tmp_path / "run")


def worker_of(run, cancelled=lambda: False) -> Worker:
    host = run.host()
    return Worker(Workshop(run, host, cancelled))


@pytest.fixture
def worker(run) -> Worker:
    return worker_of(run)


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The rows that went through a prefix, in order."""
    rows: list[int] = []
    compute = Prefix._compute

    def counted(self, some):
        rows.extend(map(int, some))
        return compute(self, some)

    monkeypatch.setattr(Prefix, "_compute", counted)
    return rows


def trial(run, number: int, family: str = "test_resnet", freeze: str = "last_stages", **changes) -> Trial:
    (candidate,) = [c for c in run.record.candidates if (c.backbone, c.freeze) == (f"small/{family}", freeze)]
    params = {**candidate.space.starts[0], "batch_size": 8, **changes}
    return candidate.trial(number, params, seed=5)


def execute(worker: Worker, of: Trial, start: float, until: float) -> Report:
    report = worker.run(Job(Slice(of, start, until, FOREVER), origin=time.time()))
    assert report.error is None
    return report


def plainly(monkeypatch, worker: Worker, of: Trial, start: float, until: float) -> Report:
    """The same without a prefix."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "LARGEST_SHARE", 0.0)
        report = execute(worker, of, start, until)
    assert report.facts["prefix"].startswith("not kept: it would take 0.0 GiB")
    return report


def saved(run, number: int) -> Checkpoint:
    """The trial's latest checkpoint."""
    steps = [float(path.stem.partition("-")[2]) for path in run.folder.checkpoints.glob(f"{number:05d}-*.json")]
    found = run.checkpoints.load(Parent(number, max(steps)))
    assert found is not None and found.logits is not None
    return found


def assert_same(run, one: int, other: int) -> None:
    """Weights, averaged and raw, and logits of two trials."""
    this, that = saved(run, one), saved(run, other)
    np.testing.assert_allclose(this.logits, that.logits, rtol=1e-5, atol=1e-5)
    assert this.model.keys() == that.model.keys() and this.training.keys() == that.training.keys()
    for tensors, others in ((this.model, that.model), (this.training, that.training)):
        for name in (name for name in tensors if not name.startswith("moment.")):
            torch.testing.assert_close(tensors[name], others[name], rtol=1e-5, atol=1e-5)


def tables() -> list[Path]:
    return sorted((cache_root() / "prefixes").glob("*"))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_from_a_prefix_is_training_without_one(run, worker, monkeypatch, family):
    kept = execute(worker, trial(run, 0, family), 0.0, 3.0)
    plain = plainly(monkeypatch, worker, trial(run, 1, family), 0.0, 3.0)
    assert kept.facts["prefix"].startswith("kept up to ")
    assert kept.facts["prefix_mib"] > 0
    assert kept.score == plain.score
    assert_same(run, 0, 1)


def test_nothing_is_computed_twice(run, worker, computed):
    execute(worker, trial(run, 0), 0.0, 2.0)
    dataset = worker.shop.dataset
    used = {*map(int, dataset.rows("train")), *map(int, dataset.rows("val"))}
    assert len(computed) == len(set(computed)) and set(computed) <= used
    assert len(computed) >= len(used) - len(dataset.rows("train")) % 8  # a pass leaves what fills no batch
    execute(worker, trial(run, 0), 2.0, 9.0)
    execute(worker_of(run), trial(run, 1, learning_rate=1e-3), 0.0, 9.0)  # another trial, in another worker
    assert len(computed) == len(set(computed))


def test_pausing_changes_nothing(run, worker, monkeypatch):
    execute(worker, trial(run, 0), 0.0, 3.0)
    execute(worker, trial(run, 1), 0.0, 1.5)
    execute(worker_of(run), trial(run, 1), 1.5, 3.0)
    plainly(monkeypatch, worker, trial(run, 2), 0.0, 1.5)  # and with one and without in turns
    execute(worker, trial(run, 2), 1.5, 3.0)
    assert_same(run, 0, 1)
    assert_same(run, 0, 2)


def test_the_checkpoint_is_the_whole_model(run, worker):
    execute(worker, of := trial(run, 0), 0.0, 2.0)
    shop = worker.shop
    outputs = shop.outputs(shop.restored(saved(run, 0)), shop.images(of).batches(shop.dataset.rows("val")))
    np.testing.assert_allclose(outputs, saved(run, 0).logits, rtol=1e-5, atol=1e-5)


def test_a_child_has_the_prefix_of_its_parent(run, worker, monkeypatch):
    """Its frozen stages are those that the parent trained: other activations than those of the pretrained ones."""
    execute(worker, trial(run, 0), 0.0, 1.0)
    execute(worker, parent := trial(run, 1, freeze="full"), 0.0, 2.0)
    child, same = (replace(trial(run, number), parents=(Parent(parent.id, 2.0),)) for number in (2, 3))
    for start, until in ((0.0, 1.0), (1.0, 2.0)):
        assert execute(worker, child, start, until).facts["prefix"].startswith("kept")
    plainly(monkeypatch, worker, same, 0.0, 2.0)
    assert_same(run, 2, 3)
    assert len(tables()) == 2


@pytest.mark.parametrize(
    ("freeze", "changes", "why"),
    [
        ("full", {}, "the first stage trains"),
        ("bias_norm", {}, "the first stage trains"),
        ("last_stages", {"augment": "crop"}, "images are augmented"),
    ],
)
def test_where_nothing_is_constant_nothing_is_kept(run, worker, freeze, changes, why):
    report = execute(worker, trial(run, 0, freeze=freeze, **changes), 0.0, 1.0)
    assert report.facts["prefix"] == f"not kept: {why}"
    assert not tables()


def entered(worker: Worker, of: Trial, **plan) -> Beginning | Prefix:
    """Where that trial would train from, with a changed plan."""
    bench = worker.shop.bench(Job(Slice(of, 0.0, 1.0, FOREVER), time.time()))
    bench = replace(bench, plan=replace(bench.plan, **plan))
    classifier = Classifier.of(bench.network, 3)
    classifier.prepare(bench.plan, bench.trial.image_size)
    with entrance(bench, classifier) as found:
        assert isinstance(found, Beginning | Prefix)
        return found


def test_with_batch_norm_in_training_nothing_is_constant(run, worker):
    assert entered(worker, trial(run, 0), batch_norm="train").facts == {"prefix": "not kept: BatchNorm trains"}


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"mixup": 0.2}, "images are mixed"),
        ({"cutmix": 1.0}, "images are mixed"),
        ({"drop_path": 0.1}, "blocks are left"),
    ],
)
def test_what_is_drawn_anew_before_the_cut_is_not_kept(run, worker, recipe, why):
    found = entered(worker, trial(run, 0), recipe=Recipe(augment="none", **recipe))
    assert found.facts["prefix"].startswith(f"not kept: {why}")


def test_a_network_of_which_no_block_can_be_left_out_keeps_its_prefix(run, worker, monkeypatch):
    monkeypatch.setattr("autoft.train.classifier.drop_blocks", lambda *_: 0)
    found = entered(worker, trial(run, 0), recipe=Recipe(augment="none", drop_path=0.1))
    assert found.facts["prefix"].startswith("kept up to")


def test_dropout_lies_behind_a_prefix_and_is_of_training_alone(run, worker):
    bench = worker.shop.bench(Job(Slice(trial(run, 0), 0.0, 1.0, FOREVER), time.time()))
    bench = replace(bench, plan=replace(bench.plan, recipe=Recipe(augment="none", dropout=0.5)))
    classifier = Classifier.of(bench.network, 3)
    torch.nn.init.normal_(classifier.head.weight)
    classifier.prepare(bench.plan, bench.trial.image_size)
    with entrance(bench, classifier) as found:
        assert isinstance(found, Prefix)
        (batch,) = found.batches(np.arange(4))
        rest = found.rest(classifier)
        assert not torch.equal(rest(batch), rest(batch))
        scored = found.rest(classifier.eval())
        torch.testing.assert_close(scored(batch), scored(batch))


def test_a_network_that_cannot_be_cut_trains_as_a_whole(run, worker, monkeypatch):
    monkeypatch.setattr("autoft.parts.cut.Cut._is_exact", lambda *_: False)
    report = execute(worker, trial(run, 0), 0.0, 1.0)
    assert report.facts["prefix"] == "not kept: the network cannot be cut behind layer1.0"


def test_a_frozen_backbone_is_kept_to_its_end(run, worker):
    found = entered(worker, trial(run, 0), groups=())
    assert found.facts["prefix"] == "kept up to the end"


@pytest.mark.parametrize("folder", ["full", "closed"])
def test_without_room_training_goes_on_as_a_whole(run, worker, monkeypatch, folder):
    if folder == "full":
        monkeypatch.setenv("AUTOFT_CACHE_LIMIT", "0.00000001")
    else:
        (cache_root() / "prefixes").write_text("no folder")
    assert execute(worker, trial(run, 0), 0.0, 1.0).facts["prefix"].startswith("not kept: ")


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_file_heals(run, worker, computed, harm):
    execute(worker, trial(run, 0), 0.0, 3.0)
    execute(worker, trial(run, 1), 0.0, 1.0)
    before = len(computed)
    (file,) = tables()
    content = bytearray(file.read_bytes())
    content[len(content) // 4 :: 1001] = b"\x55" * len(content[len(content) // 4 :: 1001])
    {
        "flip": lambda: file.write_bytes(content),
        "cut": lambda: file.write_bytes(content[: len(content) // 2]),
        "delete": file.unlink,
    }[harm]()
    execute(worker, trial(run, 1), 1.0, 3.0)
    assert_same(run, 0, 1)
    assert len(computed) > before
    healed = len(computed)
    execute(worker, trial(run, 2), 0.0, 2.0)
    assert len(computed) == healed
    assert len(tables()) == 1


def test_a_slice_that_is_stopped_while_it_fills_leaves_nothing_wrong(run, worker, computed):
    with pytest.raises(Cancelled):
        execute(worker_of(run, lambda: bool(computed)), trial(run, 0), 0.0, 3.0)
    assert computed
    execute(worker, trial(run, 0), 0.0, 3.0)
    assert len(computed) == len(set(computed))
    cache_root().joinpath("prefixes", tables()[0].name).unlink()
    execute(worker, trial(run, 1), 0.0, 3.0)
    assert_same(run, 0, 1)


TWO = """
import sys, time
from pathlib import Path
from autoft.parts.host import Host
from autoft.train.job import Job
from autoft.train.worker import Worker
from autoft.values.codec import decode
from autoft.values.trial import Slice
plugin, run, ready, go, text = sys.argv[1:]
worker = Worker.open(Path(run), 1, "cpu", Host.discover((plugin,)).refs)
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.01)
report = worker.run(Job(decode(Slice, text), time.time()))
sys.exit(report.error)
"""


def test_two_processes_fill_it_at_once(run, worker, monkeypatch, tmp_path):
    go, processes = tmp_path / "go", []
    for number in (0, 1):
        text = encode(Slice(trial(run, number), 0.0, 3.0, FOREVER))
        arguments = [ZOO, run.folder.path, tmp_path / f"ready{number}", go, text]
        processes.append(subprocess.Popen([sys.executable, "-c", TWO, *map(str, arguments)], stderr=subprocess.PIPE))
    while not all((tmp_path / f"ready{number}").exists() for number in (0, 1)):
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    go.touch()
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    plainly(monkeypatch, worker, trial(run, 2), 0.0, 3.0)
    assert_same(run, 0, 2)
    assert_same(run, 1, 2)
    assert len(tables()) == 1


def test_filling_is_neither_the_pace_of_steps_nor_of_scoring(run, worker, monkeypatch):
    compute, slow = Prefix._compute, 0.05

    def slowly(self, rows):
        time.sleep(slow * len(rows))
        return compute(self, rows)

    monkeypatch.setattr(Prefix, "_compute", slowly)
    monkeypatch.setattr(module, "FEWEST_TIMED", 1)
    costs = execute(worker, trial(run, 0), 0.0, 1.0).costs
    assert costs.step < 4 * slow  # of eight rows
    assert costs.scoring < slow * len(worker.shop.dataset.rows("val"))
    assert slow < costs.image < 10 * slow  # what an image takes where nothing is kept, as when the test split is scored
