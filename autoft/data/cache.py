"""The pixel caches: every image decoded once, as uint8 squares in `.npy` files that all workers map into memory.

A cache file is named after its content: fingerprint of the data, size, interpolation, view, decoder. It appears whole
or not at all, so builders that run at the same time do no harm, and the folder can be deleted at any time.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from autoft.data.decode import DECODER, Pixels, decode, to_square
from autoft.data.parallel import ordered_map
from autoft.errors import UnreadableImage, UserError
from autoft.files import move_durably, write_atomic
from autoft.types import Interpolation, View

DEFAULT_LIMIT_GIB: Final = 20.0
_ABANDONED_SECONDS: Final = 3600.0  # a live builder writes every few seconds


def cache_root() -> Path:
    """Where autoft keeps what it can compute again: $AUTOFT_CACHE_DIR, else the user's cache folder."""
    if own := os.environ.get("AUTOFT_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = shared if shared.is_absolute() else Path("~/.cache").expanduser()
    return base / "autoft"


def cache_limit() -> int:
    """Bytes the pixel caches may take together: $AUTOFT_CACHE_LIMIT in GiB. Raises `UserError` if it is no number."""
    text = os.environ.get("AUTOFT_CACHE_LIMIT", str(DEFAULT_LIMIT_GIB))
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError) as error:
        raise UserError(f"AUTOFT_CACHE_LIMIT is {text!r}; give a number of GiB, such as 20") from error


@dataclass(frozen=True)
class PixelCache:
    """One cache file: pixels `(rows, size, size, 3)` uint8 of the data with this fingerprint."""

    fingerprint: str
    size: int
    interpolation: Interpolation = "bicubic"
    view: View = "crop"

    @property
    def path(self) -> Path:
        """The `.npy` file."""
        return _folder() / f"{self.fingerprint}-{self.size}-{self.interpolation}-{self.view}-{DECODER}.npy"

    @property
    def notes(self) -> Path:
        """The JSON file beside it: `{row: reason}` of the unreadable images, whose pixels are zeros."""
        return self.path.with_suffix(".json")

    def open(self) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
        """The pixels, mapped read-only. Raises `FileNotFoundError` when there is no complete cache."""
        try:
            pixels = np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise FileNotFoundError(f"{self.path} is damaged") from error
        with suppress(OSError):  # the time of last use decides what is evicted; another user's file keeps its own
            os.utime(self.path)
        return pixels  # type: ignore[no-any-return]

    def unreadable(self, rows: int) -> Mapping[int, str] | None:
        """Row to reason of the images that could not be decoded; None unless a cache of `rows` rows is there."""
        try:
            noted = json.loads(self.notes.read_text(encoding="utf-8"))
            complete = self.open().shape == (rows, self.size, self.size, 3)
        except (FileNotFoundError, ValueError):
            return None
        return {int(row): str(reason) for row, reason in noted.items()} if complete else None

    def bytes_for(self, rows: int) -> int:
        """Bytes the pixels of `rows` images take."""
        return rows * self.size * self.size * 3


def take(pixels: np.memmap[tuple[int, ...], np.dtype[np.uint8]], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A copy of some rows, `(n, size, size, 3)`; afterwards the map holds no memory of this process.

    Mapped pages count as the process's own while no other maps them. The system's page cache keeps them anyway.
    """
    taken = np.ascontiguousarray(pixels[rows])
    mapped = getattr(pixels, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return taken


def build(caches: Sequence[PixelCache], files: Sequence[Path], threads: int) -> Mapping[int, str]:
    """Row to reason of the unreadable images, once all `caches` of `files` exist.

    Each file is decoded once for all caches that are missing; memory stays at a few images a thread. Raises
    `UserError` when the cache folder cannot be written or has no room.
    """
    with _writing_errors():
        known = {cache: cache.unreadable(len(files)) for cache in caches}
        missing = [cache for cache, unreadable in known.items() if unreadable is None]
        if not missing:
            return next(iter(known.values()), None) or {}
        _make_room(sum(cache.bytes_for(len(files)) for cache in missing), {cache.path for cache in caches})
        return _build_missing(missing, files, threads)


def _build_missing(missing: Sequence[PixelCache], files: Sequence[Path], threads: int) -> Mapping[int, str]:
    unreadable: dict[int, str] = {}
    with ExitStack() as stack:
        outputs = [stack.enter_context(_new_npy(cache, len(files))) for cache in missing]
        for row, decoded in enumerate(ordered_map(partial(_squares, tuple(missing)), files, threads)):
            for output, pixels in zip(outputs, decoded.pixels, strict=True):
                output.write(pixels.data)
            if decoded.problem:
                unreadable[row] = decoded.problem
        for cache in missing:  # before the pixels get their name: a cache without notes counts as missing
            write_atomic(cache.notes, json.dumps({str(row): reason for row, reason in unreadable.items()}))
    return unreadable


@contextmanager
def _new_npy(cache: PixelCache, rows: int) -> Iterator[BinaryIO]:
    """A file to write the pixels to, row after row; it becomes the cache when the block ends without an error.

    Plain writes, not a memory map: on a full disk a write raises `OSError`, a map kills the process with SIGBUS.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, cache.size, cache.size, 3)}
    temporary = cache.path.with_name(f".{cache.path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        move_durably(temporary, cache.path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Decoded:
    """One file: its pixels for each cache, zeros where `problem` says why it is unreadable."""

    pixels: tuple[Pixels, ...]
    problem: str = ""


def _squares(caches: tuple[PixelCache, ...], file: Path) -> _Decoded:
    try:
        pixels = decode(file)
    except UnreadableImage as error:
        return _Decoded(tuple(np.zeros((cache.size, cache.size, 3), np.uint8) for cache in caches), str(error))
    return _Decoded(tuple(to_square(pixels, cache.size, cache.interpolation, cache.view) for cache in caches))


# ---------------------------------------------------------------- the folder and its bound


def _folder() -> Path:
    return cache_root() / "pixels"


@contextmanager
def _writing_errors() -> Iterator[None]:
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        cause = error.strerror or error
        hint = "set AUTOFT_CACHE_DIR to a folder that can be written and has room"
        raise UserError(f"the pixel cache in {cache_root()} cannot be written ({cause}); {hint}") from error


def _make_room(needed: int, in_use: set[Path]) -> None:
    """Delete the caches not used for longest until `needed` bytes fit under the limit; those `in_use` stay."""
    _remove_abandoned()
    sizes = {path: _status(path) for path in _folder().glob("*.npy")}
    present = {path: status for path, status in sizes.items() if status is not None}
    excess = sum(status.st_size for status in present.values()) + needed - cache_limit()
    for path in sorted(set(present) - in_use, key=lambda path: present[path].st_mtime_ns):
        if excess <= 0:
            break
        with suppress(OSError):  # some systems refuse while another process has it open
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
            excess -= present[path].st_size
    free = shutil.disk_usage(_folder()).free
    if needed > free:
        raise UserError(
            f"the pixel cache needs {needed / 2**30:.1f} GiB, {cache_root()} has {free / 2**30:.1f} GiB free; "
            "set AUTOFT_CACHE_DIR to a folder on a larger disk"
        )


def _remove_abandoned() -> None:
    """Delete what killed builders left behind."""
    for path in _folder().glob(".*.tmp"):
        status = _status(path)
        if status is not None and time.time() - status.st_mtime > _ABANDONED_SECONDS:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process was faster
        return None
