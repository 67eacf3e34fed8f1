"""`Captured`: a training step as one CUDA graph, which the device runs without waiting for Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

EAGER_STEPS: Final = 3
"""Before a capture: libraries choose their kernels and the optimiser makes its moments in the first steps."""


class Captured:
    """A step of fixed shapes: the first few times as it is, then captured and replayed (on a GPU).

    Small networks are bound by the time Python takes to launch their kernels: a whole step as one graph takes none of
    it (PyTorch's notes on CUDA graphs, whole-network capture). A step that cannot be captured, because it asks the
    device for a value or draws from Python's or NumPy's random numbers, stays as it is, and `obstacle` says why.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._drawn = _python_randomness()
        self.obstacle = "" if device.type == "cuda" else "no GPU"
        self.begin_anew()

    @property
    def is_replaying(self) -> bool:
        """Whether it has been captured."""
        return self._graph is not None

    def begin_anew(self) -> None:
        """What the step does has changed."""
        self._graph, self._eager = None, 0

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What the step gives: scalars on the device, good until the next call."""
        if self._graph is None and not self.obstacle and self._eager >= EAGER_STEPS:
            self._capture(images, targets)
        if self._graph is None:
            self._eager += 1
            return self._step(images, targets)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._results

    def _capture(self, images: Tensor, targets: Tensor) -> None:
        if self._drawn != _python_randomness():
            self.obstacle = "the network draws random numbers that are not torch's"
            return
        graph = torch.cuda.CUDAGraph()
        self._images, self._targets = images.clone(), targets.clone()
        try:
            # Another thread of this process may pin memory meanwhile; that is no fault of this one.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._results = self._step(self._images, self._targets)
        except RuntimeError as error:  # and out of memory, which is one
            self.obstacle = f"it cannot be captured: {str(error).splitlines()[0]}"
            return
        self._graph = graph


def _python_randomness() -> int:
    """A number that changes when Python's or NumPy's global random numbers are drawn from."""
    numpys = np.random.get_state(legacy=False)["state"]
    return hash((random.getstate(), numpys["key"].tobytes(), numpys["pos"]))
