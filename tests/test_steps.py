"""Steps of training: averaged weights, readings, memory that does not suffice, and what keeps a step from a graph."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from autoft.media.image import resident
from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.base import Task
from autoft.system.faults import cause
from autoft.tasks.single_label import SingleLabel
from autoft.testing.training import everything, small_network
from autoft.train.average import Average
from autoft.train.by_gradient import _advance, _ending_seconds
from autoft.train.captured import EAGER_STEPS, MOST_EAGER_STEPS, Captured
from autoft.train.classifier import Classifier
from autoft.train.folding import FOLDED_FROM_PIXELS
from autoft.train.gradient import GradientRun
from autoft.train.halves import in_halves
from autoft.train.job import Job, TooLate
from autoft.train.readings import Readings, StepTaken
from autoft.train.worker import Worker
from autoft.values.target import Targets
from autoft.values.trial import Slice, Trial

CPU = torch.device("cpu")


def training() -> GradientRun:
    """Of all of a small network, eight images, in batches of four."""
    network = small_network()
    plan = everything(network)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    images = Images(pixels, network.input, CPU)  # type: ignore[arg-type]
    stream = TrainingStream(images, np.arange(8), np.arange(8) % 2, plan.recipe, 0)
    return GradientRun(Classifier.of(network, 2), plan, stream, task())


def task() -> Task:
    return SingleLabel().on(Targets("single_label", "one_of", ("a", "b")))


@pytest.mark.parametrize("steps", [0.0, 3.0, 50.0])
def test_the_average_is_timms_over_what_moves(steps: float) -> None:
    network = small_network()
    classifier = Classifier.of(network, 2)
    decay = np.exp(-1 / steps) if steps else 0.0
    theirs = ModelEmaV3(classifier, decay=decay, use_warmup=True)
    moved = [name for name in classifier.state_dict() if name.startswith(("backbone.0", "head"))]
    ours = Average(classifier, moved, steps)
    untouched = {name: one.clone() for name, one in ours.classifier.state_dict().items() if name not in moved}
    for step in range(1, 12):
        with torch.no_grad():
            for parameter in (*classifier.backbone[0].parameters(), *classifier.head.parameters()):
                parameter.add_(torch.randn_like(parameter))
            classifier.backbone[0][1].running_mean.add_(1.0)
            classifier.backbone[0][1].num_batches_tracked.add_(1)
        ours.update(torch.tensor(ours.weight(step)))
        theirs.update(classifier, step=step)
        for name, tensor in theirs.module.state_dict().items():
            torch.testing.assert_close(ours.classifier.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(ours.classifier.state_dict()[name], one) for name, one in untouched.items())


def test_every_step_is_read_once_in_order_some_steps_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.train.readings.STEPS_BEHIND", {"cpu": 3})
    readings = Readings(CPU)
    read = []
    for step in range(1, 8):
        readings.begin()
        read.append(readings.put(step, 0.1 * step, torch.tensor(1.0 * step), torch.tensor(2.0)))
    assert [len(steps) for steps in read] == [0, 0, 0, 1, 1, 1, 1]
    steps = [*(step for steps in read for step in steps), *readings.rest()]
    assert [(step.step, step.loss, step.gradient_norm) for step in steps] == [(n, 1.0 * n, 2.0) for n in range(1, 8)]
    assert readings.rest() == ()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_step_however_late_it_is_read(
    loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoft.train.readings.STEPS_BEHIND", {"cpu": 2})
    readings = Readings(CPU)
    for step, value in enumerate((1.0, loss, 1.0), start=1):
        readings.begin()
        readings.put(step, 0.1, torch.tensor(value), torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match=f"the loss became {loss} at step 2"):
        readings.rest()


class Clock:
    """Of a device that takes so long for each step, one behind the other, while the host runs ahead."""

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def moment(self) -> Moment:
        self.device = max(self.host, self.device)
        return Moment(self, self.device)


@dataclass
class Moment:
    clock: Clock
    at: float

    def wait(self) -> None:
        self.clock.host = max(self.clock.host, self.at)

    def seconds_since(self, earlier: Moment) -> float:
        return self.at - earlier.at


def test_a_step_has_the_seconds_that_the_device_took_however_early_it_was_queued_and_late_it_was_read() -> None:
    readings, clock = Readings(CPU), Clock()
    readings._behind, readings._moment = 8, clock.moment
    known = []
    for step in range(1, 13):
        readings.begin()
        clock.host += 0.001
        clock.device = max(clock.host, clock.device) + 0.05
        known += readings.put(step, 0.1, torch.tensor(1.0), torch.tensor(1.0))
        if step == 6:
            known += readings.rest()
            clock.host += 60.0  # a checkpoint
    known += readings.rest()
    assert [step.step for step in known] == [*range(1, 13)]
    assert [step.seconds for step in known] == pytest.approx([0.05] * 12, abs=0.002)


class Scarce:
    """A loss that runs out of memory on more than `most` images."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, [0]

    def loss(self, outputs: Tensor, targets: Tensor, recipe: object) -> Tensor:
        self.sizes.append(len(outputs))
        if len(outputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_step_that_does_not_fit_is_taken_in_halves_and_is_the_same_step(most: int) -> None:
    ample, scarce = training(), training()
    ample._task, scarce._task = Scarce(4), Scarce(most)  # type: ignore[assignment]
    for _ in range(3):
        (one,), (other,) = ample.advance(), scarce.advance()
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for name, tensor in ample.model_tensors().items():
        torch.testing.assert_close(scarce.model_tensors()[name], tensor, rtol=1e-3, atol=1e-4)
    fits = 1 << most.bit_length() - 1
    assert scarce.at_once == fits
    assert scarce.facts["images_at_once"] == fits
    assert "images_at_once" not in ample.facts


def test_one_image_that_does_not_fit_is_an_error() -> None:
    run = training()
    run._task = Scarce(0)  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        run.advance()


def test_a_batch_that_must_be_whole_and_does_not_fit_says_so() -> None:
    run = training()
    run.plan, run._task = replace(run.plan, batch_norm="train"), Scarce(3)  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run.advance()
    assert run.at_once > 4
    said = cause(caught.value)
    assert "out of memory; BatchNorm that trains needs all 4 images of a batch at a time; use smaller batches" in said


def test_a_forward_pass_that_does_not_fit_is_made_in_halves() -> None:
    seen = []

    def forward(images: Tensor) -> Tensor:
        seen.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images * 2

    images = torch.arange(11.0)
    assert torch.equal(in_halves(forward, images), images * 2)
    assert seen[0] == 11 and max(seen[1:]) == 6
    with pytest.raises(torch.OutOfMemoryError):
        in_halves(lambda images: forward(torch.zeros(9)), images)


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.rand()])
def test_a_network_that_draws_from_python_is_never_captured(draw: Callable[[], float]) -> None:
    """A graph would repeat the one draw of its capture for ever."""
    calls: list[float] = []

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(draw())
        return images.sum(), targets.sum()

    captured = Captured(step, torch.device("cuda"))
    for _ in range(MOST_EAGER_STEPS + 2):
        captured(torch.ones(2), torch.ones(2))
    assert len(set(calls)) == MOST_EAGER_STEPS + 2
    assert not captured.is_replaying
    assert captured.obstacle == "the network draws random numbers that are not torch's"


