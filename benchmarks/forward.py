"""Frozen forward passes in fp32 and bf16: images per CPU second of one thread, and heads fitted on either.

    python benchmarks/forward.py                # four minutes of one core
    python benchmarks/forward.py --splits 0     # speed alone

Speed: networks of random weights on noise, as features are computed, beside onnxruntime on the graph that torch
exports. Heads: those in closed form on features of the EfficientNet-Lites with their ImageNet weights, of Fashion-MNIST
at 96 pixels and scikit-learn's handwritten digits at 64, fitted on `TRAINED` images in fp32 or bf16, and scored in fp32
on the others, over the same random splits; and what is fitted on features that are 2 and 4 times as far off, which says
how far they may be. The evidence for "Features of training images may be bf16" in ARCHITECTURE.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import common
import make_fashion
import numpy as np
import onnxruntime
import torch
from autoft_lite import LiteZoo
from common import Check
from PIL import Image
from sklearn.datasets import load_digits
from subject import Subject
from torch import Tensor

from autoft.media.image.batches import Images
from autoft.parts.network import Network
from autoft.tasks.ridge import ridge_of_classes
from autoft.train.arithmetic import Arithmetic, Numbers
from autoft.train.forward import CLEARLY, FARTHEST, distance
from autoft.train.precision import device_name

# Network, input size, images at a time.
SETTINGS = (
    ("tf_efficientnet_lite0", 224, 16),
    ("tf_efficientnet_lite1", 224, 16),
    ("tf_efficientnet_lite2", 224, 16),
    ("tf_efficientnet_lite0", 64, 64),
    ("resnet50", 224, 16),
    ("convnext_tiny", 224, 8),
    ("vit_tiny_patch16_224", 224, 16),
)
CPU = torch.device("cpu")
FASHION = 3000
TRAINED = 600
FARTHER = (2, 4)
LARGEST_LOSS = 0.002


@dataclass(frozen=True)
class Speed:
    """Images per CPU second of a network in fp32, bf16 (both as features are computed) and onnxruntime's fp32."""

    network: str
    size: int
    batch: int
    fp32: float
    bf16: float
    onnxruntime: float

    @property
    def ratio(self) -> float:
        """How many times as fast bf16 is."""
        return self.bf16 / self.fp32


@dataclass(frozen=True)
class Heads:
    """Accuracies of heads fitted on features of one network for one data set, by split.

    `farther` are those fitted on features that are so many times as `off` as in bf16.
    """

    network: str
    data: str
    ratio: float
    off: float
    fp32: tuple[float, ...]
    bf16: tuple[float, ...]
    farther: dict[int, tuple[float, ...]]

    def gain(self, other: tuple[float, ...]) -> tuple[float, float]:
        """The mean of what others have more than those in fp32, and its standard error."""
        found = [o - f for o, f in zip(other, self.fp32, strict=True)]
        return statistics.mean(found), statistics.stdev(found) / len(found) ** 0.5


@dataclass(frozen=True)
class Result:
    """Where, how fast, and how good."""

    device: str
    threads: int
    speeds: tuple[Speed, ...]
    heads: tuple[Heads, ...]


# ---------------------------------------------------------------- speed


