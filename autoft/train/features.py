"""Pooled features of a frozen backbone: one forward pass an image, kept on disk for every worker and every trial."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from autoft.media.image.batches import Images
from autoft.parts.network import Network
from autoft.system.disk_cache import alone
from autoft.system.parallel import Check, never_stop
from autoft.train.arithmetic import Arithmetic, Numbers
from autoft.train.halves import in_halves
from autoft.train.row_table import RowTable
from autoft.values.handoff import View

SECONDS_A_BATCH: Final = 0.5
"""What a forward pass between two checks may take."""

_MEASURED_SECONDS: Final = 1.0
_ROWS_BETWEEN_CHECKS: Final = 4096


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Features `(rows, dim)` float32 under `folder`, one file for each backbone's weights on one kind of pixels.

    Whatever rows are asked for, in whatever order, only those that nobody has computed before are computed; what a pass
    has computed when it is stopped stays. Two that need the same do it once: the second waits for the first. The pixels
    are known by the data's `fingerprint`, the `view`, and the name of their cache file.
    """

    folder: Path
    fingerprint: str
    view: View

    def features(self, network: Network, images: Images, rows: np.ndarray, check: Check = never_stop) -> Tensor:
        """Features `(len(rows), dim)` on the CPU; `check` is called each second or so and may raise to give up."""
        return self.leading(network, images, rows, lambda: False, check)

    def leading(
        self,
        network: Network,
        images: Images,
        rows: np.ndarray,
        enough: Callable[[], bool],
        check: Check = never_stop,
        numbers: Numbers = "fp32",
    ) -> Tensor:
        """Features `(n, dim)` of the first n of `rows`: all, or as many as there are when `enough` says so.

        `enough` is asked after each batch, about twice a second; at least one row comes back. The rows of
        `stratified_order` make every such beginning a fair sample. In "bf16" what nobody has computed in fp32 is
        computed by autocast, and kept apart: who asks for fp32 never gets it.
        """
        one = self.passing(network, images, rows, numbers)
        one.recall(check)
        if not one.known.all():
            with one.alone(enough, check):
                one.recall(check)
                one.compute(enough, check)
        return one.beginning()

    def missing(self, network: Network, images: Images, rows: np.ndarray, check: Check = never_stop) -> int:
        """Of how many of these rows nobody has the features yet, in whatever numbers."""
        one = self.passing(network, images, rows, "bf16")
        one.recall(check)  # which takes those in fp32, too
        return int((~one.known).sum())

    def row_seconds(self, network: Network, images: Images, rows: np.ndarray, check: Check = never_stop) -> float:
        """Seconds that the features of one of these rows take, 0.0 when too few are missing to tell.

        Measured on the first of those rows that are not, for a second or two and not on the first batch, which is
        warm-up; they are kept.
        """
        one = self.passing(network, images, rows)
        one.recall(check)
        pace = _Pace(one.known)
        with one.alone(lambda: True, check):
            one.compute(pace.is_measured, check)
        return pace.seconds_a_row

    def path(self, network: Network, images: Images) -> Path:
        """The file that holds the features of this network for these pixels."""
        sample = _sample(network, images)
        # Apart, as what is read of stages is so much larger that nobody would see the others change.
        samples = torch.split(sample, [network.own_dim, network.tapped], dim=1)
        return self.folder / f"{self.name(images, network.module.state_dict(), *samples)}.npy"

    def name(self, images: Images, weights: Mapping[str, Tensor], *samples: Tensor) -> str:
        """Name in hex of what a forward pass with these weights makes of those pixels.

        Weights alone do not make it: the same ones under another forward must not find the old file. So `samples`,
        what a few images come to, are part of it, coarsely.
        """
        digest = hashlib.blake2b(digest_size=16)
        pixels = f"{self.fingerprint} {self.view} {Path(images.pixels.filename or '').name} {images.pixels.shape}"
        digest.update(f"{pixels} {images.spec} {images.device.type}".encode())
        for name, tensor in weights.items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        for sample in (one for one in samples if one.numel()):
            digest.update(_signature(sample).encode())
        return digest.hexdigest()

    def passing(self, network: Network, images: Images, rows: np.ndarray, numbers: Numbers = "fp32") -> FeaturePass:
        """A pass over `rows` that has not begun."""
        values, known = np.empty((len(rows), network.dim), np.float32), np.zeros(len(rows), np.bool_)
        return FeaturePass(network, images, rows, self.path(network, images), numbers, values, known)


