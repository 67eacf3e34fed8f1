"""`Rehearsal`: training steps of a throw-away copy of a network, timed, and cut short where they take too long."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoft.parts.cut import hold_norms
from autoft.parts.network import Network
from autoft.train.arithmetic import Arithmetic
from autoft.train.captured import EAGER_STEPS, Captured
from autoft.train.folding import FOLDED_FROM_PIXELS, Pair, fold_norms


class TooSlow(Exception):
    """A step was cut short at its limit."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A backbone's network at an input size, of which `batch` images go forward and backward at a time."""

    backbone: str
    network: Network
    size: int
    batch: int
    device: torch.device


class Rehearsal:
    """Forward and backward passes of a copy of a network, all of which trains, on images of noise.

    What a pass costs goes neither by weights nor by pixels; on a GPU it is captured if it can be, as training steps
    are. The network itself stays as it is. `clock` is what the seconds are of: the processor's where one thread
    computes, so that what else runs there has no part in them. `until`, by `time.monotonic`, every step is cut short.
    """

    def __init__(self, subject: Subject, until: float = math.inf) -> None:
        device = subject.device
        self._module = copy.deepcopy(subject.network.module).to(device).train()
        hold_norms(self._module)
        self._parameters = [*self._module.requires_grad_().parameters()]
        self._device, self._size, self._until = device, subject.size, until
        self._folded: tuple[Pair, ...] = ()
        if subject.batch * subject.size**2 >= FOLDED_FROM_PIXELS[device.type]:
            self._folded = fold_norms(self._module, self._noise(1))
        self._queue = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._warm: tuple[Arithmetic, Tensor, Captured] | None = None
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock: Callable[[], float] = time.thread_time if alone else time.perf_counter

    def step(self, arithmetic: Arithmetic, count: int, limit: float) -> float:
        """Seconds that `count` images take forward and backward, with kernels found and memory taken.

        The first time in an arithmetic is warm-up; behind the first layer of it that comes after `limit` seconds it
        raises `TooSlow`, and `FloatingPointError` for features that are not finite.
        """
        with arithmetic.training(self._device), self._queued():
            if self._warm is None or self._warm[0] != arithmetic or len(self._warm[1]) != count:
                self._warm = self._warmed_up(arithmetic, count, limit)
            _, images, captured = self._warm
            began = self._now()
            captured(images, images)
            return self._now() - began

    def close(self) -> None:
        """Give back the memory, which nothing queued still uses; what it took at most is not counted as the trial's."""
        if self._queue is not None:
            self._queue.synchronize()
        for pair in self._folded:
            pair.unfold()
        del self._module, self._parameters
        self._warm = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def _warmed_up(self, arithmetic: Arithmetic, count: int, limit: float) -> tuple[Arithmetic, Tensor, Captured]:
        self._warm = None  # its memory, before there is more
        self._module.to(memory_format=arithmetic.memory_format)
        images = self._noise(count).contiguous(memory_format=arithmetic.memory_format)
        captured = Captured(lambda images, _: self._take(arithmetic, images), self._device)
        end = self.clock() + limit
        with cut_short(self._module, lambda: self.clock() > end or time.monotonic() > self._until):
            loss, _ = captured(images, images)
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"features in {arithmetic} are not finite")
        for _ in range(EAGER_STEPS if self._device.type == "cuda" else 0):  # the last one is the capture
            captured(images, images)
        return arithmetic, images, captured

    def _noise(self, count: int) -> Tensor:
        own = torch.Generator(self._device).manual_seed(0)  # the trial's random numbers stay what they are
        return torch.randn(count, 3, self._size, self._size, generator=own, device=self._device)

    def _take(self, arithmetic: Arithmetic, images: Tensor) -> tuple[Tensor, Tensor]:
        with arithmetic.autocast(self._device):
            loss = self._module(images).float().square().mean()
        torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return loss.detach(), loss.detach()

    @contextmanager
    def _queued(self) -> Iterator[None]:
        """On a stream of its own: a graph cannot be captured on the default one."""
        if self._queue is None:
            yield
            return
        self._queue.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._queue):
            yield

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self.clock()


@contextmanager
def cut_short(module: nn.Module, enough: Callable[[], bool]) -> Iterator[None]:
    """Raise `TooSlow` behind whatever layer is done when it is `enough`, on the way back too."""

    def check(*_: object) -> None:
        if enough():
            raise TooSlow

    def watch(_module: nn.Module, _inputs: object, output: object) -> None:
        check()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(check)  # type: ignore[no-untyped-call]

    layers = [layer for layer in module.modules() if not any(True for _ in layer.children())]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
