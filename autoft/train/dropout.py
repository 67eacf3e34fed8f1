"""`Dropout`, and `Draws`: what is left out of a batch, the same in however many parts its images go through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class Draws:
    """Draws masks for all images of a batch at a time, and gives each part its own of them.

    Otherwise a trial whose batches go through in other parts later, for lack of memory, would go on as another one. The
    n-th mask that is asked for in each part is of one draw. Outside of a batch a mask is of what is at hand.
    """

    def __init__(self) -> None:
        self._images = self._start = self._count = self._next = 0
        self._drawn: list[Tensor] = []

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """For a batch of so many images."""
        self._images = images
        try:
            yield
        finally:
            self._count, self._drawn = 0, []

    def part(self, start: int, count: int) -> None:
        """So many images from `start` on are about to go through, perhaps once more."""
        self._start, self._count, self._next = start, count, 0

    def mask(self, values: Tensor, shape: Sequence[int], rate: float) -> Tensor:
        """What to multiply `values` with: zeros at that rate, and else what keeps their mean, `(len(values), *shape)`.

        Where an image has several rows, as of patches, they lie side by side.
        """
        if not self._count or len(values) % self._count:
            return _drawn(values, len(values), shape, rate)
        rows = len(values) // self._count
        if self._next == len(self._drawn):
            self._drawn.append(_drawn(values, rows * self._images, shape, rate))
        whole = self._drawn[self._next]
        self._next += 1
        return whole[rows * self._start : rows * (self._start + self._count)]


def _drawn(values: Tensor, rows: int, shape: Sequence[int], rate: float) -> Tensor:
    return values.new_empty((rows, *shape)).bernoulli_(1.0 - rate).div_(1.0 - rate)


class Dropout(nn.Dropout):
    """Dropout of values by `draws`."""

    def __init__(self, rate: float, draws: Draws) -> None:
        super().__init__(rate)
        self._draws = draws

    def forward(self, values: Tensor) -> Tensor:
        """In training, values with some of them zero."""
        return values * self._draws.mask(values, values.shape[1:], self.p) if self.training else values
