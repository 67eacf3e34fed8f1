"""`Captured`: a training step as one CUDA graph, which the device runs without waiting for Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np
import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

EAGER_STEPS: Final = 3
"""Before a capture: libraries choose their kernels and the optimiser makes its moments in the first steps."""
MOST_EAGER_STEPS: Final = 32
"""After so many in which random numbers were drawn, there is no capture."""


class Captured:
    """A step of fixed shapes: the first few times as it is, then captured and replayed (on a GPU).

    Small networks are bound by the time Python takes to launch their kernels: a whole step as one graph takes none of
    it (PyTorch's notes on CUDA graphs, whole-network capture). A step that cannot be captured, because it asks the
    device for a value or draws from Python's or NumPy's random numbers, stays as it is, and `obstacle` says why.

    Those random numbers are the process' own: what another thread draws meanwhile cannot be told from what the step
    does. But a step that draws does so each time, others now and then: so it takes `EAGER_STEPS` steps on end in which
    nobody draws, and `MOST_EAGER_STEPS` without them are the network's doing.
    """

    def __init__(self, step: Step, device: torch.device, obstacle: str = "") -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self.obstacle = obstacle if device.type == "cuda" else "no GPU"
        self.begin_anew()

    @property
    def is_replaying(self) -> bool:
        """Whether it has been captured."""
        return self._graph is not None

    def begin_anew(self) -> None:
        """What the step does has changed."""
        self._graph, self._eager, self._undrawn = None, 0, 0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the step gives: scalars on the device, good until the next call."""
        if self._graph is None and not self.obstacle and self._undrawn >= EAGER_STEPS:
            self._capture(images, targets)
        if self._graph is None:
            return self._step(images, targets) if self.obstacle else self._watched(images, targets)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._results

    def _watched(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The step as it is; whether anybody drew random numbers meanwhile decides on a capture."""
        before = _python_randomness()
        results = self._step(images, targets)
        self._eager += 1
        self._undrawn = self._undrawn + 1 if before == _python_randomness() else 0
        if self._eager >= MOST_EAGER_STEPS and not self._undrawn:
            self.obstacle = "the network draws random numbers that are not torch's"
        return results

    def _capture(self, images: Tensor, targets: Tensor) -> None:
        attempt = _Attempt()
        graph = torch.cuda.CUDAGraph()
        self._images, self._targets = images.clone(), targets.clone()
        try:
            # Another thread of this process may pin memory meanwhile; that is no fault of this one.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, attempt.pool, stream, capture_error_mode="thread_local"):
                self._results = self._step(self._images, self._targets)
        except RuntimeError as error:  # and out of memory, which is one
            self.obstacle = f"it cannot be captured: {str(error).splitlines()[0]}"
            attempt.undo()
            return
        self._graph = graph


class _Attempt:
    """What a capture changes besides its graph, and torch puts right only where the capture ends well."""

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        self._generator = torch.cuda.default_generators[self._device]
        self._before = self._generator.clone_state()
        self.pool = torch.cuda.graph_pool_handle()

    def undo(self) -> None:
        """Go on as if nothing had been tried."""
        # In torch 2.9 a generator has a capturing mode: left in it, dropout and whatever else draws would raise "Offset
        # increment outside graph capture".
        self._generator.graphsafe_set_state(self._before)
        # While a pool is being allocated to, no other memory is given back to the device. The first raises where that
        # has ended: the step had failed, and the capture ended well all the same.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._device, self.pool)
            torch._C._cuda_releasePool(self._device, self.pool)


def _python_randomness() -> int:
    """A number that changes when Python's or NumPy's global random numbers are drawn from."""
    numpys = np.random.get_state(legacy=False)["state"]
    return hash((random.getstate(), numpys["key"].tobytes(), numpys["pos"]))
