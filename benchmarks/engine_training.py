"""Images a second of autoft's training beside a plain loop (P) and one that a DataLoader over JPEGs feeds (D).

    python benchmarks/engine_training.py
    python benchmarks/engine_training.py --networks efficientnet_lite0:32:8 --warm-up 2 --seconds 0.2    # a rehearsal

P: eager, bf16 autocast on a GPU, channels last, uint8 pixels on the device, normalised there, AdamW; no augmentation,
no averaged weights, never waits for the device. D is the same loop behind as many workers as there are cores, which
decode, resize, crop and normalise JPEGs of 500 x 375. autoft augments, averages weights, clips gradients and has a
learning rate for each stage, as a search has it. BatchNorm is held in all of them, as autoft does. Weights are random,
each network has a process of its own. P in PyTorch's own layout is shown too: for some networks it is the faster one.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import common
import numpy as np
import timm
import torch
from common import Check
from PIL import Image
from subject import CLASSES, Subject, pixels_of, waiting
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import Compose, Normalize, RandomCrop, Resize, ToTensor

NETWORKS = "efficientnet_lite0:96:128,resnet50:224:128,convnext_tiny:224:128"
TARGETS = {"efficientnet_lite0": (2.0, 5.0), "resnet50": (1.0, 2.0), "convnext_tiny": (1.0, 2.0)}  # times P, times D
IMAGES, PHOTO = 2048, (500, 375)
REPEATS = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Effort:
    """How long is measured: steps of warm-up, seconds of each repeat, augmentation of autoft's training."""

    warm_up: int
    seconds: float
    augment: str


@dataclass(frozen=True)
class Pace:
    """Images a second, the median of `each` repeat; seconds of the `first` step and of the whole `warm_up`.

    `how` is what autoft says of its steps: a CUDA graph, or why not.
    """

    images_per_second: float
    each: tuple[float, ...]
    first: float
    warm_up: float
    how: str = ""


@dataclass(frozen=True)
class Setting:
    """A network, its input size in pixels, the images of a step."""

    network: str
    size: int
    batch: int

    @classmethod
    def read(cls, text: str) -> Setting:
        """From NETWORK:SIZE:BATCH."""
        name, size, batch = text.split(":")
        return cls(name, int(size), int(batch))


@dataclass(frozen=True)
class Line:
    """What was measured of one setting, by "P", "P contiguous", "D" and "autoft"; what failed is in `errors`."""

    setting: Setting
    paces: dict[str, Pace] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def rate(self, what: str) -> float:
        """Images a second, 0.0 when there is none."""
        return self.paces[what].images_per_second if what in self.paces else 0.0

    def times(self, what: str) -> float:
        """autoft's images a second over those of `what`."""
        return self.rate("autoft") / self.rate(what) if self.rate(what) else 0.0


@dataclass(frozen=True)
class Result:
    """The device, and one line a setting."""

    device: str
    lines: tuple[Line, ...]


def device_here() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """What the GPU calls itself, or "cpu"."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def pace(
    step: Callable[[], object], batch: int, effort: Effort, wait: Callable[[], object], calibration: int = 5
) -> Pace:
    """How fast steps go once they are steady; the device is waited for at both ends of each repeat."""

    def seconds(count: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        return time.perf_counter() - began

    first = seconds(1)
    warm_up = first + seconds(effort.warm_up)
    count = max(1, round(effort.seconds * calibration / seconds(calibration)))
    each = tuple(count * batch / seconds(count) for _ in range(REPEATS))
    return Pace(
        round(statistics.median(each), 1), tuple(round(rate, 1) for rate in each), round(first, 3), round(warm_up, 3)
    )


class PlainLoop:
    """The eager loop that P and D share."""

    def __init__(self, setting: Setting, device: torch.device, layout: torch.memory_format) -> None:
        module = timm.create_model(setting.network, num_classes=CLASSES)
        self._module = module.to(device, memory_format=layout).train()  # type: ignore[call-overload]
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
        self._device, self._layout = device, layout

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step on normalised images."""
        images = images.to(self._device, non_blocking=True, memory_format=self._layout)
        labels = labels.to(self._device, non_blocking=True)
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            loss = nn.functional.cross_entropy(self._module(images), labels)
        loss.backward()
        self._optimizer.step()


def plain(setting: Setting, effort: Effort, layout: torch.memory_format) -> Pace:
    """P."""
    device = device_here()
    loop = PlainLoop(setting, device, layout)
    pixels = torch.from_numpy(pixels_of(IMAGES, setting.size)).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.arange(IMAGES, device=device) % CLASSES
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))

    def step() -> None:
        rows = torch.randint(IMAGES, (setting.batch,), device=device)
        loop.step((pixels[rows].float() / 255 - mean) / std, labels[rows])

    return pace(step, setting.batch, effort, waiting(device))