class Generator:
    """Of torch 2.9's kind: a capture that does not end well leaves it unable to draw."""

    def __init__(self) -> None:
        self.is_capturing, self.drawn = False, 0

    def clone_state(self) -> Generator:
        clone = Generator()
        clone.drawn = self.drawn
        return clone

    def graphsafe_set_state(self, state: Generator) -> None:
        self.is_capturing, self.drawn = state.is_capturing, state.drawn

    def draw(self) -> int:
        if self.is_capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.drawn += 1
        return self.drawn


@dataclass
class Cuda:
    """Stands for CUDA graphs whose captures end well, or do not."""

    ends_well: bool = True
    generator: Generator = field(default_factory=Generator)
    open_pools: set[tuple[int, int]] = field(default_factory=set)
    replayed: int = 0

    @contextmanager
    def graph(self, graph: object, pool: tuple[int, int], *_: object, **__: object) -> Iterator[None]:
        self.open_pools.add(pool)
        before, self.generator.is_capturing = self.generator.drawn, True
        try:
            yield
        finally:
            if not self.ends_well:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")
            self.end_allocating(0, pool)
            self.generator.is_capturing, self.generator.drawn = False, before

    def end_allocating(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.open_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open_pools.remove(pool)

    def replay(self) -> None:
        self.replayed += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    monkeypatch.setattr(torch.cuda, "default_generators", (found.generator,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: found)
    monkeypatch.setattr(torch.cuda, "graph", found.graph)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", found.end_allocating, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: None, raising=False)
    return found


def test_after_a_capture_that_fails_the_step_goes_on_drawing_where_it_was(cuda: Cuda) -> None:
    drawn: list[int] = []

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not cuda.generator.is_capturing:
            drawn.append(cuda.generator.draw())
        return images.sum(), targets.sum()

    cuda.ends_well = False
    captured = Captured(step, torch.device("cuda"))
    for _ in range(EAGER_STEPS + 3):
        captured(torch.ones(2), torch.ones(2))
    assert captured.obstacle == (
        "it cannot be captured: CUDA error: operation failed due to a previous error during capture"
    )
    assert drawn == [*range(1, EAGER_STEPS + 4)]
    assert not cuda.open_pools  # or no memory would be given back any more


def test_a_step_that_fails_in_a_capture_that_ends_well_goes_on_too(cuda: Cuda) -> None:
    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if cuda.generator.is_capturing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.sum(), targets.sum()

    captured = Captured(step, torch.device("cuda"))
    for _ in range(EAGER_STEPS + 2):
        captured(torch.ones(2), torch.ones(2))
    assert captured.obstacle == "it cannot be captured: CUDA out of memory"
    assert not cuda.open_pools


def test_what_another_thread_draws_now_and_then_keeps_no_step_from_its_graph(cuda: Cuda) -> None:
    steps = itertools.count()

    def step(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if next(steps) in (1, 3):
            other = threading.Thread(target=random.random)
            other.start()
            other.join()
        return images.sum(), targets.sum()

    captured = Captured(step, torch.device("cuda"))
    random.random()  # nor does what was drawn between steps
    for _ in range(4 + EAGER_STEPS + 2):
        captured(torch.ones(2), torch.ones(2))
        random.random()
    assert captured.is_replaying and cuda.replayed == 2 and not captured.obstacle


def test_pixels_that_are_read_ahead_are_those_of_the_step_whatever_step_comes_next() -> None:
    run = training()
    steps = [0, 1, 2, 7, 3, 3, 4]
    wanted = {step: training().stream.batch(step)[0] for step in steps}
    for step in steps:
        torch.testing.assert_close(run.stream.batch(step)[0], wanted[step])


def test_resident_pixels_make_the_same_batches() -> None:
    of, there = training().stream, training().stream
    resident = Images(of.images.pixels, of.images.spec, CPU, resident=torch.from_numpy(np.asarray(of.images.pixels)))
    stream = TrainingStream(resident, there.rows, there.targets, there.recipe, there.seed)
    for step in range(5):
        for one, other in zip(stream.batch(step), of.batch(step), strict=True):
            torch.testing.assert_close(one, other)


def test_queued_steps_are_part_of_what_the_end_of_a_slice_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoft.train.readings.STEPS_BEHIND", {"cpu": 3})
    run, pace, saver = training(), SimpleNamespace(expected=2.0), SimpleNamespace(seconds=0.5)
    bench = SimpleNamespace(image_seconds=0.01, shop=SimpleNamespace(validation=range(10)))
    for _ in range(5):
        run.advance()
    assert run.queued == 3
    assert _ending_seconds(bench, run, pace, saver) == pytest.approx(3 * 2.0 + 0.1 + 0.5)  # type: ignore[arg-type]
    run.settle()
    assert run.queued == 0
    assert _ending_seconds(bench, run, pace, saver) == pytest.approx(0.1 + 0.5)  # type: ignore[arg-type]


class Ahead:
    """A run on a device that is eight steps behind, each of which takes it a hundredth of a second."""

    facts: Mapping[str, object] = MappingProxyType({})
    stream = SimpleNamespace(batch_size=8, steps_per_pass=20)

    def __init__(self) -> None:
        self.step = self.done = 0

    @property
    def queued(self) -> int:
        return self.step - self.done

    def advance(self) -> list[StepTaken]:
        self.step += 1
        return self.read(8)

    def settle(self) -> list[StepTaken]:
        return self.read(0)

    def read(self, leave: int) -> list[StepTaken]:
        first, self.done = self.done, max(self.done, self.step - leave)
        return [StepTaken(step, 1.0, 0.1, 1.0, 0.01) for step in range(first + 1, self.done + 1)]


@pytest.mark.parametrize(("seconds_left", "until", "steps"), [(3.0, 0.25, 5), (3.0, 1.0, 20), (0.001, 1.0, 1)])
def test_a_short_slice_on_a_gpu_goes_by_the_steps_it_has_taken(
    seconds_left: float, until: float, steps: int, tmp_path: Path
) -> None:
    """What a step is guessed to take before one is known would have ended it."""
    folder = SimpleNamespace(curve=lambda trial: tmp_path / f"{trial}.csv")
    shop = SimpleNamespace(device=torch.device("cuda"), folder=folder, validation=range(4), check=lambda: None)
    job = SimpleNamespace(slice=Slice(Trial(0, "b", "full", 32, {}, 0), 0.0, until, 99.0), seconds_left=seconds_left)
    plan = SimpleNamespace(recipe=SimpleNamespace(passes=2))
    bench: Any = SimpleNamespace(shop=shop, job=job, plan=plan, trial=job.slice.trial, image_seconds=None)
    run: Any = Ahead()
    into: Any = SimpleNamespace(filling=0.0, facts={})
    saver: Any = SimpleNamespace(seconds=0.0, due=lambda: False)
    pace, _ = _advance(bench, run, into, saver)
    assert run.step == steps and run.queued == 0
    assert pace.steady == (None if steps < 5 else pytest.approx(0.01))


class SlowAtFirst(Ahead):
    """A run on cores, whose first step takes a hundred times as long as the others."""

    def advance(self) -> list[StepTaken]:
        self.step = self.done = self.step + 1
        return [StepTaken(self.step, 1.0, 0.1, 1.0, 18.0 if self.step == 1 else 0.18)]


@pytest.mark.parametrize(("image_seconds", "steps"), [(None, 1), (0.005, 20), (0.5, 1)])
def test_on_cores_a_first_step_does_not_end_a_slice_that_forward_passes_show_to_hold_more(
    image_seconds: float | None, steps: int, tmp_path: Path
) -> None:
    """Where nobody has measured any, or they take so long, it is believed: the step after it may be as slow."""
    folder = SimpleNamespace(curve=lambda trial: tmp_path / f"{trial}.csv")
    shop = SimpleNamespace(device=torch.device("cpu"), folder=folder, validation=range(4), check=lambda: None)
    job = SimpleNamespace(slice=Slice(Trial(0, "b", "full", 32, {}, 0), 0.0, 1.0, 99.0), seconds_left=9.0)
    plan = SimpleNamespace(recipe=SimpleNamespace(passes=2))
    bench: Any = SimpleNamespace(shop=shop, job=job, plan=plan, trial=job.slice.trial, image_seconds=image_seconds)
    into: Any = SimpleNamespace(filling=0.0, facts={})
    saver: Any = SimpleNamespace(seconds=0.0, due=lambda: False)
    run: Any = SlowAtFirst()
    _advance(bench, run, into, saver)
    assert run.step == steps


def test_behind_a_slice_its_memory_on_a_gpu_is_given_back_and_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append("given back"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: called.append("counted anew"))

    def late(job: Job) -> None:
        called.append("slice")
        raise TooLate("it was late")

    worker = Worker(SimpleNamespace(bench=late))  # type: ignore[arg-type]
    report = worker.run(Job(Slice(Trial(0, "b", "full", 32, {}, 0), 0.0, 1.0, 99.0), 0.0))
    assert report.error == "it was late"
    assert called == ["slice", "given back", "counted anew"]


class Queue:
    """Of a device that still has work."""

    def __init__(self) -> None:
        self.is_done = False

    def synchronize(self) -> None:
        self.is_done = True


def test_a_closed_run_has_nothing_queued_that_still_writes_its_weights() -> None:
    """Nobody settles it after an error, and the next trial's weights take the place of its own."""
    run, queue = training(), Queue()
    run.advance()
    run._queue = queue  # type: ignore[assignment]
    run.close()
    assert queue.is_done


def test_pixels_that_could_not_be_read_are_not_taken_for_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.zeros((4, 8, 8, 3), np.uint8))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    reads: list[int] = []

    def breaks_once(of: np.memmap, rows: np.ndarray) -> np.ndarray:
        reads.append(len(rows))
        if len(reads) == 1:
            raise OSError("the disk is away")
        return np.asarray(of[rows])

    monkeypatch.setattr(resident, "take", breaks_once)
    monkeypatch.setattr(resident, "_free", lambda device: 2**30)
    held = resident.Resident(torch.device("meta"))
    with pytest.raises(OSError, match="the disk is away"):
        held.pixels(pixels)
    assert held.pixels(pixels) is not None
    assert reads == [4, 4]


def test_a_closed_run_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its graph holds all activations of a step; the collector of cycles may not come for minutes."""
    monkeypatch.setitem(FOLDED_FROM_PIXELS, "cpu", 0)
    run = training()
    gc.collect()
    gc.disable()
    try:
        run.advance()
        assert run.folded
        held = [weakref.ref(part) for part in (run, run.classifier, run.scored())]
        run.close()
        del run
        assert [part() for part in held] == [None, None, None]
    finally:
        gc.enable()
