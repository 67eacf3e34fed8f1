"""What only a GPU shows; without one nothing here runs."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoft.media.image import resident
from autoft.media.image.batches import Images, TrainingStream
from autoft.media.image.pixel_cache import PixelMap
from autoft.media.image.resident import Resident
from autoft.parts.network import Network
from autoft.tasks.single_label import SingleLabel
from autoft.testing.training import everything, small_network
from autoft.train.arithmetic import Arithmetic
from autoft.train.captured import EAGER_STEPS
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.values.backbone import InputSpec
from autoft.values.plan import Plan
from autoft.values.target import Targets

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

COUNT, SIDE, STEPS = 64, 32, 12


def training(
    change: Callable[[nn.Module], nn.Module] = lambda module: module, at: float = 0.0, dropout: float = 0.0
) -> GradientRun:
    """Of all of a small network on the GPU; groups but the first begin at pass `at`."""
    device, network = torch.device("cuda"), small_network()
    network = Network.of(change(network.module), InputSpec(SIDE))
    plan = everything(network)
    recipe = replace(plan.recipe, batch_size=8, augment="crop_flip", dropout=dropout)
    (names,) = (group.names for group in plan.groups)
    early, late = (replace(plan.groups[0], names=some) for some in (names[-4:], names[:-4]))
    plan = Plan((early, replace(late, from_pass=at)), plan.head, recipe=recipe)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    images = Images(pixels, network.input, device, resident=torch.from_numpy(pixels).to(device))  # type: ignore[arg-type]
    stream = TrainingStream(images, np.arange(COUNT), np.arange(COUNT) % 2, recipe, 0)
    task = SingleLabel().on(Targets("single_label", "one_of", ("a", "b")))
    return GradientRun(Classifier.of(network, 2).to(device), plan, stream, task, Arithmetic("bf16"))


def eager(run: GradientRun) -> GradientRun:
    run.captured.obstacle = "not wanted"
    return run


def losses(run: GradientRun, steps: int = STEPS) -> list[float]:
    taken = [*itertools.chain.from_iterable(run.advance() for _ in range(steps)), *run.settle()]
    assert [step.step for step in taken] == list(range(run.step - steps + 1, run.step + 1))
    return [step.loss for step in taken]


def assert_same(one: GradientRun, other: GradientRun) -> None:
    for name, tensor in one.model_tensors().items():
        torch.testing.assert_close(other.model_tensors()[name], tensor, rtol=2e-2, atol=2e-3)


def with_dropout(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Dropout(0.5))


@pytest.mark.parametrize("change", [lambda module: module, with_dropout])
def test_a_replayed_step_is_the_eager_step(change: Callable[[nn.Module], nn.Module]) -> None:
    captured, plain = training(change), eager(training(change))
    assert losses(captured) == pytest.approx(losses(plain), rel=1e-2)
    assert captured.captured.is_replaying and captured.facts["step"] == "a CUDA graph"
    assert_same(captured, plain)


def test_what_is_left_out_is_the_same_in_parts_and_in_a_graph() -> None:
    whole, parts = eager(training(dropout=0.5)), training(dropout=0.5)
    parts.at_once = 2
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-2)
    assert parts.captured.is_replaying


def test_groups_that_begin_later_make_a_new_graph() -> None:
    captured, plain = training(at=1.0), eager(training(at=1.0))
    per_pass = captured.stream.steps_per_pass
    assert per_pass > EAGER_STEPS
    losses(captured, per_pass - 1)
    assert captured.captured.is_replaying
    losses(captured, 2)
    assert not captured.captured.is_replaying
    losses(captured, per_pass)
    assert captured.captured.is_replaying
    losses(plain, 2 * per_pass + 1)
    assert_same(captured, plain)


def test_a_pause_changes_nothing() -> None:
    straight, halting, again = training(with_dropout), training(with_dropout), training(with_dropout)
    losses(straight)
    losses(halting, STEPS // 2)
    again.go_on(halting.passes, halting.model_tensors(), halting.training_tensors())
    losses(again, STEPS - STEPS // 2)
    assert_same(straight, again)


class Asking(nn.Module):
    """Asks the device for a value, which no graph can."""

    def forward(self, values: Tensor) -> Tensor:
        return values * (1.0 if values.sum().item() > 0 else 2.0)


def test_a_step_that_cannot_be_captured_goes_on_as_it_is() -> None:
    def asking(module: nn.Module) -> nn.Module:
        return nn.Sequential(module, Asking())

    run, plain = training(asking), eager(training(asking))
    assert losses(run) == pytest.approx(losses(plain), rel=1e-2)
    assert run.facts["step"].startswith("eager: it cannot be captured: ")


def test_a_loss_that_breaks_names_its_step() -> None:
    run = training()
    losses(run, 6)
    with torch.no_grad():
        run.classifier.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 7"):
        losses(run)


class Hungry(nn.Module):
    """Takes a gigabyte an image, for as long as it is at work."""

    def forward(self, values: Tensor) -> Tensor:
        torch.empty(len(values), 2**30, dtype=torch.uint8, device=values.device)
        return values


def test_what_does_not_fit_into_memory_goes_in_halves() -> None:
    gc.collect()  # what other tests have left
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(3.5 * 2**30 / total)
    try:
        run = training(lambda module: nn.Sequential(module, Hungry()))
        assert all(np.isfinite(losses(run)))
        assert run.facts["images_at_once"] in (1, 2)  # what is free depends on what ran before
        assert run.facts["step"]  # a graph, unless that finds the memory in pieces
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_batches_are_those_of_a_cpu() -> None:
    on_gpu = training().stream
    pixels = on_gpu.images.pixels
    pinned = replace_images(on_gpu, Images(pixels, on_gpu.images.spec, torch.device("cuda")))
    on_cpu = replace_images(on_gpu, Images(pixels, on_gpu.images.spec, torch.device("cpu")))
    for step in range(4):
        images, targets = on_cpu.batch(step)
        for stream in (on_gpu, pinned):
            there, wanted = stream.batch(step)
            torch.testing.assert_close(there.cpu(), images, rtol=1e-4, atol=1e-4)
            assert torch.equal(wanted.cpu(), targets)


def replace_images(stream: TrainingStream, images: Images) -> TrainingStream:
    return TrainingStream(images, stream.rows, stream.targets, stream.recipe, stream.seed)


def test_pixels_stay_on_the_device_while_they_fit(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("pixels")
    files = []
    for number in range(3):
        np.save(folder / f"{number}.npy", np.full((10, SIDE, SIDE, 3), number, np.uint8))
        files.append(np.load(folder / f"{number}.npy", mmap_mode="r"))
    held = Resident(torch.device("cuda"))
    monkeypatch.setattr(
        resident,
        "_free",
        lambda device: 4 * (files[0].nbytes * 2) - sum(tensor.nbytes for tensor in held._held.values()),
    )
    for number in (0, 1, 2, 0, 2):
        found = held.pixels(pixel_map(files[number]))
        assert found is not None and found.is_cuda and bool((found == number).all())
        assert len(held._held) <= 2
    monkeypatch.setattr(resident, "_free", lambda device: 0)
    held = Resident(torch.device("cuda"))
    assert held.pixels(pixel_map(files[0])) is None


def pixel_map(pixels: np.ndarray) -> PixelMap:
    assert isinstance(pixels, np.memmap)
    return pixels