@dataclass(frozen=True, eq=False)
class FeaturePass:
    """A pass over `rows`: `values` `(n, dim)` of those that are `known` `(n,)`.

    The file in `path` keeps those in fp32, one beside it those in other `numbers`.
    """

    network: Network
    images: Images
    rows: np.ndarray
    path: Path
    numbers: Numbers
    values: np.ndarray
    known: np.ndarray

    def recall(self, check: Check) -> None:
        """Take what is kept, in fp32 if it is there."""
        for path in dict.fromkeys((self.path, self._own_path)):  # one, of a pass in fp32
            wanted = np.flatnonzero(~self.known)
            with self._table(path) as table:
                for place, row in table.read(self.rows[wanted]):
                    self.values[wanted[place]], self.known[wanted[place]] = row, True
                    if place % _ROWS_BETWEEN_CHECKS == 0:
                        check()

    def compute(self, enough: Callable[[], bool], check: Check) -> None:
        """Compute what is not known, and keep it, until `enough` says yes after a batch."""
        with self._table(self._own_path) as table:
            for some in _paced(np.flatnonzero(~self.known), self.images.forward_size):
                check()
                self._keep(table, some, self.forward(some, self.numbers))
                if enough():
                    return

    def forward(self, places: np.ndarray, numbers: Numbers) -> np.ndarray:
        """Features `(len(places), dim)` float32 of the rows at these places, computed in these numbers."""
        device = self.images.device
        with torch.inference_mode(), Arithmetic(numbers).autocast(device):
            batch = self.images.normalised(self.images.raw(self.rows[places]))
            features: np.ndarray = in_halves(self.network.features, batch).float().cpu().numpy()
        return features

    def keep(self, places: np.ndarray, features: np.ndarray) -> None:
        """Know the features of the rows at these places."""
        with self._table(self._own_path) as table:
            self._keep(table, places, features)

    def _keep(self, table: RowTable, places: np.ndarray, features: np.ndarray) -> None:
        self.values[places], self.known[places] = features, True
        table.write(self.rows[places], features)

    def beginning(self) -> Tensor:
        """Features `(n, dim)` of the first rows, up to the first that is not known."""
        count = len(self.known) if self.known.all() else int(self.known.argmin())
        return torch.from_numpy(self.values[:count])

    @contextmanager
    def alone(self, enough: Callable[[], bool], check: Check) -> Iterator[None]:
        """For one at a time, so that two do not compute the same. Who has had enough of waiting does not wait."""

        def wait() -> None:
            check()
            if enough():
                raise _Enough

        with ExitStack() as stack:
            with suppress(_Enough, OSError):
                stack.enter_context(alone(self._own_path.with_suffix(".lock"), wait))
                stack.enter_context(self._table(self._own_path, create=True))
            yield

    @property
    def _own_path(self) -> Path:
        return self.path if self.numbers == "fp32" else self.path.with_suffix(f".{self.numbers}.npy")

    def _table(self, path: Path, create: bool = False) -> AbstractContextManager[RowTable]:
        return RowTable.open(path, len(self.images.pixels), self.network.dim, create)


class _Enough(Exception):
    """The time for waiting is over."""


class _Pace:
    """How fast a pass goes, from its second batch on: the first is warm-up."""

    def __init__(self, known: np.ndarray) -> None:
        self._known = known
        self._marks: list[tuple[float, int]] = []

    def is_measured(self) -> bool:
        """To be called after each batch: whether there was enough time to tell."""
        self._marks.append((time.monotonic(), int(self._known.sum())))
        return len(self._marks) > 1 and self._marks[-1][0] - self._marks[0][0] > _MEASURED_SECONDS

    @property
    def seconds_a_row(self) -> float:
        """Seconds a row, 0.0 when there were no two batches."""
        if len(self._marks) < 2:
            return 0.0
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first)


def _paced(places: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """`places` in parts of at most `most` that take about `SECONDS_A_BATCH` each; small ones first.

    Their sizes are powers of two: for each shape that it meets oneDNN keeps kernels and weights laid out for them, some
    hundred MB where a busy machine makes all sizes different.
    """
    start, size = 0, 1 << (min(most, 4).bit_length() - 1)
    while start < len(places):
        began = time.monotonic()
        yield places[start : start + size]
        start += size
        took = max(time.monotonic() - began, 1e-6)
        wanted = max(1, min(most, 2 * size, int(size * SECONDS_A_BATCH / took)))
        size = 1 << (wanted.bit_length() - 1)


def _sample(network: Network, images: Images) -> Tensor:
    with torch.inference_mode():
        return network.features(images.normalised(images.raw(np.arange(min(2, len(images.pixels))))))


def _signature(sample: Tensor) -> str:
    """A sample in four numbers, so coarse that rounding in other threads does not show."""
    values = sample.double().cpu().flatten()
    directions = torch.randn(3, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = values.norm()
    return " ".join([f"{size:.3g}", *(f"{part:.2f}" for part in directions @ values / size)])