class Photos(Dataset[tuple[Tensor, int]]):
    """JPEGs, decoded, resized, cropped and normalised when asked for."""

    def __init__(self, files: list[Path], size: int) -> None:
        self._files = files
        self._transform = Compose([Resize(size * 8 // 7), RandomCrop(size), ToTensor(), Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._files[index]) as image:
            return self._transform(image.convert("RGB")), index % CLASSES


def fed(setting: Setting, effort: Effort, files: list[Path]) -> Pace:
    """D: the loader is never at the end of an epoch, which would cost it a pause.

    Its batches come in bursts, one of each worker, so it is measured over several of them.
    """
    device, workers = device_here(), len(os.sched_getaffinity(0))
    loop = PlainLoop(setting, device, torch.channels_last)
    photos = Photos(files, setting.size)
    loader = DataLoader(
        photos,
        setting.batch,
        sampler=RandomSampler(photos, replacement=True, num_samples=10**7),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",  # a process that was spawned would spawn, and import torch in each
    )
    batches = iter(loader)
    longer = replace(effort, seconds=2 * effort.seconds)
    return pace(lambda: loop.step(*next(batches)), setting.batch, longer, waiting(device), 2 * workers)


def own(setting: Setting, effort: Effort) -> Pace:
    """autoft's training."""
    device = device_here()
    run = Subject.of(setting.network, setting.size, IMAGES, device).run(0, setting.batch, effort.augment)
    found = pace(run.advance, setting.batch, effort, waiting(device))
    return replace(found, how=", ".join(f"{name}: {value}" for name, value in run.facts.items()))


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375, smooth with some noise, as large as photos of that size."""
    width, height = PHOTO
    noise = np.random.default_rng(0).integers(-12, 13, (height, width, 3), np.int16)

    def make(number: int) -> Path:
        small = np.random.default_rng(number).integers(0, 256, (height // 25, width // 25, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize(PHOTO, Image.Resampling.BICUBIC)).astype(np.int16)
        path = folder / f"{number:05}.jpg"
        pixels = np.clip(smooth + np.roll(noise, number, (0, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=88)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(make, range(count)))


def measure(setting: Setting, effort: Effort, files: list[Path]) -> Line:
    """All of one network; autoft first, so that nothing is warm for it. What fails leaves the rest."""
    line = Line(setting)
    for name, what in {
        "autoft": partial(own, setting, effort),
        "P": partial(plain, setting, effort, torch.channels_last),
        "P contiguous": partial(plain, setting, effort, torch.contiguous_format),
        "D": partial(fed, setting, effort, files),
    }.items():
        try:
            line.paces[name] = what()
            print(f"{setting}: {name} {line.paces[name]}", flush=True)
        except Exception as error:
            line.errors[name] = f"{type(error).__name__}: {error}"[:500]
            print(f"{setting}: {name} failed, {line.errors[name]}", flush=True)
    return line


def in_own_process(setting: Setting, effort: Effort, files: list[Path]) -> Line:
    """`measure`, such that a process that dies is a line too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, setting, effort, files).result()
        except Exception as error:
            return Line(setting, errors={"all": f"{type(error).__name__}: {error}"[:500]})


def checks(result: Result) -> Iterator[Check]:
    """Each network against its targets."""
    for line in result.lines:
        one = line.setting
        wanted = zip(("P", "D"), TARGETS.get(one.network, ()), strict=False)
        for what, least in wanted:
            name = f"{one.network}, {one.size} px, batch {one.batch}: autoft, times {what}"
            yield Check(name, f"{line.times(what):.2f}", f">= {least:g}", line.times(what) >= least)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="NETWORK:SIZE:BATCH, separated by commas")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before anything counts")
    parser.add_argument("--seconds", type=float, default=1.5, help=f"of each of the {REPEATS} repeats")
    parser.add_argument("--augment", default="crop_flip", choices=["none", "crop", "crop_flip"], help="autoft's")
    parser.add_argument("--photos", type=int, default=2000, help="JPEGs that are made for the loader")
    options = parser.parse_args()
    effort = Effort(options.warm_up, options.seconds, options.augment)
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), options.photos)
        kib = sum(file.stat().st_size for file in files) / len(files) / 1024
        print(f"{len(files)} JPEGs of {kib:.0f} KiB", flush=True)
        settings = map(Setting.read, options.networks.split(","))
        lines = tuple(in_own_process(setting, effort, files) for setting in settings)
    result = Result(device_name(), lines)
    names = ("autoft", "P", "P contiguous", "D")
    rows = [
        (
            *(line.setting.network, line.setting.size, line.setting.batch),
            *(f"{line.rate(name):.0f}" for name in names),
            *(f"{line.times(name):.2f}" for name in names[1:]),
            f"{line.paces['autoft'].first:.1f}" if "autoft" in line.paces else "",
        )
        for line in lines
    ]
    ratios = (f"times {name}" for name in names[1:])
    columns = itertools.chain(("network", "px", "batch"), names, ratios, ("first step s",))
    common.show(f"images/s in training, {result.device}", tuple(columns), rows)
    return common.publish("engine_training", result, list(checks(result)))


if __name__ == "__main__":
    sys.exit(main())
