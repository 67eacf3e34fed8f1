"""The pixel caches: every image decoded once, as uint8 squares in `.npy` files that all workers map into memory.

A cache file is named after its content: fingerprint of the data, size, interpolation, view, decoder. Behind the pixels
it says which images are unreadable. It appears whole or not at all; runs that need the same one build it once; the
folder can be deleted at any time.
"""

from __future__ import annotations

import io
import json
import mmap
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from autoft.errors import DataError, ReadFailed, UnreadableImage, UserError
from autoft.media.image.decode import DECODER, Pixels, decode, to_square
from autoft.system.disk_cache import alone, cache_root, new_files, open_kept
from autoft.system.parallel import Check, Progress, never_stop, ordered_map, unwatched
from autoft.values.backbone import Interpolation
from autoft.values.dataset import ValueRange
from autoft.values.handoff import View

PixelMap = np.memmap[tuple[int, ...], np.dtype[np.uint8]]

_PAUSES: Final = (0.1, 1.0)
"""Seconds before a file that could not be read is tried again."""


@dataclass(frozen=True)
class PixelCache:
    """One cache file: pixels `(rows, size, size, 3)` uint8 of the data with this fingerprint.

    `value_range` follows from the data, so it is not in the name.
    """

    fingerprint: str
    size: int
    interpolation: Interpolation = "bicubic"
    view: View = "crop"
    value_range: ValueRange | None = None

    @property
    def path(self) -> Path:
        """The `.npy` file."""
        return _folder() / f"{self.fingerprint}-{self.size}-{self.interpolation}-{self.view}-{DECODER}.npy"

    def open(self) -> PixelMap:
        """The pixels, mapped read-only; the file is not evicted while they are.

        Raises `FileNotFoundError` when there is no complete cache that can be read.
        """
        try:
            with open_kept(self.path) as file:
                pixels = _mapped(file)
        except (OSError, ValueError, EOFError) as error:
            raise FileNotFoundError(f"{self.path} cannot be used: {error}") from error
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self.size, self.size, 3):
            raise FileNotFoundError(f"{self.path} holds something else")
        return pixels

    def unreadable(self, rows: int) -> Mapping[int, str] | None:
        """Row to reason of the images that could not be decoded, whose pixels are zeros.

        None unless a cache of `rows` rows is there.
        """
        try:
            return _notes(self.path) if len(self.open()) == rows else None
        except FileNotFoundError:
            return None

    def header(self, rows: int) -> bytes:
        """What a `.npy` file of `rows` images begins with."""
        return npy_header("|u1", (rows, self.size, self.size, 3))

    def bytes_for(self, rows: int) -> int:
        """Bytes the pixels of `rows` images take."""
        return rows * self.size * self.size * 3