def speed(name: str, size: int, batch: int, repeats: int) -> Speed:
    """The least seconds of some passes each."""
    subject = Subject.of(name, size, batch)
    images = subject.images.normalised(subject.images.raw(np.arange(batch)))
    in_torch = [best(partial(features, subject.network, images, numbers), repeats) for numbers in get_args(Numbers)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        module = subject.network.module.to(memory_format=torch.contiguous_format)
        torch.onnx.export(module, (images.contiguous(),), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: images.contiguous().numpy()}
        elsewhere = best(lambda: session.run(None, given), repeats)
    return Speed(name, size, batch, *(batch / seconds for seconds in (*in_torch, elsewhere)))


def best(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest call; the first one is warm-up."""
    taken = []
    for _ in range(1 + repeats):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken[1:])


def features(network: Network, images: Tensor, numbers: Numbers) -> Tensor:
    """Features `(n, dim)` float32."""
    with torch.inference_mode(), Arithmetic(numbers).autocast(CPU):
        return network.features(images).float()


# ---------------------------------------------------------------- heads


@dataclass(frozen=True, eq=False)
class Data:
    """Pixels `(n, size, size, 3)` uint8 and class indices `(n,)`."""

    name: str
    pixels: np.ndarray
    labels: Tensor

    @classmethod
    def of(cls, name: str, grey: np.ndarray, labels: np.ndarray, size: int) -> Data:
        """Grey pixels `(n, height, width)` uint8, enlarged."""
        enlarged = (Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in grey)
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in enlarged])
        return cls(name, pixels, torch.from_numpy(labels.astype(np.int64)))

    @cached_property
    def classes(self) -> int:
        """How many there are."""
        return int(self.labels.max()) + 1


def data_sets() -> Iterator[Data]:
    """Two of real images."""
    fashion = make_fashion.Part.read(make_fashion.DEBIAN, "t10k")
    chosen = np.random.default_rng(0).permutation(len(fashion.labels))[:FASHION]
    yield Data.of("fashion, 96 px", fashion.pixels[chosen], fashion.labels[chosen], 96)
    digits = load_digits()
    yield Data.of("digits, 64 px", (digits.images * 255 / 16).astype(np.uint8), digits.target, 64)


def heads(name: str, network: Network, data: Data, splits: int) -> Heads:
    """Features once in each, then heads on them."""
    network.module.eval().to(memory_format=network.layout(CPU))
    images = Images(data.pixels, network.input, CPU, network.layout(CPU))  # type: ignore[arg-type]
    found, seconds = {}, {}
    for numbers in get_args(Numbers):
        began = time.process_time()
        batches = images.batches(np.arange(len(data.pixels)))
        found[numbers] = torch.cat([features(network, batch, numbers) for batch in batches])
        seconds[numbers] = time.process_time() - began
    exact, apart = found["fp32"], found["bf16"] - found["fp32"]
    score = partial(accuracies, exact, data, splits=splits)
    off = distance(exact.numpy(), found["bf16"].numpy())
    assert off is not None
    farther = {times: score(exact + times * apart) for times in FARTHER}
    return Heads(name, data.name, seconds["fp32"] / seconds["bf16"], off, score(exact), score(found["bf16"]), farther)


def accuracies(exact: Tensor, data: Data, fitted: Tensor, splits: int) -> tuple[float, ...]:
    """Of heads that are fitted on some images' `fitted` features, on the `exact` ones of the others."""
    found = []
    for seed in range(splits):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(data.labels)))
        train, test = order[:TRAINED], order[TRAINED:]
        head = ridge_of_classes(fitted[train], data.labels[train], data.classes)
        answers = (exact[test] @ head.weight.T + head.bias).argmax(1)
        found.append(float((answers == data.labels[test]).double().mean()))
    return tuple(found)


# ---------------------------------------------------------------- the result


def checks(result: Result) -> Iterator[Check]:
    """What bf16 costs where it is near enough to be used, over all of it."""
    used = [one for one in result.heads if one.off <= FARTHEST]
    if used:
        mean = statistics.mean(one.gain(one.bf16)[0] for one in used)
        what = f"accuracy of heads fitted in bf16 less fp32, mean of the {len(used)} of {len(result.heads)} near enough"
        yield Check(what, f"{mean:+.4f}", f">= -{LARGEST_LOSS:g}", mean >= -LARGEST_LOSS)


def show(result: Result) -> None:
    """Two tables."""
    title = f"images per CPU second, {result.device}, {result.threads} threads"
    rows = [
        (
            f"{one.network} {one.size} px, {one.batch} images",
            *(f"{figure:.1f}" for figure in (one.fp32, one.bf16, one.onnxruntime)),
            f"{one.ratio:.2f}" + (" (bf16)" if one.ratio >= CLEARLY else ""),
        )
        for one in result.speeds
    ]
    common.show(title, ("network", "fp32", "bf16", "onnxruntime fp32", "bf16 / fp32"), rows)
    rows = [
        (
            f"{one.network.rpartition('_')[2]}, {one.data}",
            f"{one.ratio:.2f}",
            f"{one.off:.3f}",
            f"{statistics.mean(one.fp32):.4f}",
            *("{:+.4f} ({:.4f})".format(*one.gain(other)) for other in (one.bf16, *one.farther.values())),
        )
        for one in result.heads
    ]
    farther = (f"{times} times as far off" for times in FARTHER)
    common.show(
        "accuracy of heads, and what others have more (standard error)",
        ("features", "ratio", "off", "fp32", "bf16", *farther),
        rows,
    )


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="passes of each that are timed")
    parser.add_argument("--splits", type=int, default=10, help="heads of each; 0: speed alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speeds = tuple(speed(*setting, options.repeats) for setting in SETTINGS)
    found = []
    for data in data_sets() if options.splits > 1 else ():
        for backbone in LiteZoo().backbones():
            found.append(heads(backbone.name, LiteZoo().build(backbone), data, options.splits))
            print(found[-1], flush=True)
    result = Result(device_name(CPU), 1, speeds, tuple(found))
    show(result)
    return common.publish("forward", result, [*checks(result)])


if __name__ == "__main__":
    sys.exit(main())
