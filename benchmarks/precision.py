"""Training in fp32 and bf16, channels last and contiguous: CPU seconds of one thread, what is chosen, and accuracy.

    python benchmarks/precision.py              # ten minutes of one core
    python benchmarks/precision.py --seeds 0    # speed alone; on a GPU in seconds on the wall

Speed: steps as autoft takes them (AdamW, averaged weights, clipped gradients) of networks of random weights on noise,
beside what a worker would decide by its few steps (`autoft/train/precision.py`), and what deciding costs. Accuracy:
EfficientNet-Lite0 with its ImageNet weights, all of it fine-tuned at 64 pixels on the 1,000 images of
`examples/fashion`, scored in fp32 on 2,000 further ones, with the same seeds in fp32 and bf16. The evidence for
"Training steps are computed in what a few of them show to be fastest" in ARCHITECTURE.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

import common
import make_fashion
import numpy as np
import torch
from autoft_lite import LiteZoo
from common import Check
from PIL import Image
from subject import CLASSES, TASK, Subject, waiting

from autoft.builtin.freeze import Full
from autoft.media.image.batches import Images, TrainingStream
from autoft.parts.network import Network
from autoft.train import precision, step_timing
from autoft.train.arithmetic import Arithmetic, Layout, Numbers, candidates, usual
from autoft.train.classifier import Classifier
from autoft.train.gradient import GradientRun
from autoft.values.space import Circumstances

# Network, input size, images a step: on a core as many as go through at a time (`PIXELS_AT_ONCE`).
SETTINGS = (
    ("tf_efficientnet_lite0", 64, 32),
    ("tf_efficientnet_lite0", 224, 8),
    ("resnet50", 224, 8),
    ("convnext_tiny", 224, 8),
    ("vit_tiny_patch16_224", 224, 8),
)
GPU_BATCH = 128
WARM_UP_STEPS = 6  # on a GPU a step is captured behind the first ones
PASSES, SIDE = 2, 64
LONGEST_DECISION = 3.0
NOISE = 0.005


@dataclass(frozen=True)
class Speed:
    """Seconds of an image in each arithmetic, the least of some steps; what is chosen, why, and in how many seconds."""

    network: str
    size: int
    batch: int
    seconds: dict[str, float]
    chosen: str
    why: str
    deciding: float
    device: str

    @property
    def against_best(self) -> float:
        """How many times as long as in the fastest arithmetic a step takes in the chosen one."""
        return self.seconds[self.chosen] / min(self.seconds.values())


@dataclass(frozen=True)
class Accuracies:
    """Shares of the further images that are right, by seed."""

    fp32: tuple[float, ...]
    bf16: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        """What bf16 has more, by seed."""
        return tuple(b - f for f, b in zip(self.fp32, self.bf16, strict=True))

    @property
    def mean(self) -> float:
        """Of the differences."""
        return statistics.mean(self.differences)

    @property
    def standard_error(self) -> float:
        """Of that mean."""
        return statistics.stdev(self.differences) / len(self.differences) ** 0.5


@dataclass(frozen=True)
class Result:
    """Where, how fast, and how good if that was asked for."""

    device: str
    threads: int
    speeds: tuple[Speed, ...]
    accuracies: Accuracies | None


def speed(name: str, size: int, batch: int, device: torch.device, repeats: int) -> Speed:
    """Steps in each arithmetic, one after the other, then the decision, which knows nothing of them."""
    found = Subject.of(name, size, 4 * batch, device)
    seconds = {str(one): step_seconds(found, one, batch, repeats) / batch for one in candidates(found.network, device)}
    began = clock(device)
    tried = step_timing.Subject(name, found.network, size, batch, device)
    timings = precision.Timings(precision.setting_of(tried), precision.measure(tried, 60.0))
    choice = timings.choice(usual(found.network, device))
    return Speed(
        name, size, batch, seconds, str(choice.arithmetic), choice.why, clock(device) - began, timings.setting.device
    )


def step_seconds(found: Subject, arithmetic: Arithmetic, batch: int, repeats: int) -> float:
    """The least that a step took."""
    device = found.images.device
    run = found.run(batch=batch, arithmetic=arithmetic)
    with arithmetic.training(device):
        for _ in range(WARM_UP_STEPS if device.type == "cuda" else 1):
            run.advance()
        taken = []
        for _ in range(repeats):
            began = clock(device)
            run.advance()
            taken.append(clock(device) - began)
    return min(taken)


def clock(device: torch.device) -> float:
    """Seconds of the processor; of a GPU those on the wall, when it has done all."""
    waiting(device)()
    return time.perf_counter() if device.type == "cuda" else time.process_time()


# ---------------------------------------------------------------- accuracy


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pixels `(n, SIDE, SIDE, 3)` uint8 of Fashion-MNIST as the network sees them, and classes `(n,)`."""

    pixels: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, part: make_fashion.Part, rows: Iterable[int]) -> Drawn:
        """These rows of a part."""
        chosen = [*rows]
        images = (Image.fromarray(part.pixels[row]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for row in chosen)
        return cls(
            np.stack([np.asarray(image.convert("RGB")) for image in images]), part.labels[chosen].astype(np.int64)
        )


def accuracies(seeds: int, device: torch.device) -> Accuracies:
    """The same trainings in fp32 and in bf16."""
    backbone = next(one for one in LiteZoo().backbones() if one.name == "lite/efficientnet_lite0")
    network = LiteZoo().build(backbone)
    layout = usual(network, device).layout
    network.module.to(memory_format=Arithmetic("fp32", layout).memory_format)
    taken: set[bytes] = set()
    train, test = (make_fashion.Part.read(make_fashion.DEBIAN, name) for name in ("train", "t10k"))
    seen = Drawn.of(train, train.choose(make_fashion.EXAMPLE_A_CLASS, taken))
    further = Drawn.of(test, test.choose(make_fashion.FURTHER_A_CLASS, taken))
    fp32, bf16 = (
        tuple(accuracy(network, seen, further, Arithmetic(numbers, layout), seed, device) for seed in range(seeds))
        for numbers in get_args(Numbers)
    )
    return Accuracies(fp32, bf16)


def accuracy(
    network: Network, seen: Drawn, further: Drawn, arithmetic: Arithmetic, seed: int, device: torch.device
) -> float:
    """The share of the further images that are right after `PASSES` of full fine-tuning; scored in fp32."""
    plan = Full().plan(network.stages, Full().space_for(Circumstances(images=len(seen.labels))).starts[0])
    images = Images(seen.pixels, network.input, device, arithmetic.memory_format)  # type: ignore[arg-type]
    stream = TrainingStream(images, np.arange(len(seen.labels)), seen.labels, plan.recipe, seed)
    run = GradientRun(Classifier.of(network, CLASSES).to(device), plan, stream, TASK, arithmetic)
    with arithmetic.training(device):
        while run.passes < PASSES:
            run.advance()
        run.settle()
    others = Images(further.pixels, network.input, device, arithmetic.memory_format)  # type: ignore[arg-type]
    classifier = run.scored()
    with torch.inference_mode():
        answers = [classifier(batch).argmax(1).cpu() for batch in others.batches(np.arange(len(further.labels)))]
    right = float((torch.cat(answers).numpy() == further.labels).mean())
    print(f"{arithmetic}, seed {seed}: {right:.4f}", flush=True)
    return right


# ---------------------------------------------------------------- the result


def checks(result: Result) -> Iterator[Check]:
    """What is chosen against the fastest, what that costs, and what it costs in accuracy."""
    for one in result.speeds:
        what = f"{one.network}, {one.size} px: a step in {one.chosen}, of one in the fastest"
        yield Check(what, f"{one.against_best:.2f}", f"<= {precision.CLEARLY}", one.against_best <= precision.CLEARLY)
        what = f"{one.network}, {one.size} px: seconds of deciding"
        yield Check(what, f"{one.deciding:.1f}", f"<= {LONGEST_DECISION:g}", one.deciding <= LONGEST_DECISION)
    if (found := result.accuracies) is not None:
        noise = max(NOISE, 2 * found.standard_error)
        what = f"accuracy in bf16 less that in fp32, {len(found.fp32)} seeds"
        yield Check(what, f"{found.mean:+.4f}", f"within {noise:.4f}", abs(found.mean) <= noise)


def show(result: Result) -> None:
    """Milliseconds of an image, by network and arithmetic."""
    names = tuple(map(str, (Arithmetic(*pair) for pair in product(get_args(Numbers), get_args(Layout)))))
    rows = [
        (
            f"{one.network} {one.size} px, {one.batch} images",
            *(f"{1000 * one.seconds[name]:.2f}" if name in one.seconds else "" for name in names),
            one.chosen,
            one.why,
        )
        for one in result.speeds
    ]
    title = f"milliseconds of an image in training, {result.device}, {result.threads} threads"
    common.show(title, ("network", *names, "chosen", "why"), rows)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="steps of each arithmetic that are timed")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each; 0: speed alone")
    parser.add_argument("--networks", default="", help="only those whose name has this in it; none: accuracy alone")
    parser.add_argument("--name", default="precision", help="of the result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [one for one in SETTINGS if options.networks in one[0]]
    speeds = []
    for name, size, batch in chosen:
        speeds.append(speed(name, size, GPU_BATCH if device.type == "cuda" else batch, device, options.repeats))
        print(speeds[-1], flush=True)
    found = accuracies(options.seeds, device) if options.seeds > 1 else None
    result = Result(speeds[0].device if speeds else device.type, 1, tuple(speeds), found)
    show(result)
    return common.publish(options.name, result, [*checks(result)])


if __name__ == "__main__":
    sys.exit(main())