def npy_header(descr: str | list[tuple[Any, ...]], shape: tuple[int, ...]) -> bytes:
    """What a `.npy` file of that type and shape, in C order, begins with."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def take(pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy of some rows, `(n, size, size, 3)`; afterwards the map holds no memory of this process.

    Mapped pages count as the process's own while no other maps them. The system's page cache keeps them anyway.
    """
    taken = np.ascontiguousarray(pixels[rows])
    mapped = getattr(pixels, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return taken


def build(
    caches: Sequence[PixelCache],
    files: Sequence[Path],
    threads: int,
    check: Check = never_stop,
    progress: Progress = unwatched,
) -> Mapping[int, str]:
    """Row to reason of the unreadable images, once all `caches` of `files` exist; all are of one data set.

    Each file is decoded once for all caches that are missing; memory stays at a few images a thread. Where another
    process builds for the same images, its end is waited for. `check`, and `progress` after each file that is decoded
    here, may raise to stop; then nothing is left. Raises `UserError` when the cache folder cannot be written or has no
    room, `DataError` for an image that could be read when the folder was listed and cannot now.
    """
    known = {cache: cache.unreadable(len(files)) for cache in caches}
    if None in known.values():
        with _writing_errors(), alone(_folder() / f".{caches[0].fingerprint}.lock", check):
            known = {cache: cache.unreadable(len(files)) for cache in caches}
            missing = [cache for cache, unreadable in known.items() if unreadable is None]
            if missing:
                squares = ordered_map(partial(_squares, tuple(missing)), files, threads, check)
                return _build_missing(missing, files, _watched(squares, len(files), progress), check)
    return next(iter(known.values()), None) or {}


def _build_missing(
    missing: Sequence[PixelCache], files: Sequence[Path], squares: Iterable[_Decoded], check: Check
) -> Mapping[int, str]:
    unreadable: dict[int, str] = {}
    headers = {cache.path: cache.header(len(files)) for cache in missing}
    sizes = {cache.path: len(headers[cache.path]) + cache.bytes_for(len(files)) for cache in missing}
    with new_files(sizes, check) as outputs:
        for output, header in zip(outputs, headers.values(), strict=True):
            output.write(header)
        for row, decoded in enumerate(squares):
            for output, pixels in zip(outputs, decoded.pixels, strict=True):
                output.write(pixels.data)
            if decoded.problem:
                unreadable[row] = decoded.problem
        agreed = _agreed(unreadable, missing[0], files)
        for output in outputs:
            output.write(json.dumps(agreed).encode())
    return agreed


def _watched(decoded: Generator[_Decoded], count: int, progress: Progress) -> Iterator[_Decoded]:
    with closing(decoded):  # when progress raises
        for number, one in enumerate(decoded, start=1):
            yield one
            progress(number, count)


def _agreed(unreadable: Mapping[int, str], cache: PixelCache, files: Sequence[Path]) -> Mapping[int, str]:
    """What the caches that are there already say is unreadable, or else this. Raises `DataError` when more is now."""
    complete = map(_notes, _folder().glob(f"{cache.fingerprint}-*-{DECODER}.npy"))
    noted = next((notes for notes in complete if notes is not None), None)
    if noted is None:
        return unreadable
    for row in sorted(set(unreadable) - set(noted)):
        raise DataError(f"{files[row]} could be decoded before and cannot now ({unreadable[row]}); restore it")
    return noted


@dataclass(frozen=True)
class _Decoded:
    """One file: its pixels for each cache, zeros where `problem` says why it is unreadable."""

    pixels: tuple[Pixels, ...]
    problem: str = ""


def _squares(caches: tuple[PixelCache, ...], file: Path) -> _Decoded:
    try:
        pixels = _read(file, caches[0].value_range)
    except UnreadableImage as error:
        return _Decoded(tuple(np.zeros((cache.size, cache.size, 3), np.uint8) for cache in caches), str(error))
    return _Decoded(tuple(to_square(pixels, cache.size, cache.interpolation, cache.view) for cache in caches))


def _read(file: Path, value_range: ValueRange | None) -> Pixels:
    """The image. What is no fault of the file is tried again, and is never taken for one: it ends the build."""
    for pause in _PAUSES:
        try:
            return decode(file, value_range)
        except ReadFailed:
            time.sleep(pause)
    try:
        return decode(file, value_range)
    except ReadFailed as error:
        raise DataError(f"{file} cannot be read: {error}; mend that, and start again") from error


# ---------------------------------------------------------------- the files


def _folder() -> Path:
    return cache_root() / "pixels"


def _mapped(file: BinaryIO) -> PixelMap:
    """The array in an open `.npy` file, mapped. Raises `ValueError` or `EOFError` when it is damaged."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return np.memmap(file, dtype, "r", offset=file.tell(), shape=shape)


def _notes(path: Path) -> Mapping[int, str] | None:
    """Row to reason, as it stands behind the pixels; None when the file is damaged or gone."""
    try:
        with open_kept(path) as file:
            pixels = _mapped(file)
            file.seek(pixels.offset + pixels.nbytes)
            return {int(row): str(reason) for row, reason in json.loads(file.read()).items()}
    except (OSError, ValueError, EOFError):
        return None


@contextmanager
def _writing_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        hint = "set AUTOFT_CACHE_DIR to a folder that can be written and has room"
        raise UserError(f"the pixel cache in {cache_root()} cannot be written ({cause}); {hint}") from error
