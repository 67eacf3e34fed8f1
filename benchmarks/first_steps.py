"""What the first optimiser steps of a process are made of, part by part, on a GPU or on cores.

    python benchmarks/first_steps.py --backbone efficientnet_lite0 --size 64 --batch 32

Each part is timed with the device brought to a stop before and after. Then comes a second network of the
same kind, which finds libraries and kernels loaded. Weights are random: they make no difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import common

PARTS = ("copy", "forward", "loss", "backward", "clip", "optimizer", "average")


@dataclass(frozen=True)
class Result:
    """Seconds: of what comes before the first step, and of each part of each step, of a first and a second network."""

    device: str
    setting: str
    before: dict[str, float]
    first: tuple[dict[str, float], ...]
    second: tuple[dict[str, float], ...]


def timed(seconds: dict[str, float], name: str, call: Callable[[], Any], wait: Callable[[], object]) -> Any:
    """The call's result; its seconds are added to `name`."""
    wait()
    began = time.perf_counter()
    result = call()
    wait()
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 4)
    return result


def measure(name: str, size: int, batch: int, steps: int, bf16: bool, channels_last: bool) -> Result:
    """Import, build and train two networks."""
    before: dict[str, float] = {}
    nothing = lambda: None  # noqa: E731
    torch = timed(before, "import torch", lambda: __import__("torch"), nothing)
    timm = timed(before, "import timm", lambda: __import__("timm"), nothing)
    from timm.utils.model_ema import ModelEmaV3

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wait = torch.cuda.synchronize if device.type == "cuda" else nothing
    timed(before, "context", lambda: torch.ones(1, device=device) + 1, nothing)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).contiguous(memory_format=layout)
    labels = torch.randint(10, (batch,), generator=generator).to(device)

    def network(label: str) -> tuple[dict[str, float], ...]:
        module = timed(before, f"{label}: build", lambda: timm.create_model(name, num_classes=10), nothing)
        timed(before, f"{label}: move", lambda: module.to(device, memory_format=layout).train(), wait)
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
        optimizer = torch.optim.AdamW(module.parameters())
        average = timed(before, f"{label}: average", lambda: ModelEmaV3(module, use_warmup=True), wait)
        found = []
        for number in range(steps):
            one: dict[str, float] = {}
            shown = timed(one, "copy", lambda: images.to(device), wait)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = timed(one, "forward", lambda shown=shown: module(shown), wait)
                loss = timed(one, "loss", lambda logits=logits: torch.nn.functional.cross_entropy(logits, labels), wait)
            timed(one, "backward", loss.backward, wait)
            timed(one, "clip", lambda: torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0), wait)
            timed(one, "optimizer", optimizer.step, wait)
            timed(one, "average", lambda number=number: average.update(module, step=number + 1), wait)
            optimizer.zero_grad(set_to_none=True)
            found.append(one)
        return tuple(found)

    first, second = network("first"), network("second")
    kind = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    setting = f"{name}, {size} px, batch {batch}, {'bf16' if bf16 else 'fp32'}"
    return Result(kind, f"{setting}, {'channels last' if channels_last else 'contiguous'}", before, first, second)


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--fp32", action="store_true", help="instead of bf16 autocast")
    parser.add_argument("--contiguous", action="store_true", help="instead of channels last")
    parser.add_argument("--name", default="first_steps", help="of the result file")
    options = parser.parse_args()
    result = measure(
        options.backbone, options.size, options.batch, options.steps, not options.fp32, not options.contiguous
    )
    rows = [
        (label, n, *(f"{step[part]:.3f}" for part in PARTS), f"{sum(step.values()):.3f}")
        for label, steps in (("first", result.first), ("second", result.second))
        for n, step in enumerate(steps, start=1)
    ]
    common.show(f"{result.device}: {result.setting}", ("network", "step", *PARTS, "s"), rows)
    common.show("before", tuple(result.before), [tuple(result.before.values())])
    return common.publish(options.name, result, ())


if __name__ == "__main__":
    sys.exit(main())
